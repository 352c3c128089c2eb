"""Logs that are written in Python, with the contract suite, and with faults."""

import asyncio
import os
import threading

import pytest

import whycache
from whycache import testing


class MemoryLog(whycache.Log):
    """A log in the memory of this process."""

    def __init__(self, name="memory-of-python:"):
        self._name = name
        self._lock = threading.Lock()
        self._uuid = os.urandom(16)
        self._updates = {}
        self._base, self._base_chain, self._parts = 0, 0, []

    def name(self):
        return self._name

    def extent(self):
        with self._lock:
            return self._extent()

    def _extent(self):
        return whycache.Extent(self._uuid, self._base, self._base_chain,
                               max(self._updates, default=self._base))

    def append(self, id, update):
        with self._lock:
            if id <= self._base:
                return whycache.AppendResult.BELOW_BASE
            if id in self._updates:
                return whycache.AppendResult.TAKEN
            self._updates[id] = update
            return whycache.AppendResult.APPENDED

    def read(self, first, last):
        with self._lock:
            return sorted(item for item in self._updates.items() if first <= item[0] <= last)

    def read_base(self):
        with self._lock:
            return list(self._parts)

    def rewrite(self, base, base_chain, parts):
        with self._lock:
            if not self._base < base <= self._extent().head:
                return False
        kept = list(parts)
        with self._lock:
            self._base, self._base_chain, self._parts = base, base_chain, kept
            self._updates = {id: update for id, update in self._updates.items() if id > base}
            return True


class AsyncLog(whycache.Log):
    """The same with async methods."""

    def __init__(self):
        self._log = MemoryLog("memory-of-asyncio:")

    def name(self):
        return self._log.name()

    async def extent(self):
        await asyncio.sleep(0)
        return self._log.extent()

    async def append(self, id, update):
        await asyncio.sleep(0)
        return self._log.append(id, update)

    async def read(self, first, last):
        for row in self._log.read(first, last):
            await asyncio.sleep(0)
            yield row

    async def read_base(self):
        for part in self._log.read_base():
            await asyncio.sleep(0)
            yield part

    async def rewrite(self, base, base_chain, parts):
        return self._log.rewrite(base, base_chain, parts)


class TestMemoryLog(testing.LogContract):
    """The contract suite on the log with plain methods."""

    @pytest.fixture
    def make_log(self):
        log = MemoryLog()
        return lambda: log


class TestAsyncLog(testing.LogContract):
    """The contract suite on the log with async methods."""

    @pytest.fixture
    def make_log(self):
        log = AsyncLog()
        return lambda: log


@pytest.mark.parametrize("make_log", [MemoryLog, AsyncLog])
def test_two_machines_share_a_log_in_python(make_log, tmp_path):
    log = make_log()
    with whycache.Cache(log, state_path=tmp_path / "one.state") as one, \
         whycache.Cache(log, state_path=tmp_path / "two.state") as two:
        for i in range(20):
            one.set(b"%d" % i, b"1")
            two.set(b"%d" % i, b"2")
        two.update()
        one.update()
        assert dict(one) == dict(two)
        one.rewrite_history()
        one.set(b"after", b"3")
    with whycache.Cache(log, state_path=tmp_path / "three.state") as three:
        assert three[b"after"] == b"3"
        assert len(three) == 21


class FaultyLog(MemoryLog):
    """Does what `faults` says, by method."""

    def __init__(self, name="faulty:"):
        super().__init__(name)
        self.faults = {}

    def _act(self, method, *arguments):
        fault = self.faults.get(method)
        if fault is not None:
            return fault()
        return getattr(MemoryLog, method)(self, *arguments)

    def extent(self):
        return self._act("extent")

    def append(self, id, update):
        return self._act("append", id, update)

    def read(self, first, last):
        return self._act("read", first, last)

    def read_base(self):
        return self._act("read_base")

    def rewrite(self, base, base_chain, parts):
        return self._act("rewrite", base, base_chain, parts)


def raising(error):
    def fault():
        raise error

    return fault


@pytest.fixture
def log():
    return FaultyLog()


@pytest.fixture
def faulty(log, tmp_path):
    with whycache.Cache(log, state_path=tmp_path / "faulty.state", deadline=0.3) as cache:
        cache.set(b"a", b"1")
        yield cache


@pytest.mark.parametrize("fault, error", [
    (raising(RuntimeError("no")), whycache.UncertainError),
    (raising(whycache.UnavailableError("down")), whycache.UnavailableError),
    (raising(whycache.RefusedError("no")), whycache.Error),
    (raising(KeyError()), whycache.UncertainError),
    (lambda: "nonsense", whycache.UncertainError),
    (lambda: None, whycache.UncertainError),
    (lambda: 99, whycache.UncertainError),
])
def test_append_that_fails_raises_what_is_known(faulty, log, fault, error):
    log.faults["append"] = fault
    with pytest.raises(error):
        faulty.set(b"b", b"1")
    log.faults.clear()
    assert faulty.set(b"c", b"1") == faulty.applied_id()
    assert faulty[b"a"] == faulty[b"c"] == b"1"


@pytest.mark.parametrize("fault", [
    raising(RuntimeError("no")), lambda: None, lambda: (1, 2), lambda: (b"short", 0, 0, 0),
    lambda: (bytes(16), 5, 0, 1), lambda: (bytes(16), -1, 0, 0), lambda: (bytes(16), 0, 0, 2**70),
])
def test_extent_of_nonsense_raises(faulty, log, fault):
    log.faults["extent"] = fault
    with pytest.raises(whycache.Error):
        faulty.update(staleness_max=0)
    log.faults.clear()
    assert faulty.update() == faulty.applied_id()


@pytest.mark.parametrize("fault", [
    raising(RuntimeError("no")), lambda: None, lambda: [1], lambda: [(1, "text")],
    lambda: [(2**70, b"")], lambda: [(-1, b"")], lambda: [(0, b"")], lambda: [b"update"],
    lambda: iter([(2, b"not an update")]), lambda: (1 // 0 for _ in range(1)),
])
def test_read_of_nonsense_raises(faulty, log, fault):
    other = whycache.Cache(log, state_path=faulty.shared_state_filename() + ".other")
    other.set(b"b", b"1")
    log.faults["read"] = fault
    with pytest.raises(whycache.Error):
        faulty.update()
    log.faults.clear()
    assert faulty.update() == 2
    assert faulty[b"b"] == b"1"
    other.close()


def test_message_names_log_method_and_exception(faulty, log):
    log.faults["extent"] = raising(RuntimeError("disk on fire"))
    log.faults["read"] = raising(RuntimeError("disk on fire"))
    with pytest.raises(whycache.UnavailableError,
                       match="faulty:.* method=read.*RuntimeError: disk on fire"):
        faulty.update()


def test_log_in_python_may_be_asked_after_a_fork(faulty):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulty.update()
            status = 0 if faulty.set(b"b", b"1") == 2 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("log", [None, 7, b"sqlite:///a", object()])
def test_log_of_another_type_raises(log):
    with pytest.raises(TypeError, match="log must be a URL or a whycache.Log"):
        whycache.Cache(log)


def test_call_time_left_is_that_of_the_call(log, tmp_path):
    assert whycache.call_time_left() == float("inf")
    times = []

    def fault():
        times.append(whycache.call_time_left())
        return MemoryLog.extent(log)

    log.faults["extent"] = fault
    with whycache.Cache(log, state_path=tmp_path / "one.state", deadline=5) as cache:
        cache.update()
    assert times and all(0 < left <= 5 for left in times)
