"""whycache get: values as bytes, and when a read contacts the log."""

import base64
import os
import pathlib
import pty
import sqlite3
import stat

from support import EXIT, CliTest, main


class GetTest(CliTest):
    def test_update_reads_value_set_on_another_machine(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        self.assertEqual(other.ok("get", "a").out, b"1")
        self.machine.ok("set", "a", "2")
        self.assertEqual(
            other.ok("get", "a").out, b"1", "reads use the state and do not contact the log"
        )
        self.assertEqual(other.ok("get", "--update", "a").out, b"2")

    def test_absent_key_is_not_found(self):
        self.machine.ok("init", self.log)
        self.machine.fails("not_found", "get", "nothing", expect="nothing")
        self.assertEqual(self.machine.run("get", "nothing").out, b"")

    def test_json_has_value_or_base64(self):
        self.assertEqual(self.machine.ok("set", "a", "b", "--json").json, {"update_id": 1})
        self.assertEqual(self.machine.ok("get", "a", "--json").json, {"key": "a", "value": "b"})
        self.machine.ok("set", "a", "-", stdin=b"\xff\0")
        self.assertEqual(
            self.machine.ok("get", "a", "--json").json,
            {"key": "a", "value_base64": base64.b64encode(b"\xff\0").decode()},
        )

    def test_terminal_output_ends_with_line_feed(self):
        self.machine.ok("set", "a", "b")
        leader, follower = pty.openpty()
        try:
            self.machine.ok("get", "a", stdout=follower)
            self.assertEqual(os.read(leader, 100), b"b\r\n")
        finally:
            os.close(leader)
            os.close(follower)

    def test_staleness_max_of_zero_contacts_log(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("set", "a", "2")
        self.assertEqual(other.ok("get", "--staleness-max", "0", "a").out, b"2")

    def test_reads_succeed_without_reachable_log(self):
        self.machine.ok("set", "a", "1")
        os.rename(self.database, self.database + ".away")
        os.mkdir(self.database)  # no database can be opened or created here
        self.assertEqual(self.machine.ok("get", "a").out, b"1")
        self.assertEqual(self.machine.ok("scan").lines, ["a\t1"])
        self.assertEqual(self.machine.ok("count").text, "1")
        self.machine.ok("inspect")
        status = self.machine.ok("status", "--json").json
        self.assertFalse(status["log_answers"])
        self.assertEqual(status["applied_id"], 1)

    def test_reads_state_when_no_log_is_named(self):
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.machine.ok("get", "a", env={"WHYCACHE_LOG": None}).out, b"1")
        self.machine.fails(
            "usage", "get", "a", "--update", env={"WHYCACHE_LOG": None}, expect="--log"
        )
        self.machine.fails(
            "usage", "get", "a", env={"WHYCACHE_LOG": None, "WHYCACHE_STATE": None}, expect="--log"
        )

    def test_locked_log_fails_only_commands_that_need_it(self):
        machine = self.machine
        machine.ok("set", "a", "1")
        locker = sqlite3.connect(self.database, isolation_level=None)
        self.addCleanup(locker.close)
        locker.execute("BEGIN EXCLUSIVE")
        deadline = ("--deadline", "2s")
        self.assertEqual(machine.ok("get", "a", *deadline).out, b"1")
        machine.fails("conflict", "get", "a", "--update", *deadline, expect="flags.db")
        machine.fails("stale", "get", "a", "--staleness-max", "1ns", *deadline)
        machine.fails("conflict", "set", "a", "2", *deadline, expect="nothing was written")
        machine.fails("conflict", "update", *deadline)
        machine.fails("conflict", "log", *deadline, expect="lock_holders")
        machine.fails("conflict", "check", *deadline)
        machine.fails("conflict", "rewrite", "--yes", *deadline)
        self.assertEqual(machine.run("doctor", *deadline).code, EXIT["conflict"])
        machine.ok("status", *deadline)
        locker.execute("ROLLBACK")
        self.assertEqual(machine.ok("get", "a", "--update").out, b"1")
        self.assertEqual(machine.ok("update").text, "1", "nothing was written")

    def test_default_state_is_private(self):
        home = f"{self.directory}/home"
        os.mkdir(home, 0o700)
        environment = {"WHYCACHE_STATE": None, "HOME": home, "STATE_DIRECTORY": f"{home}/state"}
        self.machine.ok("set", "a", "1", env=environment)
        self.assertEqual(self.machine.ok("get", "a", env=environment).out, b"1")
        state = pathlib.Path(self.machine.ok("status", "--json", env=environment).json["state"])
        self.assertEqual(stat.S_IMODE(state.parent.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(state.stat().st_mode), 0o600)
        self.assertTrue(str(state).startswith(home))

    def test_default_state_is_found_without_log(self):
        environment = {"WHYCACHE_STATE": None, "STATE_DIRECTORY": f"{self.directory}/default"}
        self.machine.ok("set", "a", "1", env=environment)
        os.rename(self.database, self.database + ".away")
        os.mkdir(self.database)
        self.assertEqual(self.machine.ok("get", "a", env=environment).out, b"1")


if __name__ == "__main__":
    main()
