#!/usr/bin/env python3
"""Compares two builds of bench_reads in one alternating run.

    bench/compare.py OLD NEW [--rounds 7] [arguments of bench_reads ...]
    bench/compare.py before/bench_reads build/release/bin/bench_reads --only get_uniform

Each round runs both programs once, in alternating order. The ratio is the median of the rounds'
ratios new / old (below 1: the new build is better), with their minimum and maximum. Rivals are the
same in both builds, so the distance of their ratio from 1 is the noise of the machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile


def run(program, arguments):
    with tempfile.NamedTemporaryFile() as figures:
        subprocess.run(
            [program, *arguments, "--json", figures.name], check=True, stdout=subprocess.DEVNULL
        )
        lines = [json.loads(line) for line in open(figures.name, encoding="utf-8")]
    return {
        (line["workload"], line["items"], line["subject"], line["unit"]): line["median"]
        for line in lines
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--rounds", type=int, default=7)
    options, arguments = parser.parse_known_args()
    if "--subjects" not in arguments:
        arguments += ["--subjects", "whycache"]
    if "--repetitions" not in arguments:
        arguments += ["--repetitions", "3"]

    rounds = []
    for number in range(options.rounds):
        order = [options.old, options.new]
        figures = {}
        for program in order if number % 2 == 0 else order[::-1]:
            figures[program] = run(program, arguments)
        rounds.append((figures[options.old], figures[options.new]))
        print(f"\rround {number + 1} of {options.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)

    print(f"{'workload':<28}{'items':>10}  {'subject':<14}{'old':>9}{'new':>9}  unit   new / old")
    for case in rounds[0][0]:
        pairs = [(old[case], new[case]) for old, new in rounds if case in new]
        if not pairs:
            continue
        workload, items, subject, unit = case
        ratios = [new / old for old, new in pairs]
        print(
            f"{workload:<28}{items:>10}  {subject:<14}"
            f"{statistics.median(old for old, _ in pairs):>9.1f}"
            f"{statistics.median(new for _, new in pairs):>9.1f}  {unit:<5}  "
            f"{statistics.median(ratios):.3f}  ({min(ratios):.3f} .. {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
