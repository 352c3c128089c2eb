"""Support for environment_test.py: programs in unusual environments, which must end in time.

    python3 tests/environment/environment_test.py BIN [unittest arguments]

BIN has the programs whycache, environment_host and environment_scenario. A test whose requirements
are missing (root, a tool, a kernel that can) is skipped and says which.
"""

import ctypes
import faulthandler
import os
import pathlib
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "support"))
from memory_directory import memory_directory  # noqa: E402

NOBODY = 65534
SECONDS_MAX = 30  # of one program
KINDS = {"invalid", "limit", "unavailable", "uncertain", "conflict", "refused", "corrupt"}

# Of the calls that a container runtime or an older kernel denies.
CALL_NUMBERS = {
    "x86_64": {"statx": 332, "membarrier": 324, "memfd_create": 319, "madvise": 28, "clone3": 435,
               "getrandom": 318, "fallocate": 285, "statfs": 137, "rseq": 334, "prlimit64": 302,
               "fchmod": 91, "fdatasync": 75},
    "aarch64": {"statx": 291, "membarrier": 283, "memfd_create": 279, "madvise": 233,
                "clone3": 435, "getrandom": 278, "fallocate": 47, "statfs": 43, "rseq": 293,
                "prlimit64": 261, "fchmod": 52, "fdatasync": 83},
}

_bin = None


def deny(calls, error):
    """Returns a preexec_fn after which the calls fail with the error, by a seccomp filter."""
    numbers = [CALL_NUMBERS[platform.machine()][call] for call in calls]
    load, jump_if_equal, ret = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 0)]  # seccomp_data.nr
    for left, number in zip(range(len(numbers), 0, -1), numbers):
        program.append((jump_if_equal, left, 0, number))
    program += [(ret, 0, 0, 0x7FFF0000), (ret, 0, 0, 0x00050000 | error)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program),
                                                      ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)

    def install():
        # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP with SECCOMP_MODE_FILTER
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter_, 0, 0):
            os._exit(120)

    install.keep = buffer
    return install


class Step:
    """What one step of environment_host reported."""

    def __init__(self, line):
        self.name, self.result, *rest = line.split("\t")
        self.ok = self.result == "ok"
        self.value = rest[0] if self.ok else None
        self.kind, self.errno, self.message = ("", 0, "") if self.ok else (
            rest[0], int(rest[1]), rest[2])

    def __repr__(self):
        if self.ok:
            return f"{self.name}: {self.value}"
        return f"{self.name}: {self.kind} errno={self.errno} {self.message}"


class Host:
    """A running environment_host."""

    def __init__(self, test, machine, *steps, prefix=(), options=(), **popen):
        self.test, self.machine = test, machine
        # Not beside the state: a full or frozen disk would stop the host at its report.
        test.host_count += 1
        self.report = f"{test.directory}/report.{test.host_count}"
        if "user" in popen:  # creates it for this user to write
            pathlib.Path(self.report).write_bytes(bytes((64 << 10) + 24))
            os.chmod(self.report, 0o666)
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen.setdefault("stdout", subprocess.DEVNULL)
        popen.setdefault("stderr", subprocess.DEVNULL)
        self.process = subprocess.Popen(
            [*prefix, machine.host, self.report, machine.log, machine.state, *options, *steps],
            env=machine.environment, **popen)
        test.addCleanup(self.end)
        self.resumed = 0

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def steps(self):
        try:
            data = pathlib.Path(self.report).read_bytes()
        except FileNotFoundError:
            return []
        if len(data) < 24:
            return []
        _, size, _, _ = struct.unpack_from("=IIQQ", data)
        return [Step(line) for line in data[24:24 + size].decode(errors="replace").splitlines()]

    def wait_for_pause(self):
        deadline = time.monotonic() + SECONDS_MAX
        while sum(step.name == "pausing" for step in self.steps) <= self.resumed:
            self.test.assertIsNone(self.process.poll(), f"ended before it paused: {self.steps}")
            self.test.assertLess(time.monotonic(), deadline, f"did not pause: {self.steps}")
            time.sleep(0.005)
        return self.steps

    def resume(self):
        self.resumed += 1
        with open(self.report, "r+b") as report:
            report.write(struct.pack("=I", self.resumed))

    def finish(self):
        """Waits for the end, which must not be a crash. Returns the steps by name."""
        try:
            status = self.process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.test.fail(f"hangs: {self.steps}")
        self.test.assertEqual(status, 0, f"died: {self.steps}")
        self.test.assertIn("end", [step.name for step in self.steps], f"{self.steps}")
        for step in self.steps:
            if not step.ok:
                self.test.assertIn(step.kind, KINDS | {"no_memory"}, step)
                self.test.assertNotEqual(step.message, "", step)
        forks = {step.value for step in self.steps if step.name == "fork" and step.value}
        self.test.assertLessEqual(forks, {"exited with 0"}, f"{self.steps}")
        return {step.name: step for step in self.steps}


class Machine:
    """A state and a log, with two keys: a=1 and b=2."""

    def __init__(self, test, directory, log_directory=None, log="file"):
        self.test, self.directory = test, directory
        where = log_directory or directory
        self.log = f"file://{where}/log" if log == "file" else f"sqlite://{where}/log.db"
        self.state = f"{directory}/a.state"
        self.host, self.whycache = f"{_bin}/environment_host", f"{_bin}/whycache"

    def for_other_users(self):
        """Copies the programs to where other users can run them."""
        os.chmod(self.directory, 0o755)
        self.host = shutil.copy(self.host, f"{self.directory}/host")
        self.whycache = shutil.copy(self.whycache, f"{self.directory}/whycache")
        for program in (self.host, self.whycache):
            os.chmod(program, 0o755)

    @property
    def environment(self):
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith("WHYCACHE_")}
        clean.update(WHYCACHE_LOG=self.log, WHYCACHE_STATE=self.state, HOME=self.directory)
        return clean

    def begin(self, **options):
        steps = self.run("open", "set=a:1", "set=b:2", **options)
        self.test.assertTrue(all(step.ok for step in steps.values()), steps)

    def start(self, *steps, **options):
        return Host(self.test, self, *steps, **options)

    def run(self, *steps, **options):
        return self.start(*steps, **options).finish()

    def command(self, *arguments, prefix=(), **options):
        try:
            done = subprocess.run([*prefix, self.whycache, *arguments], env=self.environment,
                                  stdin=options.pop("stdin", subprocess.DEVNULL),
                                  capture_output=not options.pop("closed", False),
                                  timeout=SECONDS_MAX, **options)
        except subprocess.TimeoutExpired:
            self.test.fail(f"whycache {arguments} hangs")
        self.test.assertGreaterEqual(done.returncode, 0, f"died: {arguments} {done}")
        self.test.assertNotIn(done.returncode, (70, 120), done)
        return done

    def change_elsewhere(self, key, value, rewrites=False):
        """Another machine on this log writes, and rewrites history if asked."""
        other = Machine(self.test, tempfile.mkdtemp(dir=self.directory), self.directory)
        other.log = self.log
        steps = other.run("open", "update", f"set={key}:{value}",
                          *(["rewrite"] if rewrites else []))
        self.test.assertTrue(all(step.ok for step in steps.values()), steps)

    def verify(self, **expected):
        """A process in the ordinary environment reads this, goes on at once, and finds no fault."""
        steps = self.run("open", "update", *(f"get={key}" for key in expected), "set=after:1")
        for key, value in expected.items():
            self.test.assertEqual(steps[f"get={key}"].value, value, steps)
        self.test.assertTrue(steps["set=after:1"].ok, steps)
        done = self.command("check", "--quiet")
        self.test.assertEqual(done.returncode, 0, done)


class EnvironmentTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="whycache-environment-", dir=memory_directory())
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.host_count = 0
        self.machine = Machine(self, self.directory)

    def assert_right_or_error(self, step, value):
        """The step returned what was written, or an error that says why."""
        if step.ok:
            self.assertEqual(step.value, value, step)

    def assert_error(self, step, kinds, *words):
        self.assertFalse(step.ok, step)
        self.assertIn(step.kind, kinds, step)
        for word in words:
            self.assertIn(word, step.message)

    def require_root(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")

    def require(self, *programs):
        for program in programs:
            if not shutil.which(program):
                self.skipTest(f"needs {program}")

    def run_or_skip(self, *command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest(f"cannot run here: {' '.join(command)}: {done.stderr.strip()}")

    def mount(self, *arguments):
        """Mounts on a new directory and returns it; skips the test if that is not possible."""
        self.require_root()
        directory = tempfile.mkdtemp(prefix="mount-", dir=self.directory)
        self.run_or_skip("mount", *arguments, directory)
        self.addCleanup(subprocess.run, ["umount", "-l", directory], check=True)
        return directory

    def make_file_system(self, kind, mebibytes):
        """A file system of this kind in a file; returns where it is mounted."""
        self.require_root()
        self.require(f"mkfs.{kind}")
        # Not below self.directory: an image in memory cannot run out of blocks of its own.
        image = tempfile.NamedTemporaryFile(prefix="whycache-image-", dir="/var/tmp")
        self.addCleanup(image.close)
        image.truncate(mebibytes << 20)
        self.run_or_skip(f"mkfs.{kind}", "-q", image.name)
        directory = self.mount("-o", "loop", image.name)
        os.chmod(directory, 0o700)
        return directory


def main():
    global _bin
    if len(sys.argv) < 2 or not os.access(f"{sys.argv[1]}/environment_host", os.X_OK):
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY-OF-PROGRAMS [unittest arguments]")
    _bin = os.path.abspath(sys.argv.pop(1))
    os.umask(0o077)
    # Shows where a test hangs. `make torture` runs all of them at once, on a busy machine.
    faulthandler.dump_traceback_later(550 if len(sys.argv) > 1 else 5400, exit=True)
    unittest.main(verbosity=2)
