#!/usr/bin/env python3
"""Checks that calls which would leave dangling views do not compile, and that the error says why.

The error of each call must name the function and the type that says what to do.
"""

import argparse
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

PRELUDE = """
#include <whycache/cache.h>
struct Range {  // of temporary strings
  struct Iterator {
    using value_type = std::pair<std::string, std::string>;
    using difference_type = std::ptrdiff_t;
    value_type operator*() const { return {}; }
    Iterator& operator++() { return *this; }
    Iterator operator++(int) { return *this; }
    friend bool operator==(const Iterator&, const Iterator&) { return true; }
  };
  Iterator begin() const { return {}; }
  Iterator end() const { return {}; }
};
struct Keys : Range {
  struct Iterator {
    using value_type = std::string;
    using difference_type = std::ptrdiff_t;
    value_type operator*() const { return {}; }
    Iterator& operator++() { return *this; }
    Iterator operator++(int) { return *this; }
    friend bool operator==(const Iterator&, const Iterator&) { return true; }
  };
  Iterator begin() const { return {}; }
  Iterator end() const { return {}; }
};
"""

COLLECT = "CollectTheStringsInAContainerFirst"
KEEP = "KeepTheViewInAVariable"
STRING = "ReturnAStdStringInstead"
TRANSACT = "cache.transact([](whycache::Transaction& t) { %s; })"

ACCEPTED = ["cache.set_multi(std::vector<std::pair<std::string, std::string>>())",
            "cache.erase_multi(cache.view().keys())",
            "for (auto item : cache.view()) static_cast<void>(item)",
            TRANSACT % 'return t.contains("key")']
REFUSED = {
    "cache.set_multi(Range())": ("set_multi", COLLECT),
    "cache.set_multi_async(Range())": ("set_multi_async", COLLECT),
    "cache.erase_multi(Keys())": ("erase_multi", COLLECT),
    "cache.erase_multi_async(Keys())": ("erase_multi_async", COLLECT),
    "cache.get_multi(Keys())": ("get_multi", COLLECT),
    TRANSACT % "t.get_multi(Keys())": ("get_multi", COLLECT),
    'cache.view().get("key")': ("get", KEEP),
    "cache.view().first()": ("first", KEEP),
    "cache.view().last()": ("last", KEEP),
    "cache.view().begin()": ("begin", KEEP),
    "cache.keys().begin()": ("begin", KEEP),
    TRANSACT % 'return t.get("key")': ("transact", STRING),
    TRANSACT % "return t.items({})": ("transact", STRING),
}


def compile_calls(compiler: str, calls: list[str]) -> tuple[bool, str]:
    """Compiles each call on the line of its number, from 1. Returns what the compiler prints."""
    functions = "".join(f"#line {i}\nvoid call_{i}(whycache::Cache& cache) {{ {call}; }}\n"
                        for i, call in enumerate(calls, 1))
    source = f'{PRELUDE}#line 1 "call"\n{functions}'
    done = subprocess.run([compiler, "-std=c++20", "-fsyntax-only", f"-I{ROOT / 'include'}", "-x",
                           "c++", "-"], input=source, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    return done.returncode == 0, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default="c++")
    compiler = parser.parse_args().compiler
    faults = []
    compiles, printed = compile_calls(compiler, ACCEPTED)
    if not compiles:
        faults.append(f"an accepted call does not compile:\n{printed}")
    _, printed = compile_calls(compiler, list(REFUSED))
    errors = re.split(r"^call:(\d+):\d+: error: ", printed, flags=re.MULTILINE)
    text_of = dict(zip(errors[1::2], errors[2::2], strict=True))
    for i, (call, words) in enumerate(REFUSED.items(), 1):
        text = text_of.get(str(i))
        if text is None:
            faults.append(f"compiles: {call}")
        elif not all(word in text for word in (*words, "delete")):
            faults.append(f"refused without {words}: {call}\n{text}")
    print("\n".join(faults) or f"{len(ACCEPTED)} calls compile, {len(REFUSED)} are refused")
    return min(1, len(faults))


if __name__ == "__main__":
    sys.exit(main())
