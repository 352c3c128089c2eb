"""The cache for programs that block until a write is durable."""

from typing import Any

from whycache import _whycache
from whycache._changes import Changes
from whycache._operations import (
    _UNSET,
    Operations,
    _milliseconds,
    _nanoseconds,
    _seconds,
    wait,
)


class Cache(Operations):
    """A cache on one log and one state of this machine.

    Any number of threads can use one object, any number of processes a state. It works in a child
    after a fork, too. An interrupted write (KeyboardInterrupt) continues; the exception's attribute
    `write` tells its outcome: write.result(timeout).
    """

    def _completions(self) -> None:
        return None

    def _finish(self, pending: Any) -> Any:
        return wait(pending)

    def _drive(self, steps: Any) -> Any:
        try:
            step = next(steps)
            while True:
                if not hasattr(step, "result"):
                    if hasattr(step, "close"):
                        step.close()
                    raise TypeError("whycache.Cache takes no async functions and iterables: use "
                                    "whycache.aio.Cache")
                try:
                    result = wait(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

    def update(self, *, staleness_max: Any = _UNSET, at_least: int = 0,
               deadline: Any = None) -> int:
        """Applies the updates that the log has beyond the applied id. Returns the applied id.

        staleness_max: accepts what the machine knew at most so many seconds ago, which costs
            nanoseconds if it did. 0: everything that the log has when update() is called. None, or
            if neither this call nor the cache has a bound: what the log has, or the tier in front
            of it.
        at_least: waits until this id is applied, such as one that another machine passed on.
        """
        bound = self._staleness_ns if staleness_max is _UNSET else _nanoseconds(staleness_max)
        if bound:
            update_id = self.update_if_fresh(bound, at_least)
            if update_id is not None:
                return update_id
        pending = self.start_update(bound, at_least, _milliseconds(deadline), None)
        try:
            return int(wait(pending))
        finally:
            pending.stop()  # an interrupted call would occupy a thread

    def changes(self, after: int, *, prefix: bytes | None = None, start: bytes | None = None,
                stop: bytes | None = None, deadline: Any = None) -> Changes:
        """Returns an iterator over the changes of all updates beyond the id `after`.

        Returns what this machine has applied already, then waits for what it applies next. For
        changes of other machines to arrive, some process has to follow the log or call update().

        Begins with a "reset" if it cannot know all changes since then, as after a rewrite of
        history or a restored log: read the keys again. `deadline`: how many seconds to wait for
        changes in all; None: forever.
        """
        return Changes(self._start_changes(after, prefix, start, stop),
                       None if deadline is None else _seconds(deadline))

    def wait(self, after: int, *, deadline: Any = None) -> int:
        """Waits until a process of this machine has applied an update beyond `after`.

        Returns the applied id. It is greater than `after`, unless so many seconds have passed, or
        the log was restored to an earlier update meanwhile. Does not ask the log: that is for the
        follower, and for update().
        """
        pending = self.start_wait(after, _milliseconds(deadline), None)
        try:
            return int(wait(pending))
        finally:
            pending.stop()  # an interrupted call would occupy a thread

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


_whycache.own_reads(Cache)
