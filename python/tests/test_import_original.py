"""The log of the original program, as it wrote it, in a log of this one."""

import datetime
import decimal
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tempfile
import uuid
import zoneinfo

import pytest
import servers
from hypothesis import given, settings
from test_values import same, values

import whycache
from whycache.original import import_original

MIXED = {
    b"none": None, b"int": 1 << 90, b"text": "grün\udc80", b"bytes": b"\xc1\x01", b"plain": b"yes",
    b"looks typed": b"ab\xa1x",
    b"nested": {"a": [1, (2.5, {3})], 5: frozenset({"x"})},
    b"times": [
        datetime.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        datetime.datetime(2024, 2, 29, 1, 2, 3, 4), datetime.date(2024, 2, 29),
        datetime.time(1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=-1), "x")),
        datetime.timedelta(-1, 2, 3), datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    ],
    b"others": (decimal.Decimal("1.50"), uuid.UUID(int=5), uuid.UUID(int=(1 << 128) - 1)),
}


def update_of(items, protocol=4):
    """An update as the original encodes it; None erases."""
    parts = [struct.pack(">L", len(items))]
    for key, value in items:
        stored = b"" if value is ERASED else pickle.dumps(value, protocol)
        parts.append(struct.pack(">QQ", len(key), len(stored)) + key + stored)
    return b"".join(parts)


ERASED = object()


def write_directory(directory: pathlib.Path, updates: list[bytes]) -> str:
    for number, update in enumerate(updates, 1):
        (directory / f"{number}.bin").write_bytes(update)
    (directory / "latest.repr").write_text(str(len(updates)))
    return f"file://{directory}"


@pytest.fixture
def original(tmp_path):
    directory = tmp_path / "original"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_directory_is_imported(original, cache, protocol):
    items = expected = dict(MIXED)
    if protocol == 3:  # which has no fold
        expected = dict(MIXED)
        expected[b"times"] = [MIXED[b"times"][0].replace(fold=0), *MIXED[b"times"][1:]]
    source = write_directory(original, [
        update_of([(b"gone", 1), (b"int", 2)], protocol),
        update_of(list(items.items()), protocol),
        update_of([(b"gone", ERASED), (b"absent", ERASED)], protocol)])
    (original / "4.bin").write_bytes(update_of([(b"beyond", 1)]))  # its writer died
    result = import_original(source, cache)
    assert (result.updates_read, result.items, result.skipped) == (3, len(items), {})
    found = dict(cache.items())
    assert found.keys() == items.keys()
    for key, value in found.items():
        assert same(value, expected[key])
    with pytest.raises(ValueError, match="import into a new log"):
        import_original(source, cache)


@settings(max_examples=150)
@given(values)
def test_any_pickled_value_is_imported(value):
    with tempfile.TemporaryDirectory() as name:
        source = write_directory(pathlib.Path(name), [update_of([(b"key", value)])])
        _, [(key, stored)], _ = whycache._whycache.read_original(source, False)
        assert same(whycache.decode_value(stored), value)


def test_other_classes_are_refused_or_skipped(original, cache):
    class_of_pickles = os.system
    source = write_directory(original, [
        update_of([(b"good", 1), (b"bad", class_of_pickles),
                   (b"worse", {1: [Evil(original / "evil")]})])])
    with pytest.raises(whycache.InvalidError, match="keys=2"):
        import_original(source, cache)
    assert len(cache) == 0
    result = import_original(source, cache, skip_unsupported=True)
    assert result.skipped.keys() == {b"bad", b"worse"}
    assert "system" in result.skipped[b"bad"]
    assert dict(cache.items()) == {b"good": 1}
    assert not (original / "evil").exists()


class Evil:
    """Runs a command where it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_damaged_updates_are_refused(original, cache):
    good = update_of([(b"key", 1)])
    for bad in (good[:-1], good + b"x", good[:3], b"\xff" * 20, struct.pack(">LQQ", 1, 1 << 63, 1)):
        source = write_directory(original, [bad])
        with pytest.raises(whycache.CorruptError, match="update 1 of the original program"):
            import_original(source, cache)
    (original / "latest.repr").write_text("one")
    with pytest.raises(whycache.CorruptError, match=r"latest\.repr"):
        import_original(source, cache)


@pytest.mark.parametrize(
    "source", ["file:///absent/directory", "sqlite:///a.db", "nonsense", "file:///tmp?x=1",
               "mysql://user@127.0.0.1/db?table=a`b", "mysql://user@127.0.0.1/db?tble=a"])
def test_unusable_sources_raise_invalid_error(cache, source):
    with pytest.raises(whycache.InvalidError):
        import_original(source, cache)


def test_server_that_does_not_answer_raises_unavailable_error(cache):
    with pytest.raises(whycache.UnavailableError):
        import_original(f"mysql://user@127.0.0.1:{servers.free_port()}/db", cache)


def test_table_is_imported(tmp_path, cache):
    with servers.mariadb(tmp_path / "server") as port:
        rows = [
            update_of([(b"gone", 1), (b"kept", "first")]), update_of([(b"kept", "last")]),
            update_of([(b"gone", ERASED)]), update_of(list(MIXED.items())),
        ]
        statements = [
            "CREATE TABLE flags (id BIGINT NOT NULL AUTO_INCREMENT, single_key VARBINARY(1024), "
            "contents MEDIUMBLOB NOT NULL, PRIMARY KEY (id), UNIQUE KEY (single_key))"]
        # Ids have gaps.
        statements += [f"INSERT INTO flags (id, contents) VALUES ({number * 5}, x'{row.hex()}')"
                       for number, row in enumerate(rows, 1)]
        subprocess.run(["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{port}", "-uwhycache",
                        "-psecret", "test", "-e", ";".join(statements)], check=True)
        source = f"mysql://whycache:secret@127.0.0.1:{port}/test?table=flags"
        result = import_original(source, cache)
        assert (result.updates_read, result.items) == (4, len(MIXED) + 1)
        found = dict(cache.items())
        assert found.pop(b"kept") == "last"
        assert all(same(found[key], MIXED[key]) for key in MIXED)
        with pytest.raises(whycache.UnavailableError, match="absent"):
            whycache._whycache.read_original(source.replace("flags", "absent"), False)


@pytest.mark.parametrize("program", [
    [sys.executable, "-m", "whycache"],
    pytest.param([os.environ.get("WHYCACHE_PROGRAM")], marks=pytest.mark.skipif(
        not os.environ.get("WHYCACHE_PROGRAM"), reason="NOT TESTED: no command line")),
], ids=["python", "whycache"])
def test_command_line_imports(original, tmp_path, program):
    source = write_directory(
        original, [update_of([(b"a", (1, 2)), (b"b", Evil(original / "evil"))])])
    log = f"sqlite://{tmp_path}/log.db"
    state = f"{tmp_path}/state"
    environment = {**os.environ, "WHYCACHE_LOG": log, "WHYCACHE_STATE": state}

    def run(*arguments):
        return subprocess.run([*program, "import-original", *arguments], env=environment,
                              capture_output=True, text=True)

    refused = run(source)
    assert refused.returncode == 2 and "keys=1" in refused.stderr
    done = run(source, "--skip-unsupported")
    assert done.returncode == 0 and "1 item of 1 update" in done.stdout
    assert "skipped: key=" in done.stderr
    assert run(source, "--skip-unsupported").returncode != 0
    with whycache.Cache(log, state_path=state) as cache:
        assert dict(cache.items()) == {b"a": (1, 2)}
