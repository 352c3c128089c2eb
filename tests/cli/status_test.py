"""whycache status: fields, bounds on lag and staleness, and damaged logs."""

import os
import pathlib
import subprocess
import time

from support import CliTest, main


class StatusTest(CliTest):
    def test_fields(self):
        self.machine.ok("set", "a", "12345")
        status = self.machine.ok("status", "--json").json
        self.assertEqual(
            {
                key: status[key]
                for key in (
                    "applied_id",
                    "head",
                    "lag",
                    "items",
                    "item_bytes",
                    "base",
                    "log_answers",
                    "same_log",
                )
            },
            {
                "applied_id": 1,
                "head": 1,
                "lag": 0,
                "items": 1,
                "item_bytes": 6,
                "base": 0,
                "log_answers": True,
                "same_log": True,
            },
        )
        self.assertRegex(status["digest"], "^[0-9a-f]{32}$")
        self.assertRegex(status["log_uuid"], "^[0-9a-f]{32}$")
        self.assertRegex(status["chain"], "^0x[0-9a-f]{16}$")
        self.assertLess(status["staleness_seconds"], 60)
        self.assertEqual(status["state"], self.machine.state)
        self.assertEqual(status["state_bytes"], os.path.getsize(self.machine.state))
        text = self.machine.ok("status").out.decode()
        for word in (
            "applied id",
            "head",
            "lag",
            "staleness",
            "digest",
            status["digest"],
            status["log"],
            self.machine.state,
        ):
            self.assertIn(word, text)

    def test_exceeded_bounds_of_lag_and_staleness_are_reported(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("set", "a", "2")
        self.assertEqual(other.ok("status", "--json").json["lag"], 1)
        other.fails("stale", "status", "--lag-max", "0", expect="lag=1")
        other.ok("status", "--lag-max", "1", "--staleness-max", "1h")
        time.sleep(0.05)
        other.fails("stale", "status", "--staleness-max", "10ms", expect="staleness=")
        other.fails("usage", "status", "--staleness-max", "soon", expect="soon")

    def test_wrong_url_is_no_log_that_is_away(self):
        self.machine.ok("set", "a", "1")
        for url, word in (
            (f"mysql://u@host/db?socket={self.directory}/s", "socket"),
            ("sqlite:///x.db?nosuch=1", "nosuch"),
            ("nosuch://x", "nosuch"),
        ):
            self.machine.fails("usage", "status", "--log", url, expect=word)

    def test_exceeded_bound_while_the_log_is_away_says_so(self):
        self.machine.ok("set", "a", "1")
        os.rename(self.database, f"{self.database}.elsewhere")
        for bound in (("--staleness-max", "1ns"), ("--lag-max", "0")):
            result = self.machine.fails("stale", "status", *bound, "--deadline", "200ms",
                                        expect=["log does not exist", "next: the log cannot"])
            self.assertNotIn("whycache update", result.err)

    def test_contact_by_another_clock_is_said_to_be_one(self):
        self.machine.ok("set", "a", "1")
        command = ["unshare", "--time", "--boottime", "100000", self.program]
        environment = self.machine.environment()
        tried = subprocess.run([*command[:-1], "true"], check=False, capture_output=True)
        if tried.returncode != 0:
            self.skipTest(f"needs time namespaces: {tried.stderr}")
        done = subprocess.run([*command, "status", "--staleness-max", "1h"], env=environment,
                              check=False, capture_output=True, text=True)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn("another time namespace", done.stdout)
        self.assertIn("another time namespace", done.stderr)
        self.assertNotIn("since this machine started", done.stdout)
        self.assertFalse(self.machine.ok("status", "--json").json["another_clock"])
        subprocess.run([*command, "update"], env=environment, check=True, capture_output=True)
        status = self.machine.ok("status", "--json").json
        self.assertEqual((status["another_clock"], status["staleness_seconds"]), (True, None))

    def test_absent_log_is_not_created(self):
        self.machine.ok("set", "a", "1")
        os.remove(self.database)
        status = self.machine.ok("status", "--json").json
        self.assertEqual((status["log_answers"], status["applied_id"], status["head"]),
                         (False, 1, 1))
        self.assertIn("log does not exist", status["log_trouble"])
        self.assertIsNone(status["lag"])
        self.machine.fails("stale", "status", "--lag-max", "0", expect="unknown")
        self.machine.ok("status", "--staleness-max", "1h")
        self.assertFalse(os.path.exists(self.database))

    def contents(self):
        return {
            os.path.join(path, name): pathlib.Path(path, name).read_bytes()
            for path, _, names in os.walk(self.directory)
            for name in names
        }

    def test_status_and_reads_change_and_create_nothing(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("set", "a", "2")
        os.remove(f"{other.state}.lock")
        before = self.contents()
        for command in (("status",), ("status", "--json", "--lag-max", "1"), ("get", "a"),
                        ("scan",), ("count",), ("inspect",), ("doctor",)):
            with self.subTest(command):
                other.ok(*command)
                self.assertEqual(self.contents(), before)
        self.assertEqual(other.ok("get", "a").out, b"1", "nothing was applied")

    def test_machine_without_a_state_is_told_and_gets_none(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        before = self.contents()
        other.fails("usage", "status", expect="there is no state")
        other.fails("stale", "status", "--lag-max", "1000", expect="there is no state")
        other.fails("usage", "status",
                    env={"WHYCACHE_STATE": None, "STATE_DIRECTORY": f"{self.directory}/default"})
        self.assertEqual(self.contents(), before)

    def test_machines_at_same_id_have_same_digest(self):
        for i in range(5):
            self.machine.ok("set", f"key{i}", str(i))
        self.machine.ok("del", "key3")
        other = self.another_machine()
        other.ok("update")
        first, second = (machine.ok("status", "--json").json for machine in (self.machine, other))
        self.assertEqual((first["digest"], first["chain"]), (second["digest"], second["chain"]))

    def test_log_that_lost_its_tail_is_corrupt(self):
        self.machine.ok("set", "a", "1")
        self.machine.ok("set", "a", "2")
        self.sql("DELETE FROM whycache_updates_default WHERE id = 2")
        self.machine.fails("corrupt", "status", expect=["applied_id=2", "head=1"])

    def test_replaced_log_is_corrupt(self):
        self.machine.ok("set", "a", "1")
        os.remove(self.database)
        self.another_machine().ok("set", "b", "1")
        self.machine.fails("corrupt", "status", expect="another log")
        self.machine.fails("corrupt", "check", expect="damage")


if __name__ == "__main__":
    main()
