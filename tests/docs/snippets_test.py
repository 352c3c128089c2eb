#!/usr/bin/env python3
"""Runs what the documents show: the fenced blocks that are marked with the word `test`.

    ```cpp test     goes into one program per document, in order, and is compiled and run
    ```sh test      is run by bash, one script per document, with `whycache` on the PATH
    ```text         right after one of these: what it prints; a line `...` is any lines

/var/lib becomes a temporary directory, so that no block touches the machine.

Also compiles the lines at the top of tests/log/log_contract.h that add a log to its suite.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
END_OF_BLOCK = "--- end of block ---"

# Names that a document's snippets use without defining them.
PRELUDES = {
    "README.md": """
        void start() {}
        void print(std::string_view, std::string_view) {}
        whycache::Cache other("sqlite:///var/lib/flags.db", {.state_path = "/var/lib/other/"});
    """,
    "docs/guide/updating.md": """
        #include <whycache/cache.h>
        #include <chrono>
        #include <condition_variable>
        #include <mutex>
        #include <stop_token>
        #include <thread>
        using namespace std::chrono_literals;
        void report(const whycache::Error&) {}
        void warn(std::chrono::nanoseconds) {}
        void sleep_for(std::chrono::nanoseconds time, const std::stop_token& stop) {
          std::mutex mutex;
          std::unique_lock lock(mutex);
          std::condition_variable_any().wait_for(lock, stop, time, [] { return false; });
        }
        whycache::Cache other("sqlite:///var/lib/flags.db", {.state_path = "/var/lib/other/"});
    """,
    "docs/guide/prefork.md": """
        #include <whycache/cache.h>
        #include <cassert>
        #include <sys/wait.h>
        #include <unistd.h>
    """,
    "docs/guide/errors.md": """
        #include <whycache/cache.h>
        #include <cassert>
        #include <chrono>
        using namespace std::chrono_literals;
        void log_error(const char*) {}
        void alert(const whycache::Error&) {}
        whycache::Cache cache("sqlite:///var/lib/flags.db", {.update_bytes_max = 64U << 10});
    """,
    "docs/guide/sharing.md": """
        #include <whycache/cache.h>
        #include <filesystem>
        const bool made = std::filesystem::create_directory("/var/lib/flags");
    """,
    "docs/guide/changes.md": """
        #include <whycache/cache.h>
        #include <cassert>
        #include <chrono>
        #include <map>
        #include <string>
    """,
    "docs/guide/views.md": """
        #include <whycache/cache.h>
        #include <whycache/memo.h>
        #include <cassert>
        #include <optional>
        #include <random>
        std::string random_bytes(std::size_t size) {
          static std::mt19937 random(1);
          std::string bytes(size, '\\0');
          for (char& byte : bytes) byte = static_cast<char>(random());
          return bytes;
        }
    """,
}


@dataclasses.dataclass
class Block:
    line: int
    language: str
    code: str
    output: str | None = None


def marked_blocks(text: str) -> list[Block]:
    blocks: list[Block] = []
    end_of_marked = -1
    for fence in re.finditer(r"^```([^\n]*)\n(.*?)^```$\n?", text, re.MULTILINE | re.DOTALL):
        language, _, mark = fence[1].partition(" ")
        if mark == "test":
            if language not in ("cpp", "sh"):
                sys.exit(f"cannot test a block of {language!r}: {fence[0]}")
            blocks.append(Block(text.count("\n", 0, fence.start()) + 1, language, fence[2]))
            end_of_marked = fence.end()
        elif language == "text" and text[end_of_marked:fence.start()].strip() == "" and blocks:
            if blocks[-1].output is None and end_of_marked >= 0:
                blocks[-1].output = fence[2]
    return blocks


def program(prelude: str, blocks: list[Block]) -> str:
    code = "\n".join(f"#line {block.line + 1}\n{block.code}\nstd::puts(\"{END_OF_BLOCK}\");"
                     for block in blocks)
    includes = "\n".join(re.findall(r"^#include .*", code, re.MULTILINE))
    code = re.sub(r"^#include .*", "", code, flags=re.MULTILINE)
    return f"{includes}\n#include <cstdio>\n{prelude}\nint main() {{\n{code}\n}}\n"


def script(blocks: list[Block]) -> str:
    return "set -eo pipefail\n" + "".join(f"{block.code}echo '{END_OF_BLOCK}'\n"
                                          for block in blocks)


def run(command: list[str], directory: str, environment: dict[str, str]) -> str:
    done = subprocess.run(command, text=True, cwd=directory, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}: {command}\n{done.stdout}")
    return done.stdout


def matches(shown: str, printed: str) -> bool:
    pattern = "".join(r"(?:.*\n)*" if line.strip() == "..." else re.escape(line) + r"\n"
                      for line in shown.splitlines())
    return re.fullmatch(pattern, printed) is not None


def check_output(document: str, blocks: list[Block], printed: str) -> int:
    faults = 0
    for block, output in zip(blocks, printed.split(END_OF_BLOCK + "\n"), strict=False):
        output = output.removesuffix("\n") + "\n"  # `get` prints a value without a line feed
        if block.output is not None and not matches(block.output, output):
            faults += 1
            print(f"{document}:{block.line} shows\n{block.output}but this is printed:\n{output}")
    return faults


def check(document: pathlib.Path, build: pathlib.Path, compiler: str) -> int:
    name = str(document.relative_to(ROOT))
    blocks = marked_blocks(document.read_text())
    faults = 0
    for language in ("cpp", "sh"):
        chosen = [block for block in blocks if block.language == language]
        if not chosen:
            continue
        with tempfile.TemporaryDirectory(prefix="whycache-docs-") as directory:
            for used in ("state", "other"):
                os.mkdir(f"{directory}/{used}")
            environment = dict(os.environ, WHYCACHE_STATE=f"{directory}/state/",
                               PATH=f"{build / 'bin'}:{os.environ['PATH']}")
            environment.pop("WHYCACHE_LOG", None)
            source = (script(chosen) if language == "sh"
                      else program(PRELUDES.get(name, ""), chosen)).replace("/var/lib", directory)
            if language == "cpp":
                file, executable = f"{directory}/snippets.cc", f"{directory}/snippets"
                pathlib.Path(file).write_text(source)
                run([compiler, "-std=c++20", f"-I{ROOT / 'include'}", file, "-o", executable,
                     f"-L{build / 'lib'}", "-lwhycache", f"-Wl,-rpath,{build / 'lib'}",
                     "-pthread"], directory, environment)
                command = [executable]
            else:
                command = ["bash", "-c", source]
            faults += check_output(name, chosen, run(command, directory, environment))
        print(f"{name}: {len(chosen)} blocks of {language}")
    return faults


def contract_program() -> str:
    """Returns the lines of log_contract.h for a user's log, at global scope and in a namespace."""
    header = (ROOT / "tests/log/log_contract.h").read_text()
    comment = header.partition("#pragma once")[0]
    lines = re.findall(r"^//   (.*)", comment, re.MULTILINE)
    includes = [line for line in lines if line.startswith("#include")]
    shown = "\n".join(line for line in lines if line not in includes)
    if not includes or "INSTANTIATE" not in shown:
        sys.exit("log_contract.h does not begin with the lines for a log of one's own")
    store = """
        class MyStore final : public whycache::LogStore {
         public:
          std::unique_ptr<whycache::Log> open() override {
            return std::make_unique<OwnLog>(store_);
          }
         private:
          std::shared_ptr<SharedStore> store_ = std::make_shared<SharedStore>();
        };"""
    head = "\n".join([*includes, '#include "own_log.h"'])
    return f"{head}\n{store}\n{shown}\nnamespace application {{\n{shown}\n}}\n"


def check_contract(compiler: str) -> None:
    with tempfile.TemporaryDirectory(prefix="whycache-docs-") as directory:
        file = f"{directory}/contract.cc"
        pathlib.Path(file).write_text(contract_program())
        includes = [f"-I{ROOT / folder}" for folder in ("tests/log", "examples", "include")]
        run([compiler, "-std=c++20", "-fsyntax-only", *includes, file], directory,
            dict(os.environ))
    print("tests/log/log_contract.h: compiled")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--compiler", default="c++")
    arguments = parser.parse_args()
    documents = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
    check_contract(arguments.compiler)
    return min(1, sum(check(document, arguments.build, arguments.compiler)
                      for document in documents))


if __name__ == "__main__":
    sys.exit(main())
