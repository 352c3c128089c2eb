"""Permissions, read-only file systems and full disks."""

import contextlib
import itertools
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile

from support import EXIT, NOBODY, Machine, CliTest, main


class FileSystemTest(CliTest):
    def test_closed_directories_are_permission_errors(self):
        self.require_root()
        os.chmod(self.directory, 0o755)
        os.mkdir(f"{self.directory}/closed", 0o700)
        os.mkdir(f"{self.directory}/theirs", 0o700)
        os.chown(f"{self.directory}/theirs", NOBODY, NOBODY)
        theirs = {
            "WHYCACHE_STATE": f"{self.directory}/theirs/x.state",
            "WHYCACHE_LOG": f"sqlite://{self.directory}/theirs/x.db",
        }
        self.machine.ok("set", "a", "1", user=NOBODY, env=theirs)
        for change in (
            {"WHYCACHE_STATE": f"{self.directory}/closed/x.state"},
            {"WHYCACHE_LOG": f"sqlite://{self.directory}/closed/x.db"},
            {"WHYCACHE_LOG": f"file://{self.directory}/closed/log"},
        ):
            self.machine.fails(
                "permission",
                "set",
                "a",
                "2",
                user=NOBODY,
                env={**theirs, **change},
                expect=["closed", "next: "],
            )
        self.assertEqual(self.machine.ok("get", "a", user=NOBODY, env=theirs).out, b"1")

    def test_read_only_file_system_is_permission_error(self):
        directory = self.mount()
        machine = Machine(self, directory, f"sqlite://{directory}/flags.db")
        machine.ok("set", "a", "1")
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        machine.fails("permission", "set", "a", "2", expect=[directory, "next: "])
        machine.fails(
            "permission", "set", "a", "2", "--state", f"{directory}/new.state", expect=directory
        )
        self.machine.fails(
            "permission", "set", "a", "2", "--log", f"sqlite://{directory}/new.db", expect=directory
        )
        self.machine.fails(
            "permission", "set", "a", "2", "--log", f"file://{directory}/new", expect=directory
        )
        self.assertEqual(machine.run("doctor").code, EXIT["permission"])
        subprocess.run(["mount", "-o", "remount,rw", directory], check=True)
        self.assertEqual(machine.ok("get", "a", "--update").out, b"1")

    def test_full_disk_under_state_keeps_old_values_readable(self):
        directory = self.mount("size=4m")
        log = f"sqlite://{self.directory}/flags.db"
        machine = Machine(self, directory, log)
        machine.ok("set", "a", "1")
        lines = b"".join(
            b"key%05d\t%s\n" % (i, os.urandom(500).hex().encode()) for i in range(8_000)
        )
        machine.fails("limit", "import", "-", stdin=lines, expect=["flags.state", "next: "])
        self.assertEqual(machine.ok("get", "a").out, b"1", "reads continue")
        other = self.another_machine()
        other.ok("update")
        subprocess.run(["mount", "-o", "remount,size=64m", directory], check=True)
        machine.ok("update")
        machine.ok("check")
        self.assertEqual(
            machine.ok("status", "--json").json["digest"],
            other.ok("status", "--json").json["digest"],
        )

    def test_full_disk_under_log_writes_nothing(self):
        directory = self.mount("size=2m")
        for scheme, name in (("sqlite", "flags.db"), ("file", "flags")):
            machine = Machine(self, self.directory, f"{scheme}://{directory}/{name}", name=scheme)
            machine.ok("set", "a", "1")
            filler = pathlib.Path(directory) / "filler"
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            result = machine.run("set", "b", "-", stdin=os.urandom(200_000))
            self.assertEqual(result.code, EXIT["limit"], result.err)
            self.assertIn(name, result.err)
            filler.unlink()
            self.assertEqual(machine.ok("keys", "--update").lines, ["a"], "nothing was written")
            machine.ok("set", "b", "2")
            machine.ok("check")

    def test_directories_writable_by_others_are_refused(self):
        for mode in (0o777, 0o770):
            directory = f"{self.directory}/{mode:o}"
            os.mkdir(directory)
            os.chmod(directory, mode)
            self.machine.fails(
                "permission", "set", "a", "1", "--state", f"{directory}/x.state", expect=directory
            )
        os.chmod(directory, 0o1777)
        self.machine.ok("set", "a", "1", "--state", f"{directory}/x.state")


    def mount_image(self, kind, megabytes=200):
        """Mounts a file system of this kind on a file; skips the test if that is not possible."""
        self.require_root()
        if shutil.which(f"mkfs.{kind}") is None:
            self.skipTest(f"NOT TESTED: mkfs.{kind} is not installed")
        parent = tempfile.mkdtemp(prefix="whycache-image-")
        self.addCleanup(shutil.rmtree, parent)
        image, directory = f"{parent}/image", f"{parent}/mounted"
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        os.mkdir(directory)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        mounted = subprocess.run(
            ["mount", "-o", "loop", image, directory], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            self.skipTest(f"NOT TESTED: cannot mount {kind}: {mounted.stderr.decode().strip()}")
        self.addCleanup(subprocess.run, ["umount", directory], check=True)
        os.chmod(directory, 0o700)
        return directory

    @staticmethod
    def fill(directory):
        """Fills the disk. The last blocks are taken in small pieces."""
        for number, size in enumerate((1 << 20, 4096)):
            with contextlib.suppress(OSError), open(f"{directory}/filler{number}", "ab") as file:
                for offset in itertools.count(file.tell(), size):
                    os.posix_fallocate(file.fileno(), offset, size)
        with contextlib.suppress(OSError), open(f"{directory}/filler2", "wb", 0) as file:
            while True:
                file.write(bytes(4096))

    def test_file_system_that_copies_on_write_is_refused(self):
        directory = self.mount_image("btrfs")
        machine = Machine(self, directory, self.log)
        machine.fails("usage", "set", "a", "1", expect=["SIGBUS", "/dev/shm", directory])
        self.assertEqual(os.listdir(directory), [])
        found = machine.run("doctor").out.decode()
        self.assertRegex(found, r"bad +file system +btrfs")
        machine.ok("set", "a", "1", "--any-file-system")

    def test_overlay_on_file_system_that_copies_on_write_is_refused(self):
        below = self.mount_image("btrfs")
        layers = [f"{below}/{name}" for name in ("lower", "upper", "work")]
        for layer in layers:
            os.mkdir(layer)
        merged = tempfile.mkdtemp(prefix="merged-", dir=self.directory)
        options = f"lowerdir={layers[0]},upperdir={layers[1]},workdir={layers[2]}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", merged], check=True)
        machine = Machine(self, merged, self.log)
        machine.fails("usage", "set", "a", "1", expect=["SIGBUS", "overlay"])
        machine.ok("set", "a", "1", "--any-file-system")

    def test_state_that_shares_blocks_with_its_copy_gets_its_own(self):
        directory = self.mount_image("xfs", 320)
        machine = Machine(self, directory, self.log)
        items = b"".join(
            b"key%04d\t%s\n" % (i, os.urandom(500).hex().encode()) for i in range(3_000)
        )
        machine.ok("import", "-", stdin=items)
        copy = ["cp", "--reflink=always", machine.state, f"{directory}/backup"]
        subprocess.run(copy, check=True)
        machine.ok("set", "a", "1")
        self.fill(directory)
        for i in range(20):
            machine.ok("set", "a", str(i))

        # Without room for blocks of its own, there is an error, and no signal.
        for filler in pathlib.Path(directory).glob("filler[12]"):
            filler.unlink()
        subprocess.run(["cp", "--reflink=always", machine.state, f"{directory}/second"], check=True)
        self.fill(directory)
        machine.fails("limit", "set", "a", "x", expect=["flags.state", "No space left"])
        self.assertEqual(machine.ok("get", "a").out, b"19")
        for filler in pathlib.Path(directory).glob("filler?"):
            filler.unlink()
        machine.ok("set", "a", "20")
        machine.ok("check")

    def test_rebuild_without_room_for_two_states_removes_unused_one_first(self):
        directory = self.mount("size=12m")
        machine = Machine(self, directory, self.log)
        items = b"".join(
            b"key%05d\t%s\n" % (i, os.urandom(500).hex().encode()) for i in range(5_000)
        )
        machine.ok("import", "-", stdin=items)
        shutil.copyfile(self.database, f"{self.database}.old")
        machine.ok("set", "lost", "1")
        shutil.copyfile(f"{self.database}.old", self.database)  # the log is restored

        # Another process has the state open.
        reader = machine.start("scan", "--null", stdout=subprocess.PIPE)
        reader.stdout.read(1)
        machine.fails("limit", "update", expect=["no room", "other processes", "flags.state"])
        self.assertEqual(machine.ok("get", "lost").out, b"1", "the old state stays")
        reader.kill()
        reader.wait()

        result = machine.ok("update")
        self.assertIn("for lack of room, the old one was removed first", result.err)
        self.assertEqual(machine.run("get", "lost").code, EXIT["not_found"])
        machine.ok("check")

    def test_state_that_cannot_grow_is_a_limit_and_no_dead_writer(self):
        self.machine.ok("set", "a", "1")
        limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1740800,) * 2)}
        result = self.machine.fails(
            "limit", "set", "b", "-", stdin=os.urandom(900_000), expect="ulimit -f", **limited
        )
        self.assertNotIn("died", result.err)
        result = self.machine.fails(
            "limit", "set", "c", "1", expect="nothing was written", **limited
        )
        self.assertNotIn("died", result.err)
        lines = b"".join(b"k%d\t%s\n" % (i, b"v" * 700) for i in range(3_000))
        other = self.another_machine("other", f"sqlite://{self.directory}/other.db")
        other.ok("set", "a", "1")
        result = other.fails(
            "limit", "import", "-", stdin=lines, expect="in the log", **limited
        )
        self.assertNotIn("nothing was imported", result.err)
        self.assertGreater(len(other.ok("log").lines), 1)
        self.machine.ok("update")
        self.machine.ok("check")


if __name__ == "__main__":
    main()
