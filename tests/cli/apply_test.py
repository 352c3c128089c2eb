"""whycache apply: atomic changes."""

from support import CliTest, main


class ApplyTest(CliTest):
    CHANGES = b'{"key":"a","value":"1"}\n{"key":"b","erase":true}\n{"key":"c","value":""}\n'

    def test_changes_are_one_update(self):
        self.machine.ok("set", "b", "old")
        self.assertEqual(self.machine.ok("apply", "-", stdin=self.CHANGES).text, "2")
        self.assertEqual(self.machine.ok("scan").out, b"a\t1\nc\t\n")
        self.assertEqual(
            self.machine.ok("apply", "--json", "-", stdin=self.CHANGES).json,
            {"update_id": 3, "items": 2, "erased": 1},
        )
        self.assertEqual(
            self.machine.ok("apply", "--skip-equal", "-", stdin=self.CHANGES).text,
            "3",
            "nothing is left to change",
        )
        more = self.CHANGES + b'{"key":"d","value":"4"}'
        self.machine.ok("apply", "--skip-equal", "-", stdin=more)
        last = self.machine.ok("log", "--last", "1", "--json").json
        self.assertEqual([change["key"] for change in last["changes"]], ["d"])

    def test_bad_or_too_large_input_writes_nothing(self):
        self.machine.fails("usage", "apply", "-", stdin=self.CHANGES + b"{", expect="line=4")
        large = b"".join(b"k%d\t%s\n" % (i, b"x" * 1000) for i in range(1100))
        self.machine.fails("limit", "apply", "-", stdin=large, expect="one update")
        self.machine.ok("apply", "--update-bytes-max", "2000000", "-", stdin=large)
        self.assertEqual(len(self.machine.ok("log").lines), 1)

    def test_many_erases_need_yes(self):
        keys = [f"k{i}" for i in range(1200)]
        self.machine.ok("import", "-", stdin="".join(f"{key}\tv\n" for key in keys).encode())
        erases = "".join(f'{{"key":"{key}","erase":true}}\n' for key in keys).encode()
        self.machine.fails("refused", "apply", "-", stdin=erases, expect="1,200 of 1,200 keys")
        self.machine.ok("apply", "--yes", "-", stdin=erases)
        self.assertEqual(self.machine.ok("count").text, "0")


if __name__ == "__main__":
    main()
