"""Which calls hold the GIL, and which release it.

The interpreter never takes the GIL from a thread here. Another thread therefore runs only while a
call has released it.
"""

import sys
import threading
import time

import pytest

import whycache

KEY, LONG, TEXT = b"key-of-the-cache", b"long-value-00001", b"text-value-00001"
ABSENT = b"absent-000000001"


class OtherThread:
    """Counts its steps; each needs the GIL."""

    def __init__(self):
        self.steps = 0
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop:
            self.steps += 1
            time.sleep(0.0001)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop = True
        self._thread.join()


@pytest.fixture
def other_thread():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        with OtherThread() as thread:
            yield thread
    finally:
        sys.setswitchinterval(interval)


@pytest.fixture
def filled(cache):
    cache.set_multi({b"%015d" % i: b"v" * 50 for i in range(3000)})
    cache.set_multi({KEY: b"value", LONG: b"v" * 100_000, TEXT: "text"})
    cache.get(KEY)  # the first read of a thread registers it
    return cache


MANY_KEYS = [b"%015d" % i for i in range(300)]
HOLDING = {
    "get": lambda cache, view: cache.get(KEY),
    "get, typed": lambda cache, view: cache.get(TEXT),
    "get, default": lambda cache, view: cache.get(ABSENT, None),
    "in": lambda cache, view: (KEY in cache, ABSENT in cache),
    "get_multi": lambda cache, view: cache.get_multi(MANY_KEYS[:32]),
    "view.get": lambda cache, view: view.get(LONG),
    "version_stamp": lambda cache, view: cache.version_stamp(KEY),
    "version_stamp of a long value": lambda cache, view: cache.version_stamp(LONG),
    "update within its bound": lambda cache, view: cache.update(staleness_max=3600),
}
RELEASING = {
    "get of a long value": lambda cache: cache.get(LONG),
    "get_multi of many keys": lambda cache: cache.get_multi(MANY_KEYS),
    "items": lambda cache: list(cache.items()),
    "len of a range": lambda cache: len(cache.items()),
    "view": lambda cache: cache.view().close(),
    "set": lambda cache: cache.set(KEY, b"value"),
    "update": lambda cache: cache.update(),
    "transact": lambda cache: cache.transact(lambda t: t.set(KEY, b"value")),
    "rewrite_history": lambda cache: cache.rewrite_history(),
}


@pytest.mark.parametrize("name", HOLDING)
def test_short_read_holds_the_gil(filled, other_thread, name):
    read = HOLDING[name]
    filled.update()
    with filled.view() as view:
        read(filled, view)  # the first one may have to look at what has changed in the file
        steps = other_thread.steps
        end = time.monotonic() + 0.05  # in which the other thread would make many steps
        while time.monotonic() < end:
            read(filled, view)
        assert other_thread.steps == steps


def test_get_multi_on_thread_that_has_not_read_holds_the_gil(filled, other_thread):
    made = []

    def read():
        steps = other_thread.steps
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            filled.get_multi(MANY_KEYS[:32])
        made.append(other_thread.steps - steps)

    reader = threading.Thread(target=read)
    reader.start()
    reader.join()
    assert made == [0]


@pytest.mark.parametrize("name", RELEASING)
def test_call_that_may_take_long_releases_the_gil(filled, other_thread, name):
    call = RELEASING[name]
    steps = other_thread.steps
    end = time.monotonic() + 60  # to wake up takes the other thread a while
    while other_thread.steps == steps:
        assert time.monotonic() < end
        call(filled)


def test_waiting_for_the_log_releases_the_gil(filled, other_thread):
    steps = other_thread.steps
    with pytest.raises(whycache.UnavailableError):
        filled.update(at_least=10**6, deadline=0.5)
    assert other_thread.steps > steps
