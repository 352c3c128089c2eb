"""Logs that cannot be opened, and the default state that belongs to a URL."""

import os
import time

import servers
from support import EXIT, CliTest, main


class LogUrlTest(CliTest):
    def test_wrong_urls_are_usage_errors(self):
        for url, word in (
            ("nosuch://x", "nosuch"),
            ("flags.db", "scheme"),
            ("sqlite:flags.db", "path"),
            ("sqlite://host/x.db", "host"),
            ("sqlite:///x.db?nosuch=1", "nosuch"),
            (f"{self.log}?instance=a-b", "instance"),
            ("file:relative", "path"),
        ):
            for command in (("set", "a", "1"), ("log",)):
                self.machine.fails("usage", *command, "--log", url, expect=word)
        self.assertFalse(os.path.exists(self.machine.state))

    def test_missing_directories_are_usage_errors(self):
        for url in (
            f"sqlite://{self.directory}/absent/flags.db",
            f"file://{self.directory}/absent/flags",
        ):
            self.machine.fails("usage", "set", "a", "1", "--log", url, expect=["absent", "next: "])
        self.machine.fails(
            "usage",
            "set",
            "a",
            "1",
            "--state",
            f"{self.directory}/absent/x.state",
            expect=["absent", "next: "],
        )
        self.assertEqual(self.machine.ok("set", "a", "1").text, "1", "nothing was written before")

    def test_file_that_is_no_log_is_corrupt(self):
        self.file("text.db", b"hello\n" * 1000)
        self.machine.fails(
            "corrupt",
            "set",
            "a",
            "1",
            "--log",
            f"sqlite://{self.directory}/text.db",
            expect="text.db",
        )
        self.file("plain", b"hello\n")
        result = self.machine.run("set", "a", "1", "--log", f"file://{self.directory}/plain")
        self.assertIn(result.code, (EXIT["usage"], EXIT["corrupt"]), result.err)

    def default_state(self, name="default"):
        """An environment in which the state has its default path."""
        self.state_directory = f"{self.directory}/{name}"
        return {"WHYCACHE_STATE": None, "STATE_DIRECTORY": self.state_directory}

    def assert_reads_without_log(self, url, environment):
        """The state that the library wrote answers reads, and no second one is created."""
        began = time.monotonic()
        for command, output in (
            (("get", "a"), b"1"),
            (("count",), b"1\n"),
            (("scan",), b"a\t1\n"),
        ):
            result = self.machine.ok(*command, "--log", url, "--deadline", "5s", env=environment)
            self.assertEqual(result.out, output)
            self.assertEqual(result.err, "")
        self.assertLess(time.monotonic() - began, 5, "the log was contacted")
        names = sorted(os.listdir(self.state_directory))
        states = [
            name
            for name in names
            if name.endswith(".state") and not os.path.islink(f"{self.state_directory}/{name}")
        ]
        self.assertEqual(len(states), 1, names)
        self.assertEqual(
            [name for name in names if name.endswith(".lock")], [f"{states[0]}.lock"], names
        )

    def test_spellings_of_one_log_share_default_state(self):
        os.mkdir(f"{self.directory}/real")
        os.symlink("real", f"{self.directory}/link")
        for scheme in ("sqlite", "file"):
            with self.subTest(scheme):
                environment = self.default_state(scheme)
                first = f"{scheme}://{self.directory}/real/log"
                self.machine.ok("set", "a", "0", "--log", first, env=environment)
                for name in ("/real/log", "/./real/log", "//real//log", "/link/log"):
                    for slashes in ("", "/"):
                        other = f"{scheme}://{slashes}{self.directory}{name}"
                        value = f"{slashes}{name}"
                        self.machine.ok("set", "a", value, "--log", first, env=environment)
                        got = self.machine.ok("get", "a", "--log", other, env=environment)
                        self.assertEqual(got.text, value)
                self.machine.ok("set", "a", "1", "--log", other, env=environment)
                self.assert_reads_without_log(first, environment)
                os.rename(f"{self.directory}/real/log", f"{self.directory}/{scheme}.away")

    def test_state_that_stores_another_spelling_is_read_without_log(self):
        os.mkdir(f"{self.directory}/old")
        machine = self.another_machine("moved", f"sqlite://{self.directory}/old/flags.db")
        machine.ok("set", "a", "1")
        os.rename(f"{self.directory}/old", f"{self.directory}/new")
        os.symlink("new", f"{self.directory}/old")
        os.remove(f"{self.directory}/new/flags.db")
        os.mkdir(f"{self.directory}/new/flags.db")  # no database can be opened or created here
        self.assertEqual(machine.ok("get", "a").out, b"1")

    def test_memcached_url_reads_default_state_without_log(self):
        server = servers.Memcached(self)
        self.check_tier_reads_default_state(server, f"memcached+{self.log}?memcached=")

    def test_redis_url_reads_default_state_without_log(self):
        server = servers.Redis(self)
        self.check_tier_reads_default_state(server, f"redis+{self.log}?redis=")

    def check_tier_reads_default_state(self, server, url):
        url += server.socket
        environment = self.default_state()
        self.machine.ok("set", "a", "1", "--log", url, env=environment)
        server.stop()
        os.rename(self.database, self.database + ".away")
        os.mkdir(self.database)  # no database can be opened or created here
        self.assert_reads_without_log(url, environment)
        self.assert_reads_without_log(self.log, environment)

    def test_mysql_url_with_user_reads_default_state_without_log(self):
        mariadb = servers.Mariadb(self)
        url = f"mysql://flags:secret@127.0.0.1:{mariadb.port}/flags"
        environment = self.default_state()
        self.machine.ok("set", "a", "1", "--log", url, env=environment)
        mariadb.stop()
        self.assert_reads_without_log(url, environment)
        self.assert_reads_without_log(url.replace("flags:secret@", "other@"), environment)
        self.assert_reads_without_log(url.replace("127.0.0.1", "localhost"), environment)

    def test_mysql_url_with_socket_reads_default_state_without_log(self):
        mariadb = servers.Mariadb(self)
        url = f"mysql://flags:secret@/flags?socket={mariadb.socket}"
        environment = self.default_state()
        self.machine.ok("set", "a", "1", "--log", url, env=environment)
        mariadb.stop()
        self.assert_reads_without_log(url, environment)

    def test_names_of_one_database_share_default_state(self):
        mariadb = servers.Mariadb(self)
        by_address = f"mysql://flags:secret@127.0.0.1:{mariadb.port}/flags"
        by_socket = f"mysql://flags:secret@/flags?socket={mariadb.socket}"
        environment = self.default_state()
        for value in ("2", "1"):
            for writer, reader in ((by_address, by_socket), (by_socket, by_address)):
                self.machine.ok("set", "a", f"{value}{value}", "--log", reader, env=environment)
                self.machine.ok("set", "a", value, "--log", writer, env=environment)
                result = self.machine.ok("get", "a", "--log", reader, env=environment)
                self.assertEqual(result.text, value)
        status = self.machine.ok("status", "--json", "--log", by_socket, env=environment).json
        path = status["state"]
        mariadb.stop()
        for url in (by_address, by_socket):
            self.assert_reads_without_log(url, environment)
            self.machine.ok("inspect", "--log", url, env=environment)
            status = self.machine.ok("status", "--json", "--log", url, env=environment).json
            self.assertEqual(status["state"], path)
        self.assertFalse(os.path.islink(path))

    def test_new_name_of_a_log_that_is_away_leaves_nothing_behind(self):
        environment = self.default_state()
        url = "mysql://flags@127.0.0.1:1/flags"
        self.machine.fails(
            "unreachable", "get", "a", "--log", url, "--deadline", "200ms", env=environment
        )
        self.assertEqual(os.listdir(self.state_directory), [])


if __name__ == "__main__":
    main()
