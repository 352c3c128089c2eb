"""Messages of failures: each names the object and the cause, and gives one right next step.

The tables below have a row for each error of each log, and of the state. A row is what to run, the
exit code, words of the message, and words of the next step.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys

import servers
from support import EXIT, NOBODY, CliTest, main

# Advice that is wrong for whatever the log reports.
WRONG_FOR_LOGS = ("delete it", "--state", "tls=off", "run as its owner")
# The resolver knows that there is none, and asks no server.
UNKNOWN_HOST = "a" * 64
HOLD_LOCK = """
import fcntl, struct, sys
file = open(sys.argv[1], "r+b")
lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, int(sys.argv[2]), 1, 0)
fcntl.fcntl(file, 37, lock)  # F_OFD_SETLK
print("held", flush=True)
sys.stdin.read()
"""
HOLD_TRANSACTION = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


class MessageTest(CliTest):
    def check(self, reason, *arguments, message, next_step, wrong=WRONG_FOR_LOGS, **options):
        """Requires the exit code, and one message with the words and one such next step."""
        with self.subTest(arguments=arguments, message=message):
            result = self.machine.fails(reason, *arguments, expect=message, **options)
            lines = result.err.splitlines()
            last = max(i for i, line in enumerate(lines) if line.startswith("whycache: "))
            self.assertLessEqual(len(lines) - last, 2, result.err)
            hint = re.search(r" \(([^()]*(?:\([^()]*\)[^()]*)*)\)$", lines[last])
            given = [hint.group(1)] if hint else []
            if len(lines) > last + 1:
                given.append(lines[last + 1].removeprefix("  next: "))
            self.assertEqual(len(given), 1, f"one next step: {result.err}")
            for word in [next_step] if isinstance(next_step, str) else next_step:
                self.assertIn(word, given[0], result.err)
            for cause in re.findall(r'reason="([^"]+)"', lines[last]):
                self.assertEqual(result.err.splitlines()[last].count(cause), 1, "the cause, once")
            for word in wrong:
                self.assertNotIn(word, result.err)
            self.assertNotIn("secret", result.err)
            return result

    @contextlib.contextmanager
    def holder(self, program, *arguments):
        """A process that holds a lock."""
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.assertEqual(process.stdout.readline(), b"held\n")
            yield process
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def get(self, url, *more):
        return ("get", "a", "--update", "--log", url, "--state", f"{self.directory}/x.state", *more)

    def set(self, url, *more):
        return ("set", "a", "1", "--log", url, "--state", f"{self.directory}/x.state", *more)


class LocalMessagesTest(MessageTest):
    def check_absent(self, url):
        """On a machine without a state, which would create the log, but not its directory."""
        self.check("usage", "set", "a", "1", "--log", url, "--state", f"{self.directory}/y.state",
                   message=["absent", "does not exist"], next_step="create")

    def test_sqlite_log(self):
        path = f"{self.directory}/log.db"
        url = f"sqlite://{path}"
        self.machine.ok(*self.set(url))
        text = self.file("text.db", "no database " * 1000)
        os.mkdir(f"{self.directory}/directory")
        for reason, target, message, next_step in (
            ("unreachable", f"{self.directory}/absent/x.db", ["absent", "does not exist"], "mount"),
            ("corrupt", text, [text, "not an SQLite database"], "choose another file"),
            ("usage", f"{self.directory}/directory", ["directory"], ""),
        ):
            arguments = self.set(f"sqlite://{target}", "--deadline", "300ms")
            self.check(reason, *arguments, message=message, next_step=next_step)
        self.check_absent(f"sqlite://{self.directory}/absent/x.db")
        with self.holder(HOLD_TRANSACTION, path) as process:
            self.check(
                "conflict",
                *self.set(url, "--deadline", "300ms"),
                message=["locked", f"lock_holders={process.pid} (python"],
                next_step="transaction",
            )
        self.machine.ok(*self.set(url))

    def test_file_log(self):
        path = f"{self.directory}/log"
        url = f"file://{path}"
        self.machine.ok(*self.set(url))
        os.symlink(path, f"{self.directory}/link")
        text = self.file("text", "x")
        for reason, target, message, next_step in (
            ("unreachable", f"{self.directory}/absent/x", ["absent", "does not exist"], "mount"),
            ("usage", text, [text, "Not a directory"], ""),
            ("usage", f"{self.directory}/link", ["link", "symbolic link"], ""),
        ):
            arguments = self.set(f"file://{target}", "--deadline", "300ms")
            self.check(reason, *arguments, message=message, next_step=next_step)
        self.check_absent(f"file://{self.directory}/absent/x")
        with self.holder(HOLD_LOCK, f"{path}/default/lock", 0) as process:
            self.check(
                "conflict",
                *self.set(url, "--deadline", "300ms"),
                message=["locked", f"{path}/default/lock", f"lock_holders={process.pid} (python"],
                next_step="end it",
            )
        self.machine.ok(*self.set(url))

    def test_state(self):
        self.machine.ok("set", "a", "1")
        precious = self.file("precious", "precious\n" * 100)
        for reason, arguments, message, next_step, wrong in (
            (
                "corrupt",
                ("get", "a", "--state", precious),
                [precious, "not a whycache state"],
                "must name another file",
                ["delete it"],
            ),
            (
                "corrupt",
                ("inspect", precious),
                [precious, "not a whycache state"],
                "must name another file",
                ["delete it"],
            ),
            (
                "usage",
                ("set", "a", "1", "--state", f"{self.directory}/absent/x.state"),
                ["absent"],
                "",
                ["delete it"],
            ),
        ):
            self.check(reason, *arguments, message=message, next_step=next_step, wrong=wrong)
        self.assertFalse(os.path.exists(precious + ".lock"), "nothing is left behind")
        self.another_machine().ok("set", "a", "2")
        for byte, name, arguments in (
            (0, "writer", ("update", "--deadline", "300ms")),
            (2, "append", ("set", "a", "3", "--deadline", "300ms")),
        ):
            with self.holder(HOLD_LOCK, self.machine.state + ".lock", byte) as process:
                self.check(
                    "conflict",
                    *arguments,
                    message=[f"the {name} lock", f"lock_holders={process.pid} (python"],
                    next_step="deadline",
                    wrong=["delete it"],
                )
        self.machine.ok("set", "a", "3")

    def test_full_disk_is_not_a_dead_writer(self):
        directory = self.mount("size=4m")
        place = ("--state", f"{directory}/s.state")
        self.machine.ok("set", "a", "1", *place)
        for i in range(8):
            self.machine.ok("set", f"k{i}", "-", stdin=os.urandom(700_000))
        self.check(
            "limit",
            *("set", "b", "1", *place),
            message=["nothing was written", "No space left on device"],
            next_step="free space",
            wrong=["writer died", "moved aside", "put aside"],
        )

    def test_full_disk_of_the_log(self):
        directory = self.mount("size=2m")
        for url in (f"sqlite://{directory}/log.db", f"file://{directory}/log"):
            state = ("--state", f"{self.directory}/{url[:4]}.state", "--log", url)
            self.machine.ok("set", "a", "1", *state)
            arguments = ("set", "b", "-", *state)
            value = os.urandom(700_000)
            for _ in range(4):
                if self.machine.run(*arguments, stdin=value).code:
                    break
            self.check("limit", *arguments, stdin=value,
                       message=["nothing was written", directory], next_step="free space")
            self.assertEqual(self.machine.run("get", "a", *state).text, "1")

    def test_fresh_read_of_a_log_that_is_locked(self):
        self.machine.ok("set", "a", "1")
        hold = HOLD_TRANSACTION.replace("IMMEDIATE", "EXCLUSIVE")
        for state in (self.machine.state, f"{self.directory}/none.state"):
            with self.holder(hold, self.database) as process:
                self.check(
                    "conflict",
                    *("get", "a", "--update", "--state", state, "--deadline", "2s"),
                    message=["locked", f"lock_holders={process.pid} (python"],
                    next_step="transaction",
                )

    def test_log_that_is_locked_beside_a_state_of_another(self):
        """Opening asks such a log, and goes on without it."""
        self.machine.ok("set", "a", "1")
        other = f"{self.directory}/other.db"
        url = f"sqlite://{other}"
        self.machine.ok("init", url)
        with self.holder(HOLD_TRANSACTION.replace("IMMEDIATE", "EXCLUSIVE"), other) as process:
            for command in (("set", "a", "2"), ("del", "a"), ("add", "n", "1"), ("update",),
                            ("rebuild",), ("get", "a", "--update")):
                writes = ["nothing was written"] if command[0] in ("set", "del", "add") else []
                self.check(
                    "conflict",
                    *(*command, "--log", url, "--deadline", "2s"),
                    message=[*writes, "locked", f"lock_holders={process.pid} (python"],
                    next_step="transaction",
                )

    def test_fresh_read_of_a_log_that_is_away(self):
        """The advice to read the state as it is needs a state."""
        self.require_log("mysql")
        self.machine.ok("set", "a", "1")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"mysql://u@127.0.0.1:{silent.getsockname()[1]}/d"
            fresh = ("get", "a", "--update", "--deadline", "300ms", "--log", url)
            self.check("unreachable", *fresh, message="", next_step="omit --update")
            self.check("unreachable", *fresh, "--state", f"{self.directory}/none.state",
                       message="", next_step="try again", wrong=["omit --update"])

    def test_permissions_name_the_path(self):
        self.require_root()
        self.machine.ok("set", "a", "1")
        os.chmod(self.directory, 0o755)
        os.mkdir(f"{self.directory}/own")
        os.chown(f"{self.directory}/own", NOBODY, NOBODY)
        os.chmod(self.database, 0o600)
        self.check(
            "permission",
            *("get", "a", "--update", "--state", f"{self.directory}/own/x.state"),
            message=[self.database, "Permission denied"],
            next_step="permissions",
            user=NOBODY,
        )

    def test_socket_that_this_user_may_not_enter(self):
        self.require_root()
        os.chmod(self.directory, 0o755)
        os.mkdir(f"{self.directory}/own")
        os.chown(f"{self.directory}/own", NOBODY, NOBODY)
        os.mkdir(f"{self.directory}/closed", 0o700)
        path = f"{self.directory}/closed/.s.PGSQL.5432"
        for url in (f"mysql://u@/d?socket={path}",
                    f"postgres://u@/d?socket={self.directory}/closed"):
            self.require_log(url.partition(":")[0])
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path)
                server.listen()
                self.check(
                    "permission",
                    *("get", "a", "--log", url, "--state", f"{self.directory}/own/x.state"),
                    message=["cannot connect", path],
                    next_step="let this user enter the socket",
                    user=NOBODY,
                )
            os.remove(path)

    def test_wrong_urls(self):
        for url, message, next_step in (
            ("nosuch://x", "nosuch", "known:"),
            ("sqlite:///x.db?nosuch=1", "nosuch", ""),
            ("memcached+memory:", "memcached", "memcached=host:port"),
            ("redis+memory:", "Redis", "redis=host:port"),
            ("redis+memory:?redis=cache.example.org", "no TLS for Redis", "redis_tls=off"),
            ("mysql://u:secret@h/", "names no database", "mysql://user@host/database"),
        ):
            result = self.machine.fails("usage", *self.get(url), expect=message)
            self.assertIn(next_step, result.err)
            self.assertNotIn("u:secret", result.err)


class MysqlMessagesTest(MessageTest):
    """The same for logs in a server."""

    def setUp(self):
        super().setUp()
        self.server = servers.Mariadb(self)
        self.url = f"mysql://flags:secret@127.0.0.1:{self.server.port}/flags"
        self.machine.ok(*self.set(self.url))
        self.statement(
            "CREATE USER follower@'%' IDENTIFIED BY 'secret';"
            + "".join(
                f"GRANT SELECT ON flags.whycache_{table} TO follower@'%';"
                for table in ("logs", "updates", "parts")
            )
        )

    def statement(self, sql):
        subprocess.run(
            ["mariadb", "--no-defaults", f"--socket={self.server.socket}", "--user=root"],
            input=sql.encode(),
            check=True,
        )

    def follower(self, options=""):
        return f"mysql://follower:secret@127.0.0.1:{self.server.port}/flags{options}"

    def url_of_root(self, database):
        return f"mysql://root@/{database}?socket={self.server.socket}"

    def test_access(self):
        wrong_password = self.url.replace("flags:secret", "flags:wrong")
        absent = f"{self.directory}/absent"
        other_state = ("--state", f"{self.directory}/y.state")
        address = f"127.0.0.1:{self.server.port}"
        without_password = f"mysql://flags@{address}/flags?password_file={absent}"
        for reason, arguments, message, next_step in (
            ("permission", self.get(wrong_password), "Access denied", "user and password"),
            (
                "permission",
                self.get(self.follower().replace("/flags", "/flogs")),
                "flogs",
                "correct the database in the url",
            ),
            (
                "usage",
                self.get(self.url_of_root("flogs")),
                "Unknown database",
                ["correct the database in the url", "CREATE DATABASE"],
            ),
            ("usage", self.get(without_password), ["password_file", absent], "path"),
            ("permission", self.set(self.follower()), ["INSERT", "denied"], "docs/logs.md"),
            (
                "usage",
                ("get", "a", "--log", self.follower("?instance=another"), *other_state),
                ["another", "'default'"],
                "whycache init",
            ),
        ):
            result = self.check(reason, *arguments, message=message, next_step=next_step)
            self.assertNotIn("CREATE TABLE", result.err if result else "")

    def test_account_that_is_locked_and_server_that_is_full(self):
        self.statement("ALTER USER follower@'%' ACCOUNT LOCK")
        self.check("permission", *self.get(self.follower()), message="account is locked",
                   next_step="ACCOUNT UNLOCK")
        self.statement("ALTER USER follower@'%' ACCOUNT UNLOCK;"
                       "ALTER USER follower@'%' WITH MAX_USER_CONNECTIONS 1")
        with contextlib.ExitStack() as stack:
            client = subprocess.Popen(
                ["mariadb", "--no-defaults", "--protocol=tcp", f"--port={self.server.port}",
                 "--host=127.0.0.1", "--user=follower", "--password=secret", "-n"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(client.wait)
            stack.enter_context(client)
            client.stdin.write(b"SELECT 'connected';\n")
            client.stdin.flush()
            client.stdout.readline()
            self.check("unreachable", *self.get(self.follower(), "--deadline", "5s"),
                       message="max_user_connections", next_step="ALTER USER ... WITH",
                       wrong=(*WRONG_FOR_LOGS, "raise max_connections"))

    def test_server_that_is_away_read_only_or_locked(self):
        for url, message, next_step in (
            (f"mysql://u@127.0.0.1:{servers.free_port()}/d", "127.0.0.1", "start the server"),
            (f"mysql://u@/d?socket={self.directory}/none", "none", "start the server"),
            (f"mysql://u@{UNKNOWN_HOST}/d?tls=off", UNKNOWN_HOST, "name service"),
            ("mysql://u@255.255.255.255/d?tls=off", "255.255.255.255", "network"),
        ):
            self.check(
                "unreachable",
                *self.get(url, "--deadline", "300ms"),
                message=["cannot connect", message],
                next_step=next_step,
            )
        self.statement("SET GLOBAL read_only = 1")
        self.check(
            "unreachable",
            *self.set(self.url, "--deadline", "2s"),
            message=["nothing was written", "read-only"],
            next_step="primary",
        )
        self.statement("SET GLOBAL read_only = 0")
        client = subprocess.Popen(
            ["mariadb", "--no-defaults", f"--socket={self.server.socket}", "--user=root", "-n"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            client.stdin.write(
                b"BEGIN; SELECT instance FROM flags.whycache_logs FOR UPDATE; SELECT 'held';\n"
            )
            client.stdin.flush()
            while b"held" not in (line := client.stdout.readline()):
                self.assertTrue(line)
            result = self.machine.run(*self.set(self.url, "--deadline", "2s"))
            # An uncertain write matters more than its cause.
            is_uncertain = "may or may not be in the log" in result.err
            self.assertEqual(
                result.code, EXIT["unreachable" if is_uncertain else "conflict"], result.err
            )
            self.assertRegex(result.err, "waited_ms_max.*(may hold a lock|connections_with_locks)")
        finally:
            client.stdin.close()
            client.wait()
            client.stdout.close()
        self.machine.ok(*self.set(self.url))

    def openssl(self, *arguments, name):
        """Makes a key and a certificate, or a request for one; returns the path of the latter."""
        path = f"{self.directory}/{name}"
        subprocess.run(
            ["openssl", *arguments, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
            + ["-nodes", "-keyout", f"{path}.key", "-out", f"{path}.pem"],
            check=True,
            capture_output=True,
        )
        return f"{path}.pem"

    def test_certificates(self):
        """Each reason why a certificate is not trusted has its own next step."""
        authority = self.openssl("req", "-x509", "-days", "9", "-subj", "/CN=ca", name="ca")
        for name, reason, days, subject, next_step in (
            ("expired", "unreachable", "-1", "IP:127.0.0.1", "renew"),
            ("elsewhere", "usage", "9", "DNS:elsewhere.example", "as its certificate does"),
            ("unknown", "usage", "9", "IP:127.0.0.1", "tls_ca"),
        ):
            names = self.file("names", f"subjectAltName={subject}")
            self.openssl("req", "-subj", "/CN=server", name=name)
            files = [f"{self.directory}/{name}.{kind}" for kind in ("key", "signed")]
            subprocess.run(
                ["openssl", "x509", "-req", "-in", f"{self.directory}/{name}.pem", "-days", days]
                + ["-CA", authority, "-CAkey", f"{self.directory}/ca.key", "-CAcreateserial"]
                + ["-extfile", names, "-out", files[1]],
                check=True,
                capture_output=True,
            )
            self.server.stop()
            self.server.command = [
                word for word in self.server.command if not word.startswith("--ssl")
            ] + [f"--ssl-key={files[0]}", f"--ssl-cert={files[1]}"]
            self.server.restart()
            option = "?tls=verify" if name == "unknown" else f"?tls_ca={authority}"
            self.check(
                reason,
                *self.get(self.url + option, "--deadline", "2s"),
                message=["cannot connect to database", f"127.0.0.1:{self.server.port}"],
                next_step=next_step,
            )

    def test_server_without_tls(self):
        self.check(
            "usage",
            *self.get(self.url + "?tls=verify"),
            message="SSL",
            next_step="TLS",
        )


class PostgresMessagesTest(MessageTest):
    """The same for PostgreSQL."""

    def setUp(self):
        super().setUp()
        self.server = servers.Postgres(self)
        self.server.sql("CREATE ROLE flags SUPERUSER LOGIN; CREATE ROLE follower LOGIN;"
                        "CREATE ROLE stranger PASSWORD 'secret' LOGIN;")
        self.machine.ok(*self.set(self.url()))
        self.server.sql(
            "GRANT SELECT ON whycache_logs, whycache_updates, whycache_parts TO follower"
        )

    def url(self, user="flags", database="flags", options=""):
        return f"postgres://{user}@127.0.0.1:{self.server.port}/{database}{options}"

    def test_access(self):
        self.server.sql("ALTER SYSTEM SET password_encryption = 'scram-sha-256'")
        hba = f"{self.server.directory}/data/pg_hba.conf"
        rules = "host all stranger all scram-sha-256\n"
        with open(hba, "r+", encoding="utf8") as file:
            rules += file.read()
            file.seek(0)
            file.write(rules)
        self.server.sql("SELECT pg_reload_conf()")
        other_state = ("--state", f"{self.directory}/y.state")
        for reason, arguments, message, next_step in (
            ("permission", self.get(self.url("stranger")), "no password", "user and password"),
            ("permission", self.get(self.url("stranger:wrong")), "stranger", "user and password"),
            (
                "usage",
                self.get(self.url(database="flogs")),
                "flogs",
                ["correct the database in the url", "CREATE DATABASE"],
            ),
            ("permission", self.set(self.url("follower")), "whycache_updates", "docs/logs.md"),
            (
                "usage",
                ("get", "a", "--log", self.url(options="?instance=another"), *other_state),
                ["another", "'default'"],
                "whycache init",
            ),
            (
                "unreachable",
                self.get(self.url(options="?schema=another"), "--deadline", "300ms"),
                ["another", "does not exist"],
                ["correct the url", "mount or restore"],
            ),
            (
                "usage",
                ("init", self.url(options="?schema=another")),
                ["another", "does not exist"],
                "create the schema",
            ),
        ):
            with self.subTest(arguments=arguments):
                result = self.check(reason, *arguments, message=message, next_step=next_step)
                self.assertNotIn("CREATE TABLE", result.err if result else "")

    def test_server_that_is_away_full_or_locked(self):
        port = servers.free_port()
        for url, message, next_step in (
            (f"postgres://u@127.0.0.1:{port}/d", "Connection refused", "start the server"),
            (f"postgres://u@/d?socket={self.directory}", "No such file", "start the server"),
            (f"postgres://u@{UNKNOWN_HOST}/d?tls=off", UNKNOWN_HOST, "name service"),
            ("postgres://u@255.255.255.255/d?tls=off", "255.255.255.255", "network"),
        ):
            self.check(
                "unreachable",
                *self.get(url, "--deadline", "300ms"),
                message=["cannot connect", message],
                next_step=next_step,
                wrong=(*WRONG_FOR_LOGS, "certificate", "tls_ca"),
            )
        self.server.sql("ALTER ROLE follower CONNECTION LIMIT 0")
        self.check("unreachable", *self.get(self.url("follower"), "--deadline", "5s"),
                   message="too many connections for role", next_step="ALTER ROLE",
                   wrong=(*WRONG_FOR_LOGS, "raise max_connections"))
        locker = subprocess.Popen(
            [self.server.programs / "psql", "-h", self.server.directory, "-p",
             str(self.server.port), "-U", "postgres", "-qtA", "flags"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with locker:
            locker.stdin.write(b"BEGIN; LOCK TABLE whycache_logs, whycache_updates;"
                               b"SELECT 'held';\n")
            locker.stdin.flush()
            self.assertEqual(locker.stdout.readline(), b"held\n")
            for arguments in (self.get(self.url()), self.set(self.url())):
                result = self.machine.run(*arguments, "--deadline", "5s")
                # An uncertain write matters more than its cause.
                is_uncertain = "may or may not be in the log" in result.err
                self.assertEqual(
                    result.code, EXIT["unreachable" if is_uncertain else "conflict"], result.err
                )
                # A busy server leaves no time to ask who holds the lock.
                self.assertRegex(result.err, "waited_ms_max.*(may hold a lock|of postgres@)")
        self.machine.ok(*self.set(self.url()))


if __name__ == "__main__":
    main()
