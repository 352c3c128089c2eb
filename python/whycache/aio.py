"""The cache for asyncio."""

import asyncio
import weakref
from collections.abc import Coroutine, Generator, Mapping
from typing import Any, TypeVar

from whycache import _whycache
from whycache._async_changes import AsyncChanges
from whycache._operations import _UNSET, Operations, _milliseconds, _nanoseconds, _seconds

__all__ = ["Cache", "Write"]

_T = TypeVar("_T")


class _LoopSide:
    """The calls of one event loop that are under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)
        self.completions = _whycache.Completions()
        self.under_way: set[_whycache.Pending] = set()
        loop.add_reader(self.completions.fileno(), self.wake)

    def wake(self) -> None:
        for pending in self.completions.take():
            self.under_way.discard(pending)
            waiters, pending.waiter = pending.waiter, None
            for waiter in waiters or ():
                if not waiter.done():
                    waiter.set_result(None)


_sides: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopSide]" = (
    weakref.WeakKeyDictionary())


def _running_side() -> _LoopSide:
    loop = asyncio.get_running_loop()
    side = _sides.get(loop)
    if side is None:
        side = _sides[loop] = _LoopSide(loop)
    return side


class Write(Coroutine[Any, Any, _T]):
    """A call that has been started: await it for its outcome, or give it to a task.

    It continues if the task that awaits it is cancelled. The CancelledError then has it as its
    attribute `write`, and it can be awaited again.
    """

    __slots__ = ("_loop", "_pending", "_steps")

    def __init__(self, pending: _whycache.Pending,
                 loop: "weakref.ref[asyncio.AbstractEventLoop]") -> None:
        self._pending = pending
        self._loop = loop  # which is woken
        self._steps: dict[asyncio.Task[Any] | None, Generator[Any, None, _T]] = {}

    def done(self) -> bool:
        """Returns whether the outcome is known."""
        return self._pending.done()

    def result(self, timeout: float | None = None) -> _T:
        """Waits for the outcome without an event loop. Raises TimeoutError if it takes longer."""
        return self._pending.result(timeout)  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, None, _T]:
        pending = self._pending
        loop = asyncio.get_running_loop()
        pause = 0.001
        while not pending.done():
            try:
                if self._loop() is not loop:
                    # Nothing wakes this loop, and the other one may be closed.
                    yield from asyncio.sleep(pause).__await__()
                    pause = min(2 * pause, 0.05)
                    continue
                waiter = loop.create_future()
                if pending.waiter is None:
                    pending.waiter = []
                pending.waiter.append(waiter)
                # It may have finished, and been taken, before the waiter was there.
                if pending.done():
                    break
                yield from waiter
            except asyncio.CancelledError as error:
                error.write = self  # type: ignore[attr-defined]
                raise
        return pending.result(0)  # type: ignore[no-any-return]

    # A task takes nothing but a coroutine, and drives it by these. Unlike others, this one can be
    # given to several tasks, of several event loops: each has steps of its own.

    def _steps_of_task(self) -> Generator[Any, None, _T]:
        steps = self._steps.get(asyncio.current_task())
        if steps is None:
            steps = self._steps[asyncio.current_task()] = self.__await__()
        return steps

    def send(self, value: Any, /) -> Any:
        try:
            return self._steps_of_task().send(value)
        except BaseException:
            self._steps.pop(asyncio.current_task(), None)
            raise

    def throw(self, *error: Any) -> Any:
        try:
            return self._steps_of_task().throw(*error)
        except BaseException as raised:
            self._steps.pop(asyncio.current_task(), None)
            if isinstance(raised, asyncio.CancelledError):  # perhaps before the first step
                raised.write = self  # type: ignore[attr-defined]
            raise

    def close(self) -> None:
        """Does nothing: what was started continues."""


class Cache(Operations):
    """As whycache.Cache, for asyncio: what waits is awaitable, reads are as they are.

    Writes begin when they are called, in this order, and continue if their task is cancelled. One
    object works in several event loops. Opening blocks; `await Cache.open(...)` does not.
    """

    @classmethod
    async def open(cls, *arguments: Any, **options: Any) -> "Cache":
        """Opens a cache on another thread: it may have to build a state from the log."""
        return await asyncio.get_running_loop().run_in_executor(
            None, lambda: cls(*arguments, **options))

    def _completions(self) -> Any:
        return _running_side().completions

    def _finish(self, pending: Any) -> Any:
        side = _running_side()
        # A call that has finished may have been taken already only by this thread: not yet.
        side.under_way.add(pending)
        return Write(pending, side.loop)

    async def _drive(self, steps: Any) -> Any:
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, _whycache.Pending):
                        result = await self._finish(step)
                    else:
                        result = await step
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

    async def update(self, *, staleness_max: Any = _UNSET, at_least: int = 0,
                     deadline: Any = None) -> int:
        """Applies the updates that the log has beyond the applied id. Returns the applied id.

        The arguments are those of whycache.Cache.update(). Within its bound it takes about a
        microsecond, and does not wait.
        """
        bound = self._staleness_ns if staleness_max is _UNSET else _nanoseconds(staleness_max)
        if bound:
            update_id = self.update_if_fresh(bound, at_least)
            if update_id is not None:
                return update_id
        pending = self.start_update(bound, at_least, _milliseconds(deadline), self._completions())
        try:
            return int(await self._finish(pending))
        except asyncio.CancelledError:
            pending.stop()  # without a caller, it would occupy a thread
            raise

    def changes(self, after: int, *, prefix: bytes | None = None, start: bytes | None = None,
                stop: bytes | None = None, deadline: Any = None) -> AsyncChanges:
        """Returns an iterator over the changes of all updates beyond the id `after`.

        For `async for`; otherwise as changes() of whycache.Cache.

        Begins with a "reset" if it cannot know all changes since then, as after a rewrite of
        history or a restored log: read the keys again. `deadline`: how many seconds to wait for
        changes in all; None: forever.
        """
        return AsyncChanges(self._start_changes(after, prefix, start, stop),
                            None if deadline is None else _seconds(deadline), self)

    async def wait(self, after: int, *, deadline: Any = None) -> int:
        """Waits until a process of this machine has applied an update beyond `after`.

        As whycache.Cache.wait(). Each task that waits occupies a thread of the library, which
        sleeps. For very many, wait in one task, or add `notify_fd()` to the loop.
        """
        pending = self.start_wait(after, _milliseconds(deadline), self._completions())
        try:
            return int(await self._finish(pending))
        except asyncio.CancelledError:
            pending.stop()
            raise

    async def aclose(self) -> None:
        """Closes the cache on another thread."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    async def __aenter__(self) -> "Cache":
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.aclose()


_whycache.own_reads(Cache)
Mapping.register(Cache)
