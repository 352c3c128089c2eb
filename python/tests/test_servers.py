"""Servers that fork workers after the cache was opened, and workers that are killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import servers
from sanitizer import SLOWNESS

import whycache

_BIN = pathlib.Path(sys.executable).parent


def _tool(name: str) -> str:
    """A program of the tools, which are installed beside the environment of the tests."""
    for directory in (_BIN, _BIN.parent.parent / "tools" / "bin"):
        if (directory / name).is_file():
            return str(directory / name)
    return name


def _gunicorn(worker: str, application: str, port: int) -> list[str]:
    return [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--worker-class",
            worker, "--threads", "2" if worker == "gthread" else "1", "--bind",
            f"127.0.0.1:{port}", "--log-level", "warning", application]


def _uwsgi(port: int) -> list[str]:
    return [_tool("pyuwsgi"), "--http-socket", f"127.0.0.1:{port}", "--processes", "2", "--master",
            "--module", "application:wsgi", "--need-app", "--die-on-term", "--disable-logging",
            "--enable-threads", "--pythonpath",
            os.pathsep.join(path for path in sys.path if path)]


SERVERS = {
    "gunicorn sync": lambda port: _gunicorn("sync", "application:wsgi", port),
    "gunicorn gthread": lambda port: _gunicorn("gthread", "application:wsgi", port),
    "gunicorn uvicorn": lambda port: _gunicorn("uvicorn_worker.UvicornWorker", "application:asgi",
                                               port),
    "uwsgi": _uwsgi,
}


def _get(port: int, path: str) -> list[int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10 * SLOWNESS) as answer:
        return [int(word) for word in answer.read().split()]


def _get_when_up(port: int, path: str, server: subprocess.Popen, log: pathlib.Path) -> list[int]:
    end = time.monotonic() + 30 * SLOWNESS
    while True:
        try:
            return _get(port, path)
        except OSError:
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)


@pytest.mark.parametrize("name", SERVERS)
def test_workers_read_and_write_while_others_are_killed(name, url, state, tmp_path):
    port = servers.free_port()
    log = tmp_path / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            SERVERS[name](port), cwd=pathlib.Path(__file__).parent, stdout=output, stderr=output,
            env={**os.environ, "TEST_LOG": url, "TEST_STATE": state,
                 "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)})
    try:
        workers = set()
        for round in range(4):
            worker, _ = _get_when_up(port, "/write", server, log)
            workers.add(worker)
            pid, opened_by, count = _get_when_up(port, "/read", server, log)
            assert opened_by not in (worker, pid), "the cache must be opened before the fork"
            assert count == len(workers)
            os.kill(worker, signal.SIGKILL)
        assert len(workers) == 4
    finally:
        server.terminate()
        try:
            server.wait(15 * SLOWNESS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise
    with whycache.Cache(url, state_path=tmp_path / "other.state") as cache:
        assert {int(key.split(b"-")[1]) for key in cache.keys(prefix=b"worker-")} == workers
