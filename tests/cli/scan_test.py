"""whycache scan: items of a range, and escaping."""

from support import CliTest, main


class ScanTest(CliTest):
    def test_prefix_and_limit_select_items(self):
        self.machine.ok("import", "-", stdin=b"a\t1\nb1\tvalue of b1\nb2\t2\n")
        self.assertEqual(self.machine.ok("scan", "b", "--limit", "1").lines, ["b1\tvalue of b1"])

    def test_control_characters_are_escaped(self):
        self.machine.ok("set", b"\t\\\n\r\x1b\x7f\xc2\x9b\xff", "grün\n")
        self.assertEqual(
            self.machine.ok("scan").out, b"\\t\\\\\\n\\r\\x1b\\x7f\\xc2\\x9b\\xff\tgr\xc3\xbcn\\n\n"
        )
        self.machine.fails("usage", "scan", "--json", "--null", expect="exclude")


if __name__ == "__main__":
    main()
