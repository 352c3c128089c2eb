"""whycache import: formats, bad input, large files and progress."""

import contextlib
import os
import pathlib
import pty
import random
import subprocess
import sys
import time

from support import ALL_BYTES, CliTest, main


class ImportTest(CliTest):
    def test_output_of_scan_can_be_imported(self):
        """Importing the output of scan into another cache preserves every byte."""
        generator = random.Random(4711)
        for _ in range(30):
            key = bytes(generator.randrange(1, 256) for _ in range(generator.randrange(1, 40)))
            self.machine.ok("set", key, "-", stdin=generator.randbytes(generator.randrange(200)))
        self.machine.ok("set", "all", "-", stdin=ALL_BYTES)
        digest = self.machine.ok("status", "--json").json["digest"]
        for name, scan, read in (
            ("tsv", (), ()),
            ("json", ("--json",), ("--format", "jsonl")),
            ("json2", ("--json",), ()),
        ):
            other = self.another_machine(name, f"sqlite://{self.directory}/{name}.db")
            other.ok("import", *read, "-", stdin=self.machine.ok("scan", *scan).out)
            self.assertEqual(other.ok("status", "--json").json["digest"], digest, name)

    def test_jsonl(self):
        content = (
            '{"key":"a","value":"1"}\n\n{"value":"2","key":"b","extra":[1,{}]}\r\n'
            '{"key_base64":"/w==","value_base64":"AAE="}\n{"key":"a","value":"last one wins"}'
        )
        self.assertEqual(
            self.machine.ok("import", self.file("items", content)).text,
            "4 items in 1 update, the last is update 1",
        )
        self.assertEqual(
            self.machine.ok("scan", "--null").out, b"a\0last one wins\0b\x002\0\xff\0\0\x01\0"
        )

    def test_tsv(self):
        path = self.file("items", b"a\tone\\ttwo\nb\\x00\ttabs\tare\tfine\nc\t\n")
        self.machine.ok("import", path)
        self.assertEqual(self.machine.ok("get", "a").out, b"one\ttwo")
        self.assertEqual(
            self.machine.ok("scan", "b", "--json").json, {"key": "b\0", "value": "tabs\tare\tfine"}
        )
        self.assertEqual(self.machine.ok("get", "c").out, b"")
        self.machine.ok("import", "--format", "raw-tsv", self.file("raw", b"path\tC:\\new\\x\n"))
        self.assertEqual(self.machine.ok("get", "path").out, b"C:\\new\\x")

    def test_null_separated(self):
        self.machine.ok("import", "--null", "-", stdin=b"a\tb\0line\nline\0c\0\0")
        self.assertEqual(self.machine.ok("get", "a\tb").out, b"line\nline")
        self.assertEqual(self.machine.ok("get", "c").out, b"")

    def test_json_documents(self):
        for name, content, expected in (
            (
                "object",
                '{\n  "a": "1", "b": 1.50,\n "c":true,"q":"x,}]\\"" }',
                b'a\t1\nb\t1.50\nc\ttrue\nq\tx,}]"\n',
            ),
            ("line", '{"a":"1","b":"2"}', b"a\t1\nb\t2\n"),
            ("array", '[\n {"key":"a","value":"1"},\n ["b","2"] ]\n', b"a\t1\nb\t2\n"),
            ("pairs", '[["a","1"]]', b"a\t1\n"),
            ("empty", "[]", b""),
            ("bom", '\ufeff{"a":"1"}\r\n', b"a\t1\n"),
        ):
            machine = self.another_machine(name, f"sqlite://{self.directory}/{name}.db")
            machine.ok("import", self.file(name, content))
            self.assertEqual(machine.ok("scan").out, expected, name)
        for bad, why in (
            ('{"a":"1"', "cut short"),
            ('{"a":null}', "not a string"),
            ('{"a":{}}', "not a string"),
            ('{"a" "1"}', "a name is not a string"),
            ('{"a":"1"} x', "after the end"),
            ('[["a","1"] ["b","2"]]', "not JSON"),
            ('[["a"]]', "pair"),
            ("[1]", "object"),
            ('{"a":01}', "JSON"),
        ):
            self.machine.fails(
                "usage",
                "import",
                "--format",
                "json",
                "-",
                stdin=bad.encode(),
                expect=["item=", why],
            )

    def test_csv(self):
        rows = (
            b'\xef\xbb\xbfid,Key,value\r\n1,a,"x ""y"", z"\r\n'
            b'2,b,"two\r\nlines"\r\n\r\n3,c,\r\n'
        )
        self.machine.ok("import", self.file("rows", rows))
        self.assertEqual(
            self.machine.ok("scan", "--null").out, b'a\0x "y", z\0b\0two\r\nlines\0c\0\0'
        )
        named = b"name;x,flag,state\n1,d,on"
        self.machine.ok(
            "import", "--key-column", "flag", "--value-column", "state", "-", stdin=named
        )
        self.assertEqual(self.machine.ok("get", "d").out, b"on")
        for bad, line, why in (
            (b"a,b\n", 1, "no column named key"),
            (b"key,value,key\n", 1, "two columns"),
            (b"key,value\na,1\nb\n", 3, "1 fields"),
            (b'key,value\na,"1\n', 2, "has no end"),
            (b'key,value\na,"1"2\n', 2, "after the quotation mark"),
            (b'key,value\na,1"2\n', 2, "quotation mark in a field"),
            (b"key,value\n,1\n", 2, "empty"),
            (b"", 1, "header"),
        ):
            self.machine.fails(
                "usage",
                "import",
                "--format",
                "csv",
                "-",
                stdin=bad,
                expect=[f"line={line}", why],
            )

    def test_lines_may_end_with_carriage_return(self):
        self.machine.ok("import", "-", stdin=b"\xef\xbb\xbfa\t1\r\nb\t2\\r\r\n")
        self.assertEqual(self.machine.ok("scan", "--null").out, b"a\x001\0b\x002\r\0")
        self.machine.ok("import", "--format", "raw-tsv", "-", stdin=b"[x]\t\\r\r\n")
        self.assertEqual(self.machine.ok("get", "[x]").out, b"\\r")

    def test_erasing_import_needs_yes(self):
        self.machine.ok("import", "-", stdin=b"a\t1\nb\t2\nc\t3\n")
        lines = b'{"key":"d","value":"4"}\n{"key":"a","erase":true}\n{"key":"x","erase":true}\n'
        path = self.file("erases", lines)
        self.machine.fails(
            "refused",
            "import",
            path,
            expect=["nothing was imported", "1 of 3 keys (33.3%)", "--yes"],
        )
        self.assertEqual(self.machine.ok("count").text, "3")
        self.machine.fails(
            "refused", "import", "-", stdin=lines, expect=["lines up to 1", "1 of 4 keys"]
        )
        self.assertEqual(self.machine.ok("keys").lines, ["a", "b", "c", "d"])
        self.machine.fails("refused", "import", "--erase-max", "0", path)
        result = self.machine.ok("import", "--json", "--erase-max", "1", path).json
        self.assertEqual((result["items"], result["erased"]), (1, 2))
        self.assertEqual(self.machine.ok("keys").lines, ["b", "c", "d"])
        self.machine.ok("import", "-", stdin=b'{"key":"a","erase":true}\n')
        piped = self.machine.ok("import", "--yes", "-", stdin=b'{"key":"b","erase":true}\n')
        self.assertIn("1 key to erase", piped.text)
        self.assertEqual(self.machine.ok("keys").lines, ["c", "d"])
        self.machine.fails("usage", "import", "-", stdin=b'{"key":"a","erase":1}', expect="erase")
        self.machine.fails(
            "usage", "import", "-", stdin=b'{"key":"a","erase":true,"value":"b"}', expect="erase"
        )
        self.machine.ok("import", "-", stdin=b'{"key":"a","erase":false,"value":"b"}')

    def test_mirror_erases_what_input_lacks(self):
        self.machine.ok("import", "-", stdin=b"f.a\t1\nf.b\t2\nf.c\t3\ng\t4\n")
        lines = b"f.a\t1\nf.b\tnew\nf.d\t5\n"
        mirror = ("import", "--mirror", "f.", "-")
        self.machine.fails("refused", *mirror, stdin=lines, expect=["nothing was", "1 of 4 keys"])
        self.assertEqual(len(self.machine.ok("log").lines), 1)
        result = self.machine.ok(*mirror, "--erase-max", "1", "--skip-equal", "--json", stdin=lines)
        self.assertEqual(
            result.json,
            {"items": 3, "dry_run": False, "erased": 1, "skipped": 1}
            | {"updates": 1, "last_update_id": 2},
        )
        self.assertEqual(self.machine.ok("scan").out, b"f.a\t1\nf.b\tnew\nf.d\t5\ng\t4\n")
        again = self.machine.ok(*mirror, "--skip-equal", stdin=lines)
        self.assertEqual(again.text, "3 items, 3 of them equal, nothing was written")
        self.machine.fails("usage", *mirror, stdin=lines + b"g\t1\n", expect=["line=4", "prefix"])
        self.machine.fails("usage", *mirror, "--yes", stdin=lines + b"bad\n", expect="line=4")
        self.machine.fails("refused", *mirror, "--yes", stdin=b"", expect="empty")
        self.assertEqual(len(self.machine.ok("log").lines), 2)

    def test_error_names_bad_line(self):
        good = b'{"key":"a","value":"1"}\n'
        for bad, why in (
            (b'{"key":"a"', "JSON"),
            (b"[1]", "object"),
            (b'{"key":"a"}', "value"),
            (b'{"value":"a"}', "key"),
            (b'{"key":1,"value":"a"}', "string"),
            (b'{"key":"a","value":null}', "string"),
            (b'{"key":"","value":"a"}', "empty"),
            (b'{"key":"a","value_base64":"!"}', "base64"),
            (b'{"key":"\xff","value":"a"}', "JSON"),
            (b'{"key":"%s","value":"a"}' % (b"k" * 1025), "1024"),
            (b"[" * 100_000, "JSON"),
        ):
            for command in (("import", "-"), ("import", "--dry-run", "-")):
                self.machine.fails(
                    "usage", *command, stdin=good * 2 + bad + b"\n" + good, expect=["line=3", why]
                )
        for bad, why in (
            (b"no tab", "tab"),
            (b"\tvalue", "empty"),
            (b"a\t\\q", "backslash"),
            (b"a\tb\\", "backslash"),
            (b"", "tab"),
        ):
            self.machine.fails(
                "usage", "import", "-", stdin=b"a\tb\n" + bad + b"\nc\td\n", expect=["line=2", why]
            )
        self.machine.fails(
            "usage", "import", "--null", "-", stdin=b"a\0b\0c", expect=["item=2", "value"]
        )
        self.machine.fails("usage", "import", "--format", "xml", "-", expect="xml")
        self.machine.fails("usage", "import", f"{self.directory}/absent", expect="absent")
        self.machine.fails("usage", "import", self.directory, expect=self.directory)
        self.machine.fails("usage", "import", expect="FILE")

    def test_import_resumes_after_bad_line(self):
        path = self.file("items", "a\t1\nb\t2\nbad\nc\t3\n")
        self.machine.fails(
            "usage", "import", path, expect=["line=3", "lines up to 2", "--from-line 3"]
        )
        self.assertEqual(self.machine.ok("keys").lines, ["a", "b"])
        self.file("items", "a\t1\nb\t2\nbad\trepaired\nc\t3\n")
        self.machine.ok("import", path, "--from-line", "3")
        self.assertEqual(self.machine.ok("keys").lines, ["a", "b", "bad", "c"])
        self.assertEqual(
            [len(update["changes"]) for update in self.machine.ok("log", "--json").json_lines],
            [2, 2],
        )

    def test_dry_run_needs_no_log_and_writes_nothing(self):
        no_environment = {"WHYCACHE_LOG": None, "WHYCACHE_STATE": None}
        self.assertEqual(
            self.machine.ok(
                "import", "--dry-run", "-", stdin=b"a\t1\nb\t2\n", env=no_environment
            ).text,
            "2 items can be imported",
        )
        self.assertFalse(os.path.exists(self.database))
        large = b"a\t" + b"x" * 1_100_000 + b"\n"
        self.machine.fails(
            "limit",
            "import",
            "--dry-run",
            "-",
            stdin=b"b\tc\n" + large,
            env=no_environment,
            expect=["line=2", "update"],
        )
        self.machine.ok(
            "import",
            "--dry-run",
            "--update-bytes-max",
            "2000000",
            "-",
            stdin=large,
            env=no_environment,
        )

    def test_item_larger_than_update_is_refused(self):
        large = b"a\t1\nlarge\t" + b"x" * 1_100_000 + b"\nb\t2\n"
        self.machine.fails(
            "limit",
            "import",
            "-",
            stdin=large,
            expect=["lines 2..2", "lines up to 1", "update_bytes_max"],
        )
        self.assertEqual(self.machine.ok("keys").lines, ["a"])
        self.machine.ok("import", "--update-bytes-max", "2000000", "-", stdin=large)
        self.assertEqual(self.machine.ok("keys").lines, ["a", "b", "large"])

    def test_large_file_is_split_into_updates(self):
        lines = b"".join(b"key%06d\t%s\n" % (i, b"x" * 100) for i in range(30_000))
        result = self.machine.ok("import", "--json", "-", stdin=lines).json
        self.assertEqual(result["items"], 30_000)
        self.assertEqual(result["updates"], result["last_update_id"])
        self.assertGreater(result["updates"], 2)
        self.assertLess(result["updates"], 10)
        self.assertEqual(self.machine.ok("count").text, "30000")

    def test_memory_is_bounded(self):
        """A process limited to 256 MiB reads 400 MiB."""
        script = (
            "import sys\n"
            "for i in range(400):\n"
            "    lines = [f'k{i}.{j}\\t' + 'x' * 1000 + '\\n' for j in range(1024)]\n"
            "    sys.stdout.write(''.join(lines))"
        )
        limit = f"ulimit -v 262144; exec {self.program} import --dry-run -"
        if b"__asan" in pathlib.Path(self.program).read_bytes():
            self.skipTest("sanitizers need unlimited address space")
        result = subprocess.run(
            f'{sys.executable} -c "$SCRIPT" | ({limit})',
            shell=True,
            capture_output=True,
            timeout=300,
            env=self.machine.environment(SCRIPT=script),
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, b"409,600 items can be imported\n")

    def test_progress_is_shown_only_at_terminal(self):
        path = self.file(
            "items", b"".join(b"key%06d\t%s\n" % (i, b"x" * 500) for i in range(40_000))
        )
        self.assertEqual(self.machine.ok("import", path).err, "")

        def shown(*options):
            leader, follower = pty.openpty()
            process = subprocess.Popen(
                [self.program, "import", *options, path],
                stdout=subprocess.DEVNULL,
                stderr=follower,
                env=self.machine.environment(TERM="xterm"),
            )
            os.close(follower)
            text = b""
            with contextlib.suppress(OSError):  # EIO: the other end was closed
                while piece := os.read(leader, 4096):
                    text += piece
            os.close(leader)
            self.assertEqual(process.wait(), 0)
            return text.decode()

        bar = shown()
        self.assertRegex(bar, r"importing \[=*>? *\] \d+%  [\d.]+ [KM]?i?B of 19\.\d MiB  [\d,]+/s")
        self.assertTrue(bar.endswith("\r\x1b[K"), "the bar is removed")
        self.assertEqual(shown("--quiet"), "")

    def test_kill_during_import_loses_and_tears_nothing(self):
        lines = b"".join(b"key%05d\t%s\n" % (i, b"x" * 500) for i in range(20_000))
        path = self.file("items", lines)
        generator = random.Random(5)
        for _ in range(6):
            process = self.machine.start("import", path)
            time.sleep(generator.random() * 0.4)
            process.kill()
            process.wait()
            self.machine.ok("update")
            self.machine.ok("check")
        self.machine.ok("import", path)
        self.assertEqual(self.machine.ok("count").text, "20000")


if __name__ == "__main__":
    main()
