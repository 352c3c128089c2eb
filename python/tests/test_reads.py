"""Point reads, reads of many keys, and ranges."""

import collections.abc
import threading

import pytest

import whycache
from whycache import _whycache


def test_get_returns_what_was_set(cache):
    cache.set(b"a", b"1")

    assert cache.get(b"a") == b"1"
    assert cache[b"a"] == b"1"
    assert b"a" in cache


def test_absent_key_raises_key_error_or_gives_the_default(cache):
    with pytest.raises(KeyError) as raised:
        cache.get(b"absent")
    assert raised.value.args == (b"absent",)
    with pytest.raises(KeyError):
        cache[b"absent"]
    assert cache.get(b"absent", None) is None
    assert cache.get(b"absent", 7) == 7
    assert b"absent" not in cache


@pytest.mark.parametrize("key", ["text", 1, None, bytearray(b"a"), memoryview(b"a"), (b"a",)])
def test_other_types_of_key_raise_type_error(cache, key):
    for read in (cache.get, cache.__getitem__, cache.__contains__, cache.delete,
                 lambda key: cache.get(key, None), lambda key: cache.get_multi([key]),
                 lambda key: cache.set(key, b"1"), lambda key: cache.set_multi([(key, b"1")])):
        with pytest.raises(TypeError, match="key must be bytes"):
            read(key)


def test_empty_key_raises_value_error_and_long_key_limit_error(cache):
    for call in (cache.get, cache.__contains__, cache.delete, lambda key: cache.set(key, b"1")):
        with pytest.raises(ValueError, match="key is empty"):
            call(b"")
        with pytest.raises(whycache.LimitError, match="key too long"):
            call(b"k" * 1025)
    cache.set(b"k" * 1024, b"1")
    assert cache[b"k" * 1024] == b"1"


@pytest.mark.parametrize("size", [0, 1, 2, 15, 100, 127, 128, 129, 1000, 65536, 65537, 1_000_000])
def test_value_of_any_size_is_read_again_and_again(cache, size):
    value = bytes(i % 251 for i in range(size))
    cache.set(b"key", value)
    cache.set(b"other-key-xxxxxx", b"other")

    for _ in range(3):
        assert cache.get(b"key") == value
        assert cache.get(b"other-key-xxxxxx") == b"other"


def test_reads_become_the_own_ones_only_of_a_class_that_inherits_them():
    class Other:
        get = dict.get
        get_multi = dict.get

    class Derived(whycache.Cache):
        get = dict.get

    for cls in (Other, Derived, dict, 1):
        with pytest.raises(TypeError):
            _whycache.own_reads(cls)


def test_value_that_was_read_does_not_change(cache):
    cache.set(b"key", b"first")
    first = cache.get(b"key")
    cache.set(b"key", b"other")

    assert cache.get(b"key") == b"other"
    assert first == b"first"


def test_many_misses_and_hits_alternate(cache):
    cache.set_multi({b"key%06d-padding" % i: b"%d" % i for i in range(500)})

    for i in range(1000):
        expected = b"%d" % i if i < 500 else None
        assert cache.get(b"key%06d-padding" % i, None) == expected


def test_length_and_iteration_are_in_key_order(cache):
    cache.set_multi({b"b": b"2", b"a": b"1", b"c": b"3"})

    assert len(cache) == 3
    assert list(cache) == [b"a", b"b", b"c"]
    assert list(cache.keys()) == [b"a", b"b", b"c"]
    assert list(cache.values()) == [b"1", b"2", b"3"]
    assert list(cache.items()) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    assert list(reversed(cache.items())) == [(b"c", b"3"), (b"b", b"2"), (b"a", b"1")]
    assert dict(cache) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert len(cache.keys()) == 3


def test_ranges_are_bounded_by_prefix_start_and_stop(cache):
    cache.set_multi({key: key for key in (b"a", b"ab", b"ac", b"b", b"\xff", b"\xff\xff")})

    assert list(cache.keys(prefix=b"a")) == [b"a", b"ab", b"ac"]
    assert list(cache.keys(prefix=b"\xff")) == [b"\xff", b"\xff\xff"]
    assert list(cache.keys(start=b"ab", stop=b"b")) == [b"ab", b"ac"]
    assert list(cache.keys(prefix=b"a", start=b"ab")) == [b"ab", b"ac"]
    assert list(cache.keys(prefix=b"a", stop=b"ac")) == [b"a", b"ab"]
    assert list(cache.keys(start=b"c", stop=b"a")) == []
    assert list(cache.values(prefix=b"a", reverse=True)) == [b"ac", b"ab", b"a"]
    assert cache.count(prefix=b"a") == 3
    assert cache.count() == 6
    with pytest.raises(TypeError):
        cache.keys(prefix="a")
    with pytest.raises(TypeError):
        cache.keys(b"a")
    with pytest.raises(TypeError):
        cache.keys(suffix=b"a")


def test_iteration_sees_one_update_id(cache):
    cache.set_multi({b"%05d" % i: b"old" for i in range(2000)})
    items = iter(cache.items())
    first = next(items)
    cache.set_multi({b"%05d" % i: b"new" for i in range(3000)})

    rest = list(items)

    assert first == (b"00000", b"old")
    assert len(rest) == 1999
    assert {value for _, value in rest} == {b"old"}


def test_get_multi_returns_values_in_the_order_of_the_keys(cache):
    cache.set_multi({b"a": b"1", b"b": b"2"})

    assert cache.get_multi([b"b", b"absent", b"a"]) == [b"2", None, b"1"]
    assert cache.get_multi((b"absent",), 0) == [0]
    assert cache.get_multi([]) == []
    assert cache.get_multi(key for key in (b"a", b"b")) == [b"1", b"2"]


@pytest.mark.parametrize("count", [64, 65, 256, 257, 5000])
def test_get_multi_takes_many_keys(cache, count):
    keys = [b"%05d" % i for i in range(count)]
    cache.set_multi({key: key for key in keys[::2]})

    values = cache.get_multi(keys)

    assert values[::2] == keys[::2]
    assert set(values[1::2]) <= {None}


def test_cache_is_a_mapping(cache):
    assert isinstance(cache, collections.abc.Mapping)
    assert isinstance(cache.view(), collections.abc.Mapping)


def test_cache_in_another_process_object_sees_writes_at_once(cache, url, state):
    with whycache.Cache(url, state_path=state) as other:
        cache.set(b"key", b"value")

        assert other.get(b"key") == b"value"
        assert other.applied_id() == cache.applied_id()


def test_64_threads_read_and_write(cache):
    cache.set_multi({b"key-of-thread-%02d" % i: b"0" for i in range(64)})
    failures = []

    def work(number):
        try:
            key = b"key-of-thread-%02d" % number
            for i in range(1, 6):
                cache.set(key, b"%d" % i)
                for _ in range(200):
                    assert cache[key] == b"%d" % i
                    assert cache.get(b"absent-from-here", None) is None
                assert len(list(cache.keys(prefix=b"key-of-thread-"))) == 64
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_closed_cache_raises(url, state):
    cache = whycache.Cache(url, state_path=state)
    cache.set(b"key", b"value")
    cache.close()
    cache.close()

    for call in (lambda: cache[b"key"], lambda: cache.get(b"key", None), lambda: b"key" in cache,
                 lambda: len(cache), lambda: list(cache), cache.view, cache.update, cache.stats,
                 lambda: cache.get_multi([b"key"]), lambda: cache.set(b"key", b"1")):
        with pytest.raises(whycache.InvalidError, match="cache is closed"):
            call()
    assert not cache.valid()


def test_state_that_was_closed_opens_again(cache):
    cache.set(b"key", b"value")
    cache.close_shared_state()

    assert cache.valid()
    assert cache.get(b"key") == b"value"
