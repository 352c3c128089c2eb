"""whycache clear: confirmation, and its effect on other machines."""

from support import CliTest, main


class ClearTest(CliTest):
    def filled(self, count=5):
        for i in range(1, count + 1):
            self.machine.ok("set", f"key{i % 3}", str(i))

    def test_clear_requires_yes_and_reaches_every_machine(self):
        self.filled()
        other = self.another_machine()
        other.ok("update")
        self.machine.fails("refused", "clear", expect=["3 keys", "--yes"])
        self.assertEqual(self.machine.ok("count").text, "3")
        self.assertEqual(self.machine.ok("clear", "--yes", "--json").json, {"base": 6})
        self.assertEqual(self.machine.ok("count").text, "0")
        other.ok("update")
        self.assertEqual(other.ok("count").text, "0")


if __name__ == "__main__":
    main()
