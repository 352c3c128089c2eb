"""whycache log: listing, JSON and damaged updates."""

from support import CliTest, main


class LogCommandTest(CliTest):
    def test_updates_are_listed(self):
        self.machine.ok("set", "a", "1", "--note", "first")
        self.machine.ok("import", "-", stdin=b"".join(b"k%d\tv\n" % i for i in range(8)))
        self.machine.ok("del", "a")
        first, second, third = self.machine.ok("log").lines
        self.assertRegex(
            first, r'^ +1  20\d\d-\d\d-\d\dT[\d:.]+Z  \S+ \(.*\)  1 change  "first"  set a$'
        )
        self.assertRegex(second, r"8 changes  set k0, set k1, set k2, set k3, set k4, 3 more$")
        self.assertRegex(third, r"1 change  erase a$")
        self.assertIn("set k7", self.machine.ok("log", "--all-keys").out.decode())

    def test_options_select_range_of_ids(self):
        for i in range(1, 6):
            self.machine.ok("set", "a", str(i))
        ids = lambda *options: [
            update["id"] for update in self.machine.ok("log", "--json", *options).json_lines
        ]
        self.assertEqual(ids(), [1, 2, 3, 4, 5])
        self.assertEqual(ids("--last", "2"), [4, 5])
        self.assertEqual(ids("--last", "100"), [1, 2, 3, 4, 5])
        self.assertEqual(ids("--from", "2", "--to", "3"), [2, 3])
        self.assertEqual(ids("--from", "6"), [])
        self.machine.ok("rewrite", "--limit", "3", "--yes")
        self.assertEqual(ids(), [4, 5])
        self.assertIn("rewritten", self.machine.ok("log").err)

    def test_json_has_changes_and_values(self):
        self.machine.ok("set", b"\xff", "-", stdin=b"\x00\xfe")
        (update,) = self.machine.ok("log", "--json", "--values").json_lines
        self.assertEqual(
            update["changes"],
            [{"kind": "set", "key_base64": "/w==", "value_bytes": 2, "value_base64": "AP4="}],
        )
        self.assertEqual(
            (update["id"], update["writer_sequence"], update["erases_all"]), (1, 1, False)
        )
        self.assertRegex(update["writer"], r".+:\d+")
        self.assertEqual(
            self.machine.ok("log", "--values").lines[1], "          set \\xff\t\\x00\\xfe"
        )

    def test_needs_no_state(self):
        self.machine.ok("set", "a", "1")
        self.assertEqual(
            len(self.machine.ok("log", env={"WHYCACHE_STATE": "/nonexistent/x"}).lines), 1
        )
        self.machine.fails("usage", "log", env={"WHYCACHE_LOG": None}, expect="--log")

    def test_damage_is_reported_beside_other_updates(self):
        for i in range(1, 6):
            self.machine.ok("set", "a", str(i))
        self.sql("UPDATE whycache_updates_default SET bytes = x'00' WHERE id = 2")
        self.sql("DELETE FROM whycache_updates_default WHERE id = 4")
        result = self.machine.fails(
            "corrupt",
            "log",
            "--json",
            expect=["update is damaged: id=2", "missing", "first=4 last=4"],
        )
        self.assertEqual([update["id"] for update in result.json_lines], [1, 3, 5])


if __name__ == "__main__":
    main()
