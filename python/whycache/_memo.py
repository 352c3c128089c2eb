"""Decoded values, kept until they change: what `memo()` returns."""

import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

_T = TypeVar("_T")
_D = TypeVar("_D")
_UNSET: Any = object()


class MemoCounters(NamedTuple):
    """What a memo counted. Hits are not counted, since that would cost as much as a hit."""

    decodes: int
    """Calls of the function, those that raised included."""
    decode_failures: int
    """Calls of the function that raised."""
    entries: int
    """Objects that are kept now."""


class _Entry:
    __slots__ = ("failed", "object", "stamp", "used")

    def __init__(self, stamp: bytes, decoded: Any) -> None:
        self.stamp = stamp
        self.object = decoded
        self.failed: bytes | None = None
        self.used = True


class Memo(Generic[_T]):
    """Objects that a function makes of values, such as json.loads.

    memo[key] calls the function only if the key was set since the last call, the state was built
    again, or the object had to make room. A hit reads no value. Callers share the objects: do not
    change them. Any number of threads can use one memo; two of them may decode the same new value.
    """

    def __init__(self, cache: Any, decode: Callable[[Any], _T], entries_max: int,
                 keep_last_good: bool) -> None:
        if entries_max < 1:
            raise ValueError(f"entries_max must be at least 1: {entries_max}")
        self._cache = cache
        self._stamp_of = cache.version_stamp
        self._decode = decode
        self._entries_max = entries_max
        self._keep_last_good = keep_last_good
        self._entries: dict[bytes, _Entry] = {}
        self._mutex = threading.Lock()
        self._decodes = 0
        self._decode_failures = 0

    def __getitem__(self, key: bytes) -> _T:
        stamp = self._stamp_of(key)
        entry = self._entries.get(key)
        if entry is not None and (entry.stamp == stamp or entry.failed == stamp is not None):
            entry.used = True
            return entry.object  # type: ignore[no-any-return]
        return self._decode_present(key)

    def get(self, key: bytes, default: Any = _UNSET, /) -> Any:
        """Returns the object of a key's present value.

        If the key is absent, returns the default, or raises KeyError if none is given.
        """
        try:
            return self[key]
        except KeyError:
            if default is _UNSET or self._cache.version_stamp(key) is not None:
                raise
            return default

    def clear(self) -> None:
        """Drops all objects."""
        with self._mutex:
            self._entries = {}

    def counters(self) -> MemoCounters:
        """Returns what this memo counted."""
        return MemoCounters(self._decodes, self._decode_failures, len(self._entries))

    def _decode_present(self, key: bytes) -> _T:
        # The stamp may be of an older value than the one that is read next: then the next call
        # decodes once more. It is never of a newer one.
        stamp = self._stamp_of(key)
        if stamp is None:
            with self._mutex:
                self._entries.pop(key, None)
            raise KeyError(key)
        try:
            value = self._cache[key]
            with self._mutex:
                self._decodes += 1
            decoded = self._decode(value)
        except Exception as error:
            if isinstance(error, KeyError) and self._stamp_of(key) is None:
                raise
            with self._mutex:
                self._decode_failures += 1
                entry = self._entries.get(key)
                if not self._keep_last_good or entry is None:
                    raise
                entry.failed = stamp
                return entry.object  # type: ignore[no-any-return]
        with self._mutex:
            self._entries[bytes(key)] = _Entry(stamp, decoded)
            if len(self._entries) > self._entries_max:
                self._make_room()
        return decoded

    def _make_room(self) -> None:
        while True:
            key, entry = next(iter(self._entries.items()))
            del self._entries[key]
            if not entry.used:
                return
            entry.used = False
            self._entries[key] = entry  # to the end of the order
