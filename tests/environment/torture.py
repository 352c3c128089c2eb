#!/usr/bin/env python3
"""Runs everything of `make torture`, and prints one line per part.

    torture.py --bin BIN [--minutes N | --all] [--seed N] [--jobs N]

The environments and the model run as a whole. What time is left goes to failing system calls,
kills and failing allocations, which take cases in random order.
"""

import argparse
import os
import pathlib
import random
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


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    begin = time.monotonic()
    summary = [run("environments", HERE / "environment_test.py", arguments.bin),
               run("model", HERE.parent / "model/model_test.py")]
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
