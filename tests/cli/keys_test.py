"""whycache keys: ranges and order."""

from support import CliTest, main


class KeysTest(CliTest):
    def test_prefix_bounds_and_limit_select_range(self):
        self.machine.ok("import", "-", stdin=b"a\t1\nb1\t2\nb2\t3\nb3\t4\nc\t5\n")
        self.assertEqual(self.machine.ok("keys", "b").lines, ["b1", "b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--limit", "2").lines, ["b1", "b2"])
        self.assertEqual(self.machine.ok("keys", "--from", "b2", "--to", "c").lines, ["b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--from", "b2").lines, ["b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--to", "z").lines, ["b1", "b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "zz").lines, [])
        self.machine.fails("usage", "keys", "--limit", "0", expect="--limit")
        self.machine.fails("usage", "keys", "--limit", "many", expect="--limit")

    def test_keys_are_sorted_by_bytes(self):
        keys = sorted([bytes([byte]) for byte in range(1, 256)])
        self.machine.ok("import", "--null", "-", stdin=b"".join(key + b"\0v\0" for key in keys))
        self.assertEqual(self.machine.ok("keys", "--null").out, b"\0".join(keys) + b"\0")


if __name__ == "__main__":
    main()
