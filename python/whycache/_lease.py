"""Leases, and the guards of a log: what acquire() returns, and what set_log_guards() takes."""

import time
from typing import Any, NamedTuple


class LogGuards(NamedTuple):
    """Limits that live in the log. Every write of every machine obeys them."""

    clear_allowed: bool = True
    """Whether one call may delete all keys, as delete_all_history() does."""
    erased_keys_max: int | None = None
    """The most keys that one call may delete; None: any number."""
    erased_share_max: float | None = None
    """The same as a share of all keys, 0 to 1. A single key may always be deleted."""


class Lease:
    """The right of one holder until a time. `acquire` returns it, `renew` makes it last longer."""

    __slots__ = ("_end_ns", "_nonce", "_ttl_ms", "key", "token")

    key: bytes
    token: int
    """The fencing token: the id of the update that granted the lease. Renewing keeps it."""
    _ttl_ms: int
    _nonce: int
    _end_ns: int

    def __init__(self, key: bytes, token: int, ttl_ms: int, nonce: int, end_ns: int) -> None:
        self.key = key
        self.token = token
        self._ttl_ms = ttl_ms
        self._nonce = nonce
        self._end_ns = end_ns  # CLOCK_BOOTTIME

    @property
    def ttl(self) -> float:
        """How many seconds it lasts from when it was acquired or renewed."""
        return self._ttl_ms / 1000

    def remaining(self) -> float:
        """Returns for how many seconds the holder may rely on the lease; 0 once it is over."""
        return max(0.0, (self._end_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9)

    def __repr__(self) -> str:
        return f"Lease(key={self.key!r}, token={self.token}, remaining={self.remaining():.3f})"

    def _fields(self) -> tuple[bytes, int, int, int, int]:
        return self.key, self.token, self._ttl_ms, self._nonce, self._end_ns

    def _note_renewal(self, renewed: tuple[Any, ...] | None) -> bool:
        if renewed is None:
            return False
        # The outcome can be asked for twice, and after that of a later renewal.
        self._end_ns = max(self._end_ns, renewed[4])
        return True


def lease_of(outcome: tuple[Any, ...] | None) -> Lease | None:
    """Returns the lease that a call of the extension module has acquired."""
    return None if outcome is None else Lease(*outcome)


def fields_of(lease: Any) -> tuple[bytes, int, int, int, int]:
    """Returns what the extension module takes. Raises TypeError for what is not a Lease."""
    if not isinstance(lease, Lease):
        raise TypeError(f"lease must be a whycache.Lease, not {type(lease).__name__}")
    return lease._fields()
