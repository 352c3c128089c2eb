"""whycache update: the applied id, and waiting for one."""

import contextlib
import socket
import threading
import time

import servers
from support import CliTest, main


@contextlib.contextmanager
def server_that_closes_late():
    """Yields a port, and the list of the connections made there, each closed after 1.2 s."""
    with socket.create_server(("127.0.0.1", 0)) as late:
        asked = []

        def serve():
            while True:
                try:
                    connection = late.accept()[0]
                except OSError:  # the end of the test
                    return
                asked.append(connection)
                threading.Timer(1.2, connection.close).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield late.getsockname()[1], asked
        finally:
            late.shutdown(socket.SHUT_RDWR)
            thread.join()


class UpdateTest(CliTest):
    def test_applied_id_is_printed(self):
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.another_machine().ok("update").text, "1")
        self.assertEqual(self.another_machine().ok("update", "--json").json, {"applied_id": 1})

    def test_opening_without_the_log_and_the_call_share_one_deadline(self):
        self.require_log("mysql")
        self.machine.ok("set", "a", "1")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"mysql://u@127.0.0.1:{silent.getsockname()[1]}/d"  # another log than the state's
            for command in (("update",), ("set", "a", "2"), ("del", "a"), ("rebuild",),
                            ("get", "a", "--update")):
                with self.subTest(command):
                    result = self.machine.fails("unreachable", *command, "--log", url,
                                                "--deadline", "300ms",
                                                expect="opened with the state as it is")
                    self.assertNotIn("attempts=", result.err, "it was asked again")
                    *_, message, hint = result.err.splitlines()
                    # A busy machine may not have learned the cause by the deadline.
                    self.assertRegex(message, "cannot connect|could not be opened", "the cause")
                    writes = command[0] in ("set", "del")
                    self.assertEqual("nothing was written" in message, writes, message)

    def test_server_that_closes_late_is_not_asked_beyond_the_deadline(self):
        """A connection takes more than half of the deadline, so there is no time for three."""
        self.require_log("mysql")
        self.machine.ok("set", "a", "1")
        for command in (("set", "a", "2"), ("del", "a"), ("add", "n", "1"), ("rebuild",),
                        ("rewrite", "--yes"), ("clear", "--yes"), ("update",)):
            with self.subTest(command), server_that_closes_late() as (port, asked):
                result = self.machine.fails("unreachable", *command, "--log",
                                            f"mysql://u@127.0.0.1:{port}/d", "--deadline", "2s")
                self.assertLessEqual(len(asked), 2, result.err)
                if command[0] not in ("rebuild", "update"):
                    self.assertIn("nothing was written", result.err)

    def test_attempts_to_reach_the_log_are_reported_once(self):
        if "mysql" not in self.machine.ok("version", "--json").json["logs"]:
            self.skipTest("the program was built without the mysql log")
        log = f"mysql://flags@127.0.0.1:{servers.free_port()}/flags"
        machine = self.another_machine(log=log)
        result = machine.run("update", "--deadline", "300ms")
        self.assertEqual(result.code, 3, result.err)
        lines = [line for line in result.err.splitlines() if line.startswith("whycache: ")]
        self.assertEqual(len(lines), 2, result.err)
        self.assertIn("retrying", lines[0])
        self.assertIn("attempts=", lines[1])

    def test_at_least_waits_for_id(self):
        other = self.another_machine()
        self.machine.ok("init", self.log)
        other.ok("update")
        waiting = other.start("update", "--at-least", "1", "--deadline", "30s")
        time.sleep(0.2)
        self.assertIsNone(waiting.poll())
        self.machine.ok("set", "a", "1")
        self.assertEqual(waiting.communicate(timeout=30)[0], b"1\n")
        self.assertEqual(waiting.returncode, 0)
        other.fails("stale", "update", "--at-least", "2", "--deadline", "300ms", expect="2")

    def test_truncated_or_oversized_update_is_corrupt(self):
        self.machine.ok("set", "a", "1")
        self.machine.ok("set", "b", "2")
        (row,) = self.sql("SELECT bytes FROM whycache_updates_default WHERE id = 2")
        for i, bad in enumerate(
            (
                row[0][:-1],
                row[0][:10],
                row[0] + b"x",
                row[0][:20] + b"\xff\xff\xff\xff\xff\xff\xff\xff\x0f" + row[0][29:],
            )
        ):
            self.sql("UPDATE whycache_updates_default SET bytes = ? WHERE id = 2", bad)
            new = self.another_machine(f"new{i}")
            new.fails("corrupt", "update", expect="id=2")
            self.machine.fails("corrupt", "log", expect="id=2")
        self.sql("UPDATE whycache_updates_default SET bytes = ? WHERE id = 2", row[0])
        self.assertEqual(self.another_machine("good").ok("update").text, "2")


if __name__ == "__main__":
    main()
