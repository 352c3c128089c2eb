"""whycache set: any key, any value, and their limits."""

from support import ALL_BYTES, CliTest, main


class SetTest(CliTest):
    def test_get_returns_value_that_was_set(self):
        self.assertEqual(self.machine.ok("set", "greeting", "hello").text, "1")
        self.assertEqual(self.machine.ok("get", "greeting").out, b"hello")
        self.assertEqual(self.machine.ok("set", "greeting", "hi").text, "2")
        self.assertEqual(self.machine.ok("get", "greeting").out, b"hi")

    def test_values_are_bytes(self):
        for value in (b"", b"\n", b"a\0b", ALL_BYTES, b"\xff\xfe", b"x" * 900_000):
            self.machine.ok("set", "bytes", "-", stdin=value)
            self.assertEqual(self.machine.ok("get", "bytes").out, value)

    def test_value_is_read_from_file(self):
        self.machine.ok("set", "logo", "--file", self.file("logo.png", ALL_BYTES))
        self.assertEqual(self.machine.ok("get", "logo").out, ALL_BYTES)
        self.machine.fails(
            "usage",
            "set",
            "logo",
            "--file",
            f"{self.directory}/absent",
            expect=["absent", "No such file"],
        )
        self.machine.fails("usage", "set", "logo", "x", "--file", "y", expect="twice")
        self.machine.fails("usage", "set", "logo", expect="no value")

    def test_keys_are_bytes(self):
        for key in (b"\xff\x80", "grün".encode(), b" ", b"a\tb\nc", b"\x01", b"k" * 1024):
            self.machine.ok("set", key, "here")
            self.assertEqual(self.machine.ok("get", key).out, b"here")

    def test_keys_may_look_like_options_or_lists(self):
        for key in ("[a,b]", "[]", "{}", "%%", "++", "count", "get", "a=b", "/", "'", '"', "-5"):
            self.machine.ok("set", key, f"value of {key}")
            self.assertEqual(self.machine.ok("get", key).out.decode(), f"value of {key}")
            self.assertEqual(self.machine.ok("mget", key, "--json").json["key"], key)
        self.machine.ok("set", "--", "-dash", "-value")
        self.machine.ok("set", "--", "--", "two")
        self.assertEqual(self.machine.ok("get", "--", "-dash").out, b"-value")
        self.assertEqual(self.machine.ok("get", "--", "--").out, b"two")
        self.machine.ok("del", "[a,b]")
        self.machine.ok("del", "--", "-dash")
        self.machine.fails("not_found", "get", "[a,b]")
        self.machine.fails("not_found", "get", "--", "-dash")

    def test_note_is_stored_with_update(self):
        self.machine.ok("set", "a", "b", "--note", "ticket 4711")
        self.machine.ok("set", "a", "c", "--note=")
        first, second = self.machine.ok("log", "--json").json_lines
        self.assertEqual(first["note"], "ticket 4711")
        self.assertNotIn("note", second)
        self.machine.fails("usage", "set", "a", "b", "--note", "x" * 256, expect="255")

    def test_empty_and_oversized_keys_and_values_are_refused(self):
        self.machine.fails("usage", "set", "", "x", expect="empty")
        self.machine.fails("usage", "set", "k" * 1025, "x", expect="1024")
        self.machine.fails("usage", "del", "a", "", expect="empty")
        self.machine.fails(
            "limit",
            "set",
            "a",
            "-",
            stdin=b"x" * 1_100_000,
            expect=["value_bytes=1100000", "update_bytes_max", "next: "],
        )
        self.machine.fails("limit", "set", "a", "-", stdin=bytes(17 << 20), expect="value")
        self.machine.ok("set", "a", "-", "--update-bytes-max", "2000000", stdin=b"x" * 1_100_000)
        self.machine.fails("not_found", "get", "", expect="not found")
        self.machine.fails("not_found", "get", "k" * 2000, expect="not found")
        self.assertEqual(self.machine.ok("update").text, "1")

    def test_conditions(self):
        self.assertEqual(self.machine.ok("set", "--if-absent", "leader", "berlin").text, "1")
        other = self.another_machine()
        other.fails("conflict", "set", "--if-absent", "leader", "tokyo", expect="is present")
        other.fails("conflict", "set", "--if", "osaka", "leader", "tokyo", expect="another value")
        other.fails("conflict", "set", "--if", "osaka", "absent", "tokyo", expect="is absent")
        other.fails("usage", "set", "--if", "a", "--if-absent", "k", "v", expect="exclude")
        other.ok("set", "--if", "berlin", "leader", "tokyo")
        self.machine.fails("conflict", "set", "--if", "berlin", "leader", "berlin")
        self.assertEqual(self.machine.ok("get", "--update", "leader").out, b"tokyo")
        self.machine.ok("set", "empty", "")
        self.machine.ok("set", "--if=", "empty", "full")

    def test_writer_is_recorded(self):
        writer = lambda: self.machine.ok("log", "--last", "1", "--json").json["writer"]
        self.machine.ok("set", "a", "1")
        self.assertRegex(writer(), r"^\S+@\S+:\d+ \(whycache set\)$")
        self.machine.ok("add", "n", "1", env={"WHYCACHE_WRITER": "deploy 17"})
        self.assertEqual(writer(), "deploy 17")
        self.machine.ok("del", "a", "--writer", "maria", env={"WHYCACHE_WRITER": "deploy 17"})
        self.assertEqual(writer(), "maria")
        self.machine.fails("usage", "set", "a", "1", "--writer", "w" * 256, expect="writer_name")


if __name__ == "__main__":
    main()
