"""whycache status: fields, bounds on lag and staleness, and damaged logs."""

import os
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
            "flags.db",
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
