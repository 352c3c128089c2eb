"""Support for the end-to-end tests of the command line.

Each *_test.py runs the real program on real logs and states in temporary directories:

    python3 tests/cli/get_test.py PATH-TO-WHYCACHE [unittest arguments]

A test whose requirements are missing (root, a mount, a server) is skipped.
"""

import contextlib
import faulthandler
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "support"))
from memory_directory import memory_directory  # noqa: E402

_program = None
NOBODY = 65534
EXIT = {
    "done": 0,
    "not_found": 1,
    "usage": 2,
    "unreachable": 3,
    "stale": 4,
    "corrupt": 5,
    "conflict": 6,
    "permission": 7,
    "refused": 8,
    "limit": 9,
    "bug": 70,
}
ALL_BYTES = bytes(range(256))


class Result:
    """The exit code and the output of one run."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err.decode(errors="replace")

    @property
    def text(self):
        return self.out.decode().rstrip("\n")

    @property
    def lines(self):
        return self.out.decode().splitlines()

    @property
    def json(self):
        (line,) = self.lines
        return json.loads(line)

    @property
    def json_lines(self):
        return [json.loads(line) for line in self.lines]


class Machine:
    """A machine: one state, and a log that it may share with other machines."""

    def __init__(self, test, directory, log, name="flags"):
        self.test, self.directory, self.log = test, directory, log
        self.state = f"{directory}/{name}.state"

    def environment(self, **more):
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("WHYCACHE_") and key not in ("STATE_DIRECTORY", "XDG_STATE_HOME")
        }
        # Sanitizers exit with a code that the program itself never uses.
        clean.setdefault("ASAN_OPTIONS", "exitcode=99")
        clean.update(
            WHYCACHE_LOG=self.log, WHYCACHE_STATE=self.state, NO_COLOR="1", HOME=str(self.directory)
        )
        clean.update({key: value for key, value in more.items() if value is not None})
        for key, value in more.items():
            if value is None:
                clean.pop(key, None)
        return clean

    def run(self, *arguments, stdin=b"", env=None, timeout=120, user=None, **options):
        command = [_program, *arguments]
        if user is not None:
            # Other users may not be able to enter the build directory.
            command[0] = shutil.copy(_program, f"{self.directory}/program")
            os.chmod(command[0], 0o755)
            options.update(user=user, group=user, extra_groups=[])
        done = subprocess.run(
            command,
            input=stdin,
            env=self.environment(**(env or {})),
            timeout=timeout,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments, **options):
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen([_program, *arguments], env=self.environment(), **options)
        self.test.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()

    def ok(self, *arguments, **options):
        result = self.run(*arguments, **options)
        self.test.assertEqual(result.code, 0, f"{arguments}: {result.err}")
        return result

    def fails(self, reason, *arguments, expect=(), **options):
        """Requires this exit code, and a message on standard error with the expected words."""
        result = self.run(*arguments, **options)
        self.test.assertEqual(
            result.code,
            EXIT[reason],
            f"{arguments}: out={(result.out or b'')[:500]} err={result.err}",
        )
        errors = [line for line in result.err.splitlines() if line.startswith("whycache: ")]
        self.test.assertGreaterEqual(len(errors), 1, result.err)
        for line in result.err.splitlines():
            self.test.assertRegex(line, r"^(whycache: |  next: )\S")
        for word in [expect] if isinstance(expect, str) else expect:
            self.test.assertIn(word, result.err)
        return result


class CliTest(unittest.TestCase):
    """A test with a directory, a log and a machine of its own."""

    # Returns the URL of a new log for a test; None: an SQLite database in the test's directory.
    create_log = None

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="whycache-cli-", dir=self.parent_directory())
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        create_log = CliTest.create_log
        self.log = create_log(self) if create_log else f"sqlite://{self.directory}/flags.db"
        self.machine = Machine(self, self.directory, self.log)

    @staticmethod
    def parent_directory():
        return memory_directory()

    @property
    def program(self):
        return _program

    @property
    def database(self):
        if CliTest.create_log:
            self.skipTest("a test of the file of an SQLite log")
        return f"{self.directory}/flags.db"

    def another_machine(self, name="other", log=None):
        return Machine(self, self.directory, log or self.log, name)

    def file(self, name, content):
        path = f"{self.directory}/{name}"
        pathlib.Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def sql(self, statement, *values):
        connection = sqlite3.connect(self.database)
        with contextlib.closing(connection), connection:
            return connection.execute(statement, values).fetchall()

    def wait_until(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, "the condition did not become true")
            time.sleep(0.02)

    def require_log(self, name):
        if name not in self.machine.ok("version", "--json").json["logs"]:
            self.skipTest(f"the program was built without {name}")

    def require_root(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")

    def mount(self, *options):
        """Mounts a tmpfs and returns its path; skips the test if that is not possible."""
        self.require_root()
        directory = tempfile.mkdtemp(prefix="mount-", dir=self.directory)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(("mode=0700", *options)), "tmpfs", directory],
            capture_output=True,
        )
        if mounted.returncode != 0:
            self.skipTest(f"cannot mount: {mounted.stderr.decode().strip()}")
        self.addCleanup(subprocess.run, ["umount", "-l", directory], check=True)
        return directory


def main():
    """Runs the tests of the calling file on the program that the first argument names."""
    global _program
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit(f"usage: {sys.argv[0]} PATH-TO-WHYCACHE [unittest arguments]")
    _program = os.path.abspath(sys.argv.pop(1))
    os.umask(0o077)
    faulthandler.dump_traceback_later(500, exit=True)  # shows where a test hangs
    unittest.main(verbosity=1)
