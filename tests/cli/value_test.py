"""Typed values: printed and written as JSON, and kept exactly (docs/formats/value.md)."""

import base64
import json
import pathlib

from support import CliTest, main

VECTORS = pathlib.Path(__file__).parents[2] / "docs/formats/vectors/value.json"


class ValueTest(CliTest):
    def stored(self, key):
        return self.machine.ok("get", "--raw-bytes", key).out

    def test_vectors_are_printed_and_written(self):
        vectors = json.loads(VECTORS.read_text())["values"]
        vectors = [vector for vector in vectors if vector.get("canonical", True)]
        lines = "".join(
            json.dumps({"key": vector["name"], "value": vector["json"], "typed": True}) + "\n"
            for vector in vectors
        )
        self.machine.ok("import", "-", stdin=lines.encode())
        scanned = self.machine.ok("scan", "--json").json_lines
        raw = self.machine.ok("scan", "--json", "--raw-bytes").json_lines
        self.assertEqual(len(scanned), len(vectors))
        by_name = {vector["name"]: vector for vector in vectors}
        for item, stored in zip(scanned, raw, strict=True):
            vector = by_name[item["key"]]
            with self.subTest(vector["name"]):
                self.assertIs(item["typed"], True)
                self.assertNotIn("typed", stored)
                self.assertEqual(json.dumps(item["value"]), json.dumps(vector["json"]))
                found = base64.b64decode(stored["value_base64"])
                self.assertEqual(found.hex(), vector["bytes"])

    def test_stored_vectors_are_printed(self):
        vectors = json.loads(VECTORS.read_text())
        lines = [
            json.dumps(
                {
                    "key": vector["name"],
                    "value_base64": base64.b64encode(bytes.fromhex(vector["bytes"])).decode(),
                }
            )
            for vector in vectors["values"] + vectors["refused"]
        ]
        self.machine.ok("import", "-", stdin="\n".join(lines).encode())
        items = {item["key"]: item for item in self.machine.ok("scan", "--json").json_lines}
        for vector in vectors["values"]:
            with self.subTest(vector["name"]):
                item = items[vector["name"]]
                self.assertEqual(json.dumps(item["value"]), json.dumps(vector["json"]))
        for vector in vectors["refused"]:
            with self.subTest(vector["name"]):
                item = items[vector["name"]]
                self.assertNotIn("typed", item)
                self.assertIn("typed value", item["undecodable"])
                self.assertEqual(
                    base64.b64decode(item["value_base64"]).hex(), vector["bytes"]
                )

    def test_set_writes_each_type(self):
        for kind, text, stored in (
            ("json", '{"a":[1,2.5,null]}', "81a1619301cb4004000000000000c0"),
            ("str", "yes", "a3796573"),
            ("int", "-1", "ff"),
            ("int", "18446744073709551616", "c70901010000000000000000"),
            ("int", "0x10", "10"),
            ("float", "1", "cb3ff0000000000000"),
            ("float", "nan", "cb7ff8000000000000"),
            ("bool", "true", "c3"),
            ("decimal", "1.50", "d609312e3530"),
            ("date", "2024-02-29", "d60607e8021d"),
            ("time", "12:00", "c706070c0000000000"),
            ("datetime", "2024-02-29 12:00:00Z", "c7130507e8021d0c00000000000" + "1" + "0" * 16),
            ("timedelta", "90s", "c70c08000000000000005a00000000"),
            ("timedelta", "-0.5s", "c70c08ffffffff0001517f0007a120"),
            ("uuid", "00112233-4455-6677-8899-AABBCCDDEEFF",
             "d80a00112233445566778899aabbccddeeff"),
        ):
            with self.subTest(kind, text=text):
                self.machine.ok("set", "--type", kind, "--", "key", text)
                self.assertEqual(self.stored("key").hex(), "c101" + stored)
        self.machine.ok("set", "--type", "bytes", "key", "yes")
        self.assertEqual(self.stored("key"), b"yes")
        self.machine.ok("set", "--type", "bytes", "key", "-", stdin=b"\xc1\x01\n")
        self.assertEqual(self.stored("key").hex(), "c101c403c1010a")
        self.machine.ok("set", "--type", "json", "key", "-", stdin=b"[1]\n")
        self.assertEqual(self.machine.ok("get", "key").out, b"[1]\n")
        self.machine.ok("set", "--type", "str", "key", "-", stdin=b"a\n")
        self.assertEqual(self.machine.ok("get", "key").out, b'"a\\n"\n')

    def test_what_is_no_value_is_refused(self):
        for kind, text in (
            ("json", "{"),
            ("json", '{"a":1,"a":2}'),
            ("json", '{"$nope":1}'),
            ("json", '{"$set":1}'),
            ("json", '{"$set":[[]]}'),
            ("json", '{"$dict":[[1]]}'),
            ("json", '{"$int":"1","b":2}'),
            ("json", "[" * 600 + "]" * 600),
            ("json", "1 2"),
            ("str", b"\xff"),
            ("int", "1.5"),
            ("int", ""),
            ("float", "x"),
            ("bool", "yes"),
            ("decimal", "1e5"),
            ("date", "2023-02-29"),
            ("time", "25:00"),
            ("datetime", "2024-02-29"),
            ("datetime", "2024-02-29T12:00[../x]"),
            ("timedelta", "1"),
            ("uuid", "0011"),
            ("number", "1"),
        ):
            with self.subTest(kind, text=text):
                code = "limit" if kind == "json" and text.startswith("[[") else "usage"
                self.machine.fails(code, "set", "--type", kind, "--", "key", text)
        self.machine.ok("init", self.log)
        self.machine.fails("not_found", "get", "key")
        self.machine.fails(
            "usage",
            "import",
            "-",
            stdin=b'{"key":"a","value":{"$nope":1},"typed":true}\n',
            expect=["line=1", "$nope"],
        )

    def test_long_integers_are_printed_in_hexadecimal(self):
        for number in (10**1200, -(10**1200), 1 << 5000, -(1 << 5000), (1 << 4095) - 1):
            self.machine.ok("set", "--type", "int", "--", "key", hex(number))
            printed = json.loads(self.machine.ok("get", "key").text)["$int"]
            self.assertEqual(int(printed, 0), number)
            self.assertEqual("x" in printed, abs(number) >= 1 << 4095)
            self.machine.ok("set", "--type", "int", "--", "again", printed)
            self.assertEqual(self.stored("again"), self.stored("key"))

    def test_plain_values_stay_bytes(self):
        self.machine.ok("set", "plain", "yes")
        self.machine.ok("set", "--type", "str", "typed", "yes")
        self.assertEqual(self.machine.ok("get", "plain").out, b"yes")
        self.assertEqual(self.machine.ok("get", "typed").out, b'"yes"\n')
        self.assertEqual(self.machine.ok("scan").lines, ["plain\t" + "yes", 'typed\t"yes"'])
        self.assertEqual(
            self.machine.ok("scan", "--raw-bytes").lines[1], r"typed" + "\t" + r"\xc1\x01\xa3yes"
        )
        self.assertEqual(
            self.machine.ok("mget", "--json", "plain", "typed").json_lines,
            [
                {"key": "plain", "value": "yes"},
                {"key": "typed", "value": "yes", "typed": True},
            ],
        )
        updates = self.machine.ok("log", "--values", "--json").json_lines
        changes = [update["changes"][0] for update in updates]
        self.assertNotIn("typed", changes[0])
        self.assertIs(changes[1]["typed"], True)
        self.assertIn('set typed\t"yes"', self.machine.ok("log", "--values").text)
        self.assertEqual(
            self.machine.ok("scan", "--null").out, b"plain\0yes\0typed\0\xc1\x01\xa3yes\0"
        )

    def test_undecodable_value_is_reported_and_others_are_read(self):
        self.machine.ok("set", "bad", "-", stdin=b"\xc1\x01\xc1")
        self.machine.ok("set", "good", "yes")
        self.machine.fails(
            "corrupt", "get", "bad", expect=["typed value has an unknown code", "--raw-bytes"]
        )
        self.assertEqual(self.stored("bad"), b"\xc1\x01\xc1")
        bad, good = self.machine.ok("scan", "--json").json_lines
        self.assertEqual(bad["value_base64"], "wQHB")
        self.assertEqual(good["value"], "yes")
        self.assertEqual(self.machine.ok("scan").lines[0], r"bad" + "\t" + r"\xc1\x01\xc1")

    def test_control_characters_of_typed_text_do_not_reach_the_terminal(self):
        self.machine.ok("set", "--type", "str", "key", "\x1b\x7f\x9b")
        self.assertEqual(self.machine.ok("get", "key").out, b'"\\u001b\\u007f\\u009b"\n')
        self.assertEqual(json.loads(self.machine.ok("get", "key").text), "\x1b\x7f\x9b")


if __name__ == "__main__":
    main()
