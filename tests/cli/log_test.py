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
        self.assertRegex(update["writer"], r"\S+@\S+:\d+ \(whycache set\)")
        self.assertEqual(
            self.machine.ok("log", "--values").lines[1], "          set \\xff\t\\x00\\xfe"
        )

    def test_keys_and_prefixes_select_changes(self):
        self.machine.ok("import", "-", stdin=b"a\t1\nab\t2\nb\t3\n")
        self.machine.ok("set", "b", "4")
        self.machine.ok("del", "ab")
        changes = lambda *options: [
            (update["id"], update["change_count"], [change["key"] for change in update["changes"]])
            for update in self.machine.ok("log", "--json", *options).json_lines
        ]
        self.assertEqual(changes("--key", "ab"), [(1, 3, ["ab"]), (3, 1, ["ab"])])
        self.assertEqual(changes("--prefix", "a"), [(1, 3, ["a", "ab"]), (3, 1, ["ab"])])
        self.assertEqual(changes("--key", "a", "--key", "b"), [(1, 3, ["a", "b"]), (2, 1, ["b"])])
        self.assertEqual(changes("--key", "none"), [])
        line = self.machine.ok("log", "--key", "b").lines[0]
        self.assertRegex(line, r"3 changes  set b, 2 more$")

    def test_times_select_updates(self):
        for i in range(1, 6):
            self.machine.ok("set", "a", str(i))
        all_updates = self.machine.ok("log", "--json").json_lines
        ids = lambda *options: [
            update["id"] for update in self.machine.ok("log", "--json", *options).json_lines
        ]
        third = all_updates[2]["time"]
        self.assertEqual(ids("--since", third), [3, 4, 5])
        self.assertEqual(ids("--until", third), [1, 2, 3])
        self.assertEqual(ids("--since", third, "--until", third), [3])
        self.assertEqual(ids("--since", "1h"), [1, 2, 3, 4, 5])
        self.assertEqual(ids("--until", "1h"), [])
        self.assertEqual(ids("--since", "2100-01-01"), [])
        self.assertEqual(ids("--since", "2100-01-01 00:00:00+01:00"), [])
        for wrong in ("yesterday", "2026-13-01", "2026-02-30", "2026-01-01T", "2026-01-01T25:00"):
            self.machine.fails("usage", "log", "--since", wrong, expect=wrong)

    def test_since_reads_few_updates(self):
        """Of 3,000 updates with times an hour apart, damaged ones before the range are not read."""
        self.machine.ok("set", "a", "1")
        (bytes_of_first,) = self.sql("SELECT bytes FROM whycache_updates_default")[0]
        # Version, flags, id, chain, size of the fields, tag, size: then the time.
        time = int.from_bytes(bytes_of_first[21:29], "little")
        for i in range(2, 3001):
            of_id = bytearray(bytes_of_first)
            of_id[2:10] = i.to_bytes(8, "little")
            of_id[21:29] = (time + i * 3_600_000_000).to_bytes(8, "little")
            self.sql("INSERT INTO whycache_updates_default VALUES (?, ?)", i, bytes(of_id))
        self.sql("UPDATE whycache_updates_default SET bytes = x'00' WHERE id = 7")
        last = self.machine.ok("log", "--json", "--last", "10").json_lines[0]
        found = self.machine.ok("log", "--json", "--since", last["time"]).json_lines
        self.assertEqual([update["id"] for update in found], list(range(2991, 3001)))

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
