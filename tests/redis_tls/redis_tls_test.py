#!/usr/bin/env python3
"""Runs tests/log/redis_tls_test.cc where the system has no hiredis with TLS, as Debian 12.

The source package of Python's `hiredis` contains the C library with hiredis_ssl. This test builds
it, and compiles the store of Redis with the test against it: so the code is tested with hiredis 1
as well as with the version of the system. What it has fetched and built stays in --directory.

If clang is installed, it has to find nothing in the files that no other build compiles here.
"""

import argparse
import concurrent.futures
import pathlib
import shlex
import shutil
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SKIPPED = 77
PACKAGE = "hiredis-2.3.2"  # contains hiredis 1.2.0
REQUIREMENT = (
    "hiredis==2.3.2 "
    "--hash=sha256:733e2456b68f3f126ddaf2cd500a33b25146c3676b97ea843665717bda0c5d43"
)
C_SOURCES = ("alloc", "async", "hiredis", "net", "read", "sds", "sockcompat", "ssl")
# The parts of the library that the store of Redis needs: one unit per layer, and some alone.
UNITS = {
    "base": ["src/base/*.cc"],
    "store": ["src/log/redis_store.cc", "src/log/redis_server.cc", "src/log/server_address.cc",
              "src/log/server_options.cc", "src/log/tls_failure.cc"],
    "log": ["src/log/tiered_log.cc", "src/log/head_tracker.cc", "src/log/head_record.cc",
            "src/log/log.cc", "src/log/memory_log.cc", "src/update/*.cc"],
    "connection": ["src/log/redis_connection.cc"],
    "tls": ["src/log/redis_tls.cc"],
    "support": ["tests/support/program.cc", "tests/support/redis_server.cc",
                "tests/support/tcp_proxy.cc"],
    "test": ["tests/log/redis_tls_test.cc"],
}


# No other build compiles these on such a system.
TLS_SOURCES = ("src/log/redis_tls.cc", "src/log/redis_connection.cc", "tests/log/redis_tls_test.cc")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wno-missing-field-initializers",
            "-Werror")


def run(*command):
    words = [str(word) for word in command]
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nexit code {done.returncode}: {shlex.join(words)}")
    return done.stdout


def fetch(directory):
    """Returns the folder of hiredis's C sources."""
    sources = directory / PACKAGE / "vendor" / "hiredis"
    if sources.exists():
        return sources
    requirements = directory / "requirements.txt"
    requirements.write_text(REQUIREMENT + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:",
         "--require-hashes", "--dest", directory, "--requirement", requirements],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    archive = directory / f"{PACKAGE}.tar.gz"
    if done.returncode != 0:
        print(f"{done.stdout}\nNOT TESTED: pip cannot fetch {PACKAGE}")
        sys.exit(SKIPPED)
    unpacked = directory / "unpacked"
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked)
    (unpacked / PACKAGE).rename(directory / PACKAGE)
    return sources


def options_of(directory):
    """Returns options of the compiler."""
    return ["-std=c++20", *WARNINGS, "-DWHYCACHE_WITH_REDIS=1", "-DWHYCACHE_WITH_REDIS_TLS=1",
            "-I", directory / "include", "-I", ROOT / "include", "-I", ROOT / "src",
            "-I", ROOT / "tests"]


def check_with_clang(directory, launcher):
    clang = shutil.which("clang++")
    if clang is None:
        print("NOT TESTED: clang++ is not installed, whose warnings these files must not have")
        return
    # A launcher remembers the result of a compilation, but not of -fsyntax-only.
    for source in TLS_SOURCES:
        run(*launcher, clang, "-O0", "-Wthread-safety", *options_of(directory), "-c", ROOT / source,
            "-o", directory / "clang.o")


def build(directory, sources, compiler, launcher):
    """Returns the program."""
    include = directory / "include"
    include.mkdir(exist_ok=True)
    if not (include / "hiredis").exists():
        (include / "hiredis").symlink_to(sources)
    commands = []
    objects = []
    for name in C_SOURCES:
        objects.append(directory / f"{name}.c.o")
        if not objects[-1].exists():
            commands.append(["cc", "-std=gnu99", "-O1", "-c", sources / f"{name}.c",
                             "-o", objects[-1]])
    for name, patterns in UNITS.items():
        unit = directory / f"{name}.cc"
        files = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
        text = "".join(f'#include "{path}"\n' for path in files)
        if not unit.exists() or unit.read_text() != text:
            unit.write_text(text)
        objects.append(directory / f"{name}.o")
        commands.append([
            *launcher, compiler, "-O0", *options_of(directory), "-c", unit, "-o", objects[-1]])
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda command: run(*command), commands))
    program = directory / "redis_tls_test"
    run(compiler, *objects, "-o", program, "-lgtest", "-lgtest_main", "-lssl", "-lcrypto", "-lzstd",
        "-pthread")
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--launcher", help="of the compiler: ccache")
    arguments = parser.parse_args()
    for program in ("redis-server", "openssl"):
        if shutil.which(program) is None:
            print(f"NOT TESTED: {program} is not installed")
            sys.exit(SKIPPED)
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    launcher = [arguments.launcher] if arguments.launcher else []
    program = build(directory, fetch(directory), arguments.compiler, launcher)
    check_with_clang(directory, launcher)
    sys.exit(subprocess.run([program, "--gtest_brief=1"]).returncode)


if __name__ == "__main__":
    main()
