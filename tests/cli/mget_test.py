"""whycache mget: keys from arguments and from standard input."""

from support import CliTest, main


class MgetTest(CliTest):
    def fill(self, *keys):
        self.machine.ok(
            "import", "-", stdin="".join(f"{key}\tvalue of {key}\n" for key in keys).encode()
        )

    def test_items_are_printed_in_order_of_keys_given(self):
        self.fill("a", "b", "c")
        self.assertEqual(
            self.machine.ok("mget", "c", "a").lines, ["c\tvalue of c", "a\tvalue of a"]
        )
        self.assertEqual(self.machine.ok("mget", "--null", "b").out, b"b\0value of b\0")
        self.assertEqual(
            self.machine.ok("mget", "-", stdin=b"b\nc\n").lines, ["b\tvalue of b", "c\tvalue of c"]
        )
        self.assertEqual(self.machine.ok("mget", stdin=b"b").lines, ["b\tvalue of b"])

    def test_absent_keys_are_reported(self):
        self.fill("a")
        result = self.machine.fails("not_found", "mget", "a", "x", "y", expect="2 of 3")
        self.assertEqual(result.lines, ["a\tvalue of a"])
        result = self.machine.run("mget", "x", "a", "--json")
        self.assertEqual(
            result.json_lines, [{"key": "x", "value": None}, {"key": "a", "value": "value of a"}]
        )

    def test_input_keys_are_escaped_raw_or_null_separated(self):
        key = b"a\tb\\\n\xff"
        self.machine.ok("set", key, "here")
        self.assertEqual(
            self.machine.ok("mget", "-", stdin=b"a\\tb\\\\\\n\\xff\n").out,
            b"a\\tb\\\\\\n\\xff\there\n",
        )
        self.assertEqual(
            self.machine.ok("mget", "--null", "-", stdin=key + b"\0").out, key + b"\0here\0"
        )
        self.machine.ok("set", "back\\slash", "here")
        self.assertEqual(
            self.machine.ok("mget", "--raw", "-", stdin=b"back\\slash\n").out,
            b"back\\\\slash\there\n",
        )
        self.machine.fails(
            "usage", "mget", "-", stdin=b"a\nback\\slash\n", expect=["line=2", "--raw"]
        )
        self.machine.fails("usage", "mget", "-", stdin=b"a\n\n", expect=["line=2", "empty"])
        self.machine.fails("usage", "mget", "-", stdin=b"k" * 1025, expect=["line=1", "1024"])
        self.machine.fails("usage", "mget", "-", stdin=b"a\n" + b"k" * 10_000, expect="line=2")


if __name__ == "__main__":
    main()
