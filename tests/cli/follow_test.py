"""whycache follow: printed ids, signals, and whatever keeps it from following."""

import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time

import servers
from support import CliTest, main


class FollowTest(CliTest):
    def follow(self, machine, *arguments):
        """Returns a follower that has opened its cache and printed every update up to now."""
        if not os.path.exists(self.database):
            self.machine.ok("init", self.log)
        follower = machine.start("follow", "--interval", "20ms", *arguments)
        self.assertIn(b"whycache: following: ", follower.stderr.readline())
        while not select.select([follower.stdout], [], [], 0.5)[0]:
            self.assertIsNone(follower.poll())
            last = int(self.machine.ok("set", "probe", "").text)
        while self.next_id(follower) != last:
            pass
        return follower

    @staticmethod
    def next_id(follower):
        """Returns the id that the next line names, in either format."""
        line = json.loads(follower.stdout.readline())
        if isinstance(line, int):
            return line
        return line.get("update_id") or line["rebuilt"]["applied_id"]

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

    def test_state_is_mapped_writable_only_while_updates_arrive(self):
        other = self.another_machine("other")
        follower = self.follow(other)
        items = pathlib.Path(self.directory, "items.tsv")
        # Each is an update of its own.
        items.write_text("".join(f"key{i}\t{'v' * 3000}\n" for i in range(2000)))
        arguments = ("import", items, "--update-bytes-max", "4096", "--quiet")

        def is_mapped_writable():
            maps = pathlib.Path(f"/proc/{follower.pid}/maps").read_text()
            return any(" rw-s " in line and line.endswith(other.state)
                       for line in maps.splitlines())

        def is_kept():
            """Whether several looks in a row find the mapping, in and between updates."""
            return all(is_mapped_writable() for _ in range(30) if not time.sleep(0.001))

        end = time.monotonic() + 60
        kept = False
        while not kept:
            self.assertLess(time.monotonic(), end)
            with self.machine.start(*arguments) as writer:
                while writer.poll() is None:
                    kept = kept or is_kept()
            self.assertEqual(writer.returncode, 0)
        while is_mapped_writable():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)
        follower.terminate()
        follower.communicate(timeout=30)

    def test_signal_ends_wait_at_once(self):
        self.machine.ok("init", self.log)
        follower = self.machine.start("follow", "--interval", "1h", "--json")
        while not os.path.exists(self.machine.state):  # it opens its cache or already waits
            self.assertIsNone(follower.poll())
            time.sleep(0.01)
        follower.terminate()
        follower.communicate(timeout=10)
        self.assertEqual(follower.returncode, 0)

    def test_update_is_printed_at_once_however_long_the_interval(self):
        """A log in SQLite tells the follower."""
        self.machine.ok("set", "a", "0")
        follower = self.machine.start("follow", "--interval", "1h")
        self.assertIn(b"following: ", follower.stderr.readline())
        other = self.another_machine()
        began = time.monotonic()
        for i in range(5):
            # Writes from before the follower first asked the log count, too.
            last = int(other.ok("set", "a", str(i)).text)
            while int(follower.stdout.readline()) != last:
                pass
        self.assertLess(time.monotonic() - began, 60)
        follower.terminate()
        follower.communicate(timeout=20)
        self.assertEqual(follower.returncode, 0)

    def test_second_follower_stands_by_and_takes_over_when_the_first_is_killed(self):
        self.machine.ok("set", "a", "0")
        followers = []
        for _ in range(2):
            followers.append(self.machine.start("follow"))
            self.assertIn(b"following: ", followers[-1].stderr.readline())
        other = self.another_machine()
        last = int(other.ok("set", "a", "1").text)
        for follower in followers:  # both print what either applies
            while int(follower.stdout.readline()) != last:
                pass
        followers[0].kill()
        followers[0].communicate(timeout=20)
        last = int(other.ok("set", "a", "2").text)
        while int(followers[1].stdout.readline()) != last:
            pass
        followers[1].terminate()
        followers[1].communicate(timeout=20)
        self.assertEqual(followers[1].returncode, 0)

    @staticmethod
    def blocks_sigterm(process_id):
        status = pathlib.Path(f"/proc/{process_id}/status").read_text()
        (blocked,) = re.findall(r"^SigBlk:\t([0-9a-f]+)$", status, re.MULTILINE)
        return int(blocked, 16) >> (signal.SIGTERM - 1) & 1 == 1

    def test_signal_ends_the_opening_of_a_log_that_does_not_answer(self):
        self.machine.ok("set", "a", "1")
        locker = sqlite3.connect(self.database, isolation_level=None)
        self.addCleanup(locker.close)
        locker.execute("BEGIN EXCLUSIVE")
        machine = self.another_machine("other")  # has no state, which it builds from the log
        for command in ("follow", "watch"):
            with self.subTest(command):
                process = machine.start(command, "--deadline", "300s")
                self.wait_until(lambda: self.blocks_sigterm(process.pid))  # it waits for it
                time.sleep(0.2)
                process.terminate()
                process.communicate(timeout=20)
                self.assertEqual(process.returncode, 0)

    def test_second_signal_ends_it_at_once(self):
        self.machine.ok("set", "a", "0")
        follower = self.machine.start("follow")
        self.assertIn(b"following: ", follower.stderr.readline())
        follower.send_signal(signal.SIGSTOP)
        follower.send_signal(signal.SIGINT)
        follower.send_signal(signal.SIGTERM)
        follower.send_signal(signal.SIGCONT)
        follower.communicate(timeout=20)
        self.assertIn(follower.returncode, (0, -signal.SIGTERM, -signal.SIGINT))

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
        self.assertIn(b"following again after ", follower.communicate(timeout=10)[1])
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
        self.assertIn("following again after ", messages[1])

    def problem(self, follower, *words):
        """Reads a message of a problem, and the next step."""
        line = follower.stderr.readline().decode()
        for word in words:
            self.assertIn(word, line)
        self.assertIn("  next: ", follower.stderr.readline().decode())

    def recovery(self, follower):
        line = b""
        while b"following again after" not in line:
            line = follower.stderr.readline()
            self.assertNotEqual(line, b"")

    def test_starts_without_a_log_and_goes_on_when_there_is_one(self):
        follower = self.machine.start("follow", "--json", "--interval", "20ms")
        self.problem(follower, "log does not exist")
        self.machine.ok("init", self.log)
        self.assertIn(b"following: ", follower.stderr.readline())
        other = self.another_machine()
        last = int(other.ok("set", "a", "1").text)
        self.assertEqual(self.next_id(follower), last)

    def test_wrong_command_line_ends_it(self):
        for arguments in (("--log", "nosuch://x"), ("--interval", "soon"), ("--state-mode", "9"),
                          ("--log", f"{self.log}?nosuch=1")):
            self.machine.fails("usage", "follow", *arguments, timeout=20)
        self.machine.fails("usage", "follow", env={"WHYCACHE_LOG": None}, timeout=20)

    def test_goes_on_after_each_problem_of_machine_or_log(self):
        """Each of them ended it, before: a lock file that was removed, a log that is no log, an
        emptied one, a state that this user may not write."""
        writer = self.another_machine("writer")

        def lose_lock_file():
            os.remove(f"{self.machine.state}.lock")

        def damage_log():
            shutil.copyfile(self.database, f"{self.database}.good")
            with open(self.database, "r+b") as file:
                file.write(b"no database at all" * 20)

        def repair_log():
            shutil.copyfile(f"{self.database}.good", self.database)

        def empty_log():
            self.sql("ALTER TABLE whycache_updates_default RENAME TO kept")

        def fill_log():
            self.sql("ALTER TABLE kept RENAME TO whycache_updates_default")

        # A follower for each problem: it reports the next outage only 10 s after the previous one.
        for name, begin, end in (
            ("lock file", lose_lock_file, lambda: None),
            ("damaged log", damage_log, repair_log),
            ("missing table", empty_log, fill_log),
        ):
            with self.subTest(name):
                follower = self.follow(self.machine, "--json", "--deadline", "200ms")
                begin()
                self.problem(follower)
                self.assertIsNone(follower.poll())
                end()
                self.recovery(follower)
                last = int(writer.ok("set", "a", name).text)
                while self.next_id(follower) != last:
                    pass
                self.assertEqual(self.machine.ok("get", "a").out.decode(), name)
                follower.terminate()
                follower.communicate(timeout=20)
                self.assertEqual(follower.returncode, 0)

    def test_second_outage_is_reported_as_the_first(self):
        follower = self.follow(self.machine, "--deadline", "200ms")
        for _ in range(2):
            self.sql("ALTER TABLE whycache_updates_default RENAME TO kept")
            self.problem(follower)
            self.sql("ALTER TABLE kept RENAME TO whycache_updates_default")
            self.recovery(follower)

    def test_full_disk_is_reported_once_and_status_knows_the_lag(self):
        directory = self.mount("size=4m")
        machine = self.another_machine()
        machine.state = f"{directory}/s"
        writer = self.another_machine("writer")
        writer.ok("set", "a", "1")
        follower = self.follow(machine, "--json")
        for i in range(8):
            writer.ok("set", f"k{i}", "-", stdin=os.urandom(700_000))
        self.problem(follower, "No space left")
        time.sleep(1)
        self.assertIsNone(follower.poll())
        head = int(writer.ok("update").text)

        def known():
            return machine.ok("status", "--json", env={"WHYCACHE_LOG": None}).json

        self.wait_until(lambda: known()["head"] == head)  # as of the follower's last attempt
        status = known()
        self.assertGreater(status["head"], status["applied_id"])
        self.assertIsNone(status["lag"])
        self.assertEqual(status["known_lag"], status["head"] - status["applied_id"])
        machine.fails("stale", "status", "--lag-max", "0", env={"WHYCACHE_LOG": None})
        subprocess.run(["mount", "-o", "remount,size=64m", directory], check=True)
        self.recovery(follower)
        machine.ok("status", "--lag-max", "0")

    def test_rebuild_and_ids_that_go_back_are_printed(self):
        self.machine.ok("set", "k", "old")
        shutil.copyfile(self.database, f"{self.database}.old")
        self.machine.ok("set", "k", "new")
        self.machine.ok("set", "k", "newer")
        for arguments, expected in ((("--json",), None), ((), b"1\n")):
            machine = self.another_machine(f"follower{len(arguments)}")
            follower = self.follow(machine, *arguments)
            newest = os.path.join(self.directory, "newest.db")
            shutil.copyfile(self.database, newest)
            os.replace(f"{self.database}.old", self.database)  # a restored backup
            shutil.copyfile(self.database, f"{self.database}.old")
            line = follower.stdout.readline()
            if expected is None:
                rebuilt = json.loads(line)["rebuilt"]
                self.assertEqual(rebuilt["applied_id"], 1)
                self.assertGreater(rebuilt["previous_applied_id"], 1)
                self.assertIn("restored", rebuilt["reason"])
            else:
                self.assertEqual(line, expected)
            self.assertEqual(machine.ok("get", "k").out, b"old")
            os.replace(newest, self.database)

    def test_tells_service_manager_what_it_does(self):
        self.machine.ok("set", "a", "1")
        path = f"{self.directory}/notify"
        for address, bound in ((path, path), (f"@{path}", f"\0{path}")):
            with self.subTest(address), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind(bound)
                manager.settimeout(30)
                environment = {**self.machine.environment(), "NOTIFY_SOCKET": address}
                with subprocess.Popen([self.program, "follow", "--interval", "20ms"],
                                      env=environment, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL) as follower:
                    self.assertEqual(manager.recv(200), b"READY=1")
                    self.assertEqual(manager.recv(200), b"STATUS=following: applied_id=1")
                    os.rename(self.database, f"{self.database}.away")
                    self.assertIn(b"STATUS=not following: ", manager.recv(1000))
                    follower.terminate()
                    while manager.recv(1000) != b"STOPPING=1":
                        pass
                    os.rename(f"{self.database}.away", self.database)

    def follow_with_watchdog(self, *arguments, stdout=subprocess.DEVNULL, **variables):
        """Starts a follower. Returns it with the socket that it reports to, after READY=1."""
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.bind(f"{tempfile.mkdtemp(dir=self.directory)}/notify")
        manager.settimeout(30)
        follower = subprocess.Popen(
            [self.program, "follow", "--interval", "20ms", *arguments], stdout=stdout,
            stderr=subprocess.DEVNULL,
            env={**self.machine.environment(), "NOTIFY_SOCKET": manager.getsockname(), **variables})
        self.addCleanup(follower.wait)
        self.addCleanup(follower.kill)
        while manager.recv(1000) != b"READY=1":
            pass
        return follower, manager

    def wait_for_watchdog_messages(self, manager, count):
        while count > 0:
            count -= manager.recv(1000) == b"WATCHDOG=1"

    def test_tells_watchdog_that_it_works_while_log_is_quiet_or_away(self):
        self.machine.ok("set", "a", "1")
        _, manager = self.follow_with_watchdog("--interval-max", "3s", "--deadline", "100ms",
                                               WATCHDOG_USEC="200000")
        began = time.monotonic()
        self.wait_for_watchdog_messages(manager, 10)
        self.assertGreater(time.monotonic() - began, 0.5, "at half the interval")
        os.rename(self.database, f"{self.database}.away")
        while b"STATUS=not following: " not in manager.recv(1000):
            pass
        self.wait_for_watchdog_messages(manager, 10)

    def test_tells_watchdog_nothing_while_it_hangs(self):
        self.machine.ok("set", "a", "1")
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        os.set_blocking(writer, False)
        filled = 0
        with self.assertRaises(BlockingIOError):
            while True:
                filled += os.write(writer, b"x")
        os.set_blocking(writer, True)
        _, manager = self.follow_with_watchdog("--deadline", "100ms", stdout=writer,
                                               WATCHDOG_USEC="200000")
        os.close(writer)
        self.wait_for_watchdog_messages(manager, 3)
        self.machine.ok("set", "a", "2")  # whose id does not fit into the pipe
        manager.settimeout(3)
        with self.assertRaises(TimeoutError):
            for _ in range(1000):
                manager.recv(1000)
        while filled > 0:
            filled -= len(os.read(reader, filled))
        manager.settimeout(30)
        self.wait_for_watchdog_messages(manager, 3)

    def test_watchdog_of_another_process_or_none_gets_nothing(self):
        self.machine.ok("set", "a", "1")
        managers = [
            (variables, self.follow_with_watchdog(**variables)[1])
            for variables in ({"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"},
                              {"WATCHDOG_USEC": "nonsense"}, {"WATCHDOG_USEC": "0"}, {})
        ]
        time.sleep(1)  # for several messages
        for variables, manager in managers:
            with self.subTest(variables):
                manager.setblocking(False)
                with self.assertRaises(BlockingIOError):
                    while manager.recv(1000) != b"WATCHDOG=1":
                        pass


class FollowMysqlTest(CliTest):
    def test_goes_on_after_each_problem_of_the_server(self):
        server = servers.Mariadb(self)
        self.server = server

        def sql(text, database="mysql"):
            subprocess.run(["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root",
                            database], input=text.encode(), check=True)

        sql("CREATE DATABASE fleet; CREATE USER follower@'%'")
        root = f"mysql://root@/fleet?socket={server.socket}"
        writer = self.another_machine("writer", root)
        writer.ok("set", "a", "0")
        tables = ("whycache_logs", "whycache_updates", "whycache_parts")
        # Rights on tables are checked for each statement, those on databases for each connection.
        grant = "; ".join(f"GRANT SELECT ON fleet.{table} TO follower@'%'" for table in tables)
        sql(grant)
        url = f"mysql://follower@/fleet?socket={server.socket}"
        machine = self.another_machine("machine", url)
        hide = "; ".join(f"RENAME TABLE fleet.{table} TO fleet.h_{table}" for table in tables)
        show = "; ".join(f"RENAME TABLE fleet.h_{table} TO fleet.{table}" for table in tables)

        def check_status():
            status = machine.ok("status", "--json", "--deadline", "1s").json
            self.assertEqual((status["log_answers"], status["lag"]), (False, None))

        # A follower for each problem: it reports the next outage only 10 s after the previous one.
        for name, begin, check, end in (
            ("revoked grants",
             lambda: sql(grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM ")), None,
             lambda: sql(grant)),
            ("locked account",
             lambda: sql("ALTER USER follower@'%' ACCOUNT LOCK; KILL USER follower"), None,
             lambda: sql("ALTER USER follower@'%' ACCOUNT UNLOCK")),
            ("missing tables", lambda: sql(hide), None, lambda: sql(show)),
            ("missing row",
             lambda: sql("CREATE TABLE fleet.kept SELECT * FROM fleet.whycache_logs; "
                         "DELETE FROM fleet.whycache_logs"), None,
             lambda: sql("INSERT INTO fleet.whycache_logs SELECT * FROM fleet.kept; "
                         "DROP TABLE fleet.kept")),
            ("no server", server.stop, check_status, server.restart),
        ):
            with self.subTest(name):
                follower = machine.start("follow", "--json", "--interval", "20ms",
                                         "--deadline", "1s")
                self.assertIn(b"following: ", follower.stderr.readline())
                begin()
                self.assertIn(b"whycache: ", follower.stderr.readline())
                self.assertIn(b"  next: ", follower.stderr.readline())
                time.sleep(1)  # for several attempts
                self.assertIsNone(follower.poll())
                machine.ok("get", "a")
                if check:
                    check()
                end()
                last = int(writer.ok("set", "a", name).text)
                while json.loads(follower.stdout.readline()).get("update_id") != last:
                    pass
                self.assertEqual(machine.ok("get", "a").out.decode(), name)
                follower.terminate()
                errors = follower.communicate(timeout=20)[1]
                self.assertIn(b"following again after", errors)
                self.assertLess(len(errors.splitlines()), 4, errors)
                self.assertEqual(follower.returncode, 0)


if __name__ == "__main__":
    main()
