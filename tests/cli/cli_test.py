"""The command line from end to end: runs the real program on real logs and states, in folders of its own.

    python3 tests/cli/cli_test.py PATH-TO-WHYCACHE [unittest arguments]

A test that needs what it does not get (root, a mount) is skipped and says so.
"""

import base64
import contextlib
import faulthandler
import json
import os
import pathlib
import pty
import random
import select
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = None
NOBODY = 65534
EXIT = {"done": 0, "not_found": 1, "usage": 2, "unreachable": 3, "stale": 4, "corrupt": 5, "conflict": 6,
        "permission": 7, "refused": 8, "limit": 9, "bug": 70}
ALL_BYTES = bytes(range(256))


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err.decode(errors="replace")

    @property
    def text(self):
        return self.out.decode().rstrip("\n")

    @property
    def lines(self):
        return self.out.decode().splitlines()

    @property
    def json(self):
        (line,) = self.lines
        return json.loads(line)

    @property
    def json_lines(self):
        return [json.loads(line) for line in self.lines]


class Machine:
    """A state of its own, on a log it may share with other machines."""

    def __init__(self, test, folder, log, name="flags"):
        self.test, self.folder, self.log = test, folder, log
        self.state = f"{folder}/{name}.state"

    def environment(self, **more):
        clean = {key: value for key, value in os.environ.items()
                 if not key.startswith("WHYCACHE_") and key not in ("STATE_DIRECTORY", "XDG_STATE_HOME")}
        # What sanitizers find is a failure of the program, and not mistaken for one of its own exit codes.
        clean.setdefault("ASAN_OPTIONS", "exitcode=99")
        clean.update(WHYCACHE_LOG=self.log, WHYCACHE_STATE=self.state, NO_COLOR="1", HOME=str(self.folder))
        clean.update({key: value for key, value in more.items() if value is not None})
        for key, value in more.items():
            if value is None:
                clean.pop(key, None)
        return clean

    def run(self, *arguments, stdin=b"", env=None, timeout=120, user=None, **options):
        command = [PROGRAM, *arguments]
        if user is not None:
            # The folder of the build may be closed to others.
            command[0] = shutil.copy(PROGRAM, f"{self.folder}/program")
            os.chmod(command[0], 0o755)
            options.update(user=user, group=user, extra_groups=[])
        done = subprocess.run(command, input=stdin, env=self.environment(**(env or {})), timeout=timeout,
                              stdout=options.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE, **options)
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments, **options):
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen([PROGRAM, *arguments], env=self.environment(), **options)
        self.test.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()

    def ok(self, *arguments, **options):
        result = self.run(*arguments, **options)
        self.test.assertEqual(result.code, 0, f"{arguments}: {result.err}")
        return result

    def fails(self, reason, *arguments, says=(), **options):
        """Ends with this exit code, and with one clear message on standard error that names what it is about."""
        result = self.run(*arguments, **options)
        self.test.assertEqual(result.code, EXIT[reason], f"{arguments}: out={(result.out or b'')[:500]} err={result.err}")
        errors = [line for line in result.err.splitlines() if line.startswith("whycache: ")]
        self.test.assertGreaterEqual(len(errors), 1, result.err)
        for line in result.err.splitlines():
            self.test.assertRegex(line, r"^(whycache: |  next: )\S")
        for word in [says] if isinstance(says, str) else says:
            self.test.assertIn(word, result.err)
        return result


class CliTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="whycache-cli-", dir=self.parent_folder())
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.log = f"sqlite://{self.folder}/flags.db"
        self.machine = Machine(self, self.folder, self.log)

    @staticmethod
    def parent_folder():
        return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

    @property
    def database(self):
        return f"{self.folder}/flags.db"

    def another_machine(self, name="other", log=None):
        return Machine(self, self.folder, log or self.log, name)

    def file(self, name, content):
        path = f"{self.folder}/{name}"
        pathlib.Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def sql(self, statement, *values):
        connection = sqlite3.connect(self.database)
        with contextlib.closing(connection), connection:
            return connection.execute(statement, values).fetchall()

    def wait_until(self, true, seconds=20):
        deadline = time.monotonic() + seconds
        while not true():
            self.assertLess(time.monotonic(), deadline, "waited in vain")
            time.sleep(0.02)

    def require_root(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")

    def mount(self, *options):
        """A tmpfs of its own; or the test is skipped."""
        self.require_root()
        folder = tempfile.mkdtemp(prefix="mount-", dir=self.folder)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(("mode=0700", *options)), "tmpfs", folder],
                                 capture_output=True)
        if mounted.returncode != 0:
            self.skipTest(f"cannot mount: {mounted.stderr.decode().strip()}")
        self.addCleanup(subprocess.run, ["umount", "-l", folder], check=True)
        return folder


class GetAndSet(CliTest):
    def test_what_was_set_is_got(self):
        self.assertEqual(self.machine.ok("set", "greeting", "hello").text, "1")
        self.assertEqual(self.machine.ok("get", "greeting").out, b"hello")
        self.assertEqual(self.machine.ok("set", "greeting", "hi").text, "2")
        self.assertEqual(self.machine.ok("get", "greeting").out, b"hi")

    def test_another_machine_gets_it_when_it_asks(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        self.assertEqual(other.ok("get", "a").out, b"1")
        self.machine.ok("set", "a", "2")
        self.assertEqual(other.ok("get", "a").out, b"1", "the state is read, the log is not asked")
        self.assertEqual(other.ok("get", "--update", "a").out, b"2")

    def test_an_absent_key_is_not_found(self):
        self.machine.fails("not_found", "get", "nothing", says="nothing")
        self.assertEqual(self.machine.run("get", "nothing").out, b"")

    def test_values_are_bytes(self):
        for value in (b"", b"\n", b"a\0b", ALL_BYTES, b"\xff\xfe", b"x" * 900_000):
            self.machine.ok("set", "bytes", "-", stdin=value)
            self.assertEqual(self.machine.ok("get", "bytes").out, value)

    def test_a_value_comes_from_a_file(self):
        self.machine.ok("set", "logo", "--file", self.file("logo.png", ALL_BYTES))
        self.assertEqual(self.machine.ok("get", "logo").out, ALL_BYTES)
        self.machine.fails("usage", "set", "logo", "--file", f"{self.folder}/absent", says=["absent", "No such file"])
        self.machine.fails("usage", "set", "logo", "x", "--file", "y", says="twice")
        self.machine.fails("usage", "set", "logo", says="no value")

    def test_keys_are_bytes(self):
        for key in (b"\xff\x80", "grün".encode(), b" ", b"a\tb\nc", b"\x01", b"k" * 1024):
            self.machine.ok("set", key, "here")
            self.assertEqual(self.machine.ok("get", key).out, b"here")

    def test_keys_may_look_like_anything(self):
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

    def test_json(self):
        self.assertEqual(self.machine.ok("set", "a", "b", "--json").json, {"update_id": 1})
        self.assertEqual(self.machine.ok("get", "a", "--json").json, {"key": "a", "value": "b"})
        self.machine.ok("set", "a", "-", stdin=b"\xff\0")
        self.assertEqual(self.machine.ok("get", "a", "--json").json,
                         {"key": "a", "value_base64": base64.b64encode(b"\xff\0").decode()})

    def test_a_note_is_kept_with_the_update(self):
        self.machine.ok("set", "a", "b", "--note", "ticket 4711")
        self.machine.ok("set", "a", "c", "--note=")
        first, second = self.machine.ok("log", "--json").json_lines
        self.assertEqual(first["note"], "ticket 4711")
        self.assertNotIn("note", second)
        self.machine.fails("usage", "set", "a", "b", "--note", "x" * 256, says="255")

    def test_a_terminal_gets_a_line_feed(self):
        self.machine.ok("set", "a", "b")
        leader, follower = pty.openpty()
        try:
            self.machine.ok("get", "a", stdout=follower)
            self.assertEqual(os.read(leader, 100), b"b\r\n")
        finally:
            os.close(leader)
            os.close(follower)


class Freshness(CliTest):
    def test_staleness_max_asks_only_when_needed(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("set", "a", "2")
        self.assertEqual(other.ok("get", "--staleness-max", "0", "a").out, b"2")

    def test_reading_does_without_the_log(self):
        self.machine.ok("set", "a", "1")
        os.rename(self.database, self.database + ".away")
        os.mkdir(self.database)  # nobody can open, or make, a database here
        self.assertEqual(self.machine.ok("get", "a").out, b"1")
        self.assertEqual(self.machine.ok("scan").lines, ["a\t1"])
        self.assertEqual(self.machine.ok("count").text, "1")
        self.machine.ok("inspect")
        status = self.machine.ok("status", "--json").json
        self.assertFalse(status["log_answers"])
        self.assertEqual(status["applied_id"], 1)

    def test_reading_does_without_a_log_being_named(self):
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.machine.ok("get", "a", env={"WHYCACHE_LOG": None}).out, b"1")
        self.machine.fails("usage", "get", "a", "--update", env={"WHYCACHE_LOG": None}, says="--log")
        self.machine.fails("usage", "get", "a", env={"WHYCACHE_LOG": None, "WHYCACHE_STATE": None}, says="--log")

    def test_a_log_that_does_not_answer(self):
        machine = self.machine
        machine.ok("set", "a", "1")
        holder = sqlite3.connect(self.database, isolation_level=None)
        self.addCleanup(holder.close)
        holder.execute("BEGIN EXCLUSIVE")
        patience = ("--deadline", "200ms")
        self.assertEqual(machine.ok("get", "a", *patience).out, b"1")
        machine.fails("unreachable", "get", "a", "--update", *patience, says="flags.db")
        machine.fails("stale", "get", "a", "--staleness-max", "1ns", *patience)
        machine.fails("unreachable", "set", "a", "2", *patience)
        machine.fails("unreachable", "update", *patience)
        machine.fails("unreachable", "log", *patience)
        machine.fails("unreachable", "check", *patience)
        machine.fails("unreachable", "rewrite", "--yes", *patience)
        self.assertEqual(machine.run("doctor", *patience).code, EXIT["unreachable"])
        machine.ok("status", *patience)
        holder.execute("ROLLBACK")
        self.assertEqual(machine.ok("get", "a", "--update").out, b"1")
        self.assertEqual(machine.ok("update").text, "1", "nothing was written")


class ManyKeys(CliTest):
    def fill(self, *keys):
        self.machine.ok("import", "-", stdin="".join(f"{key}\tvalue of {key}\n" for key in keys).encode())

    def test_mget_prints_in_the_order_asked_for(self):
        self.fill("a", "b", "c")
        self.assertEqual(self.machine.ok("mget", "c", "a").lines, ["c\tvalue of c", "a\tvalue of a"])
        self.assertEqual(self.machine.ok("mget", "--null", "b").out, b"b\0value of b\0")
        self.assertEqual(self.machine.ok("mget", "-", stdin=b"b\nc\n").lines, ["b\tvalue of b", "c\tvalue of c"])
        self.assertEqual(self.machine.ok("mget", stdin=b"b").lines, ["b\tvalue of b"])

    def test_mget_tells_of_absent_keys(self):
        self.fill("a")
        result = self.machine.fails("not_found", "mget", "a", "x", "y", says="2 of 3")
        self.assertEqual(result.lines, ["a\tvalue of a"])
        result = self.machine.run("mget", "x", "a", "--json")
        self.assertEqual(result.json_lines, [{"key": "x", "value": None}, {"key": "a", "value": "value of a"}])

    def test_mget_reads_escaped_raw_and_null_separated_keys(self):
        key = b"a\tb\\\n\xff"
        self.machine.ok("set", key, "here")
        self.assertEqual(self.machine.ok("mget", "-", stdin=b"a\\tb\\\\\\n\\xff\n").out, b"a\\tb\\\\\\n\\xff\there\n")
        self.assertEqual(self.machine.ok("mget", "--null", "-", stdin=key + b"\0").out, key + b"\0here\0")
        self.machine.ok("set", "back\\slash", "here")
        self.assertEqual(self.machine.ok("mget", "--raw", "-", stdin=b"back\\slash\n").out, b"back\\\\slash\there\n")
        self.machine.fails("usage", "mget", "-", stdin=b"a\nback\\slash\n", says=["line=2", "--raw"])
        self.machine.fails("usage", "mget", "-", stdin=b"a\n\n", says=["line=2", "empty"])
        self.machine.fails("usage", "mget", "-", stdin=b"k" * 1025, says=["line=1", "1024"])
        self.machine.fails("usage", "mget", "-", stdin=b"a\n" + b"k" * 10_000, says="line=2")

    def test_del_erases_everywhere(self):
        self.fill("a", "b", "c", "d")
        other = self.another_machine()
        other.ok("update")
        self.assertEqual(self.machine.ok("del", "a", "b").text, "2", "one update")
        self.assertEqual(self.machine.ok("del", "absent").text, "3")
        self.assertEqual(self.machine.ok("keys").lines, ["c", "d"])
        other.ok("update")
        self.assertEqual(other.ok("keys").lines, ["c", "d"])

    def test_del_reads_what_keys_prints(self):
        odd = [b"s.\xff\n", b"s.\\", b"s.\t", "s.ü".encode()]
        for key in odd:
            self.machine.ok("set", key, "x")
        self.machine.ok("set", "t", "stays")
        self.machine.ok("del", "-", stdin=self.machine.ok("keys", "s.").out)
        self.assertEqual(self.machine.ok("keys").lines, ["t"])
        for key in odd:
            self.machine.ok("set", key, "x")
        result = self.machine.ok("del", "--null", "--json", "-", stdin=self.machine.ok("keys", "--null", "s.").out)
        self.assertEqual(result.json["keys"], 4)
        self.assertEqual(self.machine.ok("keys").lines, ["t"])

    def test_a_mistyped_option_is_not_a_key(self):
        self.machine.fails("usage", "del", "--jsno", "a", says="--jsno")
        self.machine.fails("usage", "mget", "a", "-x", says="-x")

    def test_ranges(self):
        self.fill("a", "b1", "b2", "b3", "c")
        self.assertEqual(self.machine.ok("keys", "b").lines, ["b1", "b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--limit", "2").lines, ["b1", "b2"])
        self.assertEqual(self.machine.ok("keys", "--from", "b2", "--to", "c").lines, ["b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--from", "b2").lines, ["b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "b", "--to", "z").lines, ["b1", "b2", "b3"])
        self.assertEqual(self.machine.ok("keys", "zz").lines, [])
        self.assertEqual(self.machine.ok("scan", "b", "--limit", "1").lines, ["b1\tvalue of b1"])
        self.assertEqual(self.machine.ok("count").text, "5")
        self.assertEqual(self.machine.ok("count", "b").text, "3")
        self.assertEqual(self.machine.ok("count", "b", "--limit", "2").text, "2")
        self.assertEqual(self.machine.ok("count", "--json").json, {"keys": 5, "applied_id": 1})
        self.machine.fails("usage", "keys", "--limit", "0", says="--limit")
        self.machine.fails("usage", "keys", "--limit", "many", says="--limit")

    def test_keys_come_in_the_order_of_their_bytes(self):
        keys = sorted([bytes([byte]) for byte in range(1, 256)])
        for null, separator in (("--null", b"\0"),):
            self.machine.ok("import", null, "-", stdin=b"".join(key + b"\0v\0" for key in keys))
            self.assertEqual(self.machine.ok("keys", null).out, separator.join(keys) + separator)

    def test_listings_escape_what_would_break_a_line(self):
        self.machine.ok("set", b"\t\\\n\r\x1b\x7f\xc2\x9b\xff", "grün\n")
        self.assertEqual(self.machine.ok("scan").out, b"\\t\\\\\\n\\r\\x1b\\x7f\\xc2\\x9b\\xff\tgr\xc3\xbcn\\n\n")
        self.machine.fails("usage", "scan", "--json", "--null", says="exclude")


class Import(CliTest):
    def test_every_listing_can_be_imported(self):
        """scan of one cache, import into another: the same bytes, whatever they are."""
        chance = random.Random(4711)
        for _ in range(30):
            key = bytes(chance.randrange(1, 256) for _ in range(chance.randrange(1, 40)))
            self.machine.ok("set", key, "-", stdin=chance.randbytes(chance.randrange(200)))
        self.machine.ok("set", "all", "-", stdin=ALL_BYTES)
        digest = self.machine.ok("status", "--json").json["digest"]
        for name, scan, read in (("tsv", (), ()), ("json", ("--json",), ("--format", "jsonl")), ("json2", ("--json",), ())):
            other = self.another_machine(name, f"sqlite://{self.folder}/{name}.db")
            other.ok("import", *read, "-", stdin=self.machine.ok("scan", *scan).out)
            self.assertEqual(other.ok("status", "--json").json["digest"], digest, name)

    def test_jsonl(self):
        content = ('{"key":"a","value":"1"}\n\n{"value":"2","key":"b","extra":[1,{}]}\r\n'
                   '{"key_base64":"/w==","value_base64":"AAE="}\n{"key":"a","value":"last one wins"}')
        self.assertEqual(self.machine.ok("import", self.file("items", content)).text, "4 items in 1 update, the last is update 1")
        self.assertEqual(self.machine.ok("scan", "--null").out, b"a\0last one wins\0b\x002\0\xff\0\0\x01\0")

    def test_tsv(self):
        path = self.file("items", b"a\tone\\ttwo\nb\\x00\ttabs\tare\tfine\nc\t\n")
        self.machine.ok("import", path)
        self.assertEqual(self.machine.ok("get", "a").out, b"one\ttwo")
        self.assertEqual(self.machine.ok("scan", "b", "--json").json, {"key": "b\0", "value": "tabs\tare\tfine"})
        self.assertEqual(self.machine.ok("get", "c").out, b"")
        self.machine.ok("import", "--format", "raw-tsv", self.file("raw", b"path\tC:\\new\\x\n"))
        self.assertEqual(self.machine.ok("get", "path").out, b"C:\\new\\x")

    def test_null_separated(self):
        self.machine.ok("import", "--null", "-", stdin=b"a\tb\0line\nline\0c\0\0")
        self.assertEqual(self.machine.ok("get", "a\tb").out, b"line\nline")
        self.assertEqual(self.machine.ok("get", "c").out, b"")

    def test_bad_input_names_its_line(self):
        good = b'{"key":"a","value":"1"}\n'
        for bad, why in ((b'{"key":"a"', "JSON"), (b'[1]', "object"), (b'{"key":"a"}', "value"), (b'{"value":"a"}', "key"),
                         (b'{"key":1,"value":"a"}', "string"), (b'{"key":"a","value":null}', "string"),
                         (b'{"key":"","value":"a"}', "empty"), (b'{"key":"a","value_base64":"!"}', "base64"),
                         (b'{"key":"\xff","value":"a"}', "JSON"), (b'{"key":"%s","value":"a"}' % (b"k" * 1025), "1024"),
                         (b"[" * 100_000, "JSON")):
            for command in (("import", "-"), ("import", "--dry-run", "-")):
                self.machine.fails("usage", *command, stdin=good * 2 + bad + b"\n" + good, says=["line=3", why])
        for bad, why in ((b"no tab", "tab"), (b"\tvalue", "empty"), (b"a\t\\q", "backslash"), (b"a\tb\\", "backslash"), (b"", "tab")):
            self.machine.fails("usage", "import", "-", stdin=b"a\tb\n" + bad + b"\nc\td\n", says=["line=2", why])
        self.machine.fails("usage", "import", "--null", "-", stdin=b"a\0b\0c", says=["item=2", "value"])
        self.machine.fails("usage", "import", "--format", "xml", "-", says="xml")
        self.machine.fails("usage", "import", f"{self.folder}/absent", says="absent")
        self.machine.fails("usage", "import", self.folder, says=self.folder)
        self.machine.fails("usage", "import", says="FILE")

    def test_what_comes_before_bad_input_is_done_and_can_be_gone_on_from(self):
        path = self.file("items", "a\t1\nb\t2\nbad\nc\t3\n")
        self.machine.fails("usage", "import", path, says=["line=3", "lines up to 2", "--from-line 3"])
        self.assertEqual(self.machine.ok("keys").lines, ["a", "b"])
        self.file("items", "a\t1\nb\t2\nbad\tmended\nc\t3\n")
        self.machine.ok("import", path, "--from-line", "3")
        self.assertEqual(self.machine.ok("keys").lines, ["a", "b", "bad", "c"])
        self.assertEqual([len(update["changes"]) for update in self.machine.ok("log", "--json").json_lines], [2, 2])

    def test_a_dry_run_needs_no_log_and_writes_nothing(self):
        nowhere = {"WHYCACHE_LOG": None, "WHYCACHE_STATE": None}
        self.assertEqual(self.machine.ok("import", "--dry-run", "-", stdin=b"a\t1\nb\t2\n", env=nowhere).text, "2 items can be imported")
        self.assertFalse(os.path.exists(self.database))
        large = b"a\t" + b"x" * 1_100_000 + b"\n"
        self.machine.fails("limit", "import", "--dry-run", "-", stdin=b"b\tc\n" + large, env=nowhere, says=["line=2", "update"])
        self.machine.ok("import", "--dry-run", "--update-bytes-max", "2000000", "-", stdin=large, env=nowhere)

    def test_an_item_too_large_for_an_update(self):
        large = b"a\t1\nlarge\t" + b"x" * 1_100_000 + b"\nb\t2\n"
        self.machine.fails("limit", "import", "-", stdin=large, says=["lines 2..2", "lines up to 1", "update_bytes_max"])
        self.assertEqual(self.machine.ok("keys").lines, ["a"])
        self.machine.ok("import", "--update-bytes-max", "2000000", "-", stdin=large)
        self.assertEqual(self.machine.ok("keys").lines, ["a", "b", "large"])

    def test_large_files_go_in_several_updates(self):
        lines = b"".join(b"key%06d\t%s\n" % (i, b"x" * 100) for i in range(30_000))
        result = self.machine.ok("import", "--json", "-", stdin=lines).json
        self.assertEqual(result["items"], 30_000)
        self.assertEqual(result["updates"], result["last_update_id"])
        self.assertGreater(result["updates"], 2)
        self.assertLess(result["updates"], 10)
        self.assertEqual(self.machine.ok("count").text, "30000")

    def test_memory_is_bounded(self):
        """400 MiB go through a process that may have 256 MiB."""
        script = "import sys\nfor i in range(400): sys.stdout.write(''.join(f'k{i}.{j}\\t' + 'x' * 1000 + '\\n' for j in range(1024)))"
        limit = f"ulimit -v 262144; exec {PROGRAM} import --dry-run -"
        if b"__asan" in pathlib.Path(PROGRAM).read_bytes():
            self.skipTest("sanitizers need address space without bounds")
        result = subprocess.run(f"{sys.executable} -c \"$SCRIPT\" | ({limit})", shell=True, capture_output=True, timeout=300,
                                env=self.machine.environment(SCRIPT=script))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, b"409600 items can be imported\n")

    def test_progress_is_shown_at_a_terminal_only(self):
        path = self.file("items", b"".join(b"key%06d\t%s\n" % (i, b"x" * 500) for i in range(40_000)))
        self.assertEqual(self.machine.ok("import", path).err, "")

        def shown(*options):
            leader, follower = pty.openpty()
            process = subprocess.Popen([PROGRAM, "import", *options, path], stdout=subprocess.DEVNULL, stderr=follower,
                                       env=self.machine.environment(TERM="xterm"))
            os.close(follower)
            text = b""
            with contextlib.suppress(OSError):  # EIO: the other end is gone
                while piece := os.read(leader, 4096):
                    text += piece
            os.close(leader)
            self.assertEqual(process.wait(), 0)
            return text.decode()

        bar = shown()
        self.assertRegex(bar, r"importing \[=*>? *\] \d+%  [\d.]+ [KM]?i?B of 19\.\d MiB  [\d,]+/s")
        self.assertTrue(bar.endswith("\r\x1b[K"), "the bar is taken away")
        self.assertEqual(shown("--quiet"), "")


class Following(CliTest):
    def test_update_prints_the_applied_id(self):
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.another_machine().ok("update").text, "1")
        self.assertEqual(self.another_machine().ok("update", "--json").json, {"applied_id": 1})

    def test_update_waits_for_an_id(self):
        other = self.another_machine()
        other.ok("update")
        waiting = other.start("update", "--at-least", "1", "--deadline", "30s")
        time.sleep(0.2)
        self.assertIsNone(waiting.poll())
        self.machine.ok("set", "a", "1")
        self.assertEqual(waiting.communicate(timeout=30)[0], b"1\n")
        self.assertEqual(waiting.returncode, 0)
        other.fails("stale", "update", "--at-least", "2", "--deadline", "300ms", says="2")

    def follow(self, machine, *arguments):
        """A follower that has opened its cache, and has printed all there is: an update from before is not printed."""
        follower = machine.start("follow", "--interval", "20ms", *arguments)
        while not select.select([follower.stdout], [], [], 0.5)[0]:
            self.assertIsNone(follower.poll())
            last = int(self.machine.ok("set", "is it there?", "").text)
        while int(follower.stdout.readline()) != last:
            pass
        return follower

    def test_follow_prints_each_update_and_ends_on_a_signal(self):
        for sign in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(sign):
                other = self.another_machine(f"other{sign}")
                follower = self.follow(other)
                ids = [int(self.machine.ok("set", "a", str(i)).text) for i in range(3)]
                self.assertEqual([int(follower.stdout.readline()) for _ in ids], ids)
                self.assertEqual(other.ok("get", "a").out, b"2")
                follower.send_signal(sign)
                self.assertEqual(follower.communicate(timeout=30), (b"", b""))
                self.assertEqual(follower.returncode, 0)

    def test_follow_ends_at_once_while_it_waits(self):
        follower = self.machine.start("follow", "--interval", "1h", "--json")
        while not os.path.exists(self.machine.state):  # it opens its cache, or has begun to wait
            self.assertIsNone(follower.poll())
            time.sleep(0.01)
        follower.terminate()
        follower.communicate(timeout=10)
        self.assertEqual(follower.returncode, 0)

    def test_follow_goes_on_when_the_log_does_not_answer(self):
        follower = self.follow(self.machine, "--deadline", "100ms")
        holder = sqlite3.connect(self.database, isolation_level=None)
        self.addCleanup(holder.close)
        holder.execute("BEGIN EXCLUSIVE")
        while b"flags.db" not in (said := follower.stderr.readline()):
            self.assertNotEqual(said, b"")
        time.sleep(0.5)
        self.assertIsNone(follower.poll())
        holder.execute("ROLLBACK")
        last = int(self.machine.ok("set", "a", "2").text)
        self.assertEqual(int(follower.stdout.readline()), last)
        follower.terminate()
        self.assertIn(b"answers again", follower.communicate(timeout=10)[1])
        self.assertEqual(follower.returncode, 0)


class Status(CliTest):
    def test_fields(self):
        self.machine.ok("set", "a", "12345")
        status = self.machine.ok("status", "--json").json
        self.assertEqual({key: status[key] for key in ("applied_id", "head", "lag", "items", "item_bytes", "base", "log_answers", "same_log")},
                         {"applied_id": 1, "head": 1, "lag": 0, "items": 1, "item_bytes": 6, "base": 0, "log_answers": True, "same_log": True})
        self.assertRegex(status["digest"], "^[0-9a-f]{32}$")
        self.assertRegex(status["log_uuid"], "^[0-9a-f]{32}$")
        self.assertRegex(status["chain"], "^0x[0-9a-f]{16}$")
        self.assertLess(status["staleness_seconds"], 60)
        self.assertEqual(status["state"], self.machine.state)
        self.assertEqual(status["state_bytes"], os.path.getsize(self.machine.state))
        text = self.machine.ok("status").out.decode()
        for word in ("applied id", "head", "lag", "staleness", "digest", status["digest"], "flags.db", self.machine.state):
            self.assertIn(word, text)

    def test_lag_and_staleness_have_bounds(self):
        self.machine.ok("set", "a", "1")
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("set", "a", "2")
        self.assertEqual(other.ok("status", "--json").json["lag"], 1)
        other.fails("stale", "status", "--lag-max", "0", says="lag=1")
        other.ok("status", "--lag-max", "1", "--staleness-max", "1h")
        time.sleep(0.05)
        other.fails("stale", "status", "--staleness-max", "10ms", says="staleness=")
        other.fails("usage", "status", "--staleness-max", "soon", says="soon")

    def test_machines_at_one_id_have_one_digest(self):
        for i in range(5):
            self.machine.ok("set", f"key{i}", str(i))
        self.machine.ok("del", "key3")
        other = self.another_machine()
        other.ok("update")
        one, two = (machine.ok("status", "--json").json for machine in (self.machine, other))
        self.assertEqual((one["digest"], one["chain"]), (two["digest"], two["chain"]))

    def test_a_log_that_lost_its_tail(self):
        self.machine.ok("set", "a", "1")
        self.machine.ok("set", "a", "2")
        self.sql("DELETE FROM whycache_updates_default WHERE id = 2")
        self.machine.fails("corrupt", "status", says=["applied_id=2", "head=1"])

    def test_a_log_that_was_replaced(self):
        self.machine.ok("set", "a", "1")
        os.remove(self.database)
        self.another_machine().ok("set", "b", "1")
        self.machine.fails("corrupt", "status", says="another log")
        self.machine.fails("corrupt", "check", says="damage")


class Log(CliTest):
    def test_shows_updates(self):
        self.machine.ok("set", "a", "1", "--note", "first")
        self.machine.ok("import", "-", stdin=b"".join(b"k%d\tv\n" % i for i in range(8)))
        self.machine.ok("del", "a")
        first, second, third = self.machine.ok("log").lines
        self.assertRegex(first, r'^ +1  20\d\d-\d\d-\d\dT[\d:.]+Z  \S+  1 change  "first"  set a$')
        self.assertRegex(second, r"8 changes  set k0, set k1, set k2, set k3, set k4, 3 more$")
        self.assertRegex(third, r"1 change  erase a$")
        self.assertIn("set k7", self.machine.ok("log", "--all-keys").out.decode())

    def test_ranges(self):
        for i in range(1, 6):
            self.machine.ok("set", "a", str(i))
        ids = lambda *options: [update["id"] for update in self.machine.ok("log", "--json", *options).json_lines]
        self.assertEqual(ids(), [1, 2, 3, 4, 5])
        self.assertEqual(ids("--last", "2"), [4, 5])
        self.assertEqual(ids("--last", "100"), [1, 2, 3, 4, 5])
        self.assertEqual(ids("--from", "2", "--to", "3"), [2, 3])
        self.assertEqual(ids("--from", "6"), [])
        self.machine.ok("rewrite", "--limit", "3", "--yes")
        self.assertEqual(ids(), [4, 5])
        self.assertIn("rewritten", self.machine.ok("log").err)

    def test_json_and_values(self):
        self.machine.ok("set", b"\xff", "-", stdin=b"\x00\xfe")
        (update,) = self.machine.ok("log", "--json", "--values").json_lines
        self.assertEqual(update["changes"], [{"kind": "set", "key_base64": "/w==", "value_bytes": 2, "value_base64": "AP4="}])
        self.assertEqual((update["id"], update["writer_sequence"], update["erases_all"]), (1, 1, False))
        self.assertRegex(update["writer"], r".+:\d+")
        self.assertEqual(self.machine.ok("log", "--values").lines[1], "          set \\xff\t\\x00\\xfe")

    def test_needs_no_state(self):
        self.machine.ok("set", "a", "1")
        self.assertEqual(len(self.machine.ok("log", env={"WHYCACHE_STATE": "/nonexistent/x"}).lines), 1)
        self.machine.fails("usage", "log", env={"WHYCACHE_LOG": None}, says="--log")

    def test_damage_is_shown_and_the_rest_too(self):
        for i in range(1, 6):
            self.machine.ok("set", "a", str(i))
        self.sql("UPDATE whycache_updates_default SET bytes = x'00' WHERE id = 2")
        self.sql("DELETE FROM whycache_updates_default WHERE id = 4")
        result = self.machine.fails("corrupt", "log", "--json", says=["update is damaged: id=2", "missing", "first=4 last=4"])
        self.assertEqual([update["id"] for update in result.json_lines], [1, 3, 5])


class Check(CliTest):
    def filled(self):
        for i in range(1, 6):
            self.machine.ok("set", f"key{i}", str(i))
        return self.machine

    def results(self, machine=None, *arguments, **options):
        result = (machine or self.machine).run("check", "--json", *arguments, **options)
        return result.code, {line["check"]: line["result"] for line in result.json_lines}

    def test_all_is_well(self):
        self.filled()
        self.assertEqual(self.results(), (0, {"state": "ok", "log": "ok", "uuid": "ok", "chain": "ok", "items": "ok", "digest": "ok"}))
        self.machine.ok("rewrite", "--limit", "3", "--yes")
        self.assertEqual(self.results()[1]["base"], "ok")
        self.machine.ok("clear", "--yes")
        self.machine.ok("set", "a", "1")
        self.assertEqual(self.results()[0], 0)
        text = self.machine.ok("check").out.decode()
        self.assertIn("of state and log are equal at update", text)

    def test_keys_set_often_and_erased(self):
        chance = random.Random(7)
        for _ in range(40):
            key = f"k{chance.randrange(8)}"
            self.machine.ok(*(("del", key) if chance.random() < 0.3 else ("set", key, str(chance.random()))))
        self.assertEqual(self.results()[0], 0)

    def test_a_state_that_lags_is_compared_where_it_is(self):
        self.filled()
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("set", "more", "1")
        self.assertEqual(self.results(other)[0], 0)
        self.machine.ok("rewrite", "--yes")
        self.assertEqual(self.results(other)[0], EXIT["stale"])

    def test_a_broken_chain(self):
        self.filled()
        (row,) = self.sql("SELECT bytes FROM whycache_updates_default WHERE id = 3")
        edited = bytearray(row[0])
        edited[-1] ^= 1
        self.sql("UPDATE whycache_updates_default SET bytes = ? WHERE id = 3", bytes(edited))
        self.machine.fails("corrupt", "check", says="next: ")
        self.assertEqual(self.results()[1], {"state": "ok", "log": "BAD"})
        new = self.another_machine("new")
        new.fails("corrupt", "update", says=["id=3"])
        new.fails("corrupt", "get", "key1")

    def test_ids_that_jump(self):
        self.filled()
        self.sql("DELETE FROM whycache_updates_default WHERE id = 3")
        self.assertRegex(self.machine.fails("corrupt", "check").out.decode(), "BAD +log +update is missing .* id=3 ")
        self.another_machine("new").fails("corrupt", "update", says="id=3")

    def test_a_base_that_was_edited(self):
        self.filled().ok("rewrite", "--yes")
        ((token, number, part),) = self.sql("SELECT token, number, bytes FROM whycache_parts_default")
        edited = bytearray(part)
        edited[len(edited) // 2] ^= 1
        self.sql("UPDATE whycache_parts_default SET bytes = ?", bytes(edited))
        self.assertEqual(self.results()[1]["log"], "BAD")
        self.another_machine("new").fails("corrupt", "update", says="base")

    def test_a_damaged_state(self):
        self.filled()
        content = bytearray(pathlib.Path(self.machine.state).read_bytes())
        at = content.rindex(b"key4")
        content[at:at + 4] = b"kex4"
        pathlib.Path(self.machine.state).write_bytes(content)
        self.assertEqual(self.results()[1]["state"], "BAD")
        self.machine.fails("corrupt", "check", says="remove the file")
        os.remove(self.machine.state)
        self.machine.ok("update")
        self.assertEqual(self.results()[0], 0)

    def test_a_state_by_itself(self):
        self.filled()
        self.assertEqual(self.results(env={"WHYCACHE_LOG": None}), (0, {"state": "ok", "log": "skipped"}))


class Rewrite(CliTest):
    def filled(self, count=5):
        for i in range(1, count + 1):
            self.machine.ok("set", f"key{i % 3}", str(i))

    def test_it_wants_yes(self):
        self.filled()
        self.machine.fails("refused", "rewrite", says=["updates 1..5", "--yes"])
        self.assertEqual(len(self.machine.ok("log").lines), 5)

    def test_it_replaces_updates_and_no_item(self):
        self.filled()
        before = self.machine.ok("scan").out
        self.assertEqual(self.machine.ok("rewrite", "--yes").text, "5")
        self.assertEqual(self.machine.ok("log").lines, [])
        self.assertEqual(self.machine.ok("scan").out, before)
        self.assertEqual(self.another_machine("new").ok("scan").out, before)
        self.assertEqual(self.machine.ok("set", "a", "1").text, "6")

    def test_limit(self):
        self.filled()
        self.assertEqual(self.machine.ok("rewrite", "--limit", "2", "--yes", "--json").json, {"base": 2, "base_before": 0, "head": 5})
        self.assertEqual(self.machine.ok("rewrite", "--limit", "2").text, "2", "nothing to lose, nothing to ask")
        self.assertEqual(len(self.machine.ok("log").lines), 3, "and what came since stays")
        self.machine.fails("usage", "rewrite", "--limit", "6", "--yes", says=["limit=6", "head=5"])
        self.machine.fails("conflict", "rewrite", "--limit", "1", "--yes", says=["limit=1", "base=2"])
        self.assertEqual(self.machine.ok("rewrite", "--keep-last", "1", "--yes").text, "4")
        self.assertEqual(self.machine.ok("rewrite", "--keep-last", "100", "--yes").text, "4")
        self.machine.fails("usage", "rewrite", "--keep-last", "1", "--limit", "5", says="exclude")

    def test_keep_prefix_erases_everything_else_everywhere(self):
        for key in ("user.a", "user.b", "flag.a", "tmp.a", "tmp.b"):
            self.machine.ok("set", key, "1")
        other = self.another_machine()
        other.ok("update")
        self.machine.fails("refused", "rewrite", "--keep-prefix", "user.", says="3 of 5 keys")
        self.machine.ok("rewrite", "--keep-prefix", "user.", "--keep-prefix", "flag.", "--yes")
        other.ok("update")
        for machine in (self.machine, other, self.another_machine("new")):
            self.assertEqual(machine.ok("keys").lines, ["flag.a", "user.a", "user.b"])

    def test_a_machine_behind_the_base_rebuilds(self):
        self.filled()
        other = self.another_machine()
        other.ok("update")
        self.machine.ok("del", "key1")
        self.machine.ok("rewrite", "--yes")
        self.machine.ok("set", "later", "1")
        result = other.ok("update")
        self.assertEqual(result.text, "7")
        self.assertIn("rebuilt", result.err)
        self.assertEqual(other.ok("scan").out, self.machine.ok("scan").out)

    def test_interrupted_it_can_be_done_again(self):
        lines = b"".join(b"key%05d\t%s\n" % (i, b"x" * 200) for i in range(20_000))
        self.machine.ok("import", "-", stdin=lines)
        before = self.machine.ok("status", "--json").json["digest"]
        chance = random.Random(11)
        for i in range(8):
            process = self.machine.start("rewrite", "--yes")
            time.sleep(chance.random() * 0.3)
            process.kill()
            process.wait()
            head = int(self.machine.ok("set", "beat", str(i)).text)
            self.assertEqual(self.another_machine(f"new{i}").ok("update").text, str(head))
            self.assertEqual(self.machine.ok("check").code, 0)
        self.machine.ok("rewrite", "--yes")
        self.machine.ok("del", "beat")
        self.assertEqual(self.machine.ok("status", "--json").json["digest"], before)
        self.assertEqual(self.sql("SELECT count(*) FROM whycache_updates_default"), [(1,)])

    def test_clear_wants_yes_and_reaches_everybody(self):
        self.filled()
        other = self.another_machine()
        other.ok("update")
        self.machine.fails("refused", "clear", says=["3 keys", "--yes"])
        self.assertEqual(self.machine.ok("count").text, "3")
        self.assertEqual(self.machine.ok("clear", "--yes", "--json").json, {"base": 6})
        self.assertEqual(self.machine.ok("count").text, "0")
        other.ok("update")
        self.assertEqual(other.ok("count").text, "0")


class Inspect(CliTest):
    def test_the_insides(self):
        for i in range(3):
            self.machine.ok("set", f"key{i}", "1")
        insides = self.machine.ok("inspect", "--json").json
        self.assertEqual((insides["applied_id"], insides["items"], insides["index"]["used"], insides["tree_height"]), (3, 3, 3, 1))
        self.assertEqual(insides["state"], self.machine.state)
        self.assertEqual(sum(use["bytes"] for use in insides["segments"]), insides["file_bytes"])
        self.assertEqual(insides["slots_taken"], [])
        text = self.machine.ok("inspect").out.decode()
        for word in ("point index", "segments", "reader slots: 0 of 1024", "log uuid"):
            self.assertIn(word, text)

    def test_a_file_by_itself(self):
        self.machine.ok("set", "a", "1")
        copy = f"{self.folder}/copy.state"
        shutil.copyfile(self.machine.state, copy)
        os.chmod(copy, 0o600)
        nowhere = {"WHYCACHE_LOG": None, "WHYCACHE_STATE": None}
        self.assertEqual(self.machine.ok("inspect", copy, "--json", env=nowhere).json["items"], 1)
        self.assertEqual(self.machine.ok("inspect", copy, "--json").json["state"], copy)
        self.assertEqual(self.machine.ok("get", "a", "--state", copy, env=nowhere).out, b"1")

    def test_a_file_that_is_not_there(self):
        absent = f"{self.folder}/absent.state"
        before = os.listdir(self.folder)
        nowhere = {"WHYCACHE_LOG": None, "WHYCACHE_STATE": None}
        for command in (["inspect", absent], ["inspect", "--state", absent], ["get", "a", "--state", absent]):
            self.machine.fails("usage", *command, env=nowhere, says=["there is no state file", absent, "next: name another"])
        self.machine.fails("usage", "inspect", f"{self.folder}/nowhere/absent.state", says="there is no state file")
        self.assertEqual(os.listdir(self.folder), before, "not even a lock file is left")

    def test_who_holds_a_view(self):
        self.machine.ok("import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000)))
        reader = self.machine.start("scan")  # stuck: nobody takes what it prints
        self.wait_until(lambda: self.machine.ok("inspect", "--json").json["slots_taken"])
        (slot,) = self.machine.ok("inspect", "--json").json["slots_taken"]
        self.assertEqual((slot["process_id"], slot["alive"], slot["pinned_id"]), (reader.pid, True, 1))
        self.assertIn(f"holds update 1: process {reader.pid}", self.machine.ok("inspect").out.decode())
        reader.kill()
        reader.wait()
        self.wait_until(lambda: not [slot for slot in self.machine.ok("inspect", "--json").json["slots_taken"] if slot["alive"]])

    def test_a_listing_stands_still(self):
        self.machine.ok("import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000)))
        before = self.machine.ok("scan").out
        reader = self.machine.start("scan")
        self.wait_until(lambda: self.machine.ok("inspect", "--json").json["slots_taken"])
        self.machine.ok("del", "-", stdin=self.machine.ok("keys").out)
        self.machine.ok("set", "new", "1")
        self.assertEqual(reader.communicate(timeout=60)[0], before)
        self.assertEqual(reader.returncode, 0)


class Doctor(CliTest):
    def findings(self, *arguments, **options):
        result = self.machine.run("doctor", "--json", *arguments, **options)
        return result.code, {finding["check"]: finding for finding in result.json_lines}

    def test_a_good_place(self):
        self.machine.ok("set", "a", "1")
        code, findings = self.findings()
        self.assertEqual(code, 0, findings)
        for what in ("kernel", "boot id", "membarrier", "address space", "file size", "open files", "clock", "huge pages", "/dev/shm",
                     "folder", "file system", "room", "allocation", "shared mapping", "locks", "state", "sqlite", "log"):
            self.assertIn(what, findings)
        for what in ("folder", "shared mapping", "locks", "state", "log"):
            self.assertEqual(findings[what]["level"], "ok")
        for finding in findings.values():
            self.assertEqual("next" in finding, finding["level"] != "ok", finding)
        self.assertIn("ok    kernel", self.machine.ok("doctor").out.decode())
        self.assertEqual([name for name in os.listdir(self.folder) if "doctor" in name], [], "nothing is left behind")

    def test_bad_places(self):
        code, findings = self.findings("--state", f"{self.folder}/absent/x.state")
        self.assertEqual((code, findings["folder"]["level"]), (EXIT["usage"], "bad"))
        os.mkdir(f"{self.folder}/open")
        os.chmod(f"{self.folder}/open", 0o777)
        code, findings = self.findings("--state", f"{self.folder}/open/x.state")
        self.assertEqual((code, findings["folder"]["level"]), (EXIT["permission"], "bad"))
        code, findings = self.findings("--log", "nosuch://log")
        self.assertEqual((code, findings["log"]["level"]), (EXIT["usage"], "bad"))
        code, findings = self.findings("--state", self.file("text.state", "hello, this is not a state\n" * 100))
        self.assertEqual((code, findings["state"]["level"]), (EXIT["corrupt"], "bad"))

    def test_limits(self):
        limited = subprocess.run(["sh", "-c", f"ulimit -n 40; ulimit -f 20000; exec {PROGRAM} doctor --json"],
                                 capture_output=True, env=self.machine.environment())
        findings = {finding["check"]: finding for finding in map(json.loads, limited.stdout.splitlines())}
        self.assertEqual([findings[what]["level"] for what in ("open files", "file size")], ["warn", "warn"])


class Words(CliTest):
    COMMANDS = ["get", "set", "del", "mget", "import", "scan", "keys", "count", "update", "follow", "status", "check", "rewrite",
                "log", "inspect", "doctor", "version", "clear"]

    def test_help(self):
        overview = self.machine.ok("--help").out.decode()
        for command in self.COMMANDS:
            self.assertIn(f"\n  {command} ", overview)
            text = self.machine.ok(command, "--help").out.decode()
            for word in ("Usage: whycache " + command, "Examples:", "Exit codes:"):
                self.assertIn(word, text)
            self.assertEqual(self.machine.ok("help", command).out.decode(), text)
            self.assertLessEqual(max(map(len, text.splitlines())), 125, command)
        self.assertEqual(self.machine.ok("help").out.decode(), overview)

    def test_version(self):
        version = self.machine.ok("version", "--json").json
        self.assertRegex(version["version"], r"^\d+\.\d+\.\d+$")
        self.assertIn("sqlite", version["logs"])
        self.assertEqual(sorted(version["formats"]), ["state", "update"])
        self.assertIn(version["libraries"]["sqlite"], self.machine.ok("version").out.decode())
        self.assertTrue(self.machine.ok("--version").text.startswith("whycache " + version["version"]))

    def test_wrong_command_lines(self):
        self.machine.fails("usage", says="--help")
        self.machine.fails("usage", "nosuch", says="nosuch")
        self.machine.fails("usage", "help", "nosuch", says="nosuch")
        self.machine.fails("usage", "--log", "x", "get", "a", says="after the command")
        self.machine.fails("usage", "get", says="KEY")
        self.machine.fails("usage", "get", "a", "b", says="b")
        self.machine.fails("usage", "get", "a", "--nosuch", says="--nosuch")
        self.machine.fails("usage", "get", "a", "--log", says="--log")
        self.machine.fails("usage", "get", "a", "--deadline", "soon", says="soon")
        self.machine.fails("usage", "get", "a", "--deadline", "-1s", says="-1s")
        self.machine.fails("usage", "set", "a", "b", "--state-mode", "abc", says="abc")
        self.machine.fails("usage", "set", "a", "b", "--state-mode", "0777", says="state_mode")
        self.machine.fails("usage", "set", "a", "b", "--update-bytes-max", "1", says="update_bytes_max")
        self.machine.fails("usage", "set", "a", "b", "--name", "../x", "--state", self.folder + "/", says="../x")

    def test_flag_before_environment_before_default(self):
        self.machine.ok("set", "a", "here")
        other = f"sqlite://{self.folder}/other.db"
        self.machine.ok("set", "a", "there", "--log", other, "--state", f"{self.folder}/other.state")
        self.assertEqual(self.machine.ok("get", "a").out, b"here")
        self.assertEqual(self.machine.ok("get", "a", "--log", other, "--state", f"{self.folder}/other.state").out, b"there")
        environment = {"WHYCACHE_STATE": f"{self.folder}/", "WHYCACHE_NAME": "named"}
        self.machine.ok("update", env=environment)
        self.assertTrue(os.path.exists(f"{self.folder}/named.state"))
        self.machine.ok("update", "--name", "flagged", env=environment)
        self.assertTrue(os.path.exists(f"{self.folder}/flagged.state"))

    def test_the_default_place_is_private(self):
        home = f"{self.folder}/home"
        os.mkdir(home, 0o700)
        environment = {"WHYCACHE_STATE": None, "HOME": home, "STATE_DIRECTORY": f"{home}/state"}
        self.machine.ok("set", "a", "1", env=environment)
        self.assertEqual(self.machine.ok("get", "a", env=environment).out, b"1")
        state = pathlib.Path(self.machine.ok("status", "--json", env=environment).json["state"])
        self.assertEqual(stat.S_IMODE(state.parent.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(state.stat().st_mode), 0o600)
        self.assertTrue(str(state).startswith(home))

    def test_the_default_place_is_found_when_the_log_is_away(self):
        environment = {"WHYCACHE_STATE": None, "STATE_DIRECTORY": f"{self.folder}/default"}
        self.machine.ok("set", "a", "1", env=environment)
        os.rename(self.database, self.database + ".away")
        os.mkdir(self.database)
        self.assertEqual(self.machine.ok("get", "a", env=environment).out, b"1")

    def test_secrets_are_not_repeated(self):
        secret = "geheim4711"
        for url in (f"nosuch://user:{secret}@host/db", f"mysql://user:{secret}@host/db?password={secret}", f"sqlite://user:{secret}@/x",
                    f"sqlite:///{self.folder}/x?password={secret}", secret):
            for command in (("get", "a"), ("log",), ("doctor",), ("status",), ("check",)):
                result = self.machine.run(*command, "--log", url, "--state", f"{self.folder}/secret.state")
                self.assertNotEqual(result.code, EXIT["bug"], result.err)
                self.assertNotIn(secret, result.err.replace("nosuch", ""), command)
                self.assertNotIn(secret.encode(), result.out, command)


class Streams(CliTest):
    def fill(self):
        self.machine.ok("import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000)))

    def test_a_full_disk_under_standard_output_is_told(self):
        self.fill()
        with open("/dev/full", "wb") as full:
            for command in (("scan",), ("get", "key00000"), ("count",), ("status",), ("log",), ("--help",), ("version",)):
                self.machine.fails("limit", *command, stdout=full, says="No space left")

    def test_a_closed_standard_output_is_told(self):
        self.fill()
        for command in ("scan", "count"):
            result = subprocess.run(["sh", "-c", f"exec {PROGRAM} {command} >&-"], capture_output=True, env=self.machine.environment())
            self.assertEqual(result.returncode, EXIT["limit"], result.stderr)
        self.machine.ok("check")

    def test_a_reader_that_leaves_ends_it_quietly(self):
        self.fill()
        reader = self.machine.start("scan")
        reader.stdout.read(10)
        reader.stdout.close()
        reader.stdout = None
        self.assertEqual(reader.stderr.read(), b"")
        self.assertEqual(reader.wait(timeout=30), -signal.SIGPIPE)

    def test_standard_descriptors_that_are_closed_do_no_harm(self):
        self.machine.ok("set", "a", "1")
        subprocess.run(["sh", "-c", f"exec {PROGRAM} set b 2 <&- >&- 2>&-"], env=self.machine.environment())
        self.machine.ok("check")
        self.assertEqual(self.machine.ok("get", "b").out, b"2")


class BadInput(CliTest):
    """Each gives one clear error with the right exit code, names the thing, and nothing is lost or half done."""

    def test_log_urls(self):
        for url, word in (("nosuch://x", "nosuch"), ("flags.db", "scheme"), ("sqlite:flags.db", "path"), ("sqlite://host/x.db", "host"),
                          ("sqlite:///x.db?nosuch=1", "nosuch"), (f"{self.log}?instance=a-b", "instance"), ("file:relative", "path")):
            for command in (("set", "a", "1"), ("log",)):
                self.machine.fails("usage", *command, "--log", url, says=word)
        self.assertFalse(os.path.exists(self.machine.state))

    def test_folders_that_are_missing(self):
        for url in (f"sqlite://{self.folder}/absent/flags.db", f"file://{self.folder}/absent/flags"):
            self.machine.fails("usage", "set", "a", "1", "--log", url, says=["absent", "next: "])
        self.machine.fails("usage", "set", "a", "1", "--state", f"{self.folder}/absent/x.state", says=["absent", "next: "])
        self.assertEqual(self.machine.ok("set", "a", "1").text, "1", "nothing was written before")

    def test_no_permission(self):
        self.require_root()
        os.chmod(self.folder, 0o755)
        os.mkdir(f"{self.folder}/closed", 0o700)
        os.mkdir(f"{self.folder}/theirs", 0o700)
        os.chown(f"{self.folder}/theirs", NOBODY, NOBODY)
        theirs = {"WHYCACHE_STATE": f"{self.folder}/theirs/x.state", "WHYCACHE_LOG": f"sqlite://{self.folder}/theirs/x.db"}
        self.machine.ok("set", "a", "1", user=NOBODY, env=theirs)
        for change in ({"WHYCACHE_STATE": f"{self.folder}/closed/x.state"}, {"WHYCACHE_LOG": f"sqlite://{self.folder}/closed/x.db"},
                       {"WHYCACHE_LOG": f"file://{self.folder}/closed/log"}):
            self.machine.fails("permission", "set", "a", "2", user=NOBODY, env={**theirs, **change}, says=["closed", "next: "])
        self.assertEqual(self.machine.ok("get", "a", user=NOBODY, env=theirs).out, b"1")

    def test_a_state_of_another_user(self):
        self.require_root()
        os.chmod(self.folder, 0o755)
        self.machine.ok("set", "a", "1")
        os.chmod(self.folder, 0o1777)
        result = self.machine.fails("permission", "get", "a", user=NOBODY, env={"WHYCACHE_LOG": None}, says="flags.state")
        self.assertEqual(result.out, b"")

    def test_a_read_only_file_system(self):
        folder = self.mount()
        machine = Machine(self, folder, f"sqlite://{folder}/flags.db")
        machine.ok("set", "a", "1")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        machine.fails("permission", "set", "a", "2", says=[folder, "next: "])
        machine.fails("permission", "set", "a", "2", "--state", f"{folder}/new.state", says=folder)
        self.machine.fails("permission", "set", "a", "2", "--log", f"sqlite://{folder}/new.db", says=folder)
        self.machine.fails("permission", "set", "a", "2", "--log", f"file://{folder}/new", says=folder)
        self.assertEqual(machine.run("doctor").code, EXIT["permission"])
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        self.assertEqual(machine.ok("get", "a", "--update").out, b"1")

    def test_a_full_disk(self):
        folder = self.mount("size=4m")
        log = f"sqlite://{self.folder}/flags.db"
        machine = Machine(self, folder, log)
        machine.ok("set", "a", "1")
        lines = b"".join(b"key%05d\t%s\n" % (i, os.urandom(500).hex().encode()) for i in range(8_000))
        machine.fails("limit", "import", "-", stdin=lines, says=["flags.state", "next: "])
        self.assertEqual(machine.ok("get", "a").out, b"1", "reads go on")
        other = self.another_machine()
        other.ok("update")
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        machine.ok("update")
        machine.ok("check")
        self.assertEqual(machine.ok("status", "--json").json["digest"], other.ok("status", "--json").json["digest"])

    def test_a_full_disk_under_the_log(self):
        folder = self.mount("size=2m")
        for scheme, name in (("sqlite", "flags.db"), ("file", "flags")):
            machine = Machine(self, self.folder, f"{scheme}://{folder}/{name}", name=scheme)
            machine.ok("set", "a", "1")
            filler = pathlib.Path(folder) / "filler"
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            result = machine.run("set", "b", "-", stdin=os.urandom(200_000))
            self.assertEqual(result.code, EXIT["limit"], result.err)
            self.assertIn(name, result.err)
            filler.unlink()
            self.assertEqual(machine.ok("keys", "--update").lines, ["a"], "nothing was written")
            machine.ok("set", "b", "2")
            machine.ok("check")

    def test_state_files_that_are_none(self):
        self.machine.ok("set", "a", "1")
        good = pathlib.Path(self.machine.state).read_bytes()
        swapped = bytearray(good)
        swapped[12:16] = swapped[12:16][::-1]
        other_format = bytearray(good)
        other_format[8:10] = b"\x63\x00"
        cases = {"empty": b"", "short": good[:100], "foreign": b"SQLite format 3\0" + bytes(4096), "swapped": bytes(swapped),
                 "format": bytes(other_format), "text": b"hello\n" * 1000, "zeros": bytes(1 << 20)}
        for name, content in cases.items():
            with self.subTest(name):
                path = self.file(f"{name}.state", content)
                os.chmod(path, 0o600)
                for command in (("get", "a"), ("set", "a", "2"), ("inspect", path), ("status",)):
                    self.machine.fails("corrupt", *command, "--state", path, says=f"{name}.state")
                self.assertEqual(pathlib.Path(path).read_bytes(), content, "it is never overwritten")
        self.assertEqual(self.machine.ok("update").text, "1", "nothing was written")

    def test_a_state_file_cut_short_is_built_anew(self):
        self.machine.ok("import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000)))
        before = self.machine.ok("scan").out
        path = pathlib.Path(self.machine.state)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:len(content) // 2])
        path.chmod(0o600)
        self.machine.fails("corrupt", "inspect", str(path), says="cut short")
        self.assertEqual(self.machine.ok("scan").out, before)

    def test_the_state_of_another_log_is_refused(self):
        self.machine.ok("set", "mine", "1")
        other = self.another_machine("theirs", f"sqlite://{self.folder}/theirs.db")
        other.ok("set", "theirs", "1")
        for command in (("keys",), ("get", "theirs"), ("set", "a", "1"), ("update",), ("status",)):
            self.machine.fails("corrupt", *command, "--state", other.state, says=["theirs.state", "flags.db", "another log"])
        self.assertEqual(other.ok("keys").lines, ["theirs"])
        self.assertEqual(self.machine.ok("keys", "--update").lines, ["mine"], "nothing was written")

    def test_a_copied_state_is_verified_and_brought_up_to_date(self):
        self.machine.ok("set", "a", "1")
        copy = self.another_machine("copy")
        shutil.copyfile(self.machine.state, copy.state)
        os.chmod(copy.state, 0o600)
        self.machine.ok("set", "a", "2")
        self.assertEqual(copy.ok("get", "a").out, b"2")

    def test_a_symbolic_link_in_the_place_of_the_state(self):
        target = self.file("precious", b"precious")
        os.symlink(target, self.machine.state)
        for command in (("set", "a", "1"), ("inspect", self.machine.state)):
            self.machine.fails("usage", *command, says=["flags.state", "symbolic link", "next: "])
        self.assertEqual(pathlib.Path(target).read_bytes(), b"precious")

    def test_folders_others_can_write_to(self):
        for mode in (0o777, 0o770):
            folder = f"{self.folder}/{mode:o}"
            os.mkdir(folder)
            os.chmod(folder, mode)
            self.machine.fails("permission", "set", "a", "1", "--state", f"{folder}/x.state", says=folder)
        os.chmod(folder, 0o1777)
        self.machine.ok("set", "a", "1", "--state", f"{folder}/x.state")

    def test_keys_and_values(self):
        self.machine.fails("usage", "set", "", "x", says="empty")
        self.machine.fails("usage", "set", "k" * 1025, "x", says="1024")
        self.machine.fails("usage", "del", "a", "", says="empty")
        self.machine.fails("limit", "set", "a", "-", stdin=b"x" * 1_100_000, says=["value_bytes=1100000", "update_bytes_max", "next: "])
        self.machine.fails("limit", "set", "a", "-", stdin=bytes(17 << 20), says="value")
        self.machine.ok("set", "a", "-", "--update-bytes-max", "2000000", stdin=b"x" * 1_100_000)
        self.machine.fails("not_found", "get", "", says="not found")
        self.machine.fails("not_found", "get", "k" * 2000, says="not found")
        self.assertEqual(self.machine.ok("update").text, "1")

    def test_a_log_file_that_is_none(self):
        self.file("text.db", b"hello\n" * 1000)
        self.machine.fails("corrupt", "set", "a", "1", "--log", f"sqlite://{self.folder}/text.db", says="text.db")
        self.file("plain", b"hello\n")
        result = self.machine.run("set", "a", "1", "--log", f"file://{self.folder}/plain")
        self.assertIn(result.code, (EXIT["usage"], EXIT["corrupt"]), result.err)

    def test_updates_that_are_cut_short_or_claim_too_much(self):
        self.machine.ok("set", "a", "1")
        self.machine.ok("set", "b", "2")
        (row,) = self.sql("SELECT bytes FROM whycache_updates_default WHERE id = 2")
        for i, bad in enumerate((row[0][:-1], row[0][:10], row[0] + b"x", row[0][:20] + b"\xff\xff\xff\xff\xff\xff\xff\xff\x0f" + row[0][29:])):
            self.sql("UPDATE whycache_updates_default SET bytes = ? WHERE id = 2", bad)
            new = self.another_machine(f"new{i}")
            new.fails("corrupt", "update", says="id=2")
            self.machine.fails("corrupt", "log", says="id=2")
        self.sql("UPDATE whycache_updates_default SET bytes = ? WHERE id = 2", row[0])
        self.assertEqual(self.another_machine("good").ok("update").text, "2")

    def test_a_file_log(self):
        log = f"file://{self.folder}/log"
        os.mkdir(f"{self.folder}/log")
        machine = self.another_machine("filed", log)
        for i in range(5):
            machine.ok("set", f"key{i}", str(i))
        machine.ok("rewrite", "--limit", "2", "--yes")
        machine.ok("check")
        (update,) = pathlib.Path(self.folder).glob("log/*/updates/*4")
        update.unlink()
        machine.fails("corrupt", "check")
        self.another_machine("new", log).fails("corrupt", "update", says="4")

    def test_killed_in_the_midst_of_writing_nothing_is_lost_or_torn(self):
        lines = b"".join(b"key%05d\t%s\n" % (i, b"x" * 500) for i in range(20_000))
        path = self.file("items", lines)
        chance = random.Random(5)
        for _ in range(6):
            process = self.machine.start("import", path)
            time.sleep(chance.random() * 0.4)
            process.kill()
            process.wait()
            self.machine.ok("update")
            self.machine.ok("check")
        self.machine.ok("import", path)
        self.assertEqual(self.machine.ok("count").text, "20000")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit("usage: cli_test.py PATH-TO-WHYCACHE [unittest arguments]")
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    os.umask(0o077)
    faulthandler.dump_traceback_later(500, exit=True)  # a test that hangs says where
    unittest.main(verbosity=1)
