"""whycache del: one update for many keys."""

from support import CliTest, main


class DelTest(CliTest):
    def fill(self, *keys):
        self.machine.ok(
            "import", "-", stdin="".join(f"{key}\tvalue of {key}\n" for key in keys).encode()
        )

    def test_erased_keys_disappear_on_every_machine(self):
        self.fill("a", "b", "c", "d")
        other = self.another_machine()
        other.ok("update")
        self.assertEqual(self.machine.ok("del", "a", "b").text, "2", "one update")
        self.assertEqual(self.machine.ok("del", "absent").text, "3")
        self.assertEqual(self.machine.ok("keys").lines, ["c", "d"])
        other.ok("update")
        self.assertEqual(other.ok("keys").lines, ["c", "d"])

    def test_input_accepts_output_of_keys(self):
        odd = [b"s.\xff\n", b"s.\\", b"s.\t", "s.ü".encode()]
        for key in odd:
            self.machine.ok("set", key, "x")
        self.machine.ok("set", "t", "stays")
        self.machine.ok("del", "-", stdin=self.machine.ok("keys", "s.").out)
        self.assertEqual(self.machine.ok("keys").lines, ["t"])
        for key in odd:
            self.machine.ok("set", key, "x")
        result = self.machine.ok(
            "del", "--null", "--json", "-", stdin=self.machine.ok("keys", "--null", "s.").out
        )
        self.assertEqual(result.json["keys"], 4)
        self.assertEqual(self.machine.ok("keys").lines, ["t"])

    def test_mistyped_option_is_not_a_key(self):
        self.machine.fails("usage", "del", "--jsno", "a", expect="--jsno")
        self.machine.fails("usage", "mget", "a", "-x", expect="-x")


if __name__ == "__main__":
    main()
