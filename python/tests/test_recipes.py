"""The programs of docs/python.md, each run by its real server."""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
import servers
from sanitizer import SLOWNESS

import whycache

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs/python.md"


def programs() -> dict[str, str]:
    """The blocks of the guide that have the name of a file."""
    return dict(re.findall(r"^```python (\w+)\.py\n(.*?)^```$", GUIDE.read_text(),
                           re.MULTILINE | re.DOTALL))


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A directory with the programs. /var/lib is a temporary directory there."""
    (tmp_path / "states").mkdir()
    monkeypatch.setenv("WHYCACHE_STATE", f"{tmp_path}/states/")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    directory = tmp_path / "recipes"
    directory.mkdir()
    for name, code in programs().items():
        (directory / f"{name}.py").write_text(code.replace("/var/lib", str(tmp_path)))
    return directory


@pytest.fixture
def other_machine(tmp_path):
    """The same log on another machine, which is to say with a state of its own."""
    with whycache.Cache(f"sqlite://{tmp_path}/flags.db", state_path=tmp_path / "other/") as cache:
        cache.set(b"limit", 1)
        yield cache


@contextlib.contextmanager
def running(directory, *command):
    log = directory / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen([sys.executable, "-m", *command], cwd=directory, stdout=output,
                                  stderr=output)
    try:
        yield server, log
    finally:
        server.terminate()
        try:
            server.wait(30 * SLOWNESS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise


def limit_of(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/limit", timeout=10 * SLOWNESS) as answer:
        return json.loads(answer.read())["limit"]


def wait_for(limit, read, server, log):
    end = time.monotonic() + 60 * SLOWNESS
    while True:
        with contextlib.suppress(OSError):
            if read() == limit:
                return
        assert server.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def gunicorn(application):
    return lambda port: ("gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}",
                         "--log-level", "warning", application)


SERVERS = {
    "django_app": gunicorn("django_app"),
    "flask_app": gunicorn("flask_app:app"),
    "fastapi_app": lambda port: ("uvicorn", "--port", str(port), "fastapi_app:app"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_web_server_shows_what_another_machine_wrote(name, recipes, other_machine):
    port = servers.free_port()
    with running(recipes, *SERVERS[name](port)) as (server, log):
        wait_for(1, lambda: limit_of(port), server, log)
        other_machine.set(b"limit", 2)
        wait_for(2, lambda: limit_of(port), server, log)


def test_celery_tasks_see_what_another_machine_wrote(recipes, other_machine, tmp_path):
    if shutil.which("redis-server") is None:
        pytest.skip("NOT TESTED: no redis-server")
    with servers.redis(tmp_path) as port:
        program = recipes / "celery_app.py"
        program.write_text(program.read_text().replace("redis://localhost",
                                                       f"redis://127.0.0.1:{port}"))
        with running(recipes, "celery", "--app", "celery_app", "worker", "--concurrency", "2",
                     "--loglevel", "warning") as (worker, log):
            spec = importlib.util.spec_from_file_location("celery_app", program)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.flags.close()  # the worker reads

            def ask():
                return module.limit.delay().get(timeout=60 * SLOWNESS)

            wait_for(1, ask, worker, log)
            other_machine.set(b"limit", 2)
            wait_for(2, ask, worker, log)
            module.app.close()


def test_every_recipe_is_run():
    assert set(programs()) == {*SERVERS, "celery_app"}
