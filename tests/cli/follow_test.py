"""whycache follow: printed ids, signals and an unreachable log."""

import os
import select
import signal
import sqlite3
import time

from support import CliTest, main


class FollowTest(CliTest):
    def follow(self, machine, *arguments):
        """Returns a follower that has opened its cache and printed every update up to now."""
        follower = machine.start("follow", "--interval", "20ms", *arguments)
        while not select.select([follower.stdout], [], [], 0.5)[0]:
            self.assertIsNone(follower.poll())
            last = int(self.machine.ok("set", "probe", "").text)
        while int(follower.stdout.readline()) != last:
            pass
        return follower

    def test_prints_each_update_and_ends_on_signal(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                other = self.another_machine(f"other{number}")
                follower = self.follow(other)
                ids = [int(self.machine.ok("set", "a", str(i)).text) for i in range(3)]
                self.assertEqual([int(follower.stdout.readline()) for _ in ids], ids)
                self.assertEqual(other.ok("get", "a").out, b"2")
                follower.send_signal(number)
                self.assertEqual(follower.communicate(timeout=30), (b"", b""))
                self.assertEqual(follower.returncode, 0)

    def test_signal_ends_wait_at_once(self):
        follower = self.machine.start("follow", "--interval", "1h", "--json")
        while not os.path.exists(self.machine.state):  # it opens its cache or already waits
            self.assertIsNone(follower.poll())
            time.sleep(0.01)
        follower.terminate()
        follower.communicate(timeout=10)
        self.assertEqual(follower.returncode, 0)

    def test_continues_after_log_was_unreachable(self):
        follower = self.follow(self.machine, "--deadline", "100ms")
        locker = sqlite3.connect(self.database, isolation_level=None)
        self.addCleanup(locker.close)
        locker.execute("BEGIN EXCLUSIVE")
        while b"flags.db" not in (message := follower.stderr.readline()):
            self.assertNotEqual(message, b"")
        time.sleep(0.5)
        self.assertIsNone(follower.poll())
        locker.execute("ROLLBACK")
        last = int(self.machine.ok("set", "a", "2").text)
        self.assertEqual(int(follower.stdout.readline()), last)
        follower.terminate()
        self.assertIn(b"answers again", follower.communicate(timeout=10)[1])
        self.assertEqual(follower.returncode, 0)

    def test_outage_of_several_polls_is_reported_once(self):
        # The log gives up before the deadline, so that the cache asks it again and again.
        impatient = self.another_machine("impatient", f"{self.log}?deadline_ms=10")
        follower = self.follow(impatient, "--deadline", "300ms")
        locker = sqlite3.connect(self.database, isolation_level=None)
        self.addCleanup(locker.close)
        locker.execute("BEGIN EXCLUSIVE")
        time.sleep(1.5)
        locker.execute("ROLLBACK")
        last = int(self.machine.ok("set", "a", "2").text)
        self.assertEqual(int(follower.stdout.readline()), last)
        follower.terminate()
        errors = follower.communicate(timeout=10)[1].decode().splitlines()
        messages = [line for line in errors if not line.startswith("  next: ")]
        self.assertEqual(len(messages), 2, errors)
        self.assertIn("flags.db", messages[0])
        self.assertIn("answers again", messages[1])


if __name__ == "__main__":
    main()
