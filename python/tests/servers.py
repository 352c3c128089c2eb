"""Database servers of a test's own, on a free port, in a temporary directory."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

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
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert installed.returncode == 0, installed.stdout
    port = free_port()
    socket_path = directory / "s.sock"
    server = subprocess.Popen(
        ["mariadbd", "--no-defaults", *user, f"--datadir={directory}/data",
         f"--socket={socket_path}", f"--pid-file={directory}/pid", "--bind-address=127.0.0.1",
         f"--port={port}", f"--log-error={directory}/err.log", "--innodb-buffer-pool-size=64M",
         "--skip-log-bin", "--performance-schema=off"])
    try:
        run_sql = ["mariadb", "--no-defaults", "-S", str(socket_path), "-uroot", "-e"]
        end = time.monotonic() + 60
        while subprocess.run([*run_sql, "SELECT 1"], capture_output=True).returncode != 0:
            assert server.poll() is None and time.monotonic() < end, \
                (directory / "err.log").read_text()
            time.sleep(0.1)
        subprocess.run([*run_sql, "CREATE DATABASE test; "
                        "CREATE USER whycache@'127.0.0.1' IDENTIFIED BY 'secret'; "
                        "GRANT ALL ON *.* TO whycache@'127.0.0.1';"], check=True)
        yield port
    finally:
        server.terminate()
        server.wait(30)
