"""Help, and errors that concern every command."""

import os

from support import EXIT, CliTest, main


class CommandLineTest(CliTest):
    COMMANDS = [
        "get",
        "set",
        "add",
        "apply",
        "diff",
        "guard",
        "del",
        "mget",
        "import",
        "scan",
        "keys",
        "count",
        "update",
        "follow",
        "watch",
        "status",
        "check",
        "rewrite",
        "log",
        "inspect",
        "doctor",
        "version",
        "clear",
        "completion",
        "man",
    ]

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

    def test_names_of_other_programs_lead_to_the_command(self):
        for name, command in (
            ("put", "set"),
            ("delete", "del"),
            ("rm", "del"),
            ("ls", "keys"),
            ("subscribe", "watch"),
            ("pull", "update"),
            ("flushall", "clear"),
            ("history", "log"),
            ("imprt", "import"),
            ("stauts", "status"),
            ("GET", None),
            ("xyzzy", None),
            ("x" * 10_000, None),
        ):
            next_step = f"`whycache {command} --help`" if command else "`whycache --help`"
            self.machine.fails("usage", name, "a", expect=[name, next_step])
            self.machine.fails("usage", "help", name, expect=next_step)

    def test_wrong_command_lines_are_usage_errors(self):
        self.machine.fails("usage", expect="--help")
        self.machine.fails("usage", "nosuch", expect="nosuch")
        self.machine.fails("usage", "help", "nosuch", expect="nosuch")
        self.machine.fails("usage", "get", expect="KEY")
        self.machine.fails("usage", "get", "a", "b", expect="b")
        self.machine.fails("usage", "get", "a", "--nosuch", expect="--nosuch")
        self.machine.fails("usage", "get", "a", "--log", expect="--log")
        self.machine.fails("usage", "get", "a", "--deadline", "soon", expect="soon")
        self.machine.fails("usage", "get", "a", "--deadline", "-1s", expect="-1s")
        self.machine.fails("usage", "set", "a", "b", "--state-mode", "abc", expect="abc")
        self.machine.fails("usage", "set", "a", "b", "--state-mode", "0777", expect="state_mode")
        self.machine.fails(
            "usage", "set", "a", "b", "--update-bytes-max", "1", expect="update_bytes_max"
        )

    def test_flag_overrides_environment_and_default(self):
        self.machine.ok("set", "a", "here")
        other = f"sqlite://{self.directory}/other.db"
        self.machine.ok(
            "set", "a", "there", "--log", other, "--state", f"{self.directory}/other.state"
        )
        self.assertEqual(self.machine.ok("get", "a").out, b"here")
        self.assertEqual(
            self.machine.ok(
                "get", "a", "--log", other, "--state", f"{self.directory}/other.state"
            ).out,
            b"there",
        )
        directory = f"{self.directory}/states/"
        os.mkdir(directory)
        for log in (self.log, other):
            self.machine.ok("update", "--log", log, env={"WHYCACHE_STATE": directory})
        states = [name for name in os.listdir(directory) if name.endswith(".state")]
        self.assertEqual(len(states), 2, "in a directory, each log has a state of its own")

    def test_output_never_contains_secrets(self):
        secret = "geheim4711"
        for url in (
            f"nosuch://user:{secret}@host/db",
            f"mysql://user:{secret}@host/db?password={secret}",
            f"sqlite://user:{secret}@/x",
            f"sqlite:///{self.directory}/x?password={secret}",
            secret,
        ):
            for command in (("get", "a"), ("log",), ("doctor",), ("status",), ("check",)):
                result = self.machine.run(
                    *command, "--log", url, "--state", f"{self.directory}/secret.state"
                )
                self.assertNotEqual(result.code, EXIT["bug"], result.err)
                self.assertNotIn(secret, result.err.replace("nosuch", ""), command)
                self.assertNotIn(secret.encode(), result.out, command)


if __name__ == "__main__":
    main()
