"""Leases and the guards of a log, beside a second process."""

import asyncio
import pickle
import signal
import subprocess
import sys
import time

import pytest
from sanitizer import SLOWNESS

import whycache
from whycache import aio


class OtherProcess:
    """A process with a cache of its own, which runs one line of code after another."""

    def __init__(self, url, state):
        program = (
            "import sys, whycache\n"
            f"cache = whycache.Cache({url!r}, state_path={state!r})\n"
            "for line in sys.stdin: exec(line); print(flush=True)\n")
        self.process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def run(self, code):
        """Runs a line, and returns what it printed."""
        self.process.stdin.write(code + "\n")
        self.process.stdin.flush()
        printed = ""
        while (line := self.process.stdout.readline()) != "\n":
            assert line, "the other process has ended"
            printed += line
        return printed.rstrip("\n")


@pytest.fixture
def other(cache, url, state):
    other = OtherProcess(url, state)
    yield other
    other.process.kill()
    other.process.communicate()


def test_second_process_gets_a_lease_after_its_release(cache, other):
    lease = cache.acquire(b"importer", 30, holder="berlin")
    assert lease.key == b"importer"
    assert lease.token == cache.applied_id()
    assert lease.ttl == 30
    assert 29 < lease.remaining() <= 30
    assert b"holder=berlin" in cache[b"importer"]
    assert cache.acquire(b"importer", 30) is None
    assert other.run("print(cache.acquire(b'importer', 30))") == "None"
    assert cache.release(lease) is True
    assert cache.release(lease) is False
    token = int(other.run("lease = cache.acquire(b'importer', 30); print(lease.token)"))
    assert token > lease.token
    assert cache.renew(lease) is False
    assert cache.release(lease) is False
    assert other.run("print(cache.renew(lease), cache.release(lease))") == "True True"
    assert b"importer" not in cache


def test_lease_of_a_killed_process_is_taken_once_it_has_expired(cache, other):
    token = int(other.run("print(cache.acquire(b'a', 0.3, clock_skew_max=0).token)"))
    other.process.send_signal(signal.SIGKILL)
    other.process.wait()
    assert cache.acquire(b"a", 30, clock_skew_max=0) is None
    end = time.monotonic() + 60 * SLOWNESS
    while (lease := cache.acquire(b"a", 30, clock_skew_max=0)) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert lease.token > token


def test_renewing_makes_a_lease_last_longer_and_keeps_its_token(cache):
    lease = cache.acquire(b"a", 60)
    time.sleep(0.05)
    before = lease.remaining()
    token = lease.token
    assert cache.renew(lease) is True
    assert lease.remaining() > before
    assert lease.token == token


def test_lease_that_is_over_has_no_time_remaining(cache):
    lease = cache.acquire(b"a", 0.001)
    time.sleep(0.01)
    assert lease.remaining() == 0
    assert cache.renew(lease), "nobody else has taken it"


def test_transaction_is_committed_only_while_the_lease_is_held(cache, other):
    lease = cache.acquire(b"importer", 30)

    def import_all(t):
        if not t.holds(lease):
            return False
        if b"taken" not in t:
            # Between the look at the lease and the commit, another process takes it.
            other.run("cache.delete(b'importer'); cache.acquire(b'importer', 30)")
        t.set(b"imported", b"yes")
        return True

    assert cache.transact(import_all).value is False
    assert b"imported" not in cache
    assert not cache.transact(lambda t: t.holds(lease)).value


def test_transaction_that_deletes_the_key_of_a_lease_does_not_hold_it(cache):
    lease = cache.acquire(b"a", 30)

    def function(t):
        held = t.holds(lease)
        t.delete(b"a")
        return held, t.holds(lease)

    assert cache.transact(function).value == (True, False)


def test_lease_is_held_whatever_the_codec(url, state):
    with whycache.Cache(url, state_path=state, codec="json") as cache:
        lease = cache.acquire(b"a", 30)
        assert cache.transact(lambda t: t.holds(lease)).value
        with pytest.raises(whycache.DecodeError):
            cache[b"a"]
        assert cache.renew(lease)
        assert cache.release(lease)


def test_lease_can_be_handed_to_another_process(cache):
    lease = pickle.loads(pickle.dumps(cache.acquire(b"a", 30)))
    assert 29 < lease.remaining() <= 30
    assert cache.renew(lease)
    assert cache.release(lease)


def test_invalid_leases_are_refused(cache):
    cache.set(b"value", b"1")
    for ttl in (0, 400 * 24 * 3600):
        with pytest.raises(whycache.InvalidError, match="ttl"):
            cache.acquire(b"a", ttl)
    with pytest.raises(ValueError, match="ttl is negative"):
        cache.acquire(b"a", -1)
    with pytest.raises(TypeError, match="seconds"):
        cache.acquire(b"a", "30")
    with pytest.raises(whycache.InvalidError, match="not a lease"):
        cache.acquire(b"value", 30)
    with pytest.raises(whycache.InvalidError, match="holder"):
        cache.acquire(b"a", 30, holder="x" * 300)
    with pytest.raises(ValueError, match="clock_skew_max is negative"):
        cache.acquire(b"a", 30, clock_skew_max=-1)
    with pytest.raises(TypeError):
        cache.acquire("a", 30)
    for call in (cache.renew, cache.release, lambda x: cache.transact(lambda t: t.holds(x))):
        with pytest.raises(TypeError, match=r"whycache\.Lease"):
            call((b"a", 1, 2, 3, 4))
    assert b"a" not in cache


def test_guards_of_the_log_stop_another_process(cache, other):
    cache.set_multi({b"key%d" % i: b"" for i in range(10)})
    assert cache.log_guards() == whycache.LogGuards()
    guards = whycache.LogGuards(clear_allowed=False, erased_keys_max=3, erased_share_max=0.5)
    update_id = cache.set_log_guards(guards, note="before the sale")
    assert update_id == cache.applied_id()
    assert cache.log_guards() == guards
    assert cache.set_log_guards(guards) == update_id, "unchanged"
    refused = """exec('try: {}\\nexcept whycache.RefusedError as e: print(e)')"""
    assert "nothing was written" in other.run(refused.format('cache.delete_range(prefix=b"key")'))
    assert "forbid to clear" in other.run(refused.format("cache.delete_all_history()"))
    assert other.run("print(cache.log_guards())") == repr(guards)
    other.run("cache.delete_multi([b'key1', b'key2', b'key3'])")

    cache.set_log_guards(whycache.LogGuards())
    assert cache.log_guards() == whycache.LogGuards()
    cache.delete_all_history()
    assert len(cache) == 0


def test_invalid_guards_are_refused(cache):
    with pytest.raises(whycache.InvalidError, match="share"):
        cache.set_log_guards(whycache.LogGuards(erased_share_max=1.5))
    with pytest.raises(OverflowError, match="erased_keys_max"):
        cache.set_log_guards(whycache.LogGuards(erased_keys_max=-1))
    with pytest.raises(TypeError):
        cache.set_log_guards(whycache.LogGuards(erased_keys_max="3"))
    with pytest.raises(TypeError):
        cache.set_log_guards(whycache.LogGuards(erased_share_max="3"))
    assert cache.applied_id() == 0


async def test_leases_and_guards_are_awaited(url, state):
    async with await aio.Cache.open(url, state_path=state) as cache:
        lease = await cache.acquire(b"a", 30)
        assert await cache.acquire(b"a", 30) is None
        before = lease.remaining()
        await asyncio.sleep(0.01)
        assert await cache.renew(lease) is True
        assert lease.remaining() > before - 0.01
        assert (await cache.transact(lambda t: t.holds(lease))).value
        assert await cache.release(lease) is True
        assert await cache.set_log_guards(whycache.LogGuards(erased_keys_max=1)) == 4
        assert cache.log_guards().erased_keys_max == 1


async def test_cancelled_acquire_still_gives_its_lease(url, state):
    async with await aio.Cache.open(url, state_path=state) as cache:
        async def acquire():
            return await cache.acquire(b"a", 30)

        task = asyncio.create_task(acquire())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        lease = await raised.value.write
        assert await cache.release(lease)
