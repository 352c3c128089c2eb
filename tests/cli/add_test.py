"""whycache add: sums, input that is no number, and concurrent additions."""

from support import CliTest, main


class AddTest(CliTest):
    def test_sum_is_printed_and_stored(self):
        self.assertEqual(self.machine.ok("add", "n", "5").text, "5")
        self.assertEqual(self.machine.ok("add", "n", "-7").text, "-2")
        self.assertEqual(self.machine.ok("add", "--json", "n", "+3").json, {"key": "n", "sum": 1})
        self.assertEqual(self.machine.ok("get", "n").text, "1")

    def test_wrong_numbers_write_nothing(self):
        self.machine.ok("set", "text", "abc")
        self.machine.ok("set", "most", str(2**63 - 1))
        self.machine.fails("usage", "add", "text", "1", expect="not an integer")
        self.machine.fails("limit", "add", "most", "1", expect="64 bits")
        for wrong in ("1.5", "x", "", "+-1", str(2**63)):
            self.machine.fails("usage", "add", "n", wrong, expect="not an integer")
        self.assertEqual(len(self.machine.ok("log").lines), 2)

    def test_concurrent_additions_are_all_counted(self):
        self.machine.ok("add", "n", "0")
        processes = [self.machine.start("add", "n", "1") for _ in range(8)]
        sums = {int(process.communicate()[0]) for process in processes}
        self.assertEqual(sums, set(range(1, 9)))


if __name__ == "__main__":
    main()
