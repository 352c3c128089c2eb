"""whycache check: state against log, each with damage."""

import os
import pathlib
import random
import shutil

from support import EXIT, CliTest, main


class CheckTest(CliTest):
    def filled(self):
        for i in range(1, 6):
            self.machine.ok("set", f"key{i}", str(i))
        return self.machine

    def results(self, machine=None, *arguments, **options):
        result = (machine or self.machine).run("check", "--json", *arguments, **options)
        return result.code, {line["check"]: line["result"] for line in result.json_lines}

    def test_undamaged_state_and_log_pass(self):
        self.filled()
        self.assertEqual(
            self.results(),
            (
                0,
                {
                    "state": "ok",
                    "log": "ok",
                    "uuid": "ok",
                    "chain": "ok",
                    "items": "ok",
                    "digest": "ok",
                },
            ),
        )
        self.machine.ok("rewrite", "--limit", "3", "--yes")
        self.assertEqual(self.results()[1]["base"], "ok")
        self.machine.ok("clear", "--yes")
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.results()[0], 0)
        text = self.machine.ok("check").out.decode()
        self.assertIn("of state and log are equal at update", text)

    def test_rewritten_and_erased_keys_pass(self):
        generator = random.Random(7)
        for _ in range(40):
            key = f"k{generator.randrange(8)}"
            self.machine.ok(
                *(
                    ("del", key)
                    if generator.random() < 0.3
                    else ("set", key, str(generator.random()))
                )
            )
        self.assertEqual(self.results()[0], 0)

    def test_lagging_state_is_compared_at_its_id(self):
        self.filled()
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("set", "more", "1")
        self.assertEqual(self.results(other)[0], 0)
        self.machine.ok("rewrite", "--yes")
        self.assertEqual(self.results(other)[0], EXIT["stale"])

    def test_broken_chain_is_found(self):
        self.filled()
        (row,) = self.sql("SELECT bytes FROM whycache_updates_default WHERE id = 3")
        edited = bytearray(row[0])
        edited[-1] ^= 1
        self.sql("UPDATE whycache_updates_default SET bytes = ? WHERE id = 3", bytes(edited))
        self.machine.fails("corrupt", "check", expect="next: ")
        self.assertEqual(self.results()[1], {"state": "ok", "log": "BAD"})
        new = self.another_machine("new")
        new.fails("corrupt", "update", expect=["id=3"])
        new.fails("corrupt", "get", "key1")

    def test_missing_id_is_found(self):
        self.filled()
        self.sql("DELETE FROM whycache_updates_default WHERE id = 3")
        self.assertRegex(
            self.machine.fails("corrupt", "check").out.decode(),
            "BAD +log +update is missing .* id=3 ",
        )
        self.another_machine("new").fails("corrupt", "update", expect="id=3")

    def test_edited_base_is_found(self):
        self.filled().ok("rewrite", "--yes")
        ((token, number, part),) = self.sql(
            "SELECT token, number, bytes FROM whycache_parts_default"
        )
        edited = bytearray(part)
        edited[len(edited) // 2] ^= 1
        self.sql("UPDATE whycache_parts_default SET bytes = ?", bytes(edited))
        self.assertEqual(self.results()[1]["log"], "BAD")
        self.another_machine("new").fails("corrupt", "update", expect="base")

    def test_damaged_state_is_found(self):
        self.filled()
        content = bytearray(pathlib.Path(self.machine.state).read_bytes())
        at = content.rindex(b"key4")
        content[at : at + 4] = b"kex4"
        pathlib.Path(self.machine.state).write_bytes(content)
        self.assertEqual(self.results()[1]["state"], "BAD")
        self.machine.fails("corrupt", "check", expect="remove the file")
        os.remove(self.machine.state)
        self.machine.ok("update")
        self.assertEqual(self.results()[0], 0)

    def test_state_is_checked_without_log(self):
        self.filled()
        self.assertEqual(
            self.results(env={"WHYCACHE_LOG": None}), (0, {"state": "ok", "log": "skipped"})
        )

    def test_log_without_state_is_checked_alone(self):
        self.filled().ok("rewrite", "--limit", "2", "--yes")
        backup = f"{self.directory}/backup.db"
        shutil.copy(self.database, backup)
        for log in (f"sqlite://{backup}", self.log):
            machine = self.another_machine("absent", log)
            before = sorted(os.listdir(self.directory))
            self.assertEqual(
                self.results(machine), (0, {"state": "skipped", "base": "ok", "log": "ok"})
            )
            text = machine.ok("check").out.decode()
            self.assertIn(f"there is none on this machine: path={machine.state}", text)
            self.assertEqual(sorted(os.listdir(self.directory)), before)

    def test_absent_default_directory_is_not_created(self):
        self.filled()
        directory = f"{self.directory}/default"
        environment = {"WHYCACHE_STATE": None, "STATE_DIRECTORY": directory}
        self.assertEqual(self.results(env=environment), (0, {"state": "skipped", "log": "ok"}))
        self.machine.fails("usage", "inspect", env=environment, expect="there is no state file")
        self.assertFalse(os.path.exists(directory))

    def test_damaged_log_without_state_is_found(self):
        self.filled()
        self.sql("DELETE FROM whycache_updates_default WHERE id = 3")
        machine = self.another_machine("absent")
        machine.fails("corrupt", "check")
        self.assertEqual(self.results(machine)[1], {"state": "skipped", "log": "BAD"})

    def test_absent_log_is_reported_and_not_created(self):
        before = os.listdir(self.directory)
        for log in (f"sqlite://{self.directory}/no.db", f"file://{self.directory}/no"):
            self.another_machine("absent", log).fails("usage", "check", expect="log does not exist")
        self.machine.fails(
            "usage", "check", env={"WHYCACHE_LOG": None}, expect="there is no state file"
        )
        self.assertEqual(os.listdir(self.directory), before)

    def test_copied_state_is_checked_and_unchanged(self):
        self.filled()
        copy = self.another_machine("copy")
        shutil.copy(self.machine.state, copy.state)
        os.chmod(copy.state, 0o400)
        content = pathlib.Path(copy.state).read_bytes()
        before = sorted(os.listdir(self.directory))
        alone = {"WHYCACHE_LOG": None}
        self.assertEqual(self.results(copy, env=alone), (0, {"state": "ok", "log": "skipped"}))
        self.assertEqual(self.results(copy)[1]["digest"], "ok")
        self.assertEqual(pathlib.Path(copy.state).read_bytes(), content)

        at = content.rindex(b"key4")
        damaged = content[:at] + b"kex4" + content[at + 4 :]
        being_written = content[:592] + b"\1" + content[593:]  # docs/formats/state.md
        for wrong in (damaged, being_written, content[: len(content) // 2]):
            pathlib.Path(copy.state).write_bytes(wrong)
            self.assertEqual(self.results(copy, env=alone)[1]["state"], "BAD")
            self.assertEqual(pathlib.Path(copy.state).read_bytes(), wrong)
        self.assertEqual(sorted(os.listdir(self.directory)), before)

    def test_missing_update_of_file_log_is_found(self):
        log = f"file://{self.directory}/log"
        os.mkdir(f"{self.directory}/log")
        machine = self.another_machine("filed", log)
        for i in range(5):
            machine.ok("set", f"key{i}", str(i))
        machine.ok("rewrite", "--limit", "2", "--yes")
        machine.ok("check")
        (update,) = pathlib.Path(self.directory).glob("log/*/updates/*4")
        update.unlink()
        machine.fails("corrupt", "check")
        self.another_machine("new", log).fails("corrupt", "update", expect="4")


if __name__ == "__main__":
    main()
