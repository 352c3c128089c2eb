"""Writes that block, and what depends on what was there before."""

import os
import signal
import threading
import time

import pytest

import whycache


def test_writes_return_update_ids(cache):
    assert cache.set(b"a", b"1") == 1
    assert cache.set_multi({b"b": b"2", b"c": b"3"}) == 2
    assert cache.set_multi([(b"d", b"4")]) == 3
    assert cache.delete(b"a") == 4
    assert cache.delete_multi(iter([b"b", b"c"])) == 5
    assert cache.write({b"e": b"5"}, [b"d"]) == 6
    assert list(cache.items()) == [(b"e", b"5")]
    assert cache.set_multi({}) == 6
    assert cache.get_shared_state_update_id() == 6


def test_subscript_writes_and_deletes(cache):
    cache[b"a"] = b"1"
    assert cache[b"a"] == b"1"
    del cache[b"a"]
    assert b"a" not in cache
    with pytest.raises(KeyError):
        del cache[b"a"]


def test_type_error_comes_before_anything_is_written(cache):
    for write in (lambda: cache.set(b"a", object()),
                  lambda: cache.set_multi([(b"a", b"1"), (b"b", object())]),
                  lambda: cache.set_multi([(b"a", b"1"), ("b", b"2")]),
                  lambda: cache.set_multi({b"a": b"1"}, note=7),
                  lambda: cache.write({b"a": b"1"}, ["b"]),
                  lambda: cache.set_multi([3]),
                  lambda: cache.set_if(b"a", whycache.ABSENT, object())):
        with pytest.raises(TypeError):
            write()
    with pytest.raises(ValueError, match="pairs"):
        cache.set_multi([(b"a", b"1", b"2")])
    assert cache.applied_id() == 0


def test_value_too_large_raises_limit_error(cache):
    with pytest.raises(whycache.LimitError, match="update_bytes_max"):
        cache.set_multi({b"a": b"1", b"large": bytes(2 << 20)})
    assert cache.applied_id() == 0


def test_batch_too_large_for_one_update_becomes_several(cache):
    last = cache.set_multi({b"%02d" % i: os.urandom(128 << 10) for i in range(20)})
    assert last > 1
    assert len(cache) == 20


def test_set_if_and_delete_if_compare_the_value(cache):
    assert cache.set_if(b"a", whycache.ABSENT, b"1") == 1
    assert cache.set_if(b"a", whycache.ABSENT, b"2") is None
    assert cache.set_if(b"a", b"9", b"2") is None
    assert cache.set_if(b"a", b"1", b"2") == 2
    assert cache.delete_if(b"a", b"1") is None
    assert cache.delete_if(b"a", b"2") == 3
    assert b"a" not in cache


def test_versions_guard_writes(cache):
    first = cache.set_if_version(b"a", 0, b"1")
    assert cache.get_versioned(b"a") == (b"1", first)
    assert cache.set_if_version(b"a", 0, b"2") is None
    second = cache.set_if_version(b"a", first, b"2")
    assert cache.delete_if_version(b"a", first) is None
    assert cache.delete_if_version(b"a", second) == second + 1


def test_add_counts_in_decimal_digits(cache):
    assert cache.add(b"n") == 1
    assert cache.add(b"n", 41) == 42
    assert cache.add(b"n", -50) == -8
    assert cache[b"n"] == b"-8"
    cache.set(b"n", b"x")
    with pytest.raises(whycache.InvalidError):
        cache.add(b"n")


def test_add_of_many_threads_loses_nothing(cache):
    def work():
        for _ in range(5):
            cache.add(b"n")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert cache[b"n"] == b"40"


def test_delete_range_leaves_the_others(cache):
    cache.set_multi({b"a1": b"1", b"a2": b"2", b"b": b"3"})
    cache.delete_range(prefix=b"a")
    assert list(cache) == [b"b"]


def test_transact_writes_one_update(cache):
    cache.set_multi({b"from": b"10", b"to": b"0"})

    def transfer(t):
        amount = 3
        t[b"from"] = b"%d" % (int(t[b"from"]) - amount)
        t[b"to"] = b"%d" % (int(t[b"to"]) + amount)
        return amount

    update_id, amount = cache.transact(transfer)

    assert (update_id, amount) == (cache.applied_id(), 3)
    assert dict(cache) == {b"from": b"7", b"to": b"3"}


def test_transaction_reads_its_own_writes(cache):
    cache.set_multi({b"a": b"1", b"b": b"2"})

    def function(t):
        t.set(b"c", b"3")
        t.delete(b"a")
        assert b"a" not in t
        assert t.get_multi([b"a", b"b", b"c"]) == [None, b"2", b"3"]
        assert t.items() == [(b"b", b"2"), (b"c", b"3")]
        assert t.items(prefix=b"b") == [(b"b", b"2")]
        assert t.add(b"n", 2) == 2
        with pytest.raises(KeyError):
            del t[b"a"]

    cache.transact(function)
    assert dict(cache) == {b"b": b"2", b"c": b"3", b"n": b"2"}


def test_transaction_without_writes_writes_nothing(cache):
    cache.set(b"a", b"1")
    assert cache.transact(lambda t: t[b"a"]) == (1, b"1")
    assert cache.applied_id() == 1


def test_exception_of_a_transaction_passes_through(cache):
    class MyError(Exception):
        pass

    def function(t):
        t.set(b"a", b"1")
        raise MyError

    with pytest.raises(MyError):
        cache.transact(function)
    assert cache.applied_id() == 0


def test_transaction_runs_again_if_what_it_read_has_changed(cache, url, state):
    cache.set(b"a", b"1")
    runs = []

    def function(t):
        value = t[b"a"]
        if not runs:
            cache.set(b"a", b"5")
        runs.append(value)
        t.set(b"b", value)

    cache.transact(function)
    assert runs == [b"1", b"5"]
    assert cache[b"b"] == b"5"


def test_transaction_may_call_the_cache_itself(cache):
    def function(t):
        cache.set(b"log", b"1")
        t.set(b"a", cache.get(b"log"))
        return "done"

    assert cache.transact(function) == (2, "done")
    assert dict(cache) == {b"a": b"1", b"log": b"1"}

    def conflict(t):
        cache.set(b"log", t[b"log"] + b"+")
        t.set(b"a", b"2")

    with pytest.raises(whycache.ConflictError):
        cache.transact(conflict, attempts_max=3)
    assert dict(cache) == {b"a": b"1", b"log": b"1+++"}


def test_transaction_that_always_conflicts_raises(cache):
    counter = iter(range(100))

    def function(t):
        list(t.items(prefix=b"a"))
        cache.set(b"a%d" % next(counter), b"1")
        t.set(b"b", b"1")

    with pytest.raises(whycache.ConflictError, match="attempts=3"):
        cache.transact(function, attempts_max=3)
    assert b"b" not in cache


def test_transactions_of_many_threads_are_serializable(cache):
    cache.set(b"n", b"0")

    def work():
        for _ in range(5):
            cache.transact(lambda t: t.set(b"n", b"%d" % (int(t[b"n"]) + 1)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache[b"n"] == b"30"


def test_fill_takes_any_iterable(cache):
    last = cache.fill((b"%06d" % i, os.urandom(1000)) for i in range(2000))

    assert len(cache) == 2000
    assert last == cache.applied_id() > 1
    assert cache.fill([]) == last
    with pytest.raises(TypeError):
        cache.fill([("a", b"1")])


def test_two_machines_share_a_log(url, tmp_path):
    with whycache.Cache(url, state_path=tmp_path / "one.state") as one, \
         whycache.Cache(url, state_path=tmp_path / "two.state") as two:
        update_id = one.set(b"a", b"1")
        assert b"a" not in two

        assert two.update(at_least=update_id) == update_id
        assert two[b"a"] == b"1"
        assert two.digest() == one.digest()
        assert two.update(staleness_max=60) == update_id
        one.set(b"a", b"2")
        assert two.update(staleness_max=60) == update_id
        fresh = two.get_fresh(b"a")
        assert (fresh.value, fresh.stale) == (b"2", False)
        assert two.get_fresh(b"absent", None).value is None


def test_at_least_that_never_comes_raises_at_the_deadline(cache):
    with pytest.raises(whycache.UnavailableError):
        cache.update(at_least=99, deadline=0.1)


def test_rewrite_history_keeps_what_the_filter_keeps(cache, url, tmp_path):
    for i in range(10):
        cache.set(b"%d" % i, b"%d" % (i % 2))

    base = cache.rewrite_history(filter_fn=lambda key, value: value == b"1")

    assert base == cache.applied_id()
    assert list(cache) == [b"1", b"3", b"5", b"7", b"9"]
    with whycache.Cache(url, state_path=tmp_path / "other.state") as other:
        assert dict(other) == dict(cache)


def test_filter_that_raises_ends_the_rewrite(cache):
    cache.set(b"a", b"1")

    def raising(key, value):
        raise RuntimeError("no")

    with pytest.raises(whycache.Error, match="filter_fn raised RuntimeError: no"):
        cache.rewrite_history(filter_fn=raising)
    assert cache[b"a"] == b"1"


def test_callbacks_must_not_write(cache, url, tmp_path):
    cache.set(b"a", b"1")
    with pytest.raises(whycache.Error, match="must not write"):
        cache.rewrite_history(filter_fn=lambda key, value: cache.set(b"b", b"1"))
    with whycache.Cache(url, state_path=tmp_path / "guarded.state",
                        validate=lambda change: guarded.set(b"b", b"1")) as guarded, \
         pytest.raises(whycache.RefusedError, match="must not write"):
        guarded.set(b"a", b"2")


def test_delete_all_history_empties_every_machine(cache, url, tmp_path):
    with whycache.Cache(url, state_path=tmp_path / "other.state") as other:
        cache.set(b"a", b"1")
        other.update()
        cache.delete_all_history()
        other.update()
        assert len(cache) == len(other) == 0


def test_guards_refuse_writes(url, state):
    seen = []

    def validate(change):
        seen.append(change)
        return "no secrets" if change.key == b"secret" else None

    with whycache.Cache(url, state_path=state, validate=validate, erased_keys_max=1) as cache:
        cache.set(b"a", b"1")
        with pytest.raises(whycache.RefusedError, match="no secrets"):
            cache.set(b"secret", b"1")
        cache.set(b"b", b"1")
        with pytest.raises(whycache.RefusedError):
            cache.delete_multi([b"a", b"b"])
        cache.delete(b"a")
    assert seen[0] == whycache.Change("set", b"a", b"1")
    assert seen[-1] == whycache.Change("delete", b"a", None)


@pytest.mark.parametrize("validate", [lambda change: 1 // 0, lambda change: 7])
def test_guard_that_raises_or_returns_nonsense_refuses(url, state, validate):
    with whycache.Cache(url, state_path=state, validate=validate) as cache, \
         pytest.raises(whycache.RefusedError, match="validate (raised ZeroDivision|returned int)"):
        cache.set(b"a", b"1")


def test_stats_and_counters_describe_the_cache(cache):
    cache.set(b"a", b"1")
    cache.update()
    stats = cache.stats()
    assert stats["applied_id"] == stats["known_head"] == stats["item_count"] == 1
    assert stats["log_is_up"] is True
    assert cache.counters()["updates_written"] == 1
    state = cache.get_shared_state()
    assert state["log_name"].startswith("sqlite://")
    assert [process["process_id"] for process in state["processes"]] == [os.getpid()]
    assert os.path.exists(cache.shared_state_filename())
    assert cache.ready() and cache.valid()
    assert cache.staleness() < 60


def test_attached_cache_reads_without_a_log(cache):
    cache.set(b"a", b"1")
    with whycache.Cache.attach(cache.shared_state_filename()) as attached:
        assert attached[b"a"] == b"1"
        with pytest.raises(whycache.InvalidError):
            attached.set(b"a", b"2")


def test_sigint_interrupts_a_blocking_write_whose_outcome_stays_known(tmp_path):
    class SlowLog(whycache.Log):
        def __init__(self):
            self.updates = {}

        def name(self):
            return "slow:"

        def extent(self):
            return whycache.Extent(b"0123456789abcdef", head=len(self.updates))

        def append(self, id, update):
            time.sleep(1.0)
            if id in self.updates:
                return whycache.AppendResult.TAKEN
            self.updates[id] = update
            return whycache.AppendResult.APPENDED

        def read(self, first, last):
            return [(id, self.updates[id]) for id in range(first, len(self.updates) + 1)
                    if id <= last]

        def read_base(self):
            return []

        def rewrite(self, base, base_chain, parts):
            return False

    with whycache.Cache(SlowLog(), state_path=tmp_path / "slow.state") as cache:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt) as raised:
            cache.set(b"a", b"1")

        assert time.monotonic() - began < 0.8
        write = raised.value.write
        with pytest.raises(TimeoutError):
            write.result(0)
        assert write.result(10) == 1
        assert cache[b"a"] == b"1"
        timer.join()
