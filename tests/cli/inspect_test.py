"""whycache inspect: the contents of a state file, and its readers."""

import os
import pathlib
import shutil
import subprocess
import threading

from support import NOBODY, CliTest, main

WRITER_ACTIVE_OFFSET = 592  # docs/formats/state.md

class InspectTest(CliTest):
    def test_fields(self):
        for i in range(3):
            self.machine.ok("set", f"key{i}", "1")
        insides = self.machine.ok("inspect", "--json").json
        self.assertEqual(
            (
                insides["applied_id"],
                insides["items"],
                insides["index"]["used"],
                insides["tree_height"],
            ),
            (3, 3, 3, 1),
        )
        self.assertEqual(insides["state"], self.machine.state)
        self.assertEqual(sum(use["bytes"] for use in insides["segments"]), insides["file_bytes"])
        self.assertEqual(insides["processes"], [])
        # Each of them was written by a process of its own.
        self.assertEqual(insides["counters"]["updates_written"], 3)
        self.assertEqual(insides["counters"]["updates_applied"], 3)
        text = self.machine.ok("inspect").out.decode()
        for word in ("point index", "segments", "processes: 0", "log uuid"):
            self.assertIn(word, text)
        self.assertRegex(text, r"updates_written +3\n")

    def test_copied_file_is_inspected_alone(self):
        self.machine.ok("set", "a", "1")
        copy = f"{self.directory}/copy.state"
        shutil.copyfile(self.machine.state, copy)
        os.chmod(copy, 0o600)
        no_environment = {"WHYCACHE_LOG": None, "WHYCACHE_STATE": None}
        self.assertEqual(
            self.machine.ok("inspect", copy, "--json", env=no_environment).json["items"], 1
        )
        self.assertEqual(self.machine.ok("inspect", copy, "--json").json["state"], copy)
        self.assertEqual(self.machine.ok("get", "a", "--state", copy, env=no_environment).out, b"1")

    def contents(self, directory):
        """All that an inspection must not change."""
        return {
            entry.name: (
                pathlib.Path(entry.path).read_bytes(),
                entry.stat().st_mtime_ns,
                entry.stat().st_ctime_ns,
                entry.stat().st_mode,
            )
            for entry in os.scandir(directory)
        }

    def backup(self):
        """Copies the state, without its lock file, into a directory of its own."""
        directory = f"{self.directory}/backup"
        os.mkdir(directory)
        return shutil.copy(self.machine.state, directory)

    def test_copy_is_unchanged_and_stays_alone(self):
        self.machine.ok("set", "a", "1")
        copy = self.backup()
        before = self.contents(os.path.dirname(copy))
        insides = self.machine.ok("inspect", copy, "--json").json
        self.assertEqual((insides["items"], insides["made_in_this_boot"]), (1, True))
        self.assertEqual(insides["processes"], [])
        self.assertEqual(self.contents(os.path.dirname(copy)), before)

    def test_read_only_copy_in_read_only_directory_is_inspected(self):
        self.require_root()
        self.machine.ok("set", "a", "1")
        os.chmod(self.directory, 0o755)
        mounted = self.mount("size=64m")
        copy = shutil.copy(self.machine.state, mounted)
        os.chmod(copy, 0o444)
        os.chmod(mounted, 0o555)
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
        self.assertEqual(self.machine.ok("inspect", copy, "--json").json["items"], 1)
        self.assertEqual(self.machine.ok("inspect", copy, "--json", user=NOBODY).json["items"], 1)

    def test_file_that_a_writer_left_in_an_update_is_unchanged(self):
        self.machine.ok("set", "a", "1")
        copy = self.backup()
        at = WRITER_ACTIVE_OFFSET
        content = bytearray(pathlib.Path(copy).read_bytes())
        content[at : at + 8] = (1).to_bytes(8, "little")
        pathlib.Path(copy).write_bytes(content)
        before = self.contents(os.path.dirname(copy))
        self.assertTrue(self.machine.ok("inspect", copy, "--json").json["writer_active"])
        self.assertEqual(self.contents(os.path.dirname(copy)), before)

    def test_state_in_use_by_writer_is_inspected(self):
        self.machine.ok("set", "a", "1")
        lines = b"".join(b"key%06d\t%s\n" % (i, b"x" * 500) for i in range(60_000))
        writer = self.machine.start("import", "-", stdin=subprocess.PIPE)
        feeder = threading.Thread(target=lambda: writer.communicate(lines))
        feeder.start()
        applied = []
        while feeder.is_alive():
            applied.append(self.machine.ok("inspect", "--json").json["applied_id"])
        feeder.join()
        self.assertEqual(writer.returncode, 0)
        self.assertEqual(applied, sorted(applied))
        self.assertEqual(self.machine.ok("inspect", "--json").json["items"], 60_001)

    def test_absent_state_of_log_is_not_built(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        before = sorted(os.listdir(self.directory))
        other.fails("usage", "inspect", expect="there is no state file")
        self.assertEqual(sorted(os.listdir(self.directory)), before)

    def test_absent_file_is_reported_and_not_created(self):
        absent = f"{self.directory}/absent.state"
        before = os.listdir(self.directory)
        no_environment = {"WHYCACHE_LOG": None, "WHYCACHE_STATE": None}
        for command in (
            ["inspect", absent],
            ["inspect", "--state", absent],
            ["get", "a", "--state", absent],
        ):
            self.machine.fails(
                "usage",
                *command,
                env=no_environment,
                expect=["there is no state file", absent, "next: name another"],
            )
        self.machine.fails(
            "usage",
            "inspect",
            f"{self.directory}/nowhere/absent.state",
            expect="there is no state file",
        )
        self.assertEqual(os.listdir(self.directory), before, "not even a lock file remains")

    def holders(self):
        """Returns the processes that hold views."""
        processes = self.machine.ok("inspect", "--json").json["processes"]
        return [process for process in processes if "pinned_id" in process]

    def test_process_with_pinned_view_is_listed(self):
        self.machine.ok(
            "import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000))
        )
        reader = self.machine.start("scan")  # blocks, because its output is not read
        self.wait_until(self.holders)
        (process,) = self.holders()
        self.assertEqual(
            (process["process_id"], process["process"], process["pinned_id"]),
            (reader.pid, "whycache", 1),
        )
        self.assertRegex(
            self.machine.ok("inspect").out.decode(),
            f"process {reader.pid} +whycache  holds a view of update 1",
        )
        reader.kill()
        reader.wait()
        self.assertEqual(self.holders(), [])

    def test_scan_is_unchanged_by_later_updates(self):
        self.machine.ok(
            "import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000))
        )
        before = self.machine.ok("scan").out
        reader = self.machine.start("scan")
        self.wait_until(self.holders)
        self.machine.ok("del", "--yes", "-", stdin=self.machine.ok("keys").out)
        self.machine.ok("set", "new", "1")
        self.assertEqual(reader.communicate(timeout=60)[0], before)
        self.assertEqual(reader.returncode, 0)


if __name__ == "__main__":
    main()
