"""Views, and memoryviews of their values."""

import gc
import os

import pytest

import whycache


def test_view_does_not_change(cache):
    cache.set(b"key", b"old")
    with cache.view() as view:
        cache.set(b"key", b"new")
        cache.set(b"other", b"1")

        assert view[b"key"] == b"old"
        assert b"other" not in view
        assert len(view) == 1
        assert list(view) == [b"key"]
        assert [(key, bytes(value)) for key, value in view.items()] == [(b"key", b"old")]
        assert view.get(b"other", None) is None
        assert view.id == cache.applied_id() - 2
    assert cache[b"key"] == b"new"


def test_value_is_a_read_only_memoryview(cache):
    cache.set(b"key", b"value")
    with cache.view() as view:
        value = view[b"key"]

        assert isinstance(value, memoryview)
        assert value.readonly
        assert bytes(value[1:3]) == b"al"
        with pytest.raises(TypeError):
            value[0] = 1


def test_memoryview_raises_after_the_view_has_ended(cache):
    cache.set_multi({b"%d" % i: b"value" for i in range(10)})
    with cache.view() as view:
        values = [view[b"%d" % i] for i in range(10)] + list(view.values())
        del values[3]

    for value in values:
        with pytest.raises(ValueError, match="released memoryview"):
            bytes(value)
        with pytest.raises(ValueError):
            value[0]
        with pytest.raises(ValueError):
            memoryview(value)


def test_slice_of_a_memoryview_keeps_its_bytes(cache):
    cache.set(b"key", b"x" * 1000)
    with cache.view() as view:
        part = view[b"key"][10:20]
        array = memoryview(view[b"key"])
    for i in range(200):
        cache.set(b"key", b"%04d" % i * 250)
    gc.collect()

    assert bytes(part) == b"x" * 10
    assert bytes(array) == b"x" * 1000


def test_ended_view_raises(cache):
    cache.set(b"key", b"value")
    view = cache.view()
    items = view.items()
    iterator = iter(items)
    view.close()
    view.close()

    assert view.ended
    for call in (lambda: view[b"key"], lambda: view.get(b"key", None), lambda: b"key" in view,
                 lambda: len(view), lambda: list(view), lambda: list(items),
                 lambda: next(iterator), lambda: view.id, view.digest,
                 lambda: view.version(b"key")):
        with pytest.raises(whycache.InvalidError, match="view has ended"):
            call()


def test_view_outlives_its_cache(url, state):
    cache = whycache.Cache(url, state_path=state)
    cache.set(b"key", b"value")
    view = cache.view()
    cache.close()
    del cache
    gc.collect()

    assert view[b"key"] == b"value"
    value = view[b"key"]
    del view
    gc.collect()
    assert bytes(value) == b"value"


def test_child_of_a_fork_ends_the_views_of_its_parent(cache):
    cache.set(b"key", b"value")
    with cache.view() as view:
        value = view[b"key"]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                try:
                    bytes(value)
                except ValueError:
                    status = 0 if view.ended and cache[b"key"] == b"value" else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert bytes(value) == b"value"


def test_versions_and_counts(cache):
    first = cache.set(b"a1", b"1")
    cache.set(b"a2", b"2")
    with cache.view() as view:
        assert view.version(b"a1") == first
        assert view.version(b"absent") is None
        assert view.count(prefix=b"a") == 2
        assert view.get_multi([b"a2", b"absent"]) == [b"2", None]
    assert cache.get_versioned(b"a1") == (b"1", first)
