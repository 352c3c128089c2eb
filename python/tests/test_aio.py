"""The cache for asyncio."""

import asyncio
import gc
import os
import threading
import time

import pytest

import whycache
from whycache import aio


@pytest.fixture
async def cache(url, state):
    async with await aio.Cache.open(url, state_path=state) as cache:
        yield cache


async def test_writes_are_awaited(cache):
    assert await cache.set(b"a", b"1") == 1
    assert await cache.set_multi({b"b": b"2", b"c": b"3"}) == 2
    assert await cache.delete(b"a") == 3
    assert await cache.delete_multi([b"b"]) == 4
    assert cache[b"c"] == b"3"
    assert await cache.update() == 4


async def test_everything_else_is_awaited(cache):
    assert await cache.set_if(b"a", whycache.ABSENT, b"1") == 1
    assert await cache.set_if(b"a", whycache.ABSENT, b"2") is None
    assert await cache.delete_if(b"a", b"1") == 2
    assert await cache.add(b"n", 5) == 5
    assert (await cache.get_fresh(b"n")).value == b"5"
    assert await cache.transact(lambda t: t.add(b"n", 1)) == (4, 6)
    await cache.write({b"x1": b"1", b"x2": b"2"}, [b"n"])
    await cache.delete_range(prefix=b"x")
    assert len(cache) == 0
    await cache.rewrite_history()
    await cache.delete_all_history()


async def test_transaction_may_be_an_async_function(cache):
    async def function(t):
        await asyncio.sleep(0)
        t.set(b"a", b"1")
        return "done"

    assert (await cache.transact(function)).value == "done"
    assert cache[b"a"] == b"1"


async def test_fill_takes_an_async_iterable(cache):
    async def items():
        for i in range(100):
            await asyncio.sleep(0)
            yield b"%d" % i, b"1"

    await cache.fill(items())
    assert len(cache) == 100


def test_blocking_cache_refuses_async_functions(url, state):
    async def function(t):
        pass

    with whycache.Cache(url, state_path=state) as cache, \
         pytest.raises(TypeError, match="whycache.aio.Cache"):
        cache.transact(function)


async def test_errors_are_raised_where_they_are_awaited(cache):
    with pytest.raises(TypeError):
        cache.set("a", b"1")
    with pytest.raises(whycache.LimitError):
        await cache.set(b"a", bytes(2 << 20))
    with pytest.raises(whycache.UnavailableError):
        await cache.update(at_least=99, deadline=0.05)


async def test_write_is_given_to_tasks(cache, tmp_path):
    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(cache.set(b"a", b"1"))
        two = tasks.create_task(cache.set(b"b", b"2"))
    assert (one.result(), two.result()) in ((1, 2), (1, 1))
    write = cache.set(b"c", b"3")
    outcomes = await asyncio.gather(*(asyncio.create_task(write) for _ in range(3)), write)
    assert len(set(outcomes)) == 1
    assert await asyncio.wait_for(write, 10) == outcomes[0]
    class FullLog(SlowLog):
        def append(self, id, update):
            raise whycache.LimitError("disk full")

    async with aio.Cache(FullLog("full"), state_path=tmp_path / "full.state") as full:
        refused = asyncio.create_task(full.set(b"a", b"1"))
        with pytest.raises(whycache.LimitError, match="disk full"):
            await refused


@pytest.mark.parametrize("pauses", [0, 1])
async def test_cancelled_task_of_a_write_names_it(cache, pauses):
    write = cache.set(b"a", b"1")
    task = asyncio.create_task(write)
    for _ in range(pauses):
        await asyncio.sleep(0)
    if task.cancel():
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert cancelled.value.write is write
    assert await write == 1
    assert cache[b"a"] == b"1"


async def test_64_tasks_write_in_groups(cache):
    ids = await asyncio.gather(*(cache.set(b"%d" % i, b"1") for i in range(64)))

    assert len(cache) == 64
    assert len(set(ids)) < 64


async def test_loop_is_woken_once_per_group_commit(cache, monkeypatch):
    wakes = []
    take = aio._whycache.Completions.take

    class Counting:
        def __init__(self, completions):
            self.completions = completions

        def take(self):
            finished = take(self.completions)
            wakes.append(len(finished))
            return finished

    await cache.set(b"first", b"1")
    side = aio._running_side()
    real = side.completions
    loop = asyncio.get_running_loop()
    loop.remove_reader(real.fileno())
    counting = Counting(real)

    def wake():
        side.completions = counting
        try:
            side.wake()
        finally:
            side.completions = real

    loop.add_reader(real.fileno(), wake)
    before = cache.counters()["updates_written"]

    await asyncio.gather(*(cache.set(b"%d" % i, b"1") for i in range(64)))

    groups = cache.counters()["updates_written"] - before
    assert sum(wakes) == 64
    assert len(wakes) <= groups


async def test_cancelled_write_goes_on_and_its_outcome_is_known(cache):
    writes = []

    async def work():
        try:
            await cache.set(b"a", b"1")
        except asyncio.CancelledError as error:
            writes.append(error.write)
            raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    after = await cache.set(b"b", b"2")

    assert await writes[0] <= after
    assert cache[b"a"] == b"1"


async def test_several_tasks_await_one_write(cache):
    write = cache.set(b"a", b"1")

    async def wait():
        return await write

    assert await asyncio.gather(wait(), wait(), wait()) == [1, 1, 1]
    assert write.done() and write.result() == 1 and await write == 1


def test_cache_works_in_several_event_loops(url, state):
    with whycache.Cache(url, state_path=state):
        cache = aio.Cache(url, state_path=state)
        ids = []

        def work(name):
            async def main():
                for i in range(5):
                    ids.append(await cache.set(b"%s%d" % (name, i), b"1"))

            asyncio.run(main())

        threads = [threading.Thread(target=work, args=(b"%c" % (97 + i),)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        work(b"z")
        assert len(ids) == 25
        assert len(cache) == 25
        cache.close()


def test_event_loop_closed_during_a_write(url, state):
    cache = aio.Cache(url, state_path=state)
    writes = []

    async def main():
        for i in range(10):
            writes.append(cache.set(b"%d" % i, b"1"))

    asyncio.run(main())
    gc.collect()

    assert [write.result(10) for write in writes][-1] == cache.applied_id()
    assert len(cache) == 10
    cache.close()


def test_write_without_an_event_loop_raises(url, state):
    cache = aio.Cache(url, state_path=state)
    with pytest.raises(RuntimeError, match="no running event loop"):
        cache.set(b"a", b"1")
    cache[b"a"] = b"1"
    assert cache[b"a"] == b"1"
    cache.close()


async def test_update_within_its_bound_does_not_wait(url, state):
    async with aio.Cache(url, state_path=state, staleness_max=60) as cache:
        await cache.update(staleness_max=0)
        step = cache.update()
        with pytest.raises(StopIteration) as end:
            step.send(None)
        assert end.value.value == 0


async def test_child_of_a_fork_does_not_get_its_parents_outcome(cache):
    write = cache.set(b"a", b"1")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                write.result()
            except whycache.UncertainError:
                cache[b"child"] = b"1"
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert await write in (1, 2)  # the child's may be first
    assert cache[b"child"] == b"1"


class SlowLog(whycache.Log):
    """A log in memory that takes its time to append."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._updates: dict[int, bytes] = {}

    def name(self) -> str:
        return self._name

    def extent(self):
        return whycache.Extent(bytes(16), head=len(self._updates))

    def append(self, id, update):
        time.sleep(0.2)
        self._updates[id] = update
        return whycache.AppendResult.APPENDED

    def read(self, first, last):
        return sorted(self._updates.items())[first - 1:last]

    def read_base(self):
        return []

    def rewrite(self, base, base_chain, parts):
        return False


def test_write_of_a_closed_event_loop_is_awaited_in_another(tmp_path):
    cache = aio.Cache(SlowLog("slow.other"), state_path=tmp_path / "one.state")

    async def begin():
        return [cache.set(b"a", b"1"), cache.set(b"b", b"2")]

    async def end(writes):
        return await asyncio.wait_for(asyncio.gather(*writes), 20)

    assert asyncio.run(end(asyncio.run(begin())))[-1] == cache.applied_id()
    cache.close()


def test_cancelled_wait_in_another_event_loop_disturbs_nobody(tmp_path):
    cache = aio.Cache(SlowLog("slow.cancelled"), state_path=tmp_path / "one.state")
    writes = []
    begun = threading.Event()

    def wait_elsewhere():
        begun.wait()

        async def wait():
            await asyncio.wait_for(writes[0], 0.01)

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(wait())

    other = threading.Thread(target=wait_elsewhere)
    other.start()

    async def main():
        writes.extend(cache.set(b"%d" % i, b"1") for i in range(3))
        begun.set()
        return await asyncio.wait_for(asyncio.gather(*writes), 20)

    assert asyncio.run(main())[-1] == cache.applied_id()
    other.join()
    cache.close()


def test_closed_event_loops_leave_no_descriptors(tmp_path):
    cache = aio.Cache(SlowLog("slow.loops"), state_path=tmp_path / "one.state")
    writes = []

    async def begin():
        writes.append(cache.set(b"a", b"1"))

    asyncio.run(begin())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        asyncio.run(begin())
    for write in writes:
        write.result(20)
    gc.collect()

    assert len(os.listdir("/proc/self/fd")) <= before
    cache.close()


async def test_calls_that_have_not_begun_fail_when_the_cache_is_closed(url, state):
    cache = aio.Cache(url, state_path=state)
    await cache.set(b"a", b"1")
    calls = [cache.add(b"n", 1) for _ in range(300)]
    cache.close()

    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(outcomes[-1], whycache.UnavailableError)
    with pytest.raises(whycache.InvalidError, match="closed"):
        cache.get(b"a")


def test_calls_beyond_the_number_of_threads_end_at_their_deadline(tmp_path):
    hangs = threading.Event()

    class HangingLog(SlowLog):
        def extent(self):
            while hangs.is_set() and whycache.call_time_left() > 0:
                time.sleep(0.01)
            if hangs.is_set():
                raise whycache.UnavailableError("no answer")
            return super().extent()

        def read(self, first, last):
            self.extent()
            return super().read(first, last)

    async def main():
        caches = [aio.Cache(HangingLog("hanging"), state_path=tmp_path / f"{i}.state")
                  for i in range(2)]
        hangs.set()
        outcomes = await asyncio.gather(
            *(cache.update(deadline=1) for cache in caches for _ in range(100)),
            return_exceptions=True)
        assert all(isinstance(outcome, whycache.UnavailableError) for outcome in outcomes)
        assert any("was not begun" in str(outcome) for outcome in outcomes)
        late = [asyncio.create_task(caches[0].update(deadline=8)) for _ in range(70)]
        await asyncio.sleep(0.5)
        began = time.monotonic()
        for cache in caches:
            await cache.aclose()
        assert time.monotonic() - began < 5
        await asyncio.gather(*late, return_exceptions=True)

    asyncio.run(main())
