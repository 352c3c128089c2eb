"""Changes as they are applied, for asyncio: what `changes()` of whycache.aio.Cache returns."""

import asyncio
import time
from typing import Any

from whycache._changes import _COUNT_MAX, FeedChange, _Feed


class AsyncChanges(_Feed):
    """As Changes, for `async for`. Waiting occupies no thread."""

    def __init__(self, feed: Any, seconds: float | None, cache: Any) -> None:
        super().__init__(feed, seconds)
        self._cache = cache
        # A take whose task was cancelled goes on: the next call waits for it, and keeps its result.
        self._taking: asyncio.Future[tuple[list[Any], int]] | None = None

    def __aiter__(self) -> "AsyncChanges":
        return self

    async def __anext__(self) -> FeedChange:
        pause = 0.001
        while self._next == len(self._taken):
            left = self._milliseconds_left()
            seen = self._cache.applied_id()
            if await self._take_on_another_thread():
                break
            if left <= 0:
                raise StopAsyncIteration
            end = time.monotonic() + min(left / 1000, 1.0)
            while self._cache.applied_id() == seen and time.monotonic() < end:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.02)
        return self._return_next()

    async def _take_on_another_thread(self) -> bool:
        """Takes what is there: the feed may have to read the log for it."""
        taking = self._taking
        if taking is None:
            loop = asyncio.get_running_loop()
            self._taking = taking = loop.run_in_executor(None, self._feed.take, _COUNT_MAX, 0)
        try:
            taken = await asyncio.shield(taking)
        except BaseException:
            # Cancelled before it could keep the result: the next call does.
            if taking.done() and (taking.cancelled() or taking.exception()):
                self._taking = None
            raise
        if self._taking is taking:
            self._taking = None
            self._keep(*taken)
        return self._next < len(self._taken)
