"""whycache scan, keys and count: ranges, order and escaping."""

from support import CliTest, main


class ScanTest(CliTest):
    def fill(self, *keys):
        self.machine.ok(
            "import", "-", stdin="".join(f"{key}\tvalue of {key}\n" for key in keys).encode()
        )

    def test_prefix_bounds_and_limit_select_range(self):
        self.fill("a", "b1", "b2", "b3", "c")
        self.assertEqual(self.machine.ok("keys", "b").lines, ["b1", "b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--limit", "2").lines, ["b1", "b2"])
        self.assertEqual(self.machine.ok("keys", "--from", "b2", "--to", "c").lines, ["b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--from", "b2").lines, ["b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--to", "z").lines, ["b1", "b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "zz").lines, [])
        self.assertEqual(self.machine.ok("scan", "b", "--limit", "1").lines, ["b1\tvalue of b1"])
        self.assertEqual(self.machine.ok("count").text, "5")
        self.assertEqual(self.machine.ok("count", "b").text, "3")
        self.assertEqual(self.machine.ok("count", "b", "--limit", "2").text, "2")
        self.assertEqual(self.machine.ok("count", "--json").json, {"keys": 5, "applied_id": 1})
        self.machine.fails("usage", "keys", "--limit", "0", expect="--limit")
        self.machine.fails("usage", "keys", "--limit", "many", expect="--limit")

    def test_keys_are_sorted_by_bytes(self):
        keys = sorted([bytes([byte]) for byte in range(1, 256)])
        for null, separator in (("--null", b"\0"),):
            self.machine.ok("import", null, "-", stdin=b"".join(key + b"\0v\0" for key in keys))
            self.assertEqual(self.machine.ok("keys", null).out, separator.join(keys) + separator)

    def test_control_characters_are_escaped(self):
        self.machine.ok("set", b"\t\\\n\r\x1b\x7f\xc2\x9b\xff", "grün\n")
        self.assertEqual(
            self.machine.ok("scan").out, b"\\t\\\\\\n\\r\\x1b\\x7f\\xc2\\x9b\\xff\tgr\xc3\xbcn\\n\n"
        )
        self.machine.fails("usage", "scan", "--json", "--null", expect="exclude")


if __name__ == "__main__":
    main()
