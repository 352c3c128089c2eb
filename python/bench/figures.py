#!/usr/bin/env python3
"""Times the Python package beside dict, python-lmdb and redis-py: make bench BENCH=python.

    python/bench/figures.py [--items 1000000] [--directory DIR]

Every figure is that of the fastest of several rounds, all in this one run. Keys have 15 bytes,
values 100, and are read in random order. Lookups use key objects of their own, as a request does,
in all subjects.
"""

import argparse
import asyncio
import gc
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import whycache
from whycache import _whycache, aio

ROUNDS = 5


def nanoseconds(function: Callable[[], object], count: int, rounds: int = ROUNDS) -> float:
    """The time of a call that handles `count` elements, per element, in the fastest round.

    Others of the machine disturb the rest.
    """
    times = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            began = time.perf_counter_ns()
            function()
            times.append((time.perf_counter_ns() - began) / count)
    finally:
        gc.enable()
    return min(times)


def each(function: Callable[[Any], object], arguments: list[Any]) -> Callable[[], None]:
    def run() -> None:
        for argument in arguments:
            function(argument)

    return run


class Report:
    """Figures with their bars."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, bool | None]] = []

    def add(self, name: str, value: str, bar: str = "", holds: bool | None = None) -> None:
        self.rows.append((name, value, bar, holds))
        mark = {None: "", True: "ok", False: "EXCEEDED"}[holds]
        print(f"{name:<58} {value:>22}   {bar:<24} {mark}", flush=True)

    def ratio(self, name: str, value: float, other: float, other_name: str, bar: float) -> None:
        self.add(name, f"{value:.0f} ns", f"<= {bar} of {other_name} ({other:.0f} ns)",
                 value <= bar * other)

    def beside(self, name: str, value: float, other: float, other_name: str) -> None:
        self.add(name, f"{value:.0f} ns", f"{value / other:.2f} of {other_name} ({other:.0f} ns)")

    def limit(self, name: str, value: float, bar: float, unit: str = "ns") -> None:
        self.add(name, f"{value:.1f} {unit}", f"<= {bar} {unit}", value <= bar)


def key_of(number: int) -> bytes:
    return b"key-%011d" % number


def bench_reads(report: Report, cache: whycache.Cache, directory: pathlib.Path, items: int) -> None:
    values = [os.urandom(100) for _ in range(1000)]
    data = {key_of(i): values[i % 1000][:92] + b"%08d" % i for i in range(items)}
    cache.fill(data.items())
    order = random.Random(1).sample(range(items), min(items, 500_000))
    keys = [key_of(i) for i in order]

    in_dict = nanoseconds(each(data.__getitem__, [bytes(key) for key in keys]), len(keys))
    get = nanoseconds(each(cache.get, keys), len(keys))
    report.ratio("cache.get(key)", get, in_dict, "dict", 0.65)
    report.ratio("  against python-lmdb in a long transaction", get,
                 lmdb_get(data, keys, directory), "lmdb", 0.35)
    report.ratio("  against redis-py over a unix socket", get, redis_get(data, keys, directory),
                 "redis-py", 0.02)

    hot = [keys[0]] * 1_000_000
    absent = [b"absent-key-here"] * 1_000_000
    default = [None] * 1_000_000
    empty = nanoseconds(each(_whycache.do_nothing, hot), len(hot))
    empty_two = nanoseconds(lambda: [0 for key, value in zip(absent, default)
                                     if _whycache.do_nothing(key, value)], len(hot))
    report.limit("hit on one hot key, beyond an empty call",
                 nanoseconds(each(cache.get, hot), len(hot)) - empty, 120)
    report.limit("miss with default, beyond an empty call",
                 nanoseconds(lambda: [0 for key, value in zip(absent, default)
                                      if cache.get(key, value)], len(hot)) - empty_two, 60)

    groups = [keys[i:i + 32] for i in range(0, len(keys) - 31, 32)]
    report.ratio("get_multi of 32, per key",
                 nanoseconds(each(cache.get_multi, groups), len(groups) * 32), in_dict, "dict", 0.2)

    def iterate() -> None:
        for _ in cache.items():
            pass

    report.limit("items(), per item", nanoseconds(iterate, items, 3), 250)


def lmdb_get(data: dict[bytes, bytes], keys: list[bytes], directory: pathlib.Path) -> float:
    import lmdb

    environment = lmdb.open(str(directory / "lmdb"), map_size=4 << 30, sync=False)
    with environment.begin(write=True) as transaction:
        for key in sorted(data):
            transaction.put(key, data[key], append=True)
    with environment.begin(buffers=False) as transaction:
        return nanoseconds(each(transaction.get, keys), len(keys), 3)


def redis_get(data: dict[bytes, bytes], keys: list[bytes], directory: pathlib.Path) -> float:
    import redis

    socket = directory / "redis.sock"
    server = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", socket, "--save", "",
                               "--appendonly", "no", "--dir", directory],
                              stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(socket))
        end = time.monotonic() + 10
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        some = keys[:20_000]
        client.mset({key: data[key] for key in some})
        return nanoseconds(each(client.get, some), len(some), 3)
    finally:
        server.terminate()
        server.wait()


def bench_values(report: Report, cache: whycache.Cache, items: int) -> None:
    count = max(items // 5, 1)

    def text_of(number: int) -> str:
        return f"twenty chars {number:07d}"

    def fields_of(number: int) -> dict[str, Any]:
        return {"id": number, "name": text_of(number), "enabled": True, "share": 0.25, "tags": None}

    kinds: dict[str, Callable[[int], Any]] = {
        "raw": lambda number: b"%0100d" % number, "str": text_of, "map": fields_of}
    for kind, value_of in kinds.items():
        cache.fill((b"%s-%011d" % (kind.encode(), number), value_of(number))
                   for number in range(count))
    order = random.Random(2).sample(range(count), count)
    keys = {kind: [b"%s-%011d" % (kind.encode(), number) for number in order] for kind in kinds}
    of_bytes = nanoseconds(each(cache.get, keys["raw"]), count)
    get = {kind: nanoseconds(each(cache.get, keys[kind]), count) for kind in ("str", "map")}
    loads = {kind: nanoseconds(each(json.loads, [json.dumps(kinds[kind](i)) for i in order]), count)
             for kind in get}
    report.ratio("typed: a 20-character str", get["str"], of_bytes, "bytes", 1.5)
    report.beside("  against json.loads of the same", get["str"], loads["str"], "json.loads")
    report.ratio("typed: a dict with 5 fields", get["map"], loads["map"], "json.loads", 0.8)
    report.beside("  against bytes", get["map"], of_bytes, "bytes")


def bench_update(report: Report, url: str, state: str) -> None:
    cache = aio.Cache(url, state_path=state, staleness_max=3600)
    repeat = 200_000

    async def many() -> None:
        for _ in range(repeat):
            await cache.update()

    async def main() -> float:
        await cache.update(staleness_max=0)
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter_ns()
            await many()
            times.append((time.perf_counter_ns() - began) / repeat)
        return min(times)

    report.limit("await cache.update() within its bound", asyncio.run(main()) / 1000, 1.5, "us")
    cache.close()


def bench_writes(report: Report, directory: pathlib.Path, program: str | None) -> None:
    cache = aio.Cache(f"sqlite://{directory}/tasks.db", state_path=directory / "tasks.state")
    seconds = 3.0

    async def main() -> float:
        count = 0
        end = time.monotonic() + seconds

        async def work(number: int) -> None:
            nonlocal count
            key = b"task-%02d" % number
            while time.monotonic() < end:
                await cache.set(key, b"x" * 100)
                count += 1

        await asyncio.gather(*(work(i) for i in range(64)))
        return count / seconds

    tasks = asyncio.run(main())
    cache.close()
    if program is None:
        report.add("64 tasks awaiting set, SQLite on a disk", f"{tasks:.0f}/s", "no --writers")
        return
    output = subprocess.run([program, f"sqlite://{directory}/threads.db",
                             f"{directory}/threads.state", str(seconds)], check=True,
                            capture_output=True, text=True).stdout
    threads = float(output)
    report.add("64 tasks awaiting set, SQLite on a disk", f"{tasks:.0f}/s",
               f">= 0.6 of C++ ({threads:.0f}/s)", tasks >= 0.6 * threads)


def bench_memo(report: Report, cache: whycache.Cache) -> None:
    value = {"name": "checkout", "enabled": True, "percent": 25, "limit": 1.5, "owner": "payments"}
    text = json.dumps(value).encode()
    keys = [key_of(i) for i in range(1000)]
    cache.set_multi({key: text for key in keys})
    memo = cache.memo(json.loads)
    order = random.Random(1).choices(keys, k=200_000)
    for key in keys:
        assert memo.get(key) == value
    decoded = nanoseconds(each(json.loads, [text] * len(order)), len(order))
    report.ratio("memo.get(key), a hit", nanoseconds(each(memo.get, order), len(order)), decoded,
                 "json.loads of 5 fields", 0.5)


def bench_memory(report: Report, url: str, state: str, items: int) -> None:
    script = """
import sys
def own_kib():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1])
before = own_kib()
import whycache
cache = whycache.Cache(sys.argv[1], state_path=sys.argv[2])
for i in range(int(sys.argv[3])):
    cache[b"key-%011d" % i]
for item in cache.items():
    pass
print(own_kib() - before)
"""
    output = subprocess.run([sys.executable, "-c", script, url, state, str(items)], check=True,
                            capture_output=True, text=True).stdout
    report.limit("memory of a second process that reads everything", int(output) / 1024, 15, "MiB")


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--directory", help="where to keep the data; default: a temporary one")
    parser.add_argument("--writers", help="the program that writes with 64 C++ threads")
    parser.add_argument("--only", choices=["memo"], help="measure only this part")
    given = parser.parse_args(None if arguments is None else list(arguments))
    report = Report()
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        directory = pathlib.Path(name)
        url, state = f"sqlite://{directory}/log.db", f"{directory}/bench.state"
        print(f"{given.items} items, Python {sys.version.split()[0]}, whycache "
              f"{whycache.__version__}\n")
        with whycache.Cache(url, state_path=state) as cache:
            if given.only == "memo":
                bench_memo(report, cache)
                return 1 if any(holds is False for *_, holds in report.rows) else 0
            bench_reads(report, cache, directory, given.items)
            bench_values(report, cache, given.items)
            bench_memo(report, cache)
        bench_update(report, url, state)
        bench_writes(report, directory, given.writers)
        bench_memory(report, url, state, given.items)
    return 1 if any(holds is False for *_, holds in report.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
