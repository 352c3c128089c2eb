"""The interface of the original program: code written for it runs after changing its import.

    from whycache.original import MySQLWhycacheInstance

The data are those of a new log; `python -m whycache import-original` brings the old ones along.
docs/python.md lists what differs: iteration is consistent, a filtered rewrite_history() converges
on all machines, and values are not pickled.
"""

import hashlib
import os
import re
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, NamedTuple

from whycache import _whycache, aio
from whycache._blocking import Cache
from whycache._log import Log
from whycache._whycache import LimitError

__all__ = ["FileWhycacheInstance", "MySQLWhycacheInstance", "OriginalImport", "WhycacheInstance",
           "import_original"]


class OriginalImport(NamedTuple):
    """What `import_original` returns."""

    updates_read: int
    items: int
    skipped: dict[bytes, str]
    """Keys whose values cannot be imported, and why."""


def _instance_of(name: str) -> str:
    """A name that a log's URL takes, another one for each name."""
    if re.fullmatch(r"[A-Za-z0-9_]{1,48}", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9_]", "_", name)[:35] + "_" + digest


class WhycacheInstance(ABC):
    """A cache by its name. Derive from it to say where its log is (`log`)."""

    max_update_size = 1024 * 1024

    def __init__(self, instance_name: str) -> None:
        self.instance_name = instance_name
        self._cache: aio.Cache | None = None

    @abstractmethod
    def log(self) -> str | Log:
        """Returns the URL of the log, or a whycache.Log."""

    def shared_state_filename(self) -> str:
        """Returns the full path to the shared state file."""
        return f"/tmp/whycache-{self.instance_name}.state"

    # --- The shared state ---

    def _open(self) -> aio.Cache:
        if self._cache is None:
            self._cache = aio.Cache(self.log(), name=_instance_of(self.instance_name),
                                    state_path=self.shared_state_filename(),
                                    update_bytes_max=self.max_update_size)
            # Reads then cost what they cost there.
            if type(self).get is WhycacheInstance.get:
                self.__dict__["get"] = self._cache.get
        return self._cache

    def _drop(self) -> None:
        self._cache = None
        self.__dict__.pop("get", None)

    def get_shared_state(self) -> dict[str, Any]:
        """Returns what the shared state holds, for inspection."""
        return self._open().get_shared_state()

    def close_shared_state(self) -> None:
        """Closes the shared state, so that its file can be copied. The next call opens it again."""
        if self._cache is not None:
            self._cache.close_shared_state()
            self._cache.close()
            self._drop()

    def delete_shared_state(self) -> None:
        """Closes and deletes the shared state. The next update() builds it again."""
        if self._cache is None and not os.path.exists(self.shared_state_filename()):
            return
        self._open().delete_shared_state()
        self._drop()

    def valid(self) -> bool:
        """Returns whether there is a shared state that can be read."""
        if self._cache is None and not os.path.exists(self.shared_state_filename()):
            return False
        return self._open().ready()

    def assert_valid(self) -> None:
        """Asserts that the shared state is valid."""
        assert self.valid(), "update() must be called first"

    def get_shared_state_update_id(self) -> int:
        """Returns the id of the last update that was applied to the shared state."""
        return self._open().applied_id()

    async def get_latest_update_id(self) -> int:
        """Returns the id of the last update in the log."""
        return int(await self._open().update(staleness_max=0))

    # --- Reads ---

    def get(self, key: bytes) -> Any:
        """Returns the value of a key; raises KeyError if it is missing."""
        return self._open().get(key)

    def keys(self) -> Iterator[bytes]:
        """Returns an iterator over the keys, as of one update id."""
        return iter(self._open().keys())

    def values(self) -> Iterator[Any]:
        """Returns an iterator over the values in key order, as of one update id."""
        return iter(self._open().values())

    def items(self) -> Iterator[tuple[bytes, Any]]:
        """Returns an iterator over pairs of key and value, as of one update id."""
        return iter(self._open().items())

    # --- Writes ---

    async def update(self) -> int:
        """Applies what the log has. Returns the update id."""
        return int(await self._open().update())

    async def set(self, key: bytes, value: Any) -> int:
        """Sets a key. Returns the update id."""
        return int(await self._write(lambda cache: cache.set(key, value)))

    async def set_multi(self, items: dict[bytes, Any]) -> int | None:
        """Sets the items of a dict. Returns the last update id."""
        return int(await self._write(lambda cache: cache.set_multi(items))) if items else None

    async def delete(self, key: bytes) -> int:
        """Deletes a key. Returns the update id."""
        return int(await self._write(lambda cache: cache.delete(key)))

    async def delete_multi(self, keys: Iterable[bytes]) -> int | None:
        """Deletes keys. Returns the last update id."""
        deleted = list(keys)
        if not deleted:
            return None
        return int(await self._write(lambda cache: cache.delete_multi(deleted)))

    async def _write(self, call: Any) -> Any:
        # The original raises ValueError for what is too large.
        try:
            write: Awaitable[int] = call(self._open())
            return await write
        except LimitError as error:
            raise ValueError(str(error)) from error

    async def rewrite_history(self, limit_update_id: int, filter_fn: Any = None) -> int:
        """Replaces the updates up to an id by the items as of it.

        filter_fn(key, value) returns whether to keep a key; the others are deleted everywhere.
        """
        return int(await self._open().rewrite_history(limit_update_id, filter_fn))

    async def delete_all_history(self) -> None:
        """Empties the dataset on every machine, and deletes the shared state of this one."""
        await self._open().delete_all_history()
        self.delete_shared_state()

    async def close(self) -> None:
        """Closes the cache and its connections. The next call opens them again."""
        if self._cache is not None:
            await self._cache.aclose()
            self._drop()


class FileWhycacheInstance(WhycacheInstance):
    """A cache whose log is in files of a directory."""

    def __init__(self, instance_name: str, data_directory: str) -> None:
        super().__init__(instance_name)
        self.data_directory = data_directory

    def log(self) -> str:
        directory = urllib.parse.quote(os.path.abspath(self.data_directory))
        return f"file://{directory}?instance={_instance_of(self.instance_name)}"

    def shared_state_filename(self) -> str:
        """Returns the full path to the shared state file."""
        return os.path.join(self.data_directory, f"{_instance_of(self.instance_name)}.state")


class MySQLWhycacheInstance(WhycacheInstance):
    """A cache whose log is in MySQL or MariaDB. Its tables are created when they are missing.

    `url_options` is added to the URL of the log (docs/logs.md). A server that is not on this
    machine has to prove by TLS who it is, unless they say "tls=off".
    """

    def __init__(self, instance_name: str, table_name: str, mysql_host: str, mysql_port: int,
                 mysql_user: str, mysql_password: str, mysql_database: str, *,
                 url_options: str = "") -> None:
        super().__init__(instance_name)
        self.table_name = table_name
        self.mysql_host = mysql_host
        self.mysql_port = mysql_port
        self.mysql_user = mysql_user
        self.mysql_password = mysql_password
        self.mysql_database = mysql_database
        self.url_options = url_options

    def log(self) -> str:
        quoted = [urllib.parse.quote(str(part), safe="") for part in (
            self.mysql_user, self.mysql_password, self.mysql_database)]
        host = f"[{self.mysql_host}]" if ":" in self.mysql_host else self.mysql_host
        options = f"&{self.url_options}" if self.url_options else ""
        return (f"mysql://{quoted[0]}:{quoted[1]}@{host}:{self.mysql_port}/{quoted[2]}"
                f"?instance={_instance_of(self.table_name)}{options}")


def import_original(source: str, cache: Cache, *, skip_unsupported: bool = False
                    ) -> OriginalImport:
    """Sets what the log of the original program holds in a cache on a new log.

    `source` is "file:///directory" or "mysql://user@host/database?table=whycache"; it is only read.
    No code of a pickle is run: values are None, numbers, str, bytes, containers, dates and times,
    Decimal and UUID. If there are others, InvalidError is raised before anything is written;
    `skip_unsupported` leaves them out.
    """
    if len(cache) > 0:
        raise ValueError(f"the log has {len(cache)} keys: import into a new log")
    updates_read, items, skipped = _whycache.read_original(source, skip_unsupported)
    cache.fill((key, _whycache.decode_value(stored)) for key, stored in items)
    return OriginalImport(updates_read, len(items), dict(skipped))
