"""whycache guard: limits on erasing that live in the log."""

from support import CliTest, main


class GuardTest(CliTest):
    def fill(self, count):
        self.machine.ok("import", "-", stdin=b"".join(b"k%d\tv\n" % i for i in range(count)))

    def test_guards_are_printed_changed_and_removed(self):
        guards = lambda *options: self.machine.ok("guard", "--json", *options).json
        none = {"clear_allowed": True, "erased_keys_max": None, "erased_share_max": None}
        self.machine.ok("set", "a", "1")
        self.assertEqual(guards(), none | {"update_id": 1})
        self.assertEqual(
            guards("--no-clear", "--erased-share-max", "5%"),
            {"clear_allowed": False, "erased_keys_max": None, "erased_share_max": 0.05}
            | {"update_id": 2},
        )
        self.assertEqual(guards("--erased-keys-max", "7")["erased_share_max"], 0.05)
        self.assertEqual(
            self.machine.ok("guard").lines,
            ["clear             forbidden", "erased keys max   7", "erased share max  5%"],
        )
        self.assertEqual(guards("--erased-share-max", "none")["erased_share_max"], None)
        self.assertEqual(guards("--remove"), none | {"update_id": 5})
        self.assertEqual(guards("--remove")["update_id"], 5, "nothing to change")
        self.assertEqual(self.machine.ok("keys").lines, ["a"])
        for wrong in ("-1", "101%", "1.5", "x", "", "nan"):
            self.machine.fails("usage", "guard", "--erased-share-max", wrong)
        for wrong in ("-1", "1%", "x"):
            self.machine.fails("usage", "guard", "--erased-keys-max", wrong)

    def test_no_command_of_any_machine_erases_more(self):
        self.fill(10)
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("guard", "--erased-keys-max", "3", "--note", "ticket 1")
        many = [f"k{i}" for i in range(4)]
        erase_lines = "".join(f'{{"key":"{key}","erase":true}}\n' for key in many).encode()
        for command in (
            ("del", "--yes", *many),
            ("apply", "--yes", "-"),
            ("import", "--yes", "-"),
            ("import", "--yes", "--mirror", "", "-"),
            ("rewrite", "--yes", "--erase-all-but", "none"),
            ("clear", "--yes"),
        ):
            stdin = erase_lines if command[-1] == "-" else b""
            other.fails("refused", *command, stdin=stdin, expect="guards of the log")
        self.assertEqual(self.machine.ok("count", "k", "--update").text, "10")
        other.ok("del", *many[:3])
        self.assertRegex(
            self.machine.ok("log", "--key", "whycache:guards").text, r"\(whycache guard\).*ticket 1"
        )

    def test_guards_survive_clear_and_copies(self):
        self.fill(3)
        self.machine.ok("guard", "--erased-keys-max", "5")
        self.machine.ok("clear", "--yes")
        self.assertEqual(self.machine.ok("keys").lines, ["whycache:guards"])
        self.machine.fails("refused", "del", "whycache:guards", expect="guard --remove")
        self.machine.fails("usage", "set", "whycache:guards", "x", expect="reserved")
        copy = self.another_machine("copy", f"sqlite://{self.directory}/copy.db")
        copy.ok("import", "-", stdin=self.machine.ok("scan").out)
        self.assertEqual(copy.ok("guard", "--json").json["erased_keys_max"], 5)
        copy.ok("import", "--mirror", "", "--yes", "-", stdin=b"a\t1\n")
        self.assertEqual(copy.ok("keys").lines, ["a", "whycache:guards"])

    def test_no_clear_forbids_to_erase_all_keys(self):
        self.fill(3)
        self.machine.ok("guard", "--no-clear")
        self.machine.fails("refused", "clear", "--yes", expect="forbid to clear")
        self.machine.fails("refused", "del", "k0", "k1", "k2", expect="forbid to clear")
        self.machine.ok("del", "k0", "k1")
        self.machine.ok("guard", "--allow-clear")
        self.machine.ok("clear", "--yes")


if __name__ == "__main__":
    main()
