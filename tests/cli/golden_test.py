"""Files of every format that a version has written, which this one reads or leaves alone."""

import lzma
import os
import pathlib
import re
import tarfile

from support import CliTest, main

SOURCE = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = SOURCE / "tests/cli/golden"


class GoldenTest(CliTest):
    def unpack(self, name, path):
        pathlib.Path(path).write_bytes(lzma.decompress((GOLDEN / name).read_bytes()))
        os.chmod(path, 0o600)

    def check_items(self, machine):
        self.assertEqual(machine.ok("count").text, "301")
        self.assertEqual(machine.ok("get", "checkout.enabled").out, b"no")
        self.assertEqual(machine.ok("get", "key123").out, b"value 15129")
        self.assertEqual(machine.ok("get", "bytes").out, b"\0\xff\n")
        self.assertEqual(machine.ok("get", "large").out, b"x" * 70_000)
        self.assertEqual(machine.run("get", "key007").code, 1)

    def state_format(self):
        return self.machine.ok("version", "--json").json["formats"]["state"]

    def test_logs_of_every_format_are_read_and_continued(self):
        self.unpack("sqlite_log1.xz", self.database)
        with tarfile.open(GOLDEN / "file_log1.tar.xz") as archive:
            archive.extractall(self.directory)
        for log in (self.log, f"file://{self.directory}/flog"):
            with self.subTest(log):
                machine = self.another_machine(log[:4], log)
                machine.ok("update")
                self.check_items(machine)
                machine.ok("check")
                self.assertEqual(machine.ok("set", "more", "1").text, "7")

    def test_states_of_every_format_are_used_or_left_to_the_version_that_made_them(self):
        self.unpack("sqlite_log1.xz", self.database)
        current = self.state_format()
        formats = [int(re.fullmatch(r"state(\d+)\.xz", path.name)[1])
                   for path in GOLDEN.glob("state*.xz")]
        self.assertEqual(sorted(formats), list(range(1, current + 1)),
                         "each format needs a golden file")
        for number in sorted(formats):
            with self.subTest(number):
                machine = self.another_machine(f"machine{number}")
                self.unpack(f"state{number}.xz", machine.state)
                content = pathlib.Path(machine.state).read_bytes()
                machine.ok("update")
                self.check_items(machine)
                machine.ok("check")
                used = machine.ok("status", "--json").json["state"]
                if number == current:
                    self.assertEqual(used, machine.state)
                else:
                    self.assertEqual(used, f"{machine.state}.f{current}")
                    self.assertEqual(pathlib.Path(machine.state).read_bytes(), content)

    def test_states_of_older_formats_say_what_to_do_without_a_log(self):
        current = self.state_format()
        for number in range(1, current):
            path = f"{self.directory}/old{number}.state"
            self.unpack(f"state{number}.xz", path)
            content = pathlib.Path(path).read_bytes()
            old = ("--state", path)
            for command in (("get", "key123"), ("scan",), ("count",), ("status",), ("inspect",),
                            ("check",)):
                with self.subTest(number, command=command):
                    self.machine.fails(
                        "usage", *command, *old, env={"WHYCACHE_LOG": None},
                        expect=["another format", f"path={path} ",
                                f"found={number} known={current}", "whycache update"])
            with self.subTest(number, command="with the log away"):
                absent = f"sqlite://{self.directory}/absent.db"
                self.machine.fails("usage", "status", *old, "--log", absent,
                                   expect=["another format", "whycache update"])
                finding = self.machine.run("doctor", *old, "--log", absent).out.decode()
                self.assertIn(f"found={number} known={current}", finding)
            self.assertEqual(pathlib.Path(path).read_bytes(), content)


if __name__ == "__main__":
    main()
