"""Forks, processes of every start method, and the end of the interpreter."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from sanitizer import COUNTS_BLOCKS, SLOWNESS

import whycache
from whycache import aio


def run_script(script: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, timeout=60 * SLOWNESS, **options)


def in_child(function) -> int:
    """Runs a function in a forked child. Returns its exit code: 0 if it returns true."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if function() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_child_of_a_fork_reads_and_writes(cache):
    cache.set(b"parent", b"1")

    def child():
        cache.set(b"child", b"1")
        cache.update()
        cache.transact(lambda t: t.set(b"transaction", t[b"child"]))
        return cache[b"parent"] == b"1" and len(list(cache.items())) == 3

    assert in_child(child) == 0
    assert cache[b"child"] == cache[b"transaction"] == b"1"
    assert cache.set(b"after", b"1") == cache.applied_id()


def test_child_of_a_fork_beside_writing_threads(cache):
    stop = threading.Event()

    def write():
        i = 0
        while not stop.is_set():
            cache.set(b"busy%d" % (i % 10), b"%d" % i)
            cache.update()
            i += 1

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        codes = [in_child(lambda: cache.set(b"child", b"1") > 0 and cache[b"child"] == b"1")
                 for _ in range(10)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 10


def test_child_of_a_fork_exits_without_waiting_for_its_parents_writes(url, tmp_path):
    ended = run_script("""
        import asyncio, os, sys, time
        import whycache
        from whycache import aio

        class SlowLog(whycache.Log):
            updates = {}
            def name(self): return "slow:"
            def extent(self): return whycache.Extent(bytes(16), head=len(self.updates))
            def append(self, id, update):
                time.sleep(1.5)
                self.updates[id] = update
                return whycache.AppendResult.APPENDED
            def read(self, first, last): return sorted(self.updates.items())[first - 1:last]
            def read_base(self): return []
            def rewrite(self, base, base_chain, parts): return False

        cache = aio.Cache(SlowLog(), state_path=sys.argv[1])
        async def main():
            write = cache.set(b"a", b"1")
            await asyncio.sleep(0.1)
            child = os.fork()
            if child == 0:
                sys.exit(7)
            began = time.monotonic()
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(code, time.monotonic() - began < 1.0, await write)
        asyncio.run(main())
        """, tmp_path / "slow.state")

    assert (ended.stdout, ended.stderr) == ("7 True 1\n", "")


def test_grandchild_of_a_fork_writes(cache):
    assert in_child(lambda: in_child(lambda: cache.set(b"a", b"1") == 1) == 0) == 0
    assert cache[b"a"] == b"1"


def _work(url, state_path, number):
    with whycache.Cache(url, state_path=state_path) as cache:
        for i in range(5):
            cache.set(b"%d-%d" % (number, i), b"1")
        assert cache[b"parent"] == b"1"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(cache, url, state, method):
    cache.set(b"parent", b"1")
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=_work, args=(url, state, i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0] * 3
    assert len(cache) == 16


_inherited = None


def _work_inherited(number):
    _inherited.set(b"child-%d" % number, b"1")
    return _inherited[b"parent"]


def test_pool_inherits_an_open_cache(cache):
    global _inherited
    _inherited = cache
    cache.set(b"parent", b"1")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_work_inherited, range(12), chunksize=1) == [b"1"] * 12
    assert len(cache) == 13


def test_killed_writers_do_not_stop_the_others(cache, url, state):
    context = multiprocessing.get_context("fork")

    def write_until_killed(number):
        i = 0
        while True:
            cache.set(b"%d" % number, b"%d" % i)
            i += 1

    for round in range(6):
        process = context.Process(target=write_until_killed, args=(round,))
        process.start()
        time.sleep(0.1 + round * 0.01)
        process.kill()
        process.join()
        assert cache.set(b"after", b"%d" % round) == cache.applied_id()
        assert cache[b"after"] == b"%d" % round


def test_exit_flushes_writes_in_flight(url, tmp_path):
    ended = run_script("""
        import asyncio, sys
        from whycache import aio
        cache = aio.Cache(sys.argv[1], state_path=sys.argv[2])
        async def main():
            for i in range(50):
                cache.set(b"%d" % i, b"1")
        asyncio.run(main())
        """, url, tmp_path / "one.state")

    assert (ended.returncode, ended.stderr) == (0, "")
    with whycache.Cache(url, state_path=tmp_path / "two.state") as cache:
        assert len(cache) == 50


def test_exit_reports_writes_that_do_not_finish(tmp_path):
    ended = run_script("""
        import asyncio, sys, time
        import whycache
        from whycache import aio

        class StuckLog(whycache.Log):
            def name(self): return "stuck:"
            def extent(self): return whycache.Extent(bytes(16))
            def append(self, id, update): time.sleep(3600)
            def read(self, first, last): return []
            def read_base(self): return []
            def rewrite(self, base, base_chain, parts): return False

        cache = aio.Cache(StuckLog(), state_path=sys.argv[1], deadline=0.3)
        async def main():
            cache.set(b"a", b"1")
            await asyncio.sleep(0.1)
        asyncio.run(main())
        """, tmp_path / "one.state")

    assert ended.returncode == 0
    assert "1 calls had not finished when the interpreter ended" in ended.stderr


@pytest.mark.parametrize("ending", ["sys.exit(0)", "os._exit(0)", "pass",
                                    "threading.Thread(target=work, daemon=True).start()"])
def test_exit_beside_daemon_threads(url, tmp_path, ending):
    ended = run_script(f"""
        import os, sys, threading, time
        import whycache
        cache = whycache.Cache(sys.argv[1], state_path=sys.argv[2])
        def work():
            i = 0
            while True:
                cache.set(b"%d" % i, b"1")
                cache.get(b"0", None)
                list(cache.items())
                i += 1
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        {ending}
        """, url, tmp_path / "one.state")

    assert (ended.returncode, ended.stderr) == (0, "")


def test_exit_by_sigint_in_a_blocking_write(url, tmp_path):
    script = """
        import sys
        import whycache
        cache = whycache.Cache(sys.argv[1], state_path=sys.argv[2])
        print("ready", flush=True)
        i = 0
        while True:
            cache.set(b"%d" % i, b"1")
            i += 1
        """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), url,
                                tmp_path / "one.state"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20 * SLOWNESS)

    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors


@pytest.mark.skipif(not COUNTS_BLOCKS, reason="the sanitizer's own memory would be counted")
def test_memory_of_a_second_process(cache, url, state, tmp_path):
    value = os.urandom(100)
    cache.fill((b"key-%011d" % i, value) for i in range(100_000))
    script = """
        import sys
        def own_kib():
            # Pages of the state belong to the file: all processes share them.
            with open("/proc/self/smaps_rollup") as facts:
                return next(int(line.split()[1]) for line in facts if line.startswith("Anonymous:"))
        before = own_kib()
        import whycache
        cache = whycache.Cache(sys.argv[1], state_path=sys.argv[2])
        for i in range(100_000):
            cache[b"key-%011d" % i]
        for item in cache.items(): pass
        print(own_kib() - before)
        """
    ended = run_script(script, url, state)

    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 15 * 1024


def test_opening_twice_in_a_process(url, state):
    with whycache.Cache(url, state_path=state) as one, whycache.Cache(url, state_path=state) as two:
        one.set(b"a", b"1")
        two.set(b"b", b"2")
        assert dict(one) == dict(two) == {b"a": b"1", b"b": b"2"}
    with whycache.Cache(url, state_path=state) as one:
        two = aio.Cache(url, state_path=state)
        assert two[b"a"] == one[b"a"]
        two.close()


@pytest.mark.parametrize("name", ["aio.Cache", "original.FileWhycacheInstance",
                                  "testing.LogContract"])
def test_submodules_are_imported_when_they_are_used(name):
    ended = run_script(f"""
        import sys
        import whycache
        assert "asyncio" not in sys.modules
        whycache.{name}
        """)
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        whycache.absent
