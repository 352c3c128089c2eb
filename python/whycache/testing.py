"""The contract suite that a log of your own has to pass, for pytest.

    import whycache.testing

    class TestMyLog(whycache.testing.LogContract):
        @pytest.fixture
        def make_log(self):
            store = new_empty_store()
            return lambda: MyLog(store)

`make_log` returns a function that opens the same, initially empty, log each time.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import whycache
from whycache import AppendResult, Log
from whycache._log import Adapter

__all__ = ["LogContract"]


class _Driver:
    """A log whose methods return plain results."""

    def __init__(self, log: Log) -> None:
        assert isinstance(log, Log), "make_log() must return a whycache.Log"
        self._adapter = Adapter(log)

    def extent(self) -> whycache.Extent:
        uuid, base, base_chain, head, _ = self._adapter.extent()
        return whycache.Extent(uuid, base, base_chain, head)

    def append(self, id: int, update: bytes) -> AppendResult:
        return AppendResult(self._adapter.append(id, update))

    def read(self, first: int, last: int) -> list[tuple[int, bytes]]:
        return list(self._adapter.read(first, last))

    def read_base(self) -> list[bytes]:
        return list(self._adapter.read_base())

    def rewrite(self, base: int, base_chain: int, parts: list[bytes]) -> bool:
        remaining = iter(parts)
        rewritten = self._adapter.rewrite(base, base_chain, lambda: next(remaining, None))
        assert isinstance(rewritten, bool)
        return rewritten


class LogContract:
    """Derive from it, and give it the fixture `make_log`."""

    def _open(self, make_log: Callable[[], Log]) -> _Driver:
        log: Any = make_log()
        if inspect.isawaitable(log):
            async def opened() -> Any:
                return await log

            log = asyncio.run(opened())
        return _Driver(log)

    def test_new_log_is_empty(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        extent = log.extent()
        assert len(extent.uuid) == 16
        assert extent[1:] == (0, 0, 0)
        assert log.read(1, 2**64 - 1) == []
        assert log.read_base() == []

    def test_name_is_the_same_each_time(self, make_log: Callable[[], Log]) -> None:
        assert make_log().name() == make_log().name() != ""

    def test_uuid_is_the_same_each_time(self, make_log: Callable[[], Log]) -> None:
        first = self._open(make_log).extent().uuid
        assert self._open(make_log).extent().uuid == first

    def test_appended_update_is_read_back(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        assert log.append(1, b"one") is AppendResult.APPENDED
        assert log.extent().head == 1
        assert self._open(make_log).read(1, 10) == [(1, b"one")]

    def test_updates_are_opaque_bytes(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        updates = [b"", b"\0", bytes(range(256)), b"\xff" * 1000, b"x" * (1 << 20)]
        for id, update in enumerate(updates, 1):
            assert log.append(id, update) is AppendResult.APPENDED
        assert log.read(1, 100) == list(enumerate(updates, 1))

    def test_second_append_at_an_id_is_taken(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        log.append(1, b"one")
        assert log.append(1, b"other") is AppendResult.TAKEN
        assert self._open(make_log).append(1, b"one") is AppendResult.TAKEN
        assert log.read(1, 1) == [(1, b"one")]

    def test_read_returns_what_was_asked_for_in_order(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        for id in range(1, 301):
            log.append(id, b"%d" % id)
        assert log.read(10, 12) == [(10, b"10"), (11, b"11"), (12, b"12")]
        assert log.read(299, 2**64 - 1) == [(299, b"299"), (300, b"300")]
        assert log.read(301, 400) == []
        assert [id for id, _ in log.read(1, 300)] == list(range(1, 301))

    def test_one_of_two_appends_at_an_id_wins(self, make_log: Callable[[], Log]) -> None:
        logs = [self._open(make_log) for _ in range(4)]
        for id in range(1, 21):
            results: list[AppendResult] = []
            barrier = threading.Barrier(len(logs))

            def append(number: int, log: _Driver, id: int = id) -> None:
                barrier.wait()  # noqa: B023 - joined below
                results.append(log.append(id, b"%d" % number))  # noqa: B023

            threads = [threading.Thread(target=append, args=item) for item in enumerate(logs)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(results) == [AppendResult.APPENDED] + [AppendResult.TAKEN] * 3
            assert len(logs[0].read(id, id)) == 1

    def test_rewrite_replaces_the_updates_up_to_the_base(
            self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        for id in range(1, 6):
            log.append(id, b"%d" % id)
        chain = 2**64 - 3

        assert log.rewrite(3, chain, [b"part one", b"", b"part three"]) is True

        assert log.extent()[1:] == (3, chain, 5)
        other = self._open(make_log)
        assert other.read_base() == [b"part one", b"", b"part three"]
        assert other.read(1, 100) == [(4, b"4"), (5, b"5")]

    def test_rewrite_to_an_older_base_changes_nothing(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        for id in range(1, 6):
            log.append(id, b"%d" % id)
        log.rewrite(3, 33, [b"three"])
        assert log.rewrite(3, 99, [b"again"]) is False
        assert log.rewrite(2, 22, [b"two"]) is False
        assert log.extent()[1:] == (3, 33, 5)
        assert log.read_base() == [b"three"]

    def test_rewrite_beyond_the_head_changes_nothing(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        log.append(1, b"1")
        assert log.rewrite(2, 22, [b"two"]) is False
        assert log.extent()[1:] == (0, 0, 1)
        assert log.read(1, 1) == [(1, b"1")]

    def test_rewrite_whose_parts_fail_changes_nothing(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        log.append(1, b"1")

        def failing() -> Iterator[bytes]:
            yield b"part"
            raise RuntimeError("no more parts")

        parts = failing()
        try:
            log._adapter.rewrite(1, 11, lambda: next(parts))
        except Exception as error:
            assert "no more parts" in str(error)
        else:
            raise AssertionError("rewrite() must raise what its parts raise")
        assert log.extent()[1:] == (0, 0, 1)
        assert log.read(1, 1) == [(1, b"1")]

    def test_append_at_or_below_the_base_is_refused(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        for id in range(1, 4):
            log.append(id, b"%d" % id)
        log.rewrite(3, 33, [b"three"])
        for id in (1, 2, 3):
            assert log.append(id, b"late") is AppendResult.BELOW_BASE
        assert log.append(4, b"4") is AppendResult.APPENDED
        assert log.read(1, 100) == [(4, b"4")]

    def test_base_at_the_head_leaves_no_updates(self, make_log: Callable[[], Log]) -> None:
        log = self._open(make_log)
        log.append(1, b"1")
        assert log.rewrite(1, 11, []) is True
        assert log.extent()[1:] == (1, 11, 1)
        assert log.read(1, 100) == []
        assert log.append(2, b"2") is AppendResult.APPENDED

    def test_cache_works_on_it(self, make_log: Callable[[], Log], tmp_path: Any) -> None:
        with whycache.Cache(make_log(), state_path=tmp_path / "one.state") as one, \
             whycache.Cache(make_log(), state_path=tmp_path / "two.state") as two:
            for i in range(20):
                one.set(b"%d" % i, b"one")
                two.set(b"%d" % (i + 10), b"two")
            one.update()
            assert dict(one) == dict(two)
            one.rewrite_history()
            two.set(b"after", b"rewrite")
            one.update()
            assert one.digest() == two.digest()
        with whycache.Cache(make_log(), state_path=tmp_path / "three.state") as three:
            assert three[b"after"] == b"rewrite"
