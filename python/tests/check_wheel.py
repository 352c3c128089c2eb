#!/usr/bin/env python3
"""Runs a wheel in a root directory that has an interpreter and the C library, and little else.

    python/tests/check_wheel.py build/wheel/dist/whycache-*.whl
    python/tests/check_wheel.py --make build/dev/wheel

The second makes the wheel first (make_wheel.py), without optimisation: what is checked is which
libraries and files the wheel needs. Needs root, for chroot(2). The directory has no compiler, no
libstdc++, and none of the libraries that the wheel bundles.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator

import servers

SCRIPT = """
import os
import whycache
from whycache import aio
import asyncio
with whycache.Cache("sqlite:///data/log.db", state_path="/data/one.state") as cache:
    cache.set_multi({b"a": b"1", b"b": {"typed": [1, 2.5, None]}})
    assert dict(cache) == {b"a": b"1", b"b": {"typed": [1, 2.5, None]}}
    cache.rewrite_history()
    cache.set(b"large", b"compressible " * 10000)
async def main():
    async with await aio.Cache.open("file:///data?instance=other", state_path="/data/") as other:
        assert await other.set(b"a", 1) == 1
asyncio.run(main())
for scheme in ("mysql", "postgres"):
    try:
        whycache.Cache(scheme + "://nobody@127.0.0.1:1/test", state_path="/data/", deadline=0.1)
    except whycache.UnavailableError as error:
        print(error)
for scheme in ("memcached", "redis"):  # whose libraries the wheel does not have
    try:
        whycache.Cache(scheme + "+sqlite:///data/log.db", state_path="/data/")
    except whycache.InvalidError as error:
        assert "built without" in str(error)
    else:
        raise AssertionError(scheme)
import ctypes
import pathlib
plugins = sorted(pathlib.Path(whycache.__file__).parent.glob("mysql_plugins/*"))
assert {plugin.stem for plugin in plugins} == {
    "caching_sha2_password", "client_ed25519", "dialog", "mysql_clear_password", "sha256_password"}
for plugin in plugins:  # needs no library that the wheel lacks, and is a plugin
    ctypes.CDLL(str(plugin))._mysql_client_plugin_declaration_
mysql = os.environ.get("TEST_MYSQL")
if mysql:
    with whycache.Cache(mysql, state_path="/data/mysql.state") as cache:
        cache.set(b"a", b"1")
        assert dict(cache) == {b"a": b"1"}
else:
    print("NOT TESTED: logs in MySQL, without a MariaDB server")
print("works")
"""


def libraries_of(path: pathlib.Path) -> set[pathlib.Path]:
    listed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return {pathlib.Path(name) for name in re.findall(r"(/\S+) \(0x", listed)}


def copy(path: pathlib.Path, root: pathlib.Path) -> None:
    target = root / str(path).lstrip("/")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path.resolve(), target)


def make_root(root: pathlib.Path) -> None:
    interpreter = pathlib.Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    standard = pathlib.Path(sysconfig.get_paths()["stdlib"])
    copy(interpreter, root)
    shutil.copytree(standard, root / str(standard).lstrip("/"), symlinks=False,
                    ignore=shutil.ignore_patterns(
                        "site-packages", "dist-packages", "test", "idlelib", "tkinter", "ensurepip",
                        "config-*", "__pycache__", "_sqlite3*", "_tkinter*"))
    used = libraries_of(interpreter)
    for module in (standard / "lib-dynload").glob("*.so"):
        if not re.match(r"_(sqlite3|tkinter|ssl|hashlib|curses|dbm|gdbm|bz2|lzma)", module.name):
            used |= libraries_of(module)
    # What pthread_exit(3) of the C library itself loads.
    used |= set(pathlib.Path("/lib").glob("*-linux-gnu/libgcc_s.so.1"))
    for library in used:
        if not re.match(r"lib(stdc\+\+|sqlite3|zstd|mariadb|ssl|crypto)\.", library.name):
            copy(library, root)
    for name in ("dev", "tmp", "data", "proc"):
        (root / name).mkdir()
    (root / "dev/urandom").write_bytes(b"")
    subprocess.run(["mknod", "-m", "666", root / "dev/null", "c", "1", "3"], check=True)


SKIPPED = 77


def make_wheel(directory: str) -> pathlib.Path:
    program = pathlib.Path(__file__).resolve().parents[1] / "make_wheel.py"
    subprocess.run([sys.executable, program, "--directory", directory,
                    "--define", "CMAKE_CXX_FLAGS_RELEASE=-O0 -DNDEBUG"], check=True)
    return next(pathlib.Path(directory, "dist").glob("*.whl"))


@contextlib.contextmanager
def mysql_log(directory: pathlib.Path) -> Iterator[str]:
    """A log whose user proves who it is by a plugin of the client library. Empty: no server."""
    if shutil.which("mariadbd") is None:
        yield ""
        return
    with servers.mariadb(directory) as port:
        subprocess.run(
            ["mariadb", "--no-defaults", "--socket", directory / "s.sock", "--user", "root",
             "--execute", "INSTALL SONAME 'auth_ed25519'; "
             "CREATE USER signer@'127.0.0.1' IDENTIFIED VIA ed25519 USING PASSWORD('secret'); "
             "GRANT ALL ON test.* TO signer@'127.0.0.1';"], check=True)
        yield f"mysql://signer:secret@127.0.0.1:{port}/test"


def main() -> int:
    if os.getuid() != 0:
        print("NOT TESTED: needs root, for chroot(2)")
        return SKIPPED
    wheel = make_wheel(sys.argv[2]) if sys.argv[1] == "--make" else pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name) / "root"
        root.mkdir()
        make_root(root)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "package")
        interpreter = f"{sys.base_prefix}/bin/python3.{sys.version_info.minor}"
        # A mount namespace of its own, for /proc.
        enter = 'mount --bind /proc "$0/proc" && exec chroot "$0" "$@"'
        with mysql_log(pathlib.Path(name) / "mysql") as mysql:
            return subprocess.run(
                ["unshare", "--mount", "sh", "-c", enter, root, interpreter, "-c", SCRIPT],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": "/package", "HOME": "/tmp",
                     "TEST_MYSQL": mysql}).returncode


if __name__ == "__main__":
    sys.exit(main())
