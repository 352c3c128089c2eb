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

    def test_condition_on_value(self):
        self.fill("a", "b")
        self.machine.fails("conflict", "del", "a", "--if", "other", expect="has another value")
        self.machine.fails("conflict", "del", "absent", "--if", "x", expect="is absent")
        self.machine.fails("usage", "del", "a", "b", "--if", "value of a", expect="keys=2")
        self.assertEqual(self.machine.ok("keys").lines, ["a", "b"])
        self.assertEqual(self.machine.ok("del", "a", "--if", "value of a").text, "2")
        self.assertEqual(self.machine.ok("keys").lines, ["b"])

    def test_many_keys_need_yes(self):
        keys = [f"k{i:04}" for i in range(1500)]
        self.fill(*keys)
        lines = "\n".join(keys).encode()
        self.machine.fails(
            "refused", "del", "-", stdin=lines, expect=["1,500 of 1,500 keys (100%)", "--yes"]
        )
        self.machine.fails(
            "refused", "del", "--yes", "--erase-max", "9", "-", stdin=lines, expect="--erase-max 9"
        )
        self.assertEqual(self.machine.ok("count").text, "1500")
        few = "\n".join(keys[:1000]).encode()
        self.assertEqual(self.machine.ok("del", "-", stdin=few).text, "2", "one update")
        absent = "\n".join(f"absent{i}" for i in range(1500)).encode()
        self.machine.ok("del", "-", stdin=absent)
        self.machine.fails("refused", "del", *keys[1000:1003], "--erase-max", "2")
        self.machine.ok("del", *keys[1000:1003], "--erase-max", "3")
        self.assertEqual(self.machine.ok("count").text, "497")

    def test_line_that_is_no_key_erases_nothing(self):
        self.fill("a", "b")
        self.machine.fails("usage", "del", "-", stdin=b"a\n\nb\n", expect=["line=2", "nothing"])
        self.assertEqual(self.machine.ok("count").text, "2")

    def test_mistyped_option_is_not_a_key(self):
        self.machine.fails("usage", "del", "--jsno", "a", expect="--jsno")
        self.machine.fails("usage", "mget", "a", "-x", expect="-x")


if __name__ == "__main__":
    main()
