"""Logs that are written in Python."""

import abc
import enum
import threading
from collections.abc import AsyncIterable, Awaitable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from whycache import _whycache

if TYPE_CHECKING:
    import asyncio


def call_time_left() -> float:
    """Returns how many seconds the call of a log on this thread may still take.

    The cache's deadlines hold only if the log waits no longer. Infinity outside such a call.
    """
    return _whycache.call_time_left()


class Extent(NamedTuple):
    """The range of updates that a log has."""

    uuid: bytes
    """16 random bytes, drawn when the log is created."""
    base: int = 0
    """The base replaces the updates 1..base, which are deleted. 0: never rewritten."""
    base_chain: int = 0
    """What rewrite() got with the base."""
    head: int = 0
    """The greatest update id in the log; at least the base."""


class AppendResult(enum.IntEnum):
    """What Log.append() returns."""

    APPENDED = 0
    """Durable, and visible to every later read."""
    TAKEN = 1
    """Another update has this id."""
    BELOW_BASE = 2
    """The base is at or beyond this id: the writer missed a rewrite."""


class Log(abc.ABC):
    """The log: an external, durable, ordered sequence of updates. It is the truth.

    Derive from it to keep the log in a store of your own, and run `whycache.testing.LogContract`
    on it. A log stores opaque bytes under dense ids (1, 2, 3, ...) and need not decode them. Any
    number of threads, processes and machines use one store at once, which alone coordinates them.

    Every method may be `async def`: it then runs on an event loop of the log's own.

    Raise UnavailableError if the store did not answer and did nothing, UncertainError if an append
    or a rewrite may or may not have happened. Any other exception counts as one of these two.
    Never return a partial answer.
    """

    @abc.abstractmethod
    def name(self) -> str:
        """Returns a name for messages, without secrets. No two logs may have the same."""

    @abc.abstractmethod
    def extent(self) -> "Extent | Awaitable[Extent]":
        """Returns uuid, base and head, in one cheap round trip."""

    @abc.abstractmethod
    def append(self, id: int, update: bytes) -> "AppendResult | Awaitable[AppendResult]":
        """Inserts an update if none has this id, and base < id holds after the insert."""

    @abc.abstractmethod
    def read(self, first: int, last: int
             ) -> "Iterable[tuple[int, bytes]] | AsyncIterable[tuple[int, bytes]]":
        """Yields the updates that exist in first..last, in order. extent() is asked after it."""

    @abc.abstractmethod
    def read_base(self) -> "Iterable[bytes] | AsyncIterable[bytes]":
        """Yields the parts of the current base in order; nothing while base is 0.

        Raise UnavailableError if the base is replaced midway.
        """

    @abc.abstractmethod
    def rewrite(self, base: int, base_chain: int, parts: Iterator[bytes]
                ) -> "bool | Awaitable[bool]":
        """Writes a new base beside the log and switches to it in one atomic step.

        Only if it is greater than the current base and not beyond the head; otherwise returns
        False. Then deletes the updates up to it and older bases.
        """

    def reopen(self) -> "Log":
        """Returns a log for a child after a fork, which must not share connections."""
        return self


class Adapter:
    """Calls a Log as the extension module expects: with plain types, and without awaiting."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._loop: "asyncio.AbstractEventLoop | None" = None
        self._lock = threading.Lock()

    def name(self) -> str:
        name = self._log.name()
        if not isinstance(name, str):
            raise TypeError(f"Log.name() must return a str, not {type(name).__name__}")
        return name

    def extent(self) -> tuple[bytes, int, int, int, int]:
        extent = self._result(self._log.extent())
        uuid, base, base_chain, head = extent
        return bytes(uuid), base, base_chain, head, 0

    def append(self, id: int, update: bytes) -> int:
        result = self._result(self._log.append(id, update))
        if not isinstance(result, AppendResult):
            return -1
        return int(result)

    def read(self, first: int, last: int) -> Iterator[Any]:
        return self._iterate(self._log.read(first, last))

    def read_base(self) -> Iterator[Any]:
        return self._iterate(self._log.read_base())

    def rewrite(self, base: int, base_chain: int, next_part: Any) -> Any:
        return self._result(self._log.rewrite(base, base_chain, iter(next_part, None)))

    def reopen(self) -> "Adapter":
        return Adapter(self._log.reopen())

    def _result(self, result: Any) -> Any:
        if not hasattr(result, "__await__"):
            return result

        async def wait() -> Any:
            return await result

        import asyncio  # not before it is needed: every process would hold it in memory

        return asyncio.run_coroutine_threadsafe(wait(), self._running_loop()).result()

    def _iterate(self, items: Any) -> Iterator[Any]:
        if hasattr(items, "__await__"):
            items = self._result(items)
        if not hasattr(items, "__aiter__"):
            return iter(items)
        return self._iterate_async(items)

    def _iterate_async(self, items: Any) -> Iterator[Any]:
        iterator = aiter(items)
        end = object()

        async def next_item() -> Any:
            return await anext(iterator, end)

        while (item := self._result(next_item())) is not end:
            yield item

    def _running_loop(self) -> "asyncio.AbstractEventLoop":
        import asyncio

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="whycache log",
                                 daemon=True).start()
            return self._loop
