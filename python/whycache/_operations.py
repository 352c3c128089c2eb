"""What `whycache.Cache` and `whycache.aio.Cache` do in the same way.

Calls that wait are started here, as `Pending` objects. How a caller waits for one is up to the
class: `_finish(pending)` for a single call, `_drive(steps)` for a generator that yields several.
"""

import atexit
import datetime
import functools
import math
import operator
import os
import time
import weakref
from typing import Any, Generic, NamedTuple, TypeVar

from whycache import _whycache
from whycache._lease import Lease, LogGuards, fields_of, lease_of
from whycache._log import Adapter, Log
from whycache._memo import Memo


class _Absent:
    """The type of ABSENT."""

    def __repr__(self) -> str:
        return "whycache.ABSENT"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()
"""Stands for the value of a key that is absent, where None would be a value."""

_T = TypeVar("_T")
_UNSET: Any = object()

# More of them do not fit into 64 bits as nanoseconds.
_SECONDS_MAX = 9e9

# As much as one update holds by default, less what keys and lengths take.
_FILL_BYTES = 512 * 1024


class Event(NamedTuple):
    """What `on_event` gets.

    Kinds: rebuilt, recovered, retried, stray_state, reconnected, not_following, following, polling,
    changes_not_kept.
    """

    kind: str
    message: str


class Change(NamedTuple):
    """What `validate` gets. The kind is "set" or "delete"; a deletion has no value (None)."""

    kind: str
    key: bytes
    value: Any


class FreshValue(NamedTuple):
    """What `get_fresh` returns."""

    value: Any
    id: int
    """The update id as of which the value was read."""
    staleness: float
    """How many seconds ago the log was last asked."""
    stale: bool
    """The log did not answer in time: the value may be older than was asked for."""


class TransactResult(NamedTuple, Generic[_T]):
    """What `transact` returns."""

    id: int
    """The id of the update, or the one as of which a transaction without writes has read."""
    value: _T
    """What the function returned, in the run that was committed."""


def _milliseconds(deadline: Any) -> int | None:
    return None if deadline is None else _milliseconds_of("deadline", deadline)


def _milliseconds_of(name: str, time_span: Any) -> int:
    seconds = _seconds(time_span)
    if seconds < 0:
        raise ValueError(f"{name} is negative: {time_span}")
    return math.ceil(min(seconds, _SECONDS_MAX) * 1000)  # rounded up: 0 would not wait at all


def _bytes_max(name: str, value: int, bits: int) -> int:
    number = operator.index(value)
    if not 0 <= number < 2**bits:
        raise OverflowError(f"{name} out of range: {value}")
    return number


def _seconds(time_span: Any) -> float:
    if isinstance(time_span, datetime.timedelta):
        return time_span.total_seconds()
    if isinstance(time_span, (int, float)) and not isinstance(time_span, bool):
        if math.isnan(time_span):
            raise ValueError("a number of seconds must not be nan")
        return time_span
    raise TypeError(f"a number of seconds or a timedelta is needed, not {type(time_span).__name__}")


def _nanoseconds(staleness_max: Any) -> int | None:
    if staleness_max is None:
        return None
    return int(max(0.0, min(_seconds(staleness_max), _SECONDS_MAX)) * 1e9)


def _items_of(items: Any) -> Any:
    return items.items() if hasattr(items, "items") else items


def _range_bounds(prefix: bytes | None, start: bytes | None, stop: bytes | None
                  ) -> tuple[bytes, bytes | None]:
    """The first key of a range, and the one that it ends before."""
    begin, end = b"", None
    if prefix is not None:
        begin = prefix
        stem = prefix.rstrip(b"\xff")
        end = stem[:-1] + bytes([stem[-1] + 1]) if stem else None
    if start is not None:
        begin = max(begin, start)
    if stop is not None and (end is None or stop < end):
        end = stop
    return begin, max(begin, end) if end is not None else None


def operation(function: Any) -> Any:
    """Makes a method of a generator of the calls to wait for, in this order."""

    @functools.wraps(function)
    def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return self._drive(function(self, *arguments, **keywords))

    return method


class Transaction:
    """Reads as of one update id, and writes that are buffered until the function returns.

    All writes become one update. It is made only if no key or range that was read has changed.
    """

    def __init__(self, view: _whycache.View) -> None:
        self._view = view
        self._keys: set[bytes] = set()
        self._ranges: list[tuple[bytes, bytes | None]] = []
        self._written: dict[bytes, Any] = {}

    @property
    def id(self) -> int:
        """The update id as of which it reads."""
        return self._view.id

    def get(self, key: bytes, default: Any = _UNSET, /) -> Any:
        """Returns the value of a key, with this transaction's own writes on top."""
        value = self._written.get(key, _UNSET)
        if value is _UNSET:
            try:
                value = self._view.get(key, ABSENT)
            except _whycache.DecodeError:
                self._keys.add(key)  # the function may continue, because it found that
                raise
            self._keys.add(key)
            if type(value) is memoryview:
                value = bytes(value)
        if value is not ABSENT:
            return value
        if default is _UNSET:
            raise KeyError(key)
        return default

    def __getitem__(self, key: bytes) -> Any:
        return self.get(key)

    def __contains__(self, key: bytes) -> bool:
        return self.get(key, ABSENT) is not ABSENT

    def get_multi(self, keys: Any, default: Any = None) -> list[Any]:
        """Returns a list of the values in the order of the keys; the default for absent keys."""
        return [self.get(key, default) for key in keys]

    def items(self, *, prefix: bytes | None = None, start: bytes | None = None,
              stop: bytes | None = None) -> list[tuple[bytes, Any]]:
        """Returns the items of a range, in key order.

        The transaction runs again if others change the range meanwhile. Costs time in proportion
        to the range, now and when the transaction ends.
        """
        begin, end = _range_bounds(prefix, start, stop)
        self._ranges.append((begin, end))
        found = {key: bytes(value) if type(value) is memoryview else value
                 for key, value in self._view.items(start=begin, stop=end)}
        for key, value in self._written.items():
            if key >= begin and (end is None or key < end):
                found[key] = value
        return sorted((item for item in found.items() if item[1] is not ABSENT),
                      key=lambda item: item[0])

    def set(self, key: bytes, value: Any) -> None:
        """Sets a key when the transaction ends."""
        self._check_key(key)
        if value is ABSENT:
            raise TypeError("whycache.ABSENT cannot be stored: use delete()")
        self._written[key] = value

    def __setitem__(self, key: bytes, value: Any) -> None:
        self.set(key, value)

    def delete(self, key: bytes) -> None:
        """Deletes a key when the transaction ends."""
        self._check_key(key)
        self._written[key] = ABSENT

    def __delitem__(self, key: bytes) -> None:
        if key not in self:
            raise KeyError(key)
        self.delete(key)

    def add(self, key: bytes, delta: int = 1) -> int:
        """Adds to an integer, stored as an int or as decimal digits. Returns the sum."""
        value = self.get(key, b"0")
        if type(value) is not int and not isinstance(value, bytes):
            raise _whycache.InvalidError(f"value is not an integer: key={key!r}")
        try:
            total = int(value) + delta
        except ValueError:
            raise _whycache.InvalidError(f"value is not an integer: key={key!r}") from None
        self.set(key, total if type(value) is int else b"%d" % total)
        return total

    def holds(self, lease: Lease) -> bool:
        """Returns whether the lease is held, expired or not; see acquire().

        The transaction then commits only if no other holder has taken it. Reads the lease's key.
        """
        key, token, _, nonce, _ = fields_of(lease)
        if key in self._written:
            return False
        self._keys.add(key)
        return self._view.holds(key, token, nonce)

    def _check_key(self, key: bytes) -> None:
        key in self._view  # noqa: B015 - raises for what is not a key


class Operations(_whycache.BaseCache):
    """The methods of both classes. Do not use it itself."""

    def __init__(
        self,
        log: Any,
        *,
        codec: str = "typed",
        name: str = "",
        state_path: Any = None,
        wait: bool = True,
        state_mode: int | None = None,
        state_bytes_max: int = 64 << 30,
        any_file_system: bool = False,
        create_log: bool = True,
        accept_replaced_log: bool = False,
        update_bytes_max: int = 1 << 20,
        split_updates: bool = True,
        deadline: Any = 10.0,
        queue_bytes_max: int = 64 << 20,
        changes_bytes: int | None = None,
        staleness_max: Any = None,
        erased_keys_max: int | None = None,
        erased_share_max: float | None = None,
        validate: Any = None,
        writer_name: str = "",
        on_event: Any = None,
        follow: bool = False,
    ) -> None:
        """Opens the state of this machine for a log.

        `log` is a URL, such as "sqlite:///var/lib/flags.db", or a `whycache.Log` of your own. If
        this machine has a state, opening does not wait for the log. Otherwise it builds one from
        the log; with `wait=False` the first update() or write does.

        codec: how values are stored. "typed": bytes as they are, other values typed
            (docs/formats/value.md). "bytes", "utf8", "json"; "pickle" only if everybody who can
            write to the log may run code here.
        staleness_max: the bound of update() and get_fresh() if they are given none.
        deadline: how many seconds a call may take, waiting included.
        validate: called with each Change before it is written; returns None, or why it must not be.
        erased_keys_max, erased_share_max: how many keys one call may delete.
        on_event: called with each Event that an operator may want to know.
        follow: whether a thread keeps the state fresh, so that nobody has to call update(). One
            process of the machine polls the log at a time.

        The other options are those of C++ (include/whycache/options.h).
        """
        self._staleness_ns = _nanoseconds(staleness_max)
        self._default_deadline = deadline
        if isinstance(log, Log):
            log = Adapter(log)
        elif not isinstance(log, str):
            raise TypeError(f"log must be a URL or a whycache.Log, not {type(log).__name__}")
        super().__init__(
            log, codec, name=name, state_path=state_path, wait=wait, state_mode=state_mode,
            state_bytes_max=_bytes_max("state_bytes_max", state_bytes_max, 64),
            any_file_system=any_file_system, create_log=create_log,
            accept_replaced_log=accept_replaced_log,
            update_bytes_max=_bytes_max("update_bytes_max", update_bytes_max, 32),
            split_updates=split_updates, deadline_ms=_milliseconds(deadline),
            queue_bytes_max=_bytes_max("queue_bytes_max", queue_bytes_max, 64),
            changes_bytes=None if changes_bytes is None else _bytes_max(
                "changes_bytes", changes_bytes, 64),
            erased_keys_max=erased_keys_max, erased_share_max=erased_share_max,
            validate=(lambda *change: validate(Change(*change))) if validate is not None else None,
            writer_name=writer_name,
            on_event=(lambda *event: on_event(Event(*event))) if on_event is not None else None,
            follow=follow)
        _open_caches.add(self)

    @classmethod
    def attach(cls, state_path: Any, *, codec: str = "typed", wait: bool = True,
               state_bytes_max: int = 64 << 30, any_file_system: bool = False,
               on_event: Any = None) -> Any:
        """Opens the state at a path for reads alone, without a log or its credentials."""
        self = cls.__new__(cls)
        self._staleness_ns = None
        self._default_deadline = 10.0
        _whycache.BaseCache.__init__(
            self, os.fsdecode(state_path), codec, attach=True, wait=wait,
            state_bytes_max=_bytes_max("state_bytes_max", state_bytes_max, 64),
            any_file_system=any_file_system,
            on_event=(lambda *event: on_event(Event(*event))) if on_event is not None else None)
        _open_caches.add(self)
        return self

    # --- Decoded values ---

    def memo(self, decode: Any, *, entries_max: int = 10_000,
             keep_last_good: bool = False) -> Memo[Any]:
        """Returns a Memo: objects that `decode` makes of values, kept until a key changes.

        decode: called with a value as get() returns it, such as json.loads.
        entries_max: the most objects that are kept.
        keep_last_good: if a value cannot be decoded, returns the object of the one before it, and
            counts the failure, instead of raising what `decode` raised.
        """
        return Memo(self, decode, entries_max, keep_last_good)

    def _start_changes(self, after: int, prefix: bytes | None, start: bytes | None,
                       stop: bytes | None) -> Any:
        begin, end = _range_bounds(prefix, start, stop)
        return self.start_changes(after, begin, end)

    # --- How the classes differ ---

    def _completions(self) -> Any:
        raise NotImplementedError

    def _finish(self, pending: Any) -> Any:
        raise NotImplementedError

    def _drive(self, steps: Any) -> Any:
        raise NotImplementedError

    # --- Writes ---

    def set(self, key: bytes, value: Any, *, note: str | None = None, deadline: Any = None) -> Any:
        """Sets a key. Returns the update id.

        The update is then durable in the log and visible to every process of this machine. Every
        other machine applies it at its next update().
        """
        return self._finish(self.start_set(key, value, note, _milliseconds(deadline),
                                           self._completions()))

    def set_multi(self, items: Any, *, note: str | None = None, deadline: Any = None) -> Any:
        """Sets the items of a mapping, or pairs of key and value. Returns the last update id.

        All become one update if it can hold them (update_bytes_max), else several, in order.
        """
        return self._finish(self.start_write(_items_of(items), (), note, _milliseconds(deadline),
                                             self._completions()))

    def delete(self, key: bytes, *, note: str | None = None, deadline: Any = None) -> Any:
        """Deletes a key; it may be absent. Returns the update id."""
        return self._finish(self.start_delete(key, note, _milliseconds(deadline),
                                              self._completions()))

    def delete_multi(self, keys: Any, *, note: str | None = None, deadline: Any = None) -> Any:
        """Deletes keys by one update. Returns the last update id."""
        return self._finish(self.start_write((), keys, note, _milliseconds(deadline),
                                             self._completions()))

    def delete_range(self, *, prefix: bytes | None = None, start: bytes | None = None,
                     stop: bytes | None = None, note: str | None = None,
                     deadline: Any = None) -> Any:
        """Deletes all keys of a range by one update.

        None of them is present as of the id that it returns, whatever other machines wrote before.
        """
        return self._finish(self.start_delete_range(
            note, _milliseconds(deadline), self._completions(), prefix=prefix, start=start,
            stop=stop))

    def write(self, sets: Any = (), deletes: Any = (), *, note: str | None = None,
              deadline: Any = None) -> Any:
        """Sets items and deletes keys in one batch. Returns the last update id."""
        return self._finish(self.start_write(_items_of(sets), deletes, note,
                                             _milliseconds(deadline), self._completions()))

    def set_if(self, key: bytes, expected: Any, value: Any, *, note: str | None = None,
               deadline: Any = None) -> Any:
        """Sets a key if its value is stored as `expected` would be; ABSENT: if the key is absent.

        Returns the update id, or None if the value differed at some point during the call.
        """
        return self._finish(self.start_set_if(
            key, None if expected is ABSENT else (expected,), (value,), note,
            _milliseconds(deadline), self._completions()))

    def delete_if(self, key: bytes, expected: Any, *, note: str | None = None,
                  deadline: Any = None) -> Any:
        """Deletes a key if its value is stored as `expected` would be. Otherwise as set_if()."""
        return self._finish(self.start_set_if(key, (expected,), None, note,
                                              _milliseconds(deadline), self._completions()))

    def set_if_version(self, key: bytes, version: int, value: Any, *, note: str | None = None,
                       deadline: Any = None) -> Any:
        """Sets a key if its value has this version (0: it is absent); see get_versioned().

        Returns the update id, or None if the version differed at some point during the call.
        """
        return self._finish(self.start_set_if_version(
            key, version, (value,), note, _milliseconds(deadline), self._completions()))

    def delete_if_version(self, key: bytes, version: int, *, note: str | None = None,
                          deadline: Any = None) -> Any:
        """Deletes a key if its value has this version. Otherwise as set_if_version()."""
        return self._finish(self.start_set_if_version(
            key, version, None, note, _milliseconds(deadline), self._completions()))

    def add(self, key: bytes, delta: int = 1, *, note: str | None = None,
            deadline: Any = None) -> Any:
        """Adds to an integer that is stored as decimal digits; an absent key counts as 0.

        Returns the sum. C++ and the command line count in the same way.
        """
        return self._finish(self.start_add(key, delta, note, _milliseconds(deadline),
                                           self._completions()))

    @operation
    def transact(self, function: Any, *, note: str | None = None, deadline: Any = None,
                 attempts_max: int = 100) -> Any:
        """Runs function(transaction), and makes one update of what it writes through that.

        If any machine has changed what the function read, it runs again instead: it must be safe
        to repeat. Transactions are serializable. An exception of the function passes through, and
        nothing is written. Returns a TransactResult. Raises ConflictError if the attempts or the
        deadline run out.
        """
        if attempts_max < 1:
            raise ValueError("attempts_max must be at least 1")
        end = time.monotonic() + _seconds(self._default_deadline if deadline is None else deadline)
        for attempt in range(1, attempts_max + 1):
            with self.view() as view:
                transaction = Transaction(view)
                result = function(transaction)
                if hasattr(result, "__await__"):
                    result = yield result
                written = transaction._written
                if not written:
                    return TransactResult(view.id, result)
                update_id = yield self.start_commit(
                    view, transaction._keys, transaction._ranges,
                    [item for item in written.items() if item[1] is not ABSENT],
                    [key for key, value in written.items() if value is ABSENT],
                    note, _milliseconds(max(0.0, end - time.monotonic())), self._completions())
            if update_id is not None:
                return TransactResult(update_id, result)
            if time.monotonic() >= end:
                break
        raise _whycache.ConflictError(
            "what the transaction read was changed by others each time it ran, nothing was "
            f"written: attempts={attempt}")

    @operation
    def fill(self, items: Any, *, note: str | None = None, deadline: Any = None) -> Any:
        """Sets any number of items, of a mapping or an iterable of pairs, in bounded memory.

        Writes as many updates as that takes, in order, each atomic. Returns the id of the last. If
        one fails, the earlier ones stay. `whycache.aio.Cache` takes async iterables, too.
        """
        items = _items_of(items)
        milliseconds = _milliseconds(deadline)
        update_id = None
        batch: list[tuple[bytes, Any]] = []
        batch_bytes = 0
        is_async = hasattr(items, "__aiter__")
        iterator = aiter(items) if is_async else iter(items)
        while True:
            if is_async:
                item = yield _next_or_end(iterator)
            else:
                item = next(iterator, _UNSET)
            if item is not _UNSET:
                key, value = item
                batch.append((key, value))
                batch_bytes += len(key) + self.check_value(value)
            if batch and (item is _UNSET or batch_bytes >= _FILL_BYTES):
                update_id = yield self.start_write(batch, (), note, milliseconds,
                                                   self._completions())
                batch, batch_bytes = [], 0
            if item is _UNSET:
                return self.applied_id() if update_id is None else update_id

    # --- Leases and guards ---

    def acquire(self, key: bytes, ttl: Any, *, holder: str = "", clock_skew_max: Any = 5.0,
                deadline: Any = None) -> Any:
        """Acquires the lease of a key for `ttl` seconds. Returns a Lease, or None if it is taken.

        No other call, of this process or any other, gets it before it is released or has expired.
        Another holder takes an expired one only `clock_skew_max` after its end: so far the wall
        clocks of two machines may differ. Pass the same to every call for a key.

        A holder must stop when `lease.remaining()` is 0, which no clock can promise: a process may
        be stopped at any time. Let the store that is written compare `lease.token`, which grows
        with each lease of the key, or write by a transaction that calls `holds(lease)`.

        holder: stored with the lease for people to read; by default the name of this writer.

        Raises InvalidError if the key has a value that is not a lease, or ttl is not between a
        millisecond and a year. After UncertainError the lease may be taken until it expires.
        """
        pending = self.start_acquire(
            key, _milliseconds_of("ttl", ttl), holder,
            _milliseconds_of("clock_skew_max", clock_skew_max), _milliseconds(deadline),
            self._completions())
        pending.convert = lease_of
        return self._finish(pending)

    def renew(self, lease: Lease, *, holder: str = "", clock_skew_max: Any = 5.0,
              deadline: Any = None) -> Any:
        """Begins the time of a lease again. Returns whether it was still held.

        Returns False, and changes nothing, if it was released, or taken by another holder after it
        had expired.
        """
        pending = self.start_renew(
            fields_of(lease), holder, _milliseconds_of("clock_skew_max", clock_skew_max),
            _milliseconds(deadline), self._completions())
        pending.convert = lease._note_renewal
        return self._finish(pending)

    def release(self, lease: Lease, *, deadline: Any = None) -> Any:
        """Deletes the key of a lease if it still has this lease. Returns whether it had."""
        return self._finish(self.start_release(fields_of(lease), "", 0, _milliseconds(deadline),
                                               self._completions()))

    def log_guards(self) -> LogGuards:
        """Returns the guards of the log as of the applied id.

        Raises RefusedError if a newer version has set guards that this one does not know.
        """
        return LogGuards(*self.read_log_guards())

    def set_log_guards(self, guards: LogGuards, *, note: str | None = None,
                       deadline: Any = None) -> Any:
        """Replaces the guards of the log, which every write of every machine obeys.

        Returns the id of the update, or of the state that had them already. `LogGuards()` means
        none. A write that violates a guard raises RefusedError. Unlike these, `erased_keys_max`
        and `erased_share_max` of the constructor guard the writes of one cache.
        """
        clear_allowed, keys_max, share_max = guards
        return self._finish(self.start_set_log_guards(
            clear_allowed,
            None if keys_max is None else _bytes_max("erased_keys_max", keys_max, 64), share_max,
            note, _milliseconds(deadline), self._completions()))

    # --- The log ---

    def _start_update(self, staleness_ns: int | None, at_least: int, deadline: Any) -> Any:
        return self.start_update(staleness_ns, at_least, _milliseconds(deadline),
                                 self._completions())

    @operation
    def get_fresh(self, key: bytes, default: Any = _UNSET, /, *, staleness_max: Any = _UNSET,
                  serve_stale: bool = False, deadline: Any = None) -> Any:
        """Calls update() with the bound, then reads. Returns a FreshValue.

        staleness_max: as in update(); 0 if neither this call nor the cache has a bound.
        serve_stale: if the log does not answer in time, returns the value at hand, marked as
            stale, instead of raising UnavailableError.
        """
        bound = self._staleness_ns if staleness_max is _UNSET else _nanoseconds(staleness_max)
        stale = False
        if not bound or self.update_if_fresh(bound, 0) is None:
            try:
                yield self._start_update(bound or 0, 0, deadline)
            except _whycache.UnavailableError:
                if not serve_stale:
                    raise
                stale = True
        update_id = self.applied_id()
        value = self.get(key) if default is _UNSET else self.get(key, default)
        return FreshValue(value, update_id, self.staleness(), stale)

    def rewrite_history(self, limit_update_id: int = 0, filter_fn: Any = None) -> Any:
        """Replaces the updates up to an id (0: all) by the items as of it. Returns that id.

        filter_fn(key, value) returns whether to keep a key. The others are first deleted by
        ordinary updates, so that all machines stay equal. What it raises ends the call.
        """
        return self._finish(self.start_rewrite(limit_update_id, filter_fn, self._completions()))

    def delete_all_history(self) -> Any:
        """Empties the dataset on every machine, and its history. Returns the update id."""
        return self._finish(self.start_delete_all_history(self._completions()))

    # --- Blocking in both classes ---

    def __setitem__(self, key: bytes, value: Any) -> None:
        """Sets a key; returns when that is durable. Blocks, also in whycache.aio.Cache."""
        wait(self.start_set(key, value, None, None, None))

    def __delitem__(self, key: bytes) -> None:
        """Deletes a key; returns when that is durable. Raises KeyError if the key is absent."""
        if key not in self:
            raise KeyError(key)
        wait(self.start_delete(key, None, None, None))

    # --- Names of the original program ---

    def get_shared_state_update_id(self) -> int:
        """Returns the id of the last update in the state, as applied_id()."""
        return self.applied_id()


async def _next_or_end(iterator: Any) -> Any:
    return await anext(iterator, _UNSET)


def wait(pending: Any) -> Any:
    """Waits for a call. If a signal's exception ends the wait, it has the call as `write`."""
    try:
        return pending.result()
    except BaseException as error:
        if not pending.done():
            error.write = pending  # type: ignore[attr-defined]
        raise


# --- The end of the process, and its children ---

_open_caches: "weakref.WeakSet[Operations]" = weakref.WeakSet()


# How long the end of the interpreter waits for a cache to be closed.
_CLOSE_SECONDS = 2.0


def _log_error(message: str, *arguments: Any) -> None:
    import logging  # not before it is needed: every process would hold it in memory

    logging.getLogger("whycache").error(message, *arguments)


def _end() -> None:
    """Lets writes in flight finish, and reports those that do not."""
    _whycache.begin_exit()
    try:
        for cache in list(_open_caches):
            try:
                left = cache.wait_until_idle(_milliseconds(cache._default_deadline) or 0)
                closing = cache.start_close()
                if left:
                    _log_error("%d calls had not finished when the interpreter ended; their "
                                  "writes may not be in the log: state=%s", left,
                                  cache.shared_state_filename())
                # A log that is written in Python may hang.
                if closing is not None:
                    closing.result(_CLOSE_SECONDS)
            except Exception as error:
                _log_error("closing a cache failed at the end of the interpreter: %s", error)
    finally:
        _whycache.end_python()


atexit.register(_end)

def _start_again_in_child() -> None:
    _whycache.start_again_in_child()
    for cache in list(_open_caches):
        cache.forget_calls()


os.register_at_fork(after_in_child=_start_again_in_child)
