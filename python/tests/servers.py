"""Servers of a test's own, on a free port, in a temporary directory."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from sanitizer import FOREIGN_ENVIRONMENT, SLOWNESS

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "support"))
from free_port import free_port  # noqa: E402


@contextlib.contextmanager
def mariadb(directory: pathlib.Path) -> Iterator[int]:
    """Runs a MariaDB server with the user whycache, password secret, and the database test."""
    directory.mkdir(exist_ok=True)
    # Of another user, the server could not reach the directory: pytest keeps its own to itself.
    user = ["--user=root"] if os.getuid() == 0 else []
    installed = subprocess.run(
        ["mariadb-install-db", "--no-defaults", *user, f"--datadir={directory}/data",
         "--auth-root-authentication-method=normal", "--skip-test-db"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=FOREIGN_ENVIRONMENT)
    assert installed.returncode == 0, installed.stdout
    port = free_port()
    socket_path = directory / "s.sock"
    server = subprocess.Popen(
        ["mariadbd", "--no-defaults", *user, f"--datadir={directory}/data",
         f"--socket={socket_path}", f"--pid-file={directory}/pid", "--bind-address=127.0.0.1",
         f"--port={port}", f"--log-error={directory}/err.log", "--innodb-buffer-pool-size=64M",
         "--skip-log-bin", "--performance-schema=off"], env=FOREIGN_ENVIRONMENT)
    try:
        run_sql = ["mariadb", "--no-defaults", "-S", str(socket_path), "-uroot", "-e"]
        end = time.monotonic() + 60 * SLOWNESS
        while subprocess.run([*run_sql, "SELECT 1"], capture_output=True,
                             env=FOREIGN_ENVIRONMENT).returncode != 0:
            assert server.poll() is None and time.monotonic() < end, \
                (directory / "err.log").read_text()
            time.sleep(0.1)
        subprocess.run([*run_sql, "CREATE DATABASE test; "
                        "CREATE USER whycache@'127.0.0.1' IDENTIFIED BY 'secret'; "
                        "GRANT ALL ON *.* TO whycache@'127.0.0.1';"], check=True,
                       env=FOREIGN_ENVIRONMENT)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _answers_ping(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
        client.sendall(b"PING\r\n")
        return client.recv(7) == b"+PONG\r\n"
    return False


@contextlib.contextmanager
def redis(directory: pathlib.Path) -> Iterator[int]:
    """Runs a Redis server that keeps nothing."""
    port = free_port()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir",
         directory], stdout=subprocess.DEVNULL, env=FOREIGN_ENVIRONMENT)
    try:
        end = time.monotonic() + 60 * SLOWNESS
        while not _answers_ping(port):
            assert server.poll() is None and time.monotonic() < end, "redis-server does not start"
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(30)
