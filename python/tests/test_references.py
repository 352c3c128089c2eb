"""References and memory: nothing grows over many calls of each hot path."""

import asyncio
import datetime
import decimal
import gc
import sys
import uuid

import pytest
from sanitizer import COUNTS_BLOCKS

import whycache
from whycache import aio

# Where Python does not count blocks, what is left to find are the references.
CALLS = 1_000_000 if COUNTS_BLOCKS else 20_000
# Objects that any call may refer to by mistake. Others of the process refer to them as well.
SHARED = (None, True, False, 0, b"", "", (), bytes, str, int, list, tuple, dict, memoryview,
          KeyError, TypeError, whycache.View, whycache.Cache)


def own_kib() -> int:
    with open("/proc/self/smaps_rollup") as facts:
        return next(int(line.split()[1]) for line in facts if line.startswith("Anonymous:"))


def check(function, *objects, calls=CALLS):
    """Runs a function often. Objects keep their reference counts, and the process its size."""
    for _ in range(1000):
        function()
    gc.collect()
    counts = [sys.getrefcount(thing) for thing in objects]
    shared = [sys.getrefcount(thing) for thing in SHARED]
    blocks, before = sys.getallocatedblocks(), own_kib()
    for _ in range(calls):
        function()
    gc.collect()
    assert [sys.getrefcount(thing) for thing in objects] == counts
    grown = [sys.getrefcount(thing) - count for thing, count in zip(SHARED, shared, strict=True)]
    # Other threads of the process change some of these counts meanwhile.
    limit = min(500, calls / 2)
    assert max(map(abs, grown)) < limit, dict(zip(map(repr, SHARED), grown, strict=True))
    if COUNTS_BLOCKS:
        assert abs(sys.getallocatedblocks() - blocks) < 500
        assert own_kib() - before < 2048


VALUE = {"text": "t" * 20, "list": [1, 2.5, None, True, b"b"],
         "when": datetime.datetime(2026, 1, 1), "price": decimal.Decimal("1.50"),
         "id": uuid.UUID(int=7), "set": {1, 2}, "pair": (1, 2)}


@pytest.fixture
def filled(cache):
    cache.set_multi({b"bytes-key-000001": b"x" * 100, b"bytes-key-000002": b"y" * 3000,
                     b"typed-key-000001": VALUE, b"empty-key-000001": b"",
                     b"text-key-0000001": "twenty characters ok"})
    return cache


def _raises(function, error):
    try:
        function()
    except error:
        return
    raise AssertionError


def test_check_finds_what_one_call_of_a_thousand_keeps():
    numbers = iter(range(10 * CALLS))
    kept = []
    thing = object()

    def keep(kind):
        if next(numbers) % 1000 == 0:
            kept.append(kind())

    # Fewer calls keep a class too rarely to tell them from what other threads of the process do.
    for kind in (lambda: thing, *([lambda: whycache.View, object] if COUNTS_BLOCKS else [])):
        with pytest.raises(AssertionError):
            check(lambda kind=kind: keep(kind), thing)


def test_check_finds_what_each_of_few_calls_keeps():
    kept = []
    with pytest.raises(AssertionError):
        check(lambda: kept.append(whycache.View), calls=40)


KEY, LONG, TYPED, TEXT = (b"bytes-key-000001", b"bytes-key-000002", b"typed-key-000001",
                          b"text-key-0000001")
ABSENT_KEY, DEFAULT = b"absent-key-00001", object()
POINT_READS = {
    "get, hit": lambda cache: cache.get(KEY),
    "get, hit of other sizes": lambda cache: (cache.get(KEY), cache.get(LONG)),
    "get, default": lambda cache: cache.get(ABSENT_KEY, DEFAULT),
    "get, miss": lambda cache: _raises(lambda: cache.get(ABSENT_KEY), KeyError),
    "get, not a key": lambda cache: _raises(lambda: cache.get("text"), TypeError),
    "[], hit": lambda cache: cache[KEY],
    "[], miss": lambda cache: _raises(lambda: cache[ABSENT_KEY], KeyError),
    "in, hit": lambda cache: KEY in cache,
    "in, miss": lambda cache: ABSENT_KEY in cache,
    "typed text": lambda cache: cache.get(TEXT),
    "get_versioned": lambda cache: cache.get_versioned(KEY),
}


@pytest.mark.parametrize("name", POINT_READS)
def test_point_reads(filled, name):
    read = POINT_READS[name]
    check(lambda: read(filled), KEY, LONG, TEXT, ABSENT_KEY, DEFAULT, filled)


def test_typed_values(filled):
    check(lambda: filled.get(TYPED), TYPED, filled, datetime.datetime, decimal.Decimal, uuid.UUID)


MULTI_KEYS = [KEY, ABSENT_KEY, b"empty-key-000001", TEXT]


@pytest.mark.parametrize("keys", [MULTI_KEYS, tuple(MULTI_KEYS)])
def test_get_multi(filled, keys):
    check(lambda: filled.get_multi(keys, DEFAULT), keys, *keys, DEFAULT, filled)


def test_get_multi_of_more_keys_than_are_read_with_the_gil(filled):
    check(lambda keys=MULTI_KEYS * 100: filled.get_multi(keys), *MULTI_KEYS, filled,
          calls=CALLS // 100)


RANGES = {  # each takes at least four steps
    "items": lambda cache: list(cache.items()),
    "items, not to the end": lambda cache: list(zip(range(3), cache.items(), strict=False)),
    "keys": lambda cache: list(cache.keys(start=b"bytes")),
    "values": lambda cache: list(cache.values()),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges(filled, name):
    read = RANGES[name]
    check(lambda: read(filled), filled, calls=CALLS // 4)


def test_views_that_are_opened_and_ended(filled):
    def use():
        with filled.view() as view:
            view[KEY]
            value = view[LONG][1:]
        del value

    check(use, KEY, LONG, filled)


VIEW_READS = {
    "get": lambda view: view.get(KEY),
    "get, default": lambda view: view.get(ABSENT_KEY, DEFAULT),
    "get, typed text": lambda view: view.get(TEXT),
    "[], miss": lambda view: _raises(lambda: view[ABSENT_KEY], KeyError),
    "in": lambda view: KEY in view,
    "get_multi": lambda view: view.get_multi(MULTI_KEYS, DEFAULT),
}


@pytest.mark.parametrize("name", VIEW_READS)
def test_reads_of_a_view(filled, name):
    read = VIEW_READS[name]
    with filled.view() as view:
        check(lambda: read(view), *MULTI_KEYS, DEFAULT, view, filled)


def test_ranges_of_a_view(filled):
    with filled.view() as view:
        check(lambda: list(view.items()), view, filled, calls=CALLS // 4)


def test_memo(filled):
    memo = filled.memo(len)
    check(lambda: memo[KEY], KEY, filled)
    check(lambda: memo.get(ABSENT_KEY, DEFAULT), ABSENT_KEY, DEFAULT, filled)


def test_updates_within_their_bound(filled):
    check(lambda: filled.update(staleness_max=3600), filled)


async def test_awaited_updates_within_their_bound(url, state):
    async with aio.Cache(url, state_path=state, staleness_max=3600) as cache:
        async def update(calls):
            for _ in range(calls):
                await cache.update()

        await update(1000)
        gc.collect()
        blocks, count = sys.getallocatedblocks(), sys.getrefcount(cache)
        await update(CALLS)
        gc.collect()
        assert sys.getrefcount(cache) == count
        assert abs(sys.getallocatedblocks() - blocks) < 500


def test_writes_that_are_refused(filled):
    check(lambda: _raises(lambda: filled.set(b"a", object()), TypeError), filled,
          calls=CALLS // 10)
    check(lambda: _raises(lambda: filled.set_multi({b"a": b"1", b"b": object()}), TypeError),
          filled, calls=CALLS // 10)


def test_writes():
    with whycache.Cache("memory:") as cache:
        key, value = b"key-of-the-write", b"v" * 50
        check(lambda: cache.set(key, value), key, value, cache, calls=CALLS // 200)
        check(lambda: cache.transact(lambda t: t.set(key, t[key])), key, value, cache,
              calls=CALLS // 500)


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

    check(use, calls=300)
