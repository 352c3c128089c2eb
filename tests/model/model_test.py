#!/usr/bin/env python3
"""Explores every execution of publication.pml, and requires that each weakened form of it fails.

    model_test.py [--quick]

Needs spin and a C compiler; without them it says so and passes. --quick leaves out crashes.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

MODEL = pathlib.Path(__file__).with_name("publication.pml")

# What must hold, and the same with one thing left out, which must fail.
SOUND = [
    ("POINT",), ("VIEW",), ("POINT", "CRASHES=1"), ("VIEW", "CRASHES=1"),
]
WEAKENED = [
    ("POINT", "WITHOUT_ACQUIRE_FENCE"),
    ("POINT", "WITHOUT_RELEASE_FENCE"),
    ("POINT", "WITHOUT_VALIDATION"),
    ("POINT", "APPLIED_RELAXED"),
    ("POINT", "INDEX_RELAXED"),
    ("POINT", "PUBLISHED_EARLY"),
    ("VIEW", "WITHOUT_READER_FENCE"),
    ("VIEW", "WITHOUT_WRITER_FENCE"),
    ("VIEW", "WITHOUT_HORIZON"),
    ("VIEW", "APPLIED_RELAXED"),
    ("VIEW", "CRASHES=1", "RECOVERY_FORGETS_VIEWS"),
]


def explore(definitions):
    """Returns what the verifier found: errors, states, seconds."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="whycache-model-") as directory:
        subprocess.run(["spin", *(f"-D{name}" for name in definitions), "-a", MODEL], check=True,
                       cwd=directory, stdout=subprocess.DEVNULL)
        subprocess.run(["cc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=8192",
                        "-DMEMLIM=6000", "-o", "pan", "pan.c"], check=True, cwd=directory)
        done = subprocess.run(["./pan", "-m200000", "-n"], cwd=directory, capture_output=True,
                              text=True)
    errors = re.search(r"errors: (\d+)", done.stdout)
    states = re.search(r"(\S+) states, stored", done.stdout)
    if not errors or "max search depth too small" in done.stdout or "out of memory" in done.stdout:
        sys.exit(f"the exploration of {definitions} is not complete:\n{done.stdout}{done.stderr}")
    what = re.search(r"pan:1: (.*?) \(at depth", done.stdout)
    return int(errors[1]), int(float(states[1])), what[1] if what else "", time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not shutil.which("spin"):
        print("NOT TESTED: spin is not installed")
        return 0
    wrong = 0
    for definitions in SOUND + WEAKENED:
        must_fail = definitions in WEAKENED
        if arguments.quick and "CRASHES=1" in definitions:
            continue
        errors, states, what, seconds = explore(definitions)
        right = bool(errors) == must_fail
        wrong += not right
        print(f"{'ok' if right else 'WRONG':<6}{' '.join(definitions):<42}{states:>12} states "
              f"{seconds:6.1f} s  {'fails: ' + what if errors else 'holds'}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
