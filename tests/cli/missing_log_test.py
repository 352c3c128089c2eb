"""Logs that are missing, or empty in place of one that was applied: nothing is made by accident."""

import os
import shutil
import time

from support import EXIT, CliTest, main

READERS = (("get", "a"), ("mget", "a"), ("scan",), ("keys",), ("count",), ("status",),
           ("get", "a", "--update"), ("update",), ("log",), ("check",), ("inspect",), ("doctor",),
           ("del", "a"), ("rewrite", "--yes"), ("clear", "--yes"), ("guard",),
           ("diff", "/dev/null"), ("rebuild",))


class MissingLogTest(CliTest):
    def files(self):
        return sorted(
            os.path.join(directory, name)
            for directory, _, names in os.walk(self.directory)
            for name in names
        )

    def test_only_commands_that_write_items_create_a_log(self):
        for url in (self.log, f"file://{self.directory}/log", f"memcached+{self.log}?memcached=x"):
            for command in READERS:
                with self.subTest(f"{command} {url}"):
                    result = self.machine.run(*command, "--deadline", "200ms", "--log", url)
                    self.assertNotEqual(result.code, 0, result.out)
                    self.assertNotIn("next: create the directory", result.err)
                    logs = [path for path in self.files() if "flags.state" not in path]
                    self.assertEqual(logs, [])
        self.machine.ok("set", "a", "1")

    def test_missing_log_is_not_created_for_machine_with_a_state(self):
        """As if its disk were not mounted: a new log there would empty the machine."""
        self.machine.ok("set", "a", "1")
        shutil.move(self.database, f"{self.database}.elsewhere")
        for journal in (f"{self.database}-journal", f"{self.database}-wal", f"{self.database}-shm"):
            if os.path.exists(journal):
                os.remove(journal)
        begin = time.monotonic()
        for command in (*READERS, ("set", "b", "2"), ("import", "-")):
            with self.subTest(command):
                self.machine.run(*command, "--deadline", "100ms", stdin=b"b\t2\n")
                self.assertFalse(os.path.exists(self.database))
        self.assertLess(time.monotonic() - begin, 20)
        self.machine.fails("unreachable", "set", "b", "2", "--deadline", "100ms",
                           expect=["log does not exist", self.machine.state])
        self.assertEqual(self.machine.ok("get", "a").out, b"1")
        shutil.move(f"{self.database}.elsewhere", self.database)
        self.assertEqual(self.machine.ok("set", "b", "2").text, "2")

    def test_empty_log_in_place_of_applied_one_is_refused_until_accepted(self):
        self.machine.ok("set", "a", "1")
        os.remove(self.database)
        self.machine.ok("init", self.log)
        for command in (("update",), ("set", "b", "2"), ("rebuild",), ("get", "a", "--update")):
            with self.subTest(command):
                self.machine.fails("corrupt", *command,
                                   expect=["log is empty", "--accept-replaced-log"])
        self.assertEqual(self.machine.ok("get", "a").out, b"1")
        self.machine.ok("update", "--accept-replaced-log")
        self.assertEqual(self.machine.run("get", "a").code, EXIT["not_found"])

    def test_blank_behind_url_is_refused(self):
        self.machine.fails("usage", "set", "a", "1", "--log", f"{self.log} ")
        self.machine.fails("usage", "status", env={"WHYCACHE_LOG": f"{self.log} "})
        self.assertEqual(self.files(), [])


if __name__ == "__main__":
    main()
