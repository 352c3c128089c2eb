"""References and memory: nothing grows over many calls of each hot path."""

import asyncio
import datetime
import decimal
import gc
import sys
import uuid

import pytest

import whycache
from whycache import aio

CALLS = 1_000_000


def own_kib() -> int:
    with open("/proc/self/smaps_rollup") as facts:
        return next(int(line.split()[1]) for line in facts if line.startswith("Anonymous:"))


def check(function, calls, *objects):
    """Runs a function often. Objects keep their reference counts, and the process its size."""
    for _ in range(1000):
        function()
    gc.collect()
    counts = [sys.getrefcount(thing) for thing in objects]
    blocks, before = sys.getallocatedblocks(), own_kib()
    for _ in range(calls):
        function()
    gc.collect()
    assert [sys.getrefcount(thing) for thing in objects] == counts
    assert abs(sys.getallocatedblocks() - blocks) < 500
    assert own_kib() - before < 2048


VALUE = {"text": "t" * 20, "list": [1, 2.5, None, True, b"b"],
         "when": datetime.datetime(2026, 1, 1), "price": decimal.Decimal("1.50"),
         "id": uuid.UUID(int=7), "set": {1, 2}, "pair": (1, 2)}


@pytest.fixture
def filled(cache):
    cache.set_multi({b"bytes-key-000001": b"x" * 100, b"bytes-key-000002": b"y" * 3000,
                     b"typed-key-000001": VALUE, b"empty-key-000001": b""})
    return cache


def _raises(function, error):
    try:
        function()
    except error:
        return
    raise AssertionError


def test_point_reads(filled):
    key, other, absent, default = (b"bytes-key-000001", b"bytes-key-000002", b"absent-key-00001",
                                   object())
    check(lambda: (filled.get(key), filled.get(other)), CALLS, key, other, filled)
    check(lambda: filled.get(absent, default), CALLS, absent, default, filled)
    check(lambda: key in filled, CALLS, key, filled)
    check(lambda: _raises(lambda: filled[absent], KeyError), CALLS // 4, absent, filled)
    check(lambda: _raises(lambda: filled.get("text"), TypeError), CALLS // 4, filled)


def test_typed_values(filled):
    check(lambda: filled.get(b"typed-key-000001"), CALLS // 10, filled, datetime.datetime,
          decimal.Decimal, uuid.UUID)


def test_reads_of_many_keys(filled):
    keys = [b"bytes-key-000001", b"absent", b"empty-key-000001"]
    check(lambda: filled.get_multi(keys), CALLS // 4, keys, *keys, filled)
    check(lambda: list(filled.items()), CALLS // 50, filled)
    check(lambda: list(filled.keys(prefix=b"bytes")), CALLS // 20, filled)
    check(lambda: next(iter(filled.values())), CALLS // 20, filled)


def test_views(filled):
    def use():
        with filled.view() as view:
            view[b"bytes-key-000001"]
            value = view[b"bytes-key-000002"][1:]
        del value

    check(use, CALLS // 20, filled)
    with filled.view() as view:
        check(lambda: view.get(b"bytes-key-000001"), CALLS // 4, view, filled)
        check(lambda: len(list(view.items())), CALLS // 50, view, filled)


def test_writes_that_are_refused(filled):
    check(lambda: _raises(lambda: filled.set(b"a", object()), TypeError), CALLS // 10, filled)
    check(lambda: _raises(lambda: filled.set_multi({b"a": b"1", b"b": object()}), TypeError),
          CALLS // 10, filled)


def test_writes():
    with whycache.Cache("memory:") as cache:
        key, value = b"key-of-the-write", b"v" * 50
        check(lambda: cache.set(key, value), CALLS // 200, key, value, cache)
        check(lambda: cache.transact(lambda t: t.set(key, t[key])), CALLS // 500, key, value, cache)
        check(lambda: cache.update(staleness_max=60), CALLS // 10, cache)


def test_awaited_writes():
    async def main():
        async with aio.Cache("memory:", staleness_max=60) as cache:
            async def write():
                await asyncio.gather(*(cache.set(b"%d" % i, b"1") for i in range(50)))
                await cache.update()

            for _ in range(20):
                await write()
            gc.collect()
            blocks = sys.getallocatedblocks()
            for _ in range(100):
                await write()
            gc.collect()
            assert abs(sys.getallocatedblocks() - blocks) < 500
            assert not aio._running_side().under_way

    asyncio.run(main())


def test_caches_that_are_opened_and_closed(url, state):
    def use():
        with whycache.Cache(url, state_path=state) as cache:
            cache.get(b"a", None)

    check(use, 300)
