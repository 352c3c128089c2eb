#!/usr/bin/env python3
"""Runs the benchmarks, as `make bench` does after building.

    bench/run.py                                    # everything
    bench/run.py --only get_uniform --items 1000000 # a part
    bench/run.py --program keys -- 500000           # one program with the given arguments

Each workload belongs to one program (bench_<name> --list). The results of all programs are written
to one file, one JSON object per line, from which bench/plot.py makes plots.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

# Programs and their arguments. All of them take about a quarter of an hour on two processors.
EVERYTHING = [
    ("reads", ["--items", "1000000", "--reads", "500000"]),
    (
        "reads",
        [
            "--items",
            "100000",
            "--reads",
            "500000",
            "--only",
            "load,bytes_per_item,get_uniform,get_zipf,get_mixed,get_miss,open",
        ],
    ),
    (
        "reads",
        [
            "--items",
            "10000000",
            "--reads",
            "500000",
            "--only",
            "bytes_per_item,get_uniform",
            "--subjects",
            "lmdb",
        ],
    ),
    (
        "reads",
        [
            "--items",
            "10000000",
            "--reads",
            "500000",
            "--only",
            "load,bytes_per_item,get_uniform,get_serial,get_zipf,get_miss,view_get_uniform,open",
            "--subjects",
            "whycache,boost_flat,absl",
        ],
    ),
    ("processes", ["--reads", "500000"]),
    ("beside_writer", []),
    ("huge_pages", ["--reads", "500000", "--subjects", "whycache"]),
    ("cache", []),
    ("limits", []),
    ("replay", []),
    ("writes", ["--seconds", "0.6"]),
    ("packages", ["--reads", "500000"]),
]
TEN_MILLION_BYTES = 10 << 30  # memory of all subjects that are measured with ten million items


def available_bytes():
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = int(re.search(r"MemAvailable:\s+(\d+)", file.read()).group(1)) * 1024
    shared = os.statvfs("/dev/shm")
    return min(memory, shared.f_bavail * shared.f_frsize)


def workloads_of(path):
    return subprocess.run(
        [path, "--list"], check=True, capture_output=True, text=True
    ).stdout.split()


def choose(options, path_of):
    """Yields the programs with the requested workloads, and the arguments of each."""
    built = [
        (program, arguments)
        for program, arguments in EVERYTHING
        if os.path.exists(path_of(program))
    ]
    for program in sorted(
        {program for program, _ in EVERYTHING} - {program for program, _ in built}
    ):
        print(
            f"left out: bench_{program} (not built, because a dependency was not found)", flush=True
        )
    if not (options.only or options.items or options.subjects):
        for program, arguments in built:
            if "10000000" in arguments and available_bytes() < TEN_MILLION_BYTES:
                print("left out: ten million items (too little memory)", flush=True)
                continue
            yield program, arguments
        return
    unknown = set(options.only)
    for program in dict.fromkeys(program for program, _ in built):
        chosen = [
            name
            for name in workloads_of(path_of(program))
            if not options.only or name in options.only
        ]
        unknown -= set(chosen)
        if not chosen:
            continue
        arguments = ["--reads", "500000"]
        if options.only:
            arguments += ["--only", ",".join(chosen)]
        if options.items:
            arguments += ["--items", options.items]
        if options.subjects:
            arguments += ["--subjects", options.subjects]
        yield program, arguments
    if unknown:
        sys.exit("no such workload: " + ", ".join(sorted(unknown)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bin", default="build/release/bin", help="directory of the programs")
    parser.add_argument("--program", help="run only this program, named without bench_")
    parser.add_argument("--only", default="", help="workloads, separated by commas")
    parser.add_argument("--items", help="number of items; several numbers separated by commas")
    parser.add_argument("--subjects", help="subjects, separated by commas")
    parser.add_argument("--json", default="build/bench/figures.json", help="file for the figures")
    parser.add_argument("arguments", nargs="*", help="for the programs, after --")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]

    def path_of(program):
        return os.path.join(options.bin, "bench_" + program)

    if options.program:
        sys.exit(
            subprocess.run([path_of(options.program), *options.arguments], check=False).returncode
        )

    lines = []
    begin = time.monotonic()
    for program, arguments in choose(options, path_of):
        print(f"\n== bench_{program} {' '.join(arguments + options.arguments)}", flush=True)
        with tempfile.NamedTemporaryFile() as figures:
            command = [path_of(program), *arguments, *options.arguments, "--json", figures.name]
            if status := subprocess.run(command, check=False).returncode:
                sys.exit(status)
            lines += figures.read().decode().splitlines(keepends=True)
    os.makedirs(os.path.dirname(options.json) or ".", exist_ok=True)
    with open(options.json, "w", encoding="utf-8") as file:
        file.writelines(lines)
    print(f"\n{len(lines)} figures in {options.json}, after {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
