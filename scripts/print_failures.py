#!/usr/bin/env python3
"""Prints the end of what each failed test of the last ctest run wrote, and their names again.

    scripts/print_failures.py BUILD_DIRECTORY
    scripts/print_failures.py --not-tested BUILD_DIRECTORY

A run with many tests prints the output of one that failed long before its summary. With
--not-tested: prints what tests said that they did not test, and why, which ctest does not print.
"""

import pathlib
import re
import sys

LINES_MAX = 40


def outputs(log):
    """Yields the name and the output of each test."""
    for section in re.split(r"^(?=\d+/\d+ Testing: )", log, flags=re.MULTILINE)[1:]:
        name = section.split("Testing: ", 1)[1].split("\n", 1)[0]
        output = section.partition("Output:\n")[2].rpartition("<end of output>")[0]
        yield name, output


def print_not_tested(log):
    names = {}
    for name, output in outputs(log):
        for reason in re.findall(r"(?:NOT TESTED|SKIPPED): (.+?)(?: \*+)?$", output, re.MULTILINE):
            names.setdefault(reason, dict.fromkeys([name]))[name] = None
    for reason, tests in names.items():
        first = next(iter(tests))
        more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
        print(f"NOT TESTED: {reason} ({first}{more})")


def main():
    results = pathlib.Path(sys.argv[-1]) / "Testing" / "Temporary"
    if sys.argv[1] == "--not-tested":
        print_not_tested((results / "LastTest.log").read_text(errors="replace"))
        return
    failed = [
        line.split(":", 1) for line in (results / "LastTestsFailed.log").read_text().splitlines()
    ]
    names = {name for _, name in failed}
    log = (results / "LastTest.log").read_text(errors="replace")
    for name, output in outputs(log):
        if name in names:
            lines = output.strip().splitlines()[1:]
            print(f"\n--- {name}, the last {min(len(lines), LINES_MAX)} of {len(lines)} lines:")
            print("\n".join(lines[-LINES_MAX:]))
    print("\nThe following tests FAILED:")
    for number, name in failed:
        print(f"\t{number:>4} - {name} (Failed)")
    print("Errors while running CTest")


if __name__ == "__main__":
    main()
