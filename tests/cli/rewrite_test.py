"""whycache rewrite: what it keeps, confirmation and interruption."""

import random
import time

from support import CliTest, main


class RewriteTest(CliTest):
    def filled(self, count=5):
        for i in range(1, count + 1):
            self.machine.ok("set", f"key{i % 3}", str(i))

    def test_rewrite_requires_yes(self):
        self.filled()
        self.machine.fails("refused", "rewrite", expect=["updates 1..5", "--yes"])
        self.assertEqual(len(self.machine.ok("log").lines), 5)

    def test_rewrite_replaces_updates_and_keeps_items(self):
        self.filled()
        before = self.machine.ok("scan").out
        self.assertEqual(self.machine.ok("rewrite", "--yes").text, "5")
        self.assertEqual(self.machine.ok("log").lines, [])
        self.assertEqual(self.machine.ok("scan").out, before)
        self.assertEqual(self.another_machine("new").ok("scan").out, before)
        self.assertEqual(self.machine.ok("set", "a", "1").text, "6")

    def test_limit_keeps_newer_updates(self):
        self.filled()
        self.assertEqual(
            self.machine.ok("rewrite", "--limit", "2", "--yes", "--json").json,
            {"base": 2, "base_before": 0, "head": 5},
        )
        self.assertEqual(
            self.machine.ok("rewrite", "--limit", "2").text,
            "2",
            "no confirmation is needed if nothing is lost",
        )
        self.assertEqual(len(self.machine.ok("log").lines), 3, "later updates are kept")
        self.machine.fails(
            "usage", "rewrite", "--limit", "6", "--yes", expect=["limit=6", "head=5"]
        )
        self.machine.fails(
            "conflict", "rewrite", "--limit", "1", "--yes", expect=["limit=1", "base=2"]
        )
        self.assertEqual(self.machine.ok("rewrite", "--keep-last", "1", "--yes").text, "4")
        self.assertEqual(self.machine.ok("rewrite", "--keep-last", "100", "--yes").text, "4")
        self.machine.fails("usage", "rewrite", "--keep-last", "1", "--limit", "5", expect="exclude")

    def test_erase_all_but_erases_other_keys_on_every_machine(self):
        for key in ("user.a", "user.b", "flag.a", "tmp.a", "tmp.b"):
            self.machine.ok("set", key, "1")
        other = self.another_machine()
        other.ok("update")
        erase = ("rewrite", "--erase-all-but", "user.")
        self.machine.fails("refused", *erase, expect="3 of 5 keys (60%)")
        self.machine.fails(
            "refused", *erase, "--yes", "--erase-max", "2", expect="more than --erase-max 2"
        )
        self.machine.fails(
            "usage", "rewrite", "--keep-prefix", "user.", "--yes", expect="--erase-all-but user."
        )
        # The history is lost besides the keys, so --erase-max alone is no consent.
        refused = self.machine.fails("refused", *erase, "--erase-all-but", "flag.")
        self.assertIn("next: add --yes to proceed; --erase-max 2 besides it", refused.err)
        refused = self.machine.fails("refused", *erase, "--erase-all-but", "flag.",
                                     "--erase-max", "1", expect="2 of 5 keys (40%)")
        self.assertIn("next: raise --erase-max if it is meant, and add --yes", refused.err)
        refused = self.machine.fails("refused", *erase, "--erase-all-but", "flag.",
                                     "--erase-max", "2", expect="2 of 5 keys (40%)")
        self.assertIn("next: add --yes to proceed", refused.err)
        self.machine.ok(*erase, "--erase-all-but", "flag.", "--yes", "--erase-max", "2")
        other.ok("update")
        for machine in (self.machine, other, self.another_machine("new")):
            self.assertEqual(machine.ok("keys").lines, ["flag.a", "user.a", "user.b"])

    def test_log_says_who_rewrote_it_and_when(self):
        self.filled()
        base = lambda: self.machine.ok("log", "--base", "--json").json
        self.assertEqual(base(), {"base": 0, "time": None, "writer": None})
        self.machine.ok("rewrite", "--yes", "--note", "ticket 4711", "--limit", "3")
        found = base()
        self.assertEqual((found["base"], found["note"]), (3, "ticket 4711"))
        self.assertRegex(found["writer"], r"^\S+@\S+:\d+ \(whycache rewrite\)$")
        self.assertRegex(found["time"], r"^20\d\d-")
        self.assertIn("(whycache rewrite)", self.machine.ok("log").err)
        self.machine.ok("clear", "--yes", "--writer", "maria")
        found = base()
        self.assertEqual((found["base"], found["writer"]), (6, "maria"))
        self.assertIn("by maria at 20", self.machine.ok("log").err)

    def test_machine_behind_base_rebuilds(self):
        self.filled()
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("del", "key1")
        self.machine.ok("rewrite", "--yes")
        self.machine.ok("set", "later", "1")
        result = other.ok("update")
        self.assertEqual(result.text, "7")
        self.assertIn("rebuilt", result.err)
        self.assertEqual(other.ok("scan").out, self.machine.ok("scan").out)

    def test_interrupted_rewrite_can_be_repeated(self):
        lines = b"".join(b"key%05d\t%s\n" % (i, b"x" * 200) for i in range(20_000))
        self.machine.ok("import", "-", stdin=lines)
        before = self.machine.ok("status", "--json").json["digest"]
        generator = random.Random(11)
        for i in range(8):
            process = self.machine.start("rewrite", "--yes")
            time.sleep(generator.random() * 0.3)
            process.kill()
            process.wait()
            head = int(self.machine.ok("set", "beat", str(i)).text)
            self.assertEqual(self.another_machine(f"new{i}").ok("update").text, str(head))
            self.assertEqual(self.machine.ok("check").code, 0)
        self.machine.ok("rewrite", "--yes")
        self.machine.ok("del", "beat")
        self.assertEqual(self.machine.ok("status", "--json").json["digest"], before)
        self.assertEqual(self.sql("SELECT count(*) FROM whycache_updates_default"), [(1,)])


if __name__ == "__main__":
    main()
