"""An in-process distributed cache: very fast reads, slow but guaranteed writes.

    import whycache

    cache = whycache.Cache("sqlite:///var/lib/flags.db")
    cache.set(b"checkout.enabled", True)         # durable, applied here; returns the update id
    if cache[b"checkout.enabled"]: ...           # no lock, no system call
    cache.update()                               # applies what other machines wrote
    for key, value in cache.items(): ...         # as of one update id, in key order

`Cache` blocks until a write is durable; `whycache.aio.Cache` is for asyncio. Both read at memory
speed, in a state that all processes of the machine share, whatever their language.
"""

import importlib as _importlib
import typing as _typing
from collections.abc import Mapping as _Mapping

from whycache._blocking import Cache
from whycache._changes import Changes, FeedChange
from whycache._lease import Lease, LogGuards
from whycache._log import AppendResult, Extent, Log, call_time_left
from whycache._memo import Memo, MemoCounters
from whycache._operations import (
    ABSENT,
    Change,
    Event,
    FreshValue,
    Transaction,
    TransactResult,
)
from whycache._whycache import (
    ConflictError,
    CorruptError,
    DecodeError,
    Error,
    InvalidError,
    LimitError,
    RefusedError,
    UnavailableError,
    UncertainError,
    View,
    __version__,
    decode_value,
    encode_value,
)

if _typing.TYPE_CHECKING:
    from whycache import aio as aio
    from whycache import original as original
    from whycache import testing as testing
else:  # a type checker would take every name for one that this function knows

    def __getattr__(name):
        # Imported when they are first used: asyncio takes memory that other programs do not need.
        if name in ("aio", "original", "testing"):
            return _importlib.import_module(f"whycache.{name}")
        raise AttributeError(f"module 'whycache' has no attribute {name!r}")


_Mapping.register(Cache)
_Mapping.register(View)


__all__ = [
    "ABSENT",
    "AppendResult",
    "Cache",
    "Change",
    "Changes",
    "ConflictError",
    "CorruptError",
    "DecodeError",
    "Error",
    "Event",
    "Extent",
    "FeedChange",
    "FreshValue",
    "InvalidError",
    "Lease",
    "LimitError",
    "Log",
    "LogGuards",
    "Memo",
    "MemoCounters",
    "RefusedError",
    "TransactResult",
    "Transaction",
    "UnavailableError",
    "UncertainError",
    "View",
    "__version__",
    "call_time_left",
    "decode_value",
    "encode_value",
]
