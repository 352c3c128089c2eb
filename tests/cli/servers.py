"""Real servers for the tests of the command line, each with a directory of its own."""

import atexit
import contextlib
import functools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import support
from free_port import free_port  # support finds it

SETUP = """
CREATE DATABASE flags;
CREATE USER flags@'%' IDENTIFIED BY 'secret', flags@localhost IDENTIFIED BY 'secret';
GRANT ALL ON flags.* TO flags@'%'; GRANT ALL ON flags.* TO flags@localhost;
"""


def find_program(test, name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if path is None:
        test.skipTest(f"{name} is not installed")
    return path


class Server:
    def __init__(self, test):
        self.test = test
        self.directory = tempfile.mkdtemp(prefix="server-", dir=test.directory)
        self.socket = f"{self.directory}/socket"
        self.process = None

    def start(self, *command):
        self.command = command
        self.test.addCleanup(self.kill)
        self.restart()

    def restart(self):
        """Starts the server again after it was stopped or killed."""
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.test.wait_until(self.accepts_connections, seconds=60)

    def accepts_connections(self):
        self.test.assertIsNone(self.process.poll(), "the server ended")
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.socket) == 0

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=60)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=60)

    def pause(self):
        """Stops the server as a debugger does: it accepts connections, and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)


class Memcached(Server):
    def __init__(self, test):
        super().__init__(test)
        probe = test.machine.run("log", "--log", "memcached+memory:?memcached=127.0.0.1:1")
        if "built without memcached" in probe.err:
            test.skipTest("the program was built without memcached")
        user = ["-u", "root"] if os.geteuid() == 0 else []
        self.start(find_program(test, "memcached"), "-s", self.socket, *user)


class Redis(Server):
    def __init__(self, test, *options):
        super().__init__(test)
        probe = test.machine.run("log", "--log", "redis+memory:?redis=127.0.0.1:1")
        if "built without Redis" in probe.err:
            test.skipTest("the program was built without Redis")
        self.start(
            find_program(test, "redis-server"),
            *("--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self.directory),
            *options,
        )

    def run(self, *words):
        """Sends a command, and returns its answer: a text, or a list of texts."""
        command = [f"*{len(words)}\r\n"]
        command += [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket)
            connection.sendall("".join(command).encode())
            return self.read_answer(connection.makefile("rb"))

    def read_answer(self, file):
        line = file.readline().decode().rstrip()
        if line.startswith("*"):
            return [self.read_answer(file) for _ in range(int(line[1:]))]
        if line.startswith("$"):
            return file.read(int(line[1:]) + 2)[:-2].decode()
        return line


class Mariadb(Server):
    def __init__(self, test):
        super().__init__(test)
        if "mysql" not in test.machine.ok("version", "--json").json["logs"]:
            test.skipTest("the program was built without the mysql log")
        self.port = free_port()
        self.user = ["--user=root"] if os.geteuid() == 0 else []
        shutil.copytree(self.data_template(), f"{self.directory}/data")
        self.start(
            find_program(test, "mariadbd"),
            "--no-defaults",
            f"--datadir={self.directory}/data",
            f"--tmpdir={self.directory}",
            f"--socket={self.socket}",
            f"--pid-file={self.directory}/pid",
            f"--log-error={self.directory}/error.log",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-log-bin",
            "--performance-schema=off",
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-method=fsync",
            *self.user,
        )
        self.sql(SETUP)

    def sql(self, statements):
        """Runs statements as the administrator of the server."""
        client = find_program(self.test, "mariadb")
        subprocess.run(
            [client, "--no-defaults", f"--socket={self.socket}", "--user=root"],
            input=statements.encode(),
            check=True,
        )

    def data_template(self):
        """Returns a new server's data directory, which is created once per build and version."""
        installer = find_program(self.test, "mariadb-install-db")
        version = os.stat(find_program(self.test, "mariadbd")).st_mtime_ns
        bin_directory = pathlib.Path(self.test.program).parent
        template = bin_directory / f"mariadb_data_cli_{os.geteuid()}_{version}"
        if template.exists():
            return template
        with tempfile.TemporaryDirectory(dir=bin_directory) as directory:
            subprocess.run(
                [
                    installer,
                    "--no-defaults",
                    f"--datadir={directory}/data",
                    f"--tmpdir={directory}",
                    "--skip-test-db",
                    "--auth-root-authentication-method=normal",
                    "--innodb-log-file-size=8M",
                    *self.user,
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            try:
                os.rename(f"{directory}/data", template)
            except OSError:  # another test process was faster
                if not template.exists():
                    raise
        return template


class Postgres(Server):
    """A PostgreSQL server with the database `flags`, which any user of it may enter."""

    def __init__(self, test):
        super().__init__(test)
        if "postgres" not in test.machine.ok("version", "--json").json["logs"]:
            test.skipTest("the program was built without the postgres log")
        programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
        if not programs:
            test.skipTest("PostgreSQL's server is not installed")
        self.programs = programs[-1]
        self.port = free_port()
        # The user of the server cannot enter the directory of the test.
        self.directory = tempfile.mkdtemp(prefix="server-", dir=support.memory_directory())
        test.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.as_user = []
        if os.geteuid() == 0:  # it refuses to run as root
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups",
                            "--pdeathsig=KILL"]
            shutil.chown(self.directory, "postgres", "postgres")
        subprocess.run(
            [*self.as_user, self.programs / "initdb", "-D", f"{self.directory}/data",
             "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C",
             "--wal-segsize=1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        self.socket = f"{self.directory}/.s.PGSQL.{self.port}"
        self.start(
            *self.as_user, f"{self.programs}/postgres", "-D", f"{self.directory}/data",
            "-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}",
            "-c", f"unix_socket_directories={self.directory}", "-c", "shared_buffers=16MB",
            # A server that is killed leaves segments in /dev/shm.
            "-c", "dynamic_shared_memory_type=mmap")
        self.sql("CREATE DATABASE flags", "postgres")

    def accepts_connections(self):
        """Whether it lets users in: it listens before it is ready for that."""
        self.test.assertIsNone(self.process.poll(), "the server ended")
        ready = [self.programs / "pg_isready", "-q", "-h", self.directory, "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    def sql(self, statements, database="flags"):
        """Runs statements as the administrator of the server. Returns what they print."""
        return subprocess.run(
            [self.programs / "psql", "-h", self.directory, "-p", str(self.port), "-U", "postgres",
             "-qtA", "-v", "ON_ERROR_STOP=1", database],
            input=statements, check=True, capture_output=True, text=True).stdout


# Tests of commands that any log passes.
TESTS_OF_ALL_LOGS = (
    "add_test.AddTest",
    "apply_test.ApplyTest",
    "check_test.CheckTest",
    "clear_test.ClearTest",
    "count_test.CountTest",
    "del_test.DelTest",
    "diff_test.DiffTest",
    "get_test.GetTest",
    "guard_test.GuardTest",
    "import_test.ImportTest",
    "keys_test.KeysTest",
    "log_test.LogCommandTest",
    "mget_test.MgetTest",
    "rebuild_test.RebuildTest",
    "rewrite_test.RewriteTest",
    "scan_test.ScanTest",
    "set_test.SetTest",
    "status_test.StatusTest",
    "update_test.UpdateTest",
    "watch_test.WatchTest",
)


# The other files: their tests choose their logs, or need none.
TESTS_OF_THEIR_OWN_LOGS = (
    "command_line_test", "common_options_test", "completion_test", "doctor_test",
    "file_system_test", "follow_test", "golden_test", "import_original_test", "init_test",
    "inspect_test", "log_url_test", "man_test", "memcached_test", "messages_test",
    "missing_log_test", "mysql_test", "operations_test", "output_test", "spellings_test",
    "state_file_test", "value_test", "version_test",
)


class ListsTest(unittest.TestCase):
    def test_each_file_is_in_one_list(self):
        files = {path.stem for path in pathlib.Path(__file__).parent.glob("*_test.py")}
        listed = [name.partition(".")[0] for name in TESTS_OF_ALL_LOGS]
        listed += TESTS_OF_THEIR_OWN_LOGS
        self.assertEqual(sorted(listed), sorted(files))


def all_tests(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from all_tests(test)
        else:
            yield test


def tests_on(loader, create_log):
    """Returns the tests of all logs, on the logs that `create_log` creates.

    Every n-th of them if the environment names a shard, as for the tests in C++.
    """
    support.CliTest.create_log = create_log
    tests = list(all_tests(loader.loadTestsFromNames(TESTS_OF_ALL_LOGS)))
    tests += all_tests(loader.loadTestsFromTestCase(ListsTest))
    count = int(os.environ.get("TEST_TOTAL_SHARDS", "1"))
    index = int(os.environ.get("TEST_SHARD_INDEX", "0"))
    return unittest.TestSuite(tests[index::count])


def share(server):
    """Returns a function that starts the server when it is first called, for the whole program."""

    @functools.cache
    def start():
        host = support.CliTest()  # in the place of a test
        create_log, support.CliTest.create_log = support.CliTest.create_log, None
        try:
            host.setUp()
        finally:
            support.CliTest.create_log = create_log
        atexit.register(host.doCleanups)
        return server(host)

    return start
