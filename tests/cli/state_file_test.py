"""State files that are foreign, damaged, copied or owned by another user."""

import os
import pathlib
import shutil

from support import NOBODY, CliTest, main


class StateFileTest(CliTest):
    def test_state_of_another_user_is_refused(self):
        self.require_root()
        os.chmod(self.directory, 0o755)
        self.machine.ok("set", "a", "1")
        os.chmod(self.directory, 0o1777)
        result = self.machine.fails(
            "permission", "get", "a", user=NOBODY, env={"WHYCACHE_LOG": None}, expect="flags.state"
        )
        self.assertEqual(result.out, b"")

    def test_state_shared_with_group_is_readable_to_user_who_gives_its_mode(self):
        self.require_root()
        os.chmod(self.directory, 0o750)
        os.chown(self.directory, 0, NOBODY)
        os.chown(self.directory, NOBODY + 1, -1)
        self.machine.ok("set", "a", "1", "--state-mode", "0644")
        os.chown(self.machine.state, NOBODY + 1, NOBODY)
        os.chown(f"{self.machine.state}.lock", NOBODY + 1, NOBODY)
        alone = {"WHYCACHE_LOG": None}
        for command in (("get", "a"), ("scan",), ("count",), ("status",)):
            with self.subTest(command):
                self.machine.fails("permission", *command, user=NOBODY, env=alone, expect="owner")
                self.machine.ok(*command, "--state-mode", "0644", user=NOBODY, env=alone)
                self.machine.fails(
                    "permission", *command, "--state-mode", "0640", user=NOBODY, env=alone,
                    expect=["mode=0644", "state_mode=0640"],
                )
                self.machine.fails("usage", *command, "--state-mode", "0", expect="state_mode")

    def test_files_that_are_no_state_are_never_overwritten(self):
        self.machine.ok("set", "a", "1")
        good = pathlib.Path(self.machine.state).read_bytes()
        swapped = bytearray(good)
        swapped[12:16] = swapped[12:16][::-1]
        other_format = bytearray(good)
        other_format[8:10] = b"\x63\x00"
        cases = {
            "short": good[:100],
            "foreign": b"SQLite format 3\0" + bytes(4096),
            "swapped": bytes(swapped),
            "format": bytes(other_format),
            "text": b"hello\n" * 1000,
            "zeros": bytes(1 << 20) + b"x",
        }
        for name, content in cases.items():
            with self.subTest(name):
                path = self.file(f"{name}.state", content)
                os.chmod(path, 0o600)
                for command in (("get", "a"), ("set", "a", "2"), ("inspect", path), ("status",)):
                    self.machine.fails("corrupt", *command, "--state", path, expect=f"{name}.state")
                self.assertEqual(
                    pathlib.Path(path).read_bytes(), content, "the file is never overwritten"
                )
        self.assertEqual(self.machine.ok("update").text, "1", "nothing was written")

    def test_state_that_lost_its_header_or_all_bytes_is_rebuilt(self):
        for name, tear in (
            ("empty", lambda file: file.truncate(0)),
            ("header", lambda file: file.write(bytes(4096))),
            ("zeros", lambda file: file.write(bytes(os.path.getsize(file.name)))),
        ):
            with self.subTest(name):
                machine = self.another_machine(name)
                machine.ok("set", "a", "1")
                with open(machine.state, "r+b") as file:
                    tear(file)
                self.assertEqual(machine.ok("get", "a", "--update").out, b"1")
                machine.ok("check")

    def test_rebuild_keeps_mode_unless_another_is_given(self):
        self.machine.ok("set", "a", "1", "--state-mode", "0644")
        shutil.copyfile(self.database, f"{self.database}.old")
        for mode, expected in ((None, 0o644), ("0640", 0o640)):
            self.machine.ok("set", "a", "2")
            shutil.copyfile(f"{self.database}.old", self.database)  # the log is restored
            self.machine.ok("update", *(("--state-mode", mode) if mode else ()))
            self.assertEqual(os.stat(self.machine.state).st_mode & 0o777, expected)

    def test_state_path_that_names_another_file_is_refused_without_advice_to_delete(self):
        self.machine.ok("set", "a", "1")
        notes = self.file("notes.txt", "important notes\n" * 60_000)
        for path in (self.database, notes):
            content = pathlib.Path(path).read_bytes()
            before = sorted(os.listdir(self.directory))
            for command in ("get", "set", "update", "status", "inspect", "check"):
                with self.subTest(f"{command} {path}"):
                    arguments = {"get": ["a"], "set": ["a", "2"]}.get(command, [])
                    result = self.machine.fails("corrupt", command, *arguments, "--state", path)
                    text = result.err + result.out.decode()
                    self.assertIn("not a whycache state: path=" + path, text)
                    self.assertIn("WHYCACHE_STATE, must name another file", text)
                    self.assertNotRegex(text, "delete|remove")
                    self.assertEqual(pathlib.Path(path).read_bytes(), content)
                    self.assertEqual(sorted(os.listdir(self.directory)), before)
            found = self.machine.run("doctor", "--state", path).out.decode()
            self.assertIn("not a whycache state: path=" + path, found)
            self.assertEqual(sorted(os.listdir(self.directory)), before)

    def test_truncated_state_is_rebuilt(self):
        self.machine.ok(
            "import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000))
        )
        before = self.machine.ok("scan").out
        path = pathlib.Path(self.machine.state)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
        path.chmod(0o600)
        self.machine.fails("corrupt", "inspect", str(path), expect="cut short")
        self.assertEqual(self.machine.ok("scan").out, before)

    def test_state_of_another_log_is_refused(self):
        self.machine.ok("set", "mine", "1")
        other = self.another_machine("theirs", f"sqlite://{self.directory}/theirs.db")
        other.ok("set", "theirs", "1")
        for command in (("keys",), ("get", "theirs"), ("set", "a", "1"), ("update",), ("status",)):
            self.machine.fails(
                "corrupt",
                *command,
                "--state",
                other.state,
                expect=["theirs.state", "flags.db", "another log"],
            )
        result = self.machine.fails("corrupt", "check", "--state", other.state, expect="--state")
        self.assertNotIn("remove", result.err)
        self.assertEqual(other.ok("keys").lines, ["theirs"])
        self.assertEqual(self.machine.ok("keys", "--update").lines, ["mine"], "nothing was written")

    def test_copied_state_is_verified_and_updated(self):
        self.machine.ok("set", "a", "1")
        copy = self.another_machine("copy")
        shutil.copyfile(self.machine.state, copy.state)
        os.chmod(copy.state, 0o600)
        self.machine.ok("set", "a", "2")
        self.assertEqual(copy.ok("get", "a").out, b"2")

    def test_symbolic_link_at_state_path_is_refused(self):
        target = self.file("precious", b"precious")
        os.symlink(target, self.machine.state)
        for command in (("set", "a", "1"), ("inspect", self.machine.state)):
            result = self.machine.fails(
                "usage", *command, expect=["flags.state", "symbolic link", "next: "]
            )
            self.assertNotRegex(result.err, "remove|delete")
        self.assertEqual(pathlib.Path(target).read_bytes(), b"precious")


if __name__ == "__main__":
    main()
