"""What several tests use."""

import pathlib

import pytest

import whycache


@pytest.fixture
def url(tmp_path: pathlib.Path) -> str:
    """A log in SQLite that does not exist yet."""
    return f"sqlite://{tmp_path}/log.db"


@pytest.fixture
def state(tmp_path: pathlib.Path) -> str:
    """A directory for states."""
    directory = tmp_path / "state"
    directory.mkdir()
    return f"{directory}/"


@pytest.fixture
def cache(url: str, state: str):
    """A cache on that log."""
    with whycache.Cache(url, state_path=state) as cache:
        yield cache
