"""whycache rebuild, and states in another format."""

import ctypes
import os
import pathlib
import signal
import struct

from support import CliTest, main


class RebuildTest(CliTest):
    def grow_and_erase(self):
        """Fills the state with 10,000 items of random bytes, and erases all but ten of them."""
        items = b"".join(
            b"key%05d\t%s\n" % (i, os.urandom(400).hex().encode()) for i in range(10_000)
        )
        self.machine.ok("import", "-q", "-", stdin=items)
        keys = "\n".join(f"key{i:05}" for i in range(10, 10_000))
        self.machine.ok("del", "--yes", "-", stdin=keys.encode())

    def test_shrinks_state_while_it_is_used(self):
        self.grow_and_erase()
        before = self.machine.ok("status", "--json").json
        # A reader that has the file open changes to the new one.
        follower = self.machine.start("follow", "--json", "--interval", "20ms")
        self.assertIn(b"following", follower.stderr.readline())
        done = self.machine.ok("rebuild", "--json").json
        self.assertEqual((done["items"], done["state_bytes_before"]),
                         (10, before["state_bytes"]))
        self.assertLess(done["state_bytes"], before["state_bytes"] / 2)
        self.assertIn(b'"rebuilt"', follower.stdout.readline())
        after = self.machine.ok("status", "--json").json
        self.assertEqual(after["state_bytes"], done["state_bytes"])
        for field in ("digest", "chain", "applied_id"):
            self.assertEqual(after[field], before[field])
        self.machine.ok("check")
        self.machine.ok("set", "later", "1")
        self.assertIn(b"update_id", follower.stdout.readline())
        follower.send_signal(signal.SIGTERM)
        follower.communicate(timeout=20)

    def test_keeps_state_if_log_does_not_answer_or_there_is_no_room(self):
        self.require_root()
        directory = self.mount("size=8m")
        machine = self.another_machine()
        machine.state = f"{directory}/s"
        items = b"".join(
            b"key%05d\t%s\n" % (i, os.urandom(400).hex().encode()) for i in range(5_000)
        )
        machine.ok("import", "-q", "-", stdin=items)
        machine.fails("limit", "rebuild")
        self.assertEqual(machine.ok("count").text, "5000")
        self.assertEqual(sorted(os.listdir(directory)), ["s", "s.changes", "s.lock"])
        os.rename(self.database, f"{self.database}.elsewhere")
        machine.fails("unreachable", "rebuild", "--deadline", "100ms")
        self.assertEqual(machine.ok("count").text, "5000")


class FormatTest(CliTest):
    def give_format(self, path, major):
        """Makes the file one of another format, as another version of the program makes it."""
        try:
            hash64 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
        except OSError as error:
            self.skipTest(f"needs libxxhash: {error}")
        hash64.restype = ctypes.c_uint64
        with open(path, "r+b") as file:
            header = bytearray(file.read(504))
            struct.pack_into("<H", header, 8, major)
            file.seek(0)
            file.write(header + struct.pack("<Q", hash64(bytes(header), ctypes.c_size_t(504))))

    def test_state_in_another_format_stays_and_another_is_built_beside_it(self):
        for major in (3, 99):
            with self.subTest(major):
                machine = self.another_machine(f"format{major}")
                machine.ok("set", "a", "1")
                self.give_format(machine.state, major)
                content = pathlib.Path(machine.state).read_bytes()
                machine.fails("usage", "status", expect="format")
                self.assertEqual(machine.ok("update").text, machine.ok("update").text)
                self.assertEqual(machine.ok("get", "a").out, b"1")
                machine.ok("set", "b", "2")
                self.assertEqual(machine.ok("get", "b", env={"WHYCACHE_LOG": None}).out, b"2")
                status = machine.ok("status", "--json").json
                self.assertEqual(status["state"], f"{machine.state}.f4")
                self.assertEqual(pathlib.Path(machine.state).read_bytes(), content,
                                 "the other version uses it")
                os.remove(machine.state)
                self.assertEqual(machine.ok("status", "--json").json["state"],
                                 f"{machine.state}.f4", "nothing is built again")

    def test_default_state_in_another_format_stays(self):
        directory = f"{self.directory}/default"
        environment = {"WHYCACHE_STATE": None, "STATE_DIRECTORY": directory}
        self.machine.ok("set", "a", "1", env=environment)
        (path,) = (f"{directory}/{name}" for name in os.listdir(directory)
                   if name.endswith(".state"))
        self.give_format(path, 3)
        self.assertEqual(self.machine.ok("get", "a", env=environment).out, b"1")
        self.assertEqual(self.machine.ok("status", "--json", env=environment).json["state"],
                         f"{path}.f4")


if __name__ == "__main__":
    main()
