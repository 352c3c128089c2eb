"""whycache import-original: the log of the original program (docs/formats/original.md)."""

import pathlib
import pickle
import struct

from support import CliTest, main


def update_of(**items):
    parts = [struct.pack(">L", len(items))]
    for key, value in items.items():
        stored = pickle.dumps(value)
        parts.append(struct.pack(">QQ", len(key), len(stored)) + key.encode() + stored)
    return b"".join(parts)


class ImportOriginalTest(CliTest):
    def source(self, *updates):
        directory = pathlib.Path(self.directory) / "original"
        directory.mkdir(exist_ok=True)
        for number, update in enumerate(updates, 1):
            (directory / f"{number}.bin").write_bytes(update)
        (directory / "latest.repr").write_text(str(len(updates)))
        return f"file://{directory}"

    def test_items_become_typed_values(self):
        source = self.source(update_of(a=1, b=b"yes"), update_of(a=(1, {2})))
        dry = self.machine.ok("import-original", "--dry-run", "--json", source).json
        self.assertEqual(dry, {"items": 2, "updates_read": 2, "skipped": 0, "dry_run": True})
        done = self.machine.ok(
            "import-original", "--json", "--writer", "mover", "--note", "ticket 1", source
        ).json
        self.assertEqual(done["last_update_id"], 1)
        update = self.machine.ok("log", "--json").json_lines[0]
        self.assertEqual((update["writer"], update["note"]), ("mover", "ticket 1"))
        self.assertEqual(
            self.machine.ok("scan", "--json").json_lines,
            [
                {"key": "a", "value": {"$tuple": [1, {"$set": [2]}]}, "typed": True},
                {"key": "b", "value": "yes"},
            ],
        )

    def test_log_that_has_keys_is_refused(self):
        source = self.source(update_of(a=1))
        self.machine.ok("set", "key", "value")
        self.machine.fails("refused", "import-original", source, expect=["1 keys", "--yes"])
        self.machine.ok("import-original", "--yes", source)
        self.assertEqual(self.machine.ok("keys").lines, ["a", "key"])

    def test_values_of_other_classes_are_refused_or_skipped(self):
        source = self.source(update_of(good=1, bad=pathlib.Path("/")))
        self.machine.fails("usage", "import-original", source, expect=["keys=1", "pathlib"])
        self.machine.fails("usage", "count", expect="does not exist")  # and no log was created
        skipped = self.machine.ok("import-original", "--skip-unsupported", source)
        self.assertIn("skipped: key=bad", skipped.err)
        self.assertEqual(self.machine.ok("keys").lines, ["good"])

    def test_unusable_sources_are_reported(self):
        damaged = self.source(b"\0\0\0\1")
        self.machine.fails("corrupt", "import-original", damaged, expect="update 1")
        self.machine.fails("usage", "import-original", f"file://{self.directory}/absent")
        self.machine.fails("usage", "import-original", f"file://{self.directory}",
                           expect="no log of the original program")
        self.machine.fails("unreachable", "import-original", "mysql://user@127.0.0.1:1/db")


if __name__ == "__main__":
    main()
