"""python -m whycache."""

import json
import os
import subprocess
import sys

import pytest
from sanitizer import SLOWNESS


@pytest.fixture
def run(url, state):
    def run(*arguments, **options):
        environment = {**os.environ, "WHYCACHE_LOG": url, "WHYCACHE_STATE": state,
                       **options.pop("env", {})}
        return subprocess.run([sys.executable, "-m", "whycache", *arguments], capture_output=True,
                              text=True, env=environment, timeout=60 * SLOWNESS, **options)

    return run


def test_set_get_and_items(run):
    assert run("set", "a1", "one").stdout == "1\n"
    assert run("set", "a2", "-", input="two").stdout == "2\n"
    assert run("get", "a1").stdout == "one\n"
    absent = run("get", "absent")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert run("items", "--prefix", "a").stdout == "a1\tone\na2\ttwo\n"
    assert run("update", "--at-least", "2").stdout == "2\n"


def test_status_is_json(run):
    run("set", "a", "1")
    assert json.loads(run("status").stdout)["item_count"] == 1


def test_errors_have_exit_codes(run):
    bad = run("get", "a", env={"WHYCACHE_LOG": "nonsense://"})
    assert bad.returncode == 2
    assert bad.stderr.startswith("whycache: ")
    assert run("get", "a", env={"WHYCACHE_LOG": ""}).returncode == 2
    assert run("get", "k" * 2000).returncode == 9


def test_exit_codes_are_those_of_the_program(run):
    assert run("--codec", "bytes", "set", "broken", "\udcc1\x01\udcc1").returncode == 0
    undecodable = run("get", "broken")
    assert (undecodable.returncode, undecodable.stdout) == (5, "")
    assert run("set", "", "1").returncode == 2
