"""whycache count: how many keys a range has."""

from support import CliTest, main


class CountTest(CliTest):
    def test_prefix_and_limit_select_range(self):
        self.machine.ok("import", "-", stdin=b"a\t1\nb1\t2\nb2\t3\nb3\t4\nc\t5\n")
        self.assertEqual(self.machine.ok("count").text, "5")
        self.assertEqual(self.machine.ok("count", "b").text, "3")
        self.assertEqual(self.machine.ok("count", "b", "--limit", "2").text, "2")
        self.assertEqual(self.machine.ok("count", "--json").json, {"keys": 5, "applied_id": 1})


if __name__ == "__main__":
    main()
