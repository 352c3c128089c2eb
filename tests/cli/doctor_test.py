"""whycache doctor: findings about the environment."""

import json
import os
import shutil
import socket
import subprocess

import servers
from support import EXIT, CliTest, main


class DoctorTestBase(CliTest):
    def findings(self, *arguments, **options):
        result = self.machine.run("doctor", "--json", *arguments, **options)
        return result.code, {finding["check"]: finding for finding in result.json_lines}


class DoctorTest(DoctorTestBase):
    def test_suitable_environment_has_no_bad_finding(self):
        self.machine.ok("set", "a", "1")
        code, findings = self.findings()
        self.assertEqual(code, 0, findings)
        for check in (
            "kernel",
            "boot id",
            "membarrier",
            "address space",
            "file size",
            "open files",
            "clock",
            "huge pages",
            "/dev/shm",
            "folder",
            "file system",
            "room",
            "allocation",
            "shared mapping",
            "locks",
            "state",
            "sqlite",
            "log",
        ):
            self.assertIn(check, findings)
        for check in ("folder", "shared mapping", "locks", "state", "log"):
            self.assertEqual(findings[check]["level"], "ok")
        for finding in findings.values():
            self.assertEqual("next" in finding, finding["level"] != "ok", finding)
        self.assertIn("ok    kernel", self.machine.ok("doctor").out.decode())
        self.assertEqual(
            [name for name in os.listdir(self.directory) if "doctor" in name], [], "no file remains"
        )

    def test_unsuitable_directory_log_and_state_are_bad(self):
        code, findings = self.findings("--state", f"{self.directory}/absent/x.state")
        self.assertEqual((code, findings["folder"]["level"]), (EXIT["usage"], "bad"))
        os.mkdir(f"{self.directory}/open")
        os.chmod(f"{self.directory}/open", 0o777)
        code, findings = self.findings("--state", f"{self.directory}/open/x.state")
        self.assertEqual((code, findings["folder"]["level"]), (EXIT["permission"], "bad"))
        code, findings = self.findings("--log", "nosuch://log")
        self.assertEqual((code, findings["log"]["level"]), (EXIT["usage"], "bad"))
        code, findings = self.findings(
            "--state", self.file("text.state", "hello, this is not a state\n" * 100)
        )
        self.assertEqual((code, findings["state"]["level"]), (EXIT["corrupt"], "bad"))

    def test_state_that_is_ahead_of_its_log_or_of_another_is_bad(self):
        self.machine.ok("set", "a", "1")
        self.machine.ok("set", "a", "2")
        self.assertEqual(self.findings()[1]["position"]["level"], "ok")
        self.sql("DELETE FROM whycache_updates_default WHERE id = 2")
        code, findings = self.findings()
        self.assertEqual((code, findings["position"]["level"]), (EXIT["corrupt"], "bad"))
        self.assertIn("lost updates", findings["position"]["found"])
        self.assertNotIn("--accept-replaced-log", findings["position"]["next"])
        self.sql("DELETE FROM whycache_updates_default")
        for next_step in (
            self.findings()[1]["position"]["next"], self.machine.fails("corrupt", "status").err
        ):
            self.assertIn("`whycache update --accept-replaced-log`", next_step)
        other = self.another_machine(log=f"sqlite://{self.directory}/other.db")
        other.ok("set", "a", "1")
        code, findings = self.findings("--state", other.state)
        self.assertEqual((code, findings["position"]["level"]), (EXIT["corrupt"], "bad"))
        self.assertIn("another log", findings["position"]["found"])

    def test_view_that_is_held_for_long_is_named(self):
        self.machine.ok("set", "a", "1")
        with open(self.file("items.tsv", ""), "w") as items:
            items.writelines(f"key{i}\t{'v' * 1000}\n" for i in range(2000))
        self.machine.ok("import", "--quiet", f"{self.directory}/items.tsv")
        reader = self.machine.start("scan")  # its pipe fills up, while it holds a view
        reader.stdout.read(1)
        self.machine.ok("set", "a", "2")
        finding = self.findings()[1]["views"]
        self.assertEqual(finding["level"], "ok", "for a moment")
        self.assertIn(f"process {reader.pid} (whycache)", finding["found"])
        many = self.file("many.tsv", "".join(f"a\t{i:03900}\n" for i in range(10_001)))
        self.machine.ok("import", "--quiet", "--update-bytes-max", "4096", many)
        finding = self.findings()[1]["views"]
        self.assertEqual(finding["level"], "ok", "the log says that it is young")
        code, findings = self.findings("--log", "")
        self.assertEqual(code, 0)
        finding = findings["views"]
        self.assertEqual(finding["level"], "warn", finding)
        self.assertIn(f"process {reader.pid} (whycache)", finding["found"])

    def test_log_that_does_not_answer_is_asked_once(self):
        """Each wait for it takes the whole deadline, and `doctor` is no advice of itself."""
        for scheme in ("mysql", "postgres"):
            self.require_log(scheme)
            with self.subTest(scheme), socket.create_server(("127.0.0.1", 0)) as silent:
                url = f"{scheme}://u@127.0.0.1:{silent.getsockname()[1]}/d"
                code, findings = self.findings("--log", url, "--deadline", "300ms")
                self.assertEqual((code, findings["log"]["level"]), (EXIT["unreachable"], "bad"))
                self.assertIn("whether its server runs", findings["log"]["next"])
                self.assertNotIn("server", findings)
                silent.settimeout(0)
                silent.accept()[0].close()
                with self.assertRaises(BlockingIOError):
                    silent.accept()

    def test_database_is_checked_however_long_the_tier_takes(self):
        self.require_log("mysql")
        servers.Memcached(self)  # skips the test if there is none
        database = servers.Mariadb(self)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = (f"memcached+mysql://flags:secret@127.0.0.1:{database.port}/flags"
                   f"?memcached=127.0.0.1:{silent.getsockname()[1]}")
            self.machine.ok("init", url)
            findings = self.findings("--log", url, "--deadline", "2s")[1]
        self.assertEqual(findings["memcached"]["level"], "warn")
        self.assertEqual(findings["log"]["level"], "ok")
        for check in ("server", "server clock"):
            self.assertIn(check, findings)

    def test_other_names_of_the_log_are_a_warning(self):
        states = f"{self.directory}/states/"
        os.mkdir(states)
        os.chmod(states, 0o700)
        os.symlink(self.directory, f"{self.directory}/link")
        self.machine.ok("set", "a", "1", "--state", states)
        self.assertEqual(self.findings("--state", states)[1]["names"]["level"], "ok")
        (name,) = (name for name in os.listdir(states) if name.endswith(".state"))
        shutil.copy(f"{states}/{name}", f"{states}/copy.state")
        finding = self.findings("--state", states)[1]["names"]
        self.assertEqual(finding["level"], "warn")
        self.assertIn("copy.state", finding["found"])

    def test_state_without_room_to_rebuild_is_a_warning(self):
        directory = self.mount("size=3m")
        state = ("--state", f"{directory}/s.state")
        self.machine.ok("set", "a", "1", *state)
        finding = self.findings(*state)[1]["room to rebuild"]
        self.assertEqual(finding["level"], "warn", finding)
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.findings()[1]["room to rebuild"]["level"], "ok")

    def test_low_resource_limits_are_warnings(self):
        limited = subprocess.run(
            ["sh", "-c", f"ulimit -n 40; ulimit -f 20000; exec {self.program} doctor --json"],
            capture_output=True,
            env=self.machine.environment(),
        )
        findings = {
            finding["check"]: finding for finding in map(json.loads, limited.stdout.splitlines())
        }
        self.assertEqual(
            [findings[check]["level"] for check in ("open files", "file size")], ["warn", "warn"]
        )


class DoctorRedisTest(DoctorTestBase):
    def redis_finding(self, server, options=""):
        url = f"redis+{self.log}?redis={server.socket}{options}"
        code, findings = self.findings("--log", url)
        self.assertEqual(code, 0, findings)
        return findings["redis"]

    def test_redis_that_answers_refuses_or_is_away(self):
        server = servers.Redis(self)
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.redis_finding(server)["level"], "ok")
        server.kill()
        finding = self.redis_finding(server)
        self.assertEqual(finding["level"], "warn")
        self.assertIn("start it", finding["next"])
        closed = servers.Redis(self, "--requirepass", "secret")
        finding = self.redis_finding(closed)
        self.assertEqual(finding["level"], "warn")
        self.assertIn("NOAUTH", finding["found"])
        self.assertIn("redis_password_file=", finding["next"])
        secret = self.file("password", "secret")
        os.chmod(secret, 0o600)
        finding = self.redis_finding(closed, f"&redis_password_file={secret}")
        self.assertEqual(finding["level"], "ok")
        self.assertNotIn("secret", finding["found"])
        full = servers.Redis(self, "--maxmemory", "1")
        finding = self.redis_finding(full)
        self.assertIn("refuses SET, XADD, HSET: OOM", finding["found"])
        self.assertIn("maxmemory", finding["next"])

    def test_everything_that_redis_refuses_is_named(self):
        limited = servers.Redis(
            self, "--user", "flags", "on", "nopass", "~whycache2:*", "+@all", "-xread", "-evalsha"
        )
        self.machine.ok("set", "a", "1")
        finding = self.redis_finding(limited, "&redis_user=flags")
        self.assertIn("refuses XREAD, EVALSHA: NOPERM", finding["found"])
        self.assertIn("docs/logs.md", finding["next"])

        foreign = servers.Redis(self)
        url = f"redis+{self.log}?redis={foreign.socket}"
        self.machine.ok("update", "--log", url)
        key = next(key for key in foreign.run("KEYS", "*") if key.endswith(":head"))
        self.assertEqual(foreign.run("SET", key.replace(":head", ":updates"), "text"), "+OK")
        finding = self.redis_finding(foreign)
        self.assertIn(f"refuses XRANGE {key.replace(':head', ':updates')}", finding["found"])
        self.assertIn("delete them", finding["next"])


class DoctorServersTest(DoctorTestBase):
    """What doctor finds behind the URL of a log in a server."""

    def setUp(self):
        super().setUp()
        self.server = servers.Mariadb(self)
        self.url = f"mysql://flags:secret@127.0.0.1:{self.server.port}/flags"
        self.place = ("--state", f"{self.directory}/server.state")
        self.machine.ok("set", "a", "1", "--log", self.url, *self.place)

    def server_findings(self, url):
        return self.findings("--log", url, *self.place)

    def statement(self, sql):
        subprocess.run(
            ["mariadb", "--no-defaults", f"--socket={self.server.socket}", "--user=root"],
            input=sql.encode(),
            check=True,
        )

    def test_server_replica_memcached_and_secrets(self):
        code, findings = self.server_findings(self.url)
        self.assertEqual(code, 0, findings)
        for check in ("server", "server clock", "position"):
            self.assertEqual(findings[check]["level"], "ok", findings[check])
        port = servers.free_port()
        finding = self.server_findings(f"{self.url}?replica=127.0.0.1:{port}")[1]["replica"]
        self.assertEqual(finding["level"], "warn")
        self.assertIn(f"127.0.0.1:{port}", finding["found"])
        findings = self.server_findings(f"{self.url}?replica=127.0.0.1:{self.server.port}")[1]
        self.assertEqual(findings["replica"]["level"], "ok")
        self.statement("SET GLOBAL read_only = 1")
        finding = self.server_findings(self.url)[1]["server"]
        self.assertEqual(finding["level"], "warn")
        self.assertIn("read_only", finding["found"])
        self.statement("SET GLOBAL read_only = 0")
        skews = ((100, "warn", "ahead"), (-100, "warn", "behind"), (0, "ok", ""))
        for skew_s, level, word in skews:
            self.statement(
                f"SET GLOBAL init_connect = 'SET timestamp = UNIX_TIMESTAMP() + {skew_s}'"
            )
            finding = self.server_findings(self.url)[1]["server clock"]
            self.assertEqual(finding["level"], level, finding)
            self.assertIn(word, finding["found"])
        self.statement("SET GLOBAL init_connect = ''")
        memcached = f"memcached+{self.url}?memcached=127.0.0.1:{port}"
        result = self.machine.run("doctor", "--json", "--log", memcached, *self.place)
        if "built without memcached" not in result.out.decode():
            found = [json.loads(line) for line in result.lines]
            self.assertIn(
                ("memcached", "warn"), [(finding["check"], finding["level"]) for finding in found]
            )
        self.assertNotIn("secret", result.out.decode())
        secret = self.file("password", "secret")
        url = f"mysql://flags@127.0.0.1:{self.server.port}/flags?password_file={secret}"
        for mode, level in ((0o600, "ok"), (0o640, "ok"), (0o644, "warn"), (0o660, "warn")):
            os.chmod(secret, mode)
            self.assertEqual(self.server_findings(url)[1]["password_file"]["level"], level, mode)
        os.remove(secret)
        code, findings = self.server_findings(url)
        self.assertNotEqual(code, 0)
        self.assertEqual(findings["password_file"]["level"], "bad")

    def test_certificate_that_expires_soon_is_a_warning(self):
        tls = f"{self.directory}/tls"
        os.mkdir(tls)
        for days, level in ((10, "warn"), (20, "ok")):
            with self.subTest(days=days):
                subprocess.run(
                    ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
                    + ["-days", str(days), "-subj", "/CN=127.0.0.1"]
                    + ["-addext", "subjectAltName=IP:127.0.0.1"]
                    + ["-keyout", f"{tls}/key.pem", "-out", f"{tls}/cert.pem"],
                    check=True,
                    capture_output=True,
                )
                self.server.stop()
                options = [f"--ssl-cert={tls}/cert.pem", f"--ssl-key={tls}/key.pem"]
                self.server.command = [
                    word for word in self.server.command if not word.startswith("--ssl")
                ] + options
                self.server.restart()
                url = f"{self.url}?tls_ca={tls}/cert.pem"
                finding = self.server_findings(url)[1]["certificate"]
                self.assertEqual(finding["level"], level, finding)


class DoctorPostgresTest(DoctorTestBase):
    """The same for PostgreSQL."""

    def setUp(self):
        super().setUp()
        self.server = servers.Postgres(self)
        self.place = ("--state", f"{self.directory}/server.state")
        self.url = self.url_of("postgres")
        self.machine.ok("set", "a", "1", "--log", self.url, *self.place)

    def url_of(self, user, *options):
        url = f"postgres://{user}@127.0.0.1:{self.server.port}/flags"
        return "?".join([url, "&".join(options)]) if options else url

    def server_findings(self, url):
        return self.findings("--log", url, *self.place)

    def configure(self, **settings):
        """Starts the server with these settings."""
        self.server.stop()
        command = list(self.server.command)
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self.server.command = command
        self.server.restart()

    def test_server_and_replica(self):
        code, findings = self.server_findings(self.url)
        self.assertEqual(code, 0, findings)
        for check in ("server", "server clock", "durability", "privileges", "position"):
            self.assertEqual(findings[check]["level"], "ok", findings[check])
        self.assertNotIn("certificate", findings, "the connection is not encrypted")
        self.assertIn("fsync=on", findings["durability"]["found"])
        port = servers.free_port()
        finding = self.server_findings(f"{self.url}?replica=127.0.0.1:{port}")[1]["replica"]
        self.assertEqual(finding["level"], "warn")
        self.assertIn(f"127.0.0.1:{port}", finding["found"])
        findings = self.server_findings(f"{self.url}?replica=127.0.0.1:{self.server.port}")[1]
        self.assertEqual(findings["replica"]["level"], "ok")

    def test_server_that_may_lose_updates_is_a_warning_if_the_url_accepts_it(self):
        self.configure(synchronous_commit="off", fsync="off")
        url = self.url_of("postgres", "durable=off")
        finding = self.server_findings(url)[1]["durability"]
        self.assertEqual(finding["level"], "warn", finding)
        self.assertIn("fsync=off", finding["found"])
        self.assertIn("synchronous_commit=off", finding["found"])
        code, findings = self.server_findings(self.url)
        self.assertEqual((code, findings["log"]["level"]), (2, "bad"))

    def test_clock_of_the_server(self):
        self.server.sql("CREATE ROLE skewed SUPERUSER LOGIN; CREATE SCHEMA fake;"
                        "ALTER ROLE skewed SET search_path = fake, pg_catalog, public")
        skews = ((100, "warn", "ahead"), (-100, "warn", "behind"), (0, "ok", ""))
        for skew_s, level, word in skews:
            self.server.sql(
                "CREATE OR REPLACE FUNCTION fake.clock_timestamp() RETURNS timestamptz "
                "LANGUAGE sql AS "
                f"$$ SELECT pg_catalog.clock_timestamp() + interval '{skew_s} s' $$")
            finding = self.server_findings(self.url_of("skewed"))[1]["server clock"]
            self.assertEqual(finding["level"], level, finding)
            self.assertIn(word, finding["found"])

    def test_privileges_of_each_role(self):
        roles = self.machine.ok("init", self.url).out.decode()
        self.server.sql(roles + "ALTER ROLE follower LOGIN; ALTER ROLE writer LOGIN;"
                                "ALTER ROLE rewriter LOGIN; CREATE ROLE nobody LOGIN")
        for role, level, found in (
                ("follower", "ok", "user follower may read the log, and not write to it"),
                ("writer", "ok", "user writer may read the log and write to it"),
                ("rewriter", "ok", "user rewriter may read, write and rewrite the log"),
                ("nobody", "warn", "user nobody may not read all tables of the log")):
            finding = self.server_findings(self.url_of(role))[1]["privileges"]
            self.assertEqual((finding["level"], finding["found"]), (level, found))
        self.server.sql("REVOKE UPDATE (append_lock) ON whycache_logs FROM writer")
        finding = self.server_findings(self.url_of("writer"))[1]["privileges"]
        self.assertEqual(finding["level"], "warn")
        self.assertIn("append_lock", finding["found"])

    def test_certificate_that_expires_soon_is_a_warning(self):
        tls = f"{self.server.directory}/tls"
        os.mkdir(tls)
        for days, level in ((10, "warn"), (20, "ok")):
            with self.subTest(days=days):
                subprocess.run(
                    ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
                    + ["-days", str(days), "-subj", "/CN=127.0.0.1"]
                    + ["-addext", "subjectAltName=IP:127.0.0.1"]
                    + ["-keyout", f"{tls}/key.pem", "-out", f"{tls}/cert.pem"],
                    check=True,
                    capture_output=True,
                )
                if os.geteuid() == 0:
                    for path in (tls, f"{tls}/cert.pem", f"{tls}/key.pem"):
                        shutil.chown(path, "postgres", "postgres")
                self.configure(ssl="on", ssl_cert_file=f"{tls}/cert.pem",
                               ssl_key_file=f"{tls}/key.pem")
                port = self.server.port
                findings = self.server_findings(
                    self.url_of("postgres", f"tls_ca={tls}/cert.pem",
                                f"replica=127.0.0.1:{port}"))[1]
                for check in ("certificate", "replica certificate"):
                    self.assertEqual(findings[check]["level"], level, findings[check])


if __name__ == "__main__":
    main()
