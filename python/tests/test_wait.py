"""Being told of updates: wait(), notify_fd() and follow=True."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from sanitizer import SLOWNESS

import whycache
from whycache import aio


def later(seconds, function, *arguments):
    timer = threading.Timer(seconds, function, arguments)
    timer.start()
    return timer


def in_another_process(url, state, code):
    """Runs code in a process with a cache of its own."""
    program = f"import whycache; cache = whycache.Cache({url!r}, state_path={state!r}); {code}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60 * SLOWNESS)


def test_wait_returns_the_id_of_an_update_of_another_process(cache, url, state):
    seen = cache.set(b"a", b"1")
    thread = later(0, in_another_process, url, state, "cache.set(b'a', b'2')")
    assert cache.wait(seen, deadline=60) == seen + 1
    assert cache[b"a"] == b"2"
    thread.join()


def test_wait_returns_at_its_deadline(cache):
    seen = cache.set(b"a", b"1")
    began = time.monotonic()
    assert cache.wait(seen, deadline=0.1) == seen
    assert time.monotonic() - began >= 0.1
    assert cache.wait(0) == seen


def test_many_waits_do_not_keep_writes_waiting(cache):
    seen = cache.set(b"a", b"1")
    threads = [threading.Thread(target=cache.wait, args=(seen,)) for _ in range(100)]
    for thread in threads:
        thread.start()
    assert cache.update() == seen
    assert cache.set(b"a", b"2") == seen + 1
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_closing_ends_a_wait(cache):
    seen = cache.set(b"a", b"1")
    later(0.1, cache.close)
    with pytest.raises(whycache.UnavailableError, match="closed"):
        cache.wait(seen, deadline=60)


def test_keyboard_interrupt_ends_a_wait(cache):
    seen = cache.set(b"a", b"1")
    later(0.2, os.kill, os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cache.wait(seen, deadline=60)


def test_wait_does_not_keep_the_process_from_ending(url, state):
    program = ("import threading, whycache\n"
               f"cache = whycache.Cache({url!r}, state_path={state!r}, follow=True)\n"
               "threading.Thread(target=cache.wait, args=(10,), daemon=True).start()\n"
               "cache.set(b'a', b'1')\n")
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60 * SLOWNESS)
    assert time.monotonic() - began < 8  # the default deadline is longer


def test_wait_in_an_attached_cache(cache):
    seen = cache.set(b"a", b"1")
    with whycache.Cache.attach(cache.shared_state_filename()) as reader:
        later(0.1, cache.set, b"a", b"2")
        assert reader.wait(seen, deadline=60) == seen + 1
        assert reader[b"a"] == b"2"


def test_notify_fd_is_readable_after_an_update(cache, url, state):
    cache.set(b"a", b"1")
    descriptor = cache.notify_fd()
    assert not select.select([descriptor], [], [], 0.1)[0]
    in_another_process(url, state, "cache.set(b'a', b'2')")
    assert select.select([descriptor], [], [], 60)[0]
    os.read(descriptor, 8)
    assert cache[b"a"] == b"2"
    assert not select.select([descriptor], [], [], 0)[0]
    assert cache.notify_fd() == descriptor


def test_follow_keeps_the_state_fresh(url, tmp_path):
    with whycache.Cache(url, state_path=tmp_path / "writer") as writer:
        writer.set(b"a", b"1")
        with whycache.Cache(url, state_path=tmp_path / "reader", follow=True) as reader:
            for i in range(5):
                seen = reader.applied_id()
                writer.set(b"a", i)
                reader.wait(seen, deadline=60)
                assert reader[b"a"] == i


async def test_wait_is_awaitable(url, state):
    async with await aio.Cache.open(url, state_path=state) as cache:
        seen = await cache.set(b"a", b"1")
        assert await cache.wait(seen, deadline=0.05) == seen
        waiting = asyncio.create_task(cache.wait(seen))
        await asyncio.sleep(0.05)
        await cache.set(b"a", b"2")
        assert await asyncio.wait_for(waiting, 60) == seen + 1


async def test_cancelled_wait_ends(url, state):
    async with await aio.Cache.open(url, state_path=state) as cache:
        seen = await cache.set(b"a", b"1")
        waiting = [asyncio.create_task(cache.wait(seen)) for _ in range(100)]
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        assert all(isinstance(result, asyncio.CancelledError)
                   for result in await asyncio.gather(*waiting, return_exceptions=True))
        assert await cache.set(b"a", b"2") == seen + 1


async def test_notify_fd_in_an_event_loop(url, tmp_path):
    async with await aio.Cache.open(url, state_path=tmp_path / "reader", follow=True) as reader:
        changed = asyncio.Event()
        descriptor = reader.notify_fd()

        def note():
            os.read(descriptor, 8)
            changed.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, note)
        async with await aio.Cache.open(url, state_path=tmp_path / "writer") as writer:
            await writer.set(b"a", b"1")
        await asyncio.wait_for(changed.wait(), 60)
        assert reader[b"a"] == b"1"
        loop.remove_reader(descriptor)
