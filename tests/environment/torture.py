#!/usr/bin/env python3
"""Runs everything of `make torture`, and prints one line per part.

    torture.py --bin BIN [--damage PROGRAM] [--minutes N | --all] [--seed N] [--jobs N]

The environments, the model and the damage to files run as a whole. What time is left goes to
failing system calls, kills and failing allocations, which take cases in random order. PROGRAM is
damage_tests of the preset asan.
"""

import argparse
import concurrent.futures
import os
import pathlib
import random
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
SHARES = {"calls": 0.6, "kills": 0.15, "allocations": 0.25}


def run(name, *command):
    print(f"== {name}: {' '.join(map(str, command))}", flush=True)
    begin = time.monotonic()
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    counts = [line for line in lines if " cases in " in line] or lines[-1:]
    if name == "environments":
        ran = next((line for line in lines if line.startswith("Ran ")), "")
        counts = [f"{ran}: {lines[-1]}"]
    if name == "model":
        counts = [f"{len(lines)} forms, {sum(line.startswith('WRONG') for line in lines)} wrong"]
    verdict = "passed" if done.returncode == 0 else "FAILED"
    return f"{verdict:<7}{name:<14}{time.monotonic() - begin:7.0f} s  {'; '.join(counts)}"


def damage(program, jobs):
    """Every mutation of tests/damage, one process per test."""
    print(f"== damage: WHYCACHE_MUTATIONS=all {program}", flush=True)
    begin = time.monotonic()
    listed = subprocess.run([program, "--gtest_list_tests"], check=True, capture_output=True,
                            text=True).stdout
    tests = []
    for line in listed.splitlines():
        if line.startswith("  "):
            tests.append(suite + line.strip())
        else:
            suite = line.strip()

    def run_test(name):
        return subprocess.run([program, f"--gtest_filter={name}"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace",
                              env=os.environ | {"WHYCACHE_MUTATIONS": "all"})

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(run_test, tests))
    cases = 0
    failed = [test for test, each in zip(tests, done) if each.returncode]
    for each in done:
        for line in each.stdout.splitlines():
            if match := re.match(r"damage of .*: (\d+) cases", line):
                cases += int(match[1])
            if match or each.returncode:
                print(line, flush=True)
    verdict = "FAILED" if failed else "passed"
    return (f"{verdict:<7}{'damage':<14}{time.monotonic() - begin:7.0f} s  {cases} cases of "
            f"{len(tests)} tests{', failed: ' * bool(failed)}{', '.join(failed)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--damage", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    begin = time.monotonic()
    summary = [run("environments", HERE / "environment_test.py", arguments.bin),
               run("model", HERE.parent / "model/model_test.py")]
    if arguments.damage:
        summary.append(damage(arguments.damage.absolute(), arguments.jobs))
    left = max(60.0, arguments.minutes * 60 - (time.monotonic() - begin))
    for mode, share in SHARES.items():
        extent = ["--all"] if arguments.all else ["--seconds", str(int(left * share))]
        summary.append(run(mode, HERE / "fault_injection.py", mode, "--bin", arguments.bin,
                           "--jobs", str(arguments.jobs), "--seed", str(arguments.seed), *extent))
    print(f"== seed {arguments.seed}")
    print("\n".join(summary))
    return any(line.startswith("FAILED") for line in summary)


if __name__ == "__main__":
    sys.exit(main())
