"""Changes as they are applied: what `changes()` of both caches returns."""

import datetime
import time
from typing import Any, NamedTuple

from whycache import _whycache

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_COUNT_MAX = 256
# How long a wait may keep this thread from handling a signal.
_SLICE_MS = 100


class FeedChange(NamedTuple):
    """One change that an update made."""

    kind: str
    """"set", "delete", "delete_all" or "reset"."""
    id: int
    """The id of the update."""
    key: bytes | None
    """None if the kind is "delete_all" or "reset"."""
    value: Any
    """Of "set"; otherwise None."""
    time: datetime.datetime
    """When the update was written, by the clock of its writer."""
    writer: str
    note: str
    """What was passed as `note`; of "reset", why it cannot be said what changed."""
    ends_update: bool
    """Whether this is the last change of the update, so that `id` can be resumed from."""


class _Feed:
    """What the feeds of both caches share: changes that were taken, and are to be returned."""

    def __init__(self, feed: Any, seconds: float | None) -> None:
        self._feed = feed
        self._end = None if seconds is None else time.monotonic() + seconds
        self._taken: list[Any] = []
        self._next = 0
        self._position: int = feed.position()
        self._taken_up_to = self._position

    @property
    def position(self) -> int:
        """The id of the last update whose changes were all returned: what to resume from."""
        return self._position

    def _keep(self, taken: list[Any], up_to: int) -> bool:
        self._taken, self._taken_up_to = taken, up_to
        self._next = 0
        if not self._taken:
            self._position = self._taken_up_to
        return bool(self._taken)

    def _return_next(self) -> FeedChange:
        kind, update_id, key, value, time_us, writer, note, ends, undecodable = self._taken[
            self._next]
        self._next += 1
        if undecodable and not isinstance(value, _whycache.DecodeError):
            raise value  # decoding was interrupted: not counted as returned
        if self._next == len(self._taken):
            self._position = self._taken_up_to
        elif ends:
            self._position = update_id
        if undecodable:
            raise value
        when = _EPOCH + datetime.timedelta(microseconds=time_us)
        return FeedChange(kind, update_id, key, value, when, writer, note, ends)

    def _milliseconds_left(self) -> float:
        if self._end is None:
            return float("inf")
        return max(0.0, self._end - time.monotonic()) * 1000


class Changes(_Feed):
    """An iterator over changes. Waits for the next one, up to the deadline.

    If a value cannot be decoded, raises DecodeError; the next call continues with the next change.
    """

    def __iter__(self) -> "Changes":
        return self

    def __next__(self) -> FeedChange:
        while self._next == len(self._taken):
            left = self._milliseconds_left()
            taken = self._feed.take(_COUNT_MAX, int(min(left, _SLICE_MS)))
            if not self._keep(*taken) and left <= 0:
                raise StopIteration
        return self._return_next()
