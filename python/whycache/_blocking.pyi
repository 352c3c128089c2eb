"""The types of the blocking cache."""

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from os import PathLike
from typing import Any, Self, TypeAlias, TypeVar

from whycache._changes import Changes
from whycache._log import Log
from whycache._memo import Memo
from whycache._operations import (
    Change,
    Event,
    FreshValue,
    Operations,
    Transaction,
    TransactResult,
)

_T = TypeVar("_T")
_Seconds: TypeAlias = float | timedelta
_Items: TypeAlias = Mapping[bytes, Any] | Iterable[tuple[bytes, Any]]

class Cache(Operations):
    def __init__(
        self, log: str | Log, *, codec: str = "typed", name: str = "",
        state_path: str | bytes | PathLike[str] | None = None, wait: bool = True,
        state_mode: int | None = None, state_bytes_max: int = ..., any_file_system: bool = False,
        create_log: bool = True, accept_replaced_log: bool = False, update_bytes_max: int = ...,
        split_updates: bool = True, deadline: _Seconds = 10.0, queue_bytes_max: int = ...,
        changes_bytes: int | None = None,
        staleness_max: _Seconds | None = None,
        erased_keys_max: int | None = None, erased_share_max: float | None = None,
        validate: Callable[[Change], str | None] | None = None, writer_name: str = "",
        on_event: Callable[[Event], object] | None = None, follow: bool = False) -> None: ...
    @classmethod
    def attach(cls, state_path: str | bytes | PathLike[str], *, codec: str = "typed",
               wait: bool = True, state_bytes_max: int = ..., any_file_system: bool = False,
               on_event: Callable[[Event], object] | None = None) -> Self: ...
    def set(self, key: bytes, value: Any, *, note: str | None = None,
            deadline: _Seconds | None = None) -> int: ...
    def set_multi(self, items: _Items, *, note: str | None = None,
                  deadline: _Seconds | None = None) -> int: ...
    def delete(self, key: bytes, *, note: str | None = None,
               deadline: _Seconds | None = None) -> int: ...
    def delete_multi(self, keys: Iterable[bytes], *, note: str | None = None,
                     deadline: _Seconds | None = None) -> int: ...
    def delete_range(self, *, prefix: bytes | None = None, start: bytes | None = None,
                     stop: bytes | None = None, note: str | None = None,
                     deadline: _Seconds | None = None) -> int: ...
    def write(self, sets: _Items = (), deletes: Iterable[bytes] = (), *, note: str | None = None,
              deadline: _Seconds | None = None) -> int: ...
    def set_if(self, key: bytes, expected: Any, value: Any, *, note: str | None = None,
               deadline: _Seconds | None = None) -> int | None: ...
    def delete_if(self, key: bytes, expected: Any, *, note: str | None = None,
                  deadline: _Seconds | None = None) -> int | None: ...
    def set_if_version(self, key: bytes, version: int, value: Any, *, note: str | None = None,
                       deadline: _Seconds | None = None) -> int | None: ...
    def delete_if_version(self, key: bytes, version: int, *, note: str | None = None,
                          deadline: _Seconds | None = None) -> int | None: ...
    def add(self, key: bytes, delta: int = 1, *, note: str | None = None,
            deadline: _Seconds | None = None) -> int: ...
    def rewrite_history(
        self, limit_update_id: int = 0,
        filter_fn: Callable[[bytes, Any], object] | None = None) -> int: ...
    def delete_all_history(self) -> int: ...
    def transact(self, function: Callable[[Transaction], _T], *, note: str | None = None,
                 deadline: _Seconds | None = None,
                 attempts_max: int = 100) -> TransactResult[_T]: ...
    def fill(self, items: _Items, *, note: str | None = None,
             deadline: _Seconds | None = None) -> int: ...
    def get_fresh(self, key: bytes, default: Any = ..., /, *,
                  staleness_max: _Seconds | None = ..., serve_stale: bool = False,
                  deadline: _Seconds | None = None) -> FreshValue: ...
    def update(self, *, staleness_max: _Seconds | None = ..., at_least: int = 0,
               deadline: _Seconds | None = None) -> int: ...
    def memo(self, decode: Callable[[Any], _T], *, entries_max: int = ...,
             keep_last_good: bool = False) -> Memo[_T]: ...
    def changes(self, after: int, *, prefix: bytes | None = None, start: bytes | None = None,
                stop: bytes | None = None, deadline: _Seconds | None = None) -> Changes: ...
    def wait(self, after: int, *, deadline: _Seconds | None = None) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
