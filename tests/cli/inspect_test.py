"""whycache inspect: the contents of a state file, and its readers."""

import os
import shutil

from support import CliTest, main


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
        self.assertEqual(insides["slots_taken"], [])
        text = self.machine.ok("inspect").out.decode()
        for word in ("point index", "segments", "reader slots: 0 of 1024", "log uuid"):
            self.assertIn(word, text)

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

    def test_process_with_pinned_view_is_listed(self):
        self.machine.ok(
            "import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000))
        )
        reader = self.machine.start("scan")  # blocks, because its output is not read
        self.wait_until(lambda: self.machine.ok("inspect", "--json").json["slots_taken"])
        (slot,) = self.machine.ok("inspect", "--json").json["slots_taken"]
        self.assertEqual(
            (slot["process_id"], slot["alive"], slot["pinned_id"]), (reader.pid, True, 1)
        )
        self.assertIn(
            f"holds update 1: process {reader.pid}", self.machine.ok("inspect").out.decode()
        )
        reader.kill()
        reader.wait()
        self.wait_until(
            lambda: not [
                slot
                for slot in self.machine.ok("inspect", "--json").json["slots_taken"]
                if slot["alive"]
            ]
        )

    def test_scan_is_unchanged_by_later_updates(self):
        self.machine.ok(
            "import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000))
        )
        before = self.machine.ok("scan").out
        reader = self.machine.start("scan")
        self.wait_until(lambda: self.machine.ok("inspect", "--json").json["slots_taken"])
        self.machine.ok("del", "-", stdin=self.machine.ok("keys").out)
        self.machine.ok("set", "new", "1")
        self.assertEqual(reader.communicate(timeout=60)[0], before)
        self.assertEqual(reader.returncode, 0)


if __name__ == "__main__":
    main()
