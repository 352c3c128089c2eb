"""Invalid input and failing surroundings: which exception each of them raises."""

import lzma
import os
import pathlib
import subprocess
import sys
import threading

import pytest
import servers
from sanitizer import SLOWNESS

import whycache
from whycache import aio


def test_file_that_is_not_a_state_is_not_overwritten(url, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a state" * 1000)
    with pytest.raises(whycache.CorruptError):
        whycache.Cache(url, state_path=path)
    assert path.read_bytes() == b"not a state" * 1000


GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests/cli/golden"


def unpack_golden(name, path):
    path.write_bytes(lzma.decompress((GOLDEN / name).read_bytes()))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("number", [1, 2, 3])
def test_state_of_an_older_format_is_left_alone_and_says_so(tmp_path, number):
    path = unpack_golden(f"state{number}.xz", tmp_path / "old.state")
    content = path.read_bytes()
    expected = f"another format.*path={path} found={number} known="
    with pytest.raises(whycache.UnavailableError, match=expected):
        whycache.Cache.attach(path)
    # With its log, a state of this format is built beside it.
    log = unpack_golden("sqlite_log1.xz", tmp_path / "log.db")
    with whycache.Cache(f"sqlite://{log}", state_path=path) as cache:
        assert cache.shared_state_filename() != str(path)
        assert len(cache) == 301
    assert path.read_bytes() == content


def test_state_of_another_log_raises_for_a_name_and_is_found_by_its_uuid(tmp_path):
    path = tmp_path / "one.state"
    with whycache.Cache(f"sqlite://{tmp_path}/one.db", state_path=path) as one:
        one.set(b"a", b"1")
        with whycache.Cache(f"sqlite://{tmp_path}/two.db", state_path=tmp_path / "two.state"):
            pass
        with pytest.raises(whycache.Error, match="log"):
            other = whycache.Cache(f"sqlite://{tmp_path}/two.db", state_path=path)
            other.update()
        assert one[b"a"] == b"1"


@pytest.mark.skipif(os.getuid() != 0, reason="NOT TESTED: needs root")
def test_directory_without_permission_raises(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o700)
    script = f"""
import os, sys
import whycache
os.setgid(65534); os.setuid(65534)
try:
    whycache.Cache("sqlite://{tmp_path}/log.db", state_path="{tmp_path}/closed/")
except whycache.InvalidError as error:
    print("InvalidError", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("InvalidError"), done.stderr
    assert str(tmp_path) in done.stdout


@pytest.mark.parametrize("url, message", [
    ("nonsense://x", "scheme"),
    ("sqlite://", "path"),
    ("sqlite:///directory/that/is/absent/log.db", "directory"),
    ("mysql://nobody@127.0.0.1:1/test?no_such_option=1", "option"),
    ("", "scheme"),
    ("redis://user@host/db", "scheme"),
    ("postgres://nobody@127.0.0.1:1/test?no_such_option=1", "option"),
    ("sqlite:///tmp/a\0b.db", "."),
])
def test_bad_url_raises(url, message, state):
    with pytest.raises(whycache.Error, match=message) as raised:
        whycache.Cache(url, state_path=state).update()
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("options, error", [
    ({"codec": "xml"}, ValueError), ({"codec": 7}, TypeError), ({"codec": None}, TypeError),
    ({"deadline": -1}, ValueError), ({"deadline": float("nan")}, ValueError),
    ({"deadline": "1"}, TypeError),
    ({"update_bytes_max": 1}, ValueError), ({"update_bytes_max": -1}, (ValueError, OverflowError)),
    ({"state_mode": 0o777}, ValueError), ({"state_mode": "rw"}, TypeError),
    ({"erased_share_max": 2.0}, ValueError), ({"erased_keys_max": "all"}, TypeError),
    ({"name": "a/b"}, ValueError), ({"name": 7}, TypeError),
    ({"writer_name": "x" * 300}, ValueError),
    ({"staleness_max": "1"}, TypeError), ({"no_such_option": 1}, TypeError),
    ({"state_path": 7}, TypeError), ({"state_path": "a\0b"}, ValueError),
    ({"state_bytes_max": 2**70}, OverflowError), ({"update_bytes_max": 2**40}, OverflowError),
    ({"queue_bytes_max": "1"}, TypeError),
])
def test_bad_option_raises(url, state, options, error):
    arguments = {"state_path": state, **options}
    with pytest.raises(error):
        whycache.Cache(url, **arguments)


def test_log_that_is_down_at_open_serves_reads_and_refuses_writes(tmp_path):
    path = tmp_path / "one.state"
    with servers.mariadb(tmp_path / "server") as port:
        url = f"mysql://whycache:secret@127.0.0.1:{port}/test"
        with whycache.Cache(url, state_path=path) as cache:
            cache.set(b"a", b"1")

    with whycache.Cache(url, state_path=path, deadline=0.3) as cache:
        assert cache[b"a"] == b"1"
        with pytest.raises(whycache.UnavailableError):
            cache.set(b"a", b"2")
        with pytest.raises(whycache.UnavailableError):
            cache.update()
        fresh = cache.get_fresh(b"a", serve_stale=True)
        assert (fresh.value, fresh.stale) == (b"1", True)
        with pytest.raises(whycache.UnavailableError):
            cache.get_fresh(b"a")
        assert cache.stats()["log_is_up"] is False
    with pytest.raises(whycache.UnavailableError):
        whycache.Cache(url, state_path=tmp_path / "new.state", deadline=0.3)
    with whycache.Cache(url, state_path=tmp_path / "later.state", deadline=0.3,
                        wait=False) as cache:
        assert not cache.ready()
        with pytest.raises(whycache.UnavailableError):
            cache.get(b"a")


def test_value_nested_too_deeply_and_value_that_contains_itself(cache):
    deep = []
    for _ in range(10_000):
        deep = [deep]
    loop = {}
    loop["self"] = loop
    for value in (deep, loop):
        with pytest.raises((ValueError, whycache.LimitError)):
            cache.set(b"a", value)
    assert cache.applied_id() == 0
    cache.set(b"deep", b"\xc1\x01" + b"\x91" * 100_000 + b"\xc0")
    assert cache.get(b"deep").startswith(b"\xc1\x01")


def test_value_that_cannot_be_decoded_raises_for_its_reader_only(url, state):
    with whycache.Cache(url, state_path=state, codec="bytes") as raw:
        raw.set_multi({b"bad": b"\xc1\x01\xc1", b"deep": b"\xc1\x01" + b"\x91" * 100_000 + b"\xc0",
                       b"good": b"1"})
    with whycache.Cache(url, state_path=state) as cache:
        for key in (b"bad", b"deep"):
            with pytest.raises(whycache.DecodeError, match=key.decode()):
                cache.get(key)
            with pytest.raises(whycache.DecodeError):
                cache.get_multi([b"good", key])
        with pytest.raises(whycache.DecodeError):
            list(cache.items())
        with cache.view() as view, pytest.raises(whycache.DecodeError):
            view[b"bad"]
        assert cache[b"good"] == b"1"
        assert list(cache) == [b"bad", b"deep", b"good"]


def test_event_handler_that_raises_does_not_stop_the_cache(url, state, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", lambda arguments: unraisable.append(arguments))
    events = []

    def on_event(event):
        events.append(event)
        raise RuntimeError("handler")

    with whycache.Cache(url, state_path=state, on_event=on_event) as cache:
        cache.set(b"a", b"1")
        cache.close_shared_state()
        whycache.Cache(url, state_path=state).delete_shared_state()
        assert cache[b"a"] == b"1"
    assert events and len(unraisable) == len(events)


@pytest.mark.parametrize("arguments", [(), (b"a", 1, 2), (b"a", b"b", b"c", b"d")])
def test_wrong_number_of_arguments_raises(cache, arguments):
    for call in (cache.get, cache.get_multi, cache.view().get):
        with pytest.raises(TypeError):
            call(*arguments)
    with pytest.raises(TypeError):
        cache.get(key=b"a")


def test_note_too_long_raises(cache):
    with pytest.raises((ValueError, whycache.LimitError)):
        cache.set(b"a", b"1", note="x" * 300)


def test_object_that_was_not_opened_raises():
    for kind in (whycache.Cache, aio.Cache):
        cache = kind.__new__(kind)
        for call in (lambda cache=cache: cache.get(b"a"), lambda cache=cache: len(cache),
                     lambda cache=cache: list(cache), cache.view, cache.stats,
                     lambda cache=cache: cache.start_set(b"a", b"1", None, None, None),
                     lambda cache=cache: cache.update_if_fresh(1, 0), cache.shared_state_filename):
            with pytest.raises(whycache.InvalidError, match="cache is not open"):
                call()
        cache.close()
        assert not cache.valid()


def test_iterator_that_other_threads_advance(cache):
    cache.set_multi({b"%05d" % i: b"1" for i in range(20_000)})
    items = iter(cache.items())
    seen, failures = [], []

    def work():
        try:
            for key, _ in items:
                seen.append(key)
        except ValueError as error:
            assert "another thread" in str(error)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(seen) == len(set(seen))


def test_callback_that_reads_while_the_state_is_opened_raises_and_does_not_hang(url, state):
    reads = []

    def read(event):
        try:
            reads.append(cache.get(b"a", None))
        except whycache.InvalidError as error:
            reads.append(error)

    cache = whycache.Cache(url, state_path=state, on_event=read)
    cache.set(b"a", b"1")
    cache.close_shared_state()
    whycache.Cache(url, state_path=state).delete_shared_state()

    assert cache.get(b"a") == b"1"
    assert isinstance(reads[0], whycache.InvalidError)
    cache.close()


def test_log_that_closes_its_cache_gets_an_error(tmp_path):
    errors = []

    class ClosingLog(whycache.Log):
        updates: dict[int, bytes] = {}

        def name(self):
            return "closing:"

        def extent(self):
            return whycache.Extent(bytes(16), head=len(self.updates))

        def append(self, id, update):
            for close in (cache.close, cache.close_shared_state, cache.delete_shared_state):
                try:
                    close()
                except whycache.InvalidError as error:
                    errors.append(error)
            self.updates[id] = update
            return whycache.AppendResult.APPENDED

        def read(self, first, last):
            return sorted(self.updates.items())[first - 1:last]

        def read_base(self):
            return []

        def rewrite(self, base, base_chain, parts):
            return False

    with whycache.Cache(ClosingLog(), state_path=tmp_path / "one.state") as cache:
        assert cache.set(b"a", b"1") == 1
        assert len(errors) == 3
        assert cache[b"a"] == b"1"


def test_cache_that_its_own_log_frees_is_closed_elsewhere(tmp_path):
    script = """
import asyncio, gc, sys, time
import whycache
from whycache import aio

class CollectingLog(whycache.Log):
    updates = {}
    def name(self): return "collecting:"
    def extent(self): return whycache.Extent(bytes(16), head=len(self.updates))
    def append(self, id, update):
        gc.collect()
        time.sleep(0.3)
        gc.collect()
        self.updates[id] = update
        return whycache.AppendResult.APPENDED
    def read(self, first, last): return sorted(self.updates.items())[first - 1:last]
    def read_base(self): return []
    def rewrite(self, base, base_chain, parts): return False

async def main():
    cache = aio.Cache(CollectingLog(), state_path=sys.argv[1])
    cache.itself = cache
    cache.set(b"a", b"1")

gc.disable()
asyncio.run(main())
time.sleep(1)
print(len(CollectingLog.updates))
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "one.state"],
                          capture_output=True, text=True, timeout=60 * SLOWNESS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_transaction_that_met_an_undecodable_value_conflicts_with_its_change(cache, url, state):
    with whycache.Cache(url, state_path=state, codec="bytes") as raw:
        raw.set(b"a", b"\xc1\x01\xc1")
        runs = []

        def function(t):
            runs.append(1)
            try:
                t.get(b"a")
            except whycache.DecodeError:
                t.set(b"b", "undecodable")
                if len(runs) == 1:
                    raw.set(b"a", b"good")
            else:
                t.set(b"b", "good")

        cache.transact(function)
    assert (len(runs), cache[b"b"]) == (2, "good")


def test_transaction_does_not_store_absent(cache):
    with pytest.raises(TypeError, match="ABSENT"):
        cache.transact(lambda t: t.set(b"a", whycache.ABSENT))
    assert cache.applied_id() == 0


def test_huge_deadline_is_no_overflow(url, state):
    with whycache.Cache(url, state_path=state, deadline=float("inf")) as cache:
        assert cache.set(b"a", b"1", deadline=1e300) == 1
        assert cache.update(deadline=float("inf")) == 1
        assert cache.update(deadline=3e10) == 1


def test_missing_log_is_created_only_if_allowed(tmp_path, state):
    url = f"sqlite://{tmp_path}/new.db"
    with pytest.raises(whycache.InvalidError, match="does not exist"):
        whycache.Cache(url, state_path=state, create_log=False)
    assert not (tmp_path / "new.db").exists()
    with whycache.Cache(url, state_path=state) as cache:
        cache[b"a"] = b"1"
    with whycache.Cache(url, state_path=state, create_log=False) as cache:
        assert cache[b"a"] == b"1"


def test_empty_log_in_place_of_another_empties_the_state_only_if_accepted(tmp_path, state):
    url = f"sqlite://{tmp_path}/replaced.db"
    with whycache.Cache(url, state_path=state) as cache:
        cache[b"a"] = b"1"
    (tmp_path / "replaced.db").unlink()
    whycache.Cache(url, state_path=tmp_path / "other.state").close()
    with whycache.Cache(url, state_path=state) as cache:
        with pytest.raises(whycache.CorruptError, match="log is empty"):
            cache.update()
        assert cache[b"a"] == b"1"
    with whycache.Cache(url, state_path=state, accept_replaced_log=True) as cache:
        cache.update()
        assert len(cache) == 0
