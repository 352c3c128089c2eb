"""whycache watch: printed changes, resuming, commands, and whatever happens meanwhile."""

import base64
import json
import os
import pathlib
import signal
import sqlite3
import time

from support import ALL_BYTES, CliTest, main


class WatchTest(CliTest):
    def watch(self, *arguments, machine=None):
        """Returns a watcher that has begun to watch."""
        machine = machine or self.machine
        watcher = machine.start("watch", "--interval", "20ms", *arguments)
        while not (line := watcher.stderr.readline()).startswith(b"whycache: watching: "):
            self.assertNotEqual(line, b"")
        return watcher

    def lines(self, watcher, count):
        return [watcher.stdout.readline().decode().rstrip("\n") for _ in range(count)]

    def test_prints_changes_of_the_prefix_as_they_are_applied(self):
        self.machine.ok("set", "user.1", "before")
        watcher = self.watch("user.")
        self.machine.ok("set", "user.1", "a\tb")
        self.machine.ok("set", "other", "1")
        self.machine.ok("del", "user.1")
        self.assertEqual(self.lines(watcher, 2), ["2\tset\tuser.1\ta\\tb", "4\terase\tuser.1"])
        self.machine.ok("clear", "--yes")
        self.assertEqual(self.lines(watcher, 1), ["5\terase_all"])

    def test_prints_what_another_machine_wrote(self):
        self.machine.ok("init", self.log)
        watcher = self.watch()
        self.another_machine("other").ok("set", "a", "1")
        self.assertEqual(self.lines(watcher, 1), ["1\tset\ta\t1"])

    def test_resumes_from_an_id_and_resets_where_it_cannot(self):
        for i in range(4):
            self.machine.ok("set", "a", str(i), "--note", f"note {i}")
        watcher = self.watch("--from", "2", "--json")
        first = json.loads(watcher.stdout.readline())
        self.assertEqual(
            {name: first[name] for name in ("id", "kind", "key", "value", "note", "ends_update")},
            {"id": 3, "kind": "set", "key": "a", "value": "2", "note": "note 2",
             "ends_update": True},
        )
        self.assertIn("whycache set", first["writer"])
        self.assertEqual(json.loads(watcher.stdout.readline())["id"], 4)

        watcher = self.watch("--from", "100", "--json")
        reset = json.loads(watcher.stdout.readline())
        self.assertEqual((reset["id"], reset["kind"]), (4, "reset"))
        self.assertIn("from=100", reset["reason"])
        self.assertIn(b"changes are missing: id=4", watcher.stderr.readline())

        other = self.another_machine("other")
        other.ok("update")
        self.machine.ok("rewrite", "--yes")
        os.remove(other.state + ".changes") if os.path.exists(other.state + ".changes") else None
        watcher = self.watch("--from", "1", "--json", machine=other)
        self.assertEqual(json.loads(watcher.stdout.readline())["kind"], "reset")

    def test_update_of_several_changes_says_where_it_ends(self):
        self.machine.ok("import", "-", stdin=b"a\t1\nb\t2\n")
        watcher = self.watch("--from", "0", "--json")
        changes = [json.loads(watcher.stdout.readline()) for _ in range(2)]
        self.assertEqual([change["ends_update"] for change in changes], [False, True])

    def test_command_gets_the_change_and_its_failure_is_reported(self):
        self.machine.ok("init", self.log)
        out = f"{self.directory}/out"
        script = (
            f'{{ echo "$WHYCACHE_ID $WHYCACHE_KIND $WHYCACHE_KEY"; cat; echo; }} >> {out}; '
            'test "$WHYCACHE_KEY" != bad'
        )
        watcher = self.watch("--exec", script)
        self.machine.ok("set", "bad", "1")
        self.machine.ok("set", "good", "2")
        self.machine.ok("del", "good")
        self.assertEqual(len(self.lines(watcher, 3)), 3)
        message = watcher.stderr.readline()
        for word in (b"command failed: exit_code=1", b"id=1", b"kind=set", b"key=bad"):
            self.assertIn(word, message)
        self.assertIn(b"the watch continues", watcher.stderr.readline())
        expected = "1 set bad\n1\n2 set good\n2\n3 erase good\n\n"
        for _ in range(500):
            if pathlib.Path(out).read_text() == expected:
                break
            time.sleep(0.01)
        self.assertEqual(pathlib.Path(out).read_text(), expected)
        self.assertIsNone(watcher.poll())

    def test_any_bytes_reach_the_command(self):
        self.machine.ok("init", self.log)
        out = f"{self.directory}/out"
        script = (
            f'echo "$WHYCACHE_KEY_BASE64 ${{WHYCACHE_KEY-unset}}" > {out}.key; '
            f"cat > {out}.new; mv {out}.new {out}"
        )
        watcher = self.watch("--exec", script)
        key = b"a\0b\xff"
        item = {
            "key_base64": base64.b64encode(key).decode(),
            "value_base64": base64.b64encode(ALL_BYTES * 1000).decode(),
        }
        self.machine.ok("import", "-", stdin=json.dumps(item).encode() + b"\n")
        watcher.stdout.readline()
        for _ in range(500):
            if os.path.exists(out):
                break
            time.sleep(0.01)
        self.assertEqual(pathlib.Path(out).read_bytes(), ALL_BYTES * 1000)
        self.assertEqual(pathlib.Path(f"{out}.key").read_text(), item["key_base64"] + " unset\n")
        self.assertIsNone(watcher.poll())

    def test_command_that_reads_nothing_and_one_that_dies_do_not_end_it(self):
        self.machine.ok("init", self.log)
        watcher = self.watch("--exec", "kill -9 $$")
        self.machine.ok("set", "a", "-", stdin=b"x" * 500_000)
        self.lines(watcher, 1)
        self.assertIn(b"command failed: signal=9", watcher.stderr.readline())
        watcher.stderr.readline()
        self.machine.ok("set", "a", "2")
        self.assertIn(b"id=2", watcher.stderr.readline())

    def test_command_may_close_a_pipe_early(self):
        self.machine.ok("init", self.log)
        watcher = self.watch("--exec", "yes | head -1 > /dev/null")
        self.machine.ok("set", "a", "1")
        self.machine.ok("set", "a", "2")
        self.assertEqual(self.lines(watcher, 2), ["1\tset\ta\t1", "2\tset\ta\t2"])
        os.set_blocking(watcher.stderr.fileno(), False)
        self.assertIsNone(watcher.stderr.read(), "the command for the first change did not fail")

    def test_signal_ends_it(self):
        self.machine.ok("init", self.log)
        for number in (signal.SIGTERM, signal.SIGINT):
            watcher = self.watch()
            watcher.send_signal(number)
            self.assertEqual(watcher.communicate(timeout=30), (b"", b""))
            self.assertEqual(watcher.returncode, 0)

    def assert_ends_at_once(self, watcher, number):
        """Sends a signal. Returns what the watcher has still printed on standard error."""
        watcher.send_signal(number)
        printed = watcher.communicate(timeout=20)  # far less than what it waits for
        self.assertEqual(watcher.returncode, 0)
        return printed[1].decode()

    def test_signal_ends_wait_for_log_that_does_not_answer(self):
        self.machine.ok("set", "a", "1")
        locker = sqlite3.connect(self.database, isolation_level=None)
        self.addCleanup(locker.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            watcher = self.watch("--deadline", "300s")
            locker.execute("BEGIN EXCLUSIVE")
            time.sleep(0.5)  # the log is asked each 20 ms
            self.assertEqual(self.assert_ends_at_once(watcher, number), "")
            locker.execute("ROLLBACK")

    def test_signal_ends_command_with_all_that_it_started(self):
        self.machine.ok("init", self.log)
        for id, number in ((1, signal.SIGTERM), (2, signal.SIGINT)):
            watcher = self.watch("--exec", "echo begun; sleep 300; echo ended")
            self.machine.ok("set", "a", str(id))
            self.assertEqual(self.lines(watcher, 2), [f"{id}\tset\ta\t{id}", "begun"])
            message = self.assert_ends_at_once(watcher, number)
            self.assertIn(f"command failed: signal=15: id={id}", message)
            self.assertIn(f"--from {id - 1}", message)

    def test_command_may_finish_what_it_does_after_a_signal(self):
        self.machine.ok("init", self.log)
        script = (
            "trap 'sleep 0.2; echo finished; exit 0' TERM; echo begun; "
            "while :; do sleep 0.05; done"
        )
        watcher = self.watch("--exec", script)
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.lines(watcher, 2), ["1\tset\ta\t1", "begun"])
        watcher.terminate()
        printed, messages = watcher.communicate(timeout=20)
        self.assertEqual(printed, b"finished\n")
        self.assertNotIn(b"whycache: ", messages)

    def test_command_can_be_ended_by_signals(self):
        self.machine.ok("init", self.log)
        watcher = self.watch("--exec", "kill -TERM $$; echo survived")
        self.machine.ok("set", "a", "1")
        self.assertIn(b"command failed: signal=15", watcher.stderr.readline())

    def test_log_that_is_away_does_not_end_it(self):
        self.machine.ok("set", "a", "1")
        watcher = self.watch("--deadline", "100ms")
        locker = sqlite3.connect(self.database, isolation_level=None)
        self.addCleanup(locker.close)
        locker.execute("BEGIN EXCLUSIVE")
        while b"flags.db" not in (message := watcher.stderr.readline()):
            self.assertNotEqual(message, b"")
        time.sleep(0.5)
        os.set_blocking(watcher.stderr.fileno(), False)
        self.assertNotIn(b"watching again", watcher.stderr.read() or b"", "the log is still away")
        os.set_blocking(watcher.stderr.fileno(), True)
        locker.execute("ROLLBACK")
        self.machine.ok("set", "a", "2")
        self.assertEqual(self.lines(watcher, 1), ["2\tset\ta\t2"])

    def test_wrong_command_lines_are_refused(self):
        self.machine.fails("usage", "watch", "--from", "x", expect="x")
        self.machine.fails("usage", "watch", "--from", "-1", expect="-1")
        self.machine.fails("usage", "watch", "a", "b", expect="b")
        self.machine.fails("usage", "watch", "--prefix", "a", expect="watch PREFIX")
        self.machine.fails("usage", "watch", env={"WHYCACHE_LOG": None}, expect="log")


if __name__ == "__main__":
    main()
