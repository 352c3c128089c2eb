"""Options of all commands: before or after the command, environment, configuration, profiles."""

import os
import pathlib
import shutil
import subprocess

from support import ALL_BYTES, NOBODY, CliTest, main


class CommonOptionsTest(CliTest):
    def setUp(self):
        super().setUp()
        self.home = f"{self.directory}/home"
        os.makedirs(f"{self.home}/.config")
        self.config = f"{self.home}/.config/whycache.toml"
        self.bare = {"WHYCACHE_LOG": None, "WHYCACHE_STATE": None, "HOME": self.home}

    def write_config(self, text, path=None):
        pathlib.Path(path or self.config).write_text(text)

    def fill(self, value, name):
        """Sets `a` to the value in a log of this name, and returns its log and state."""
        log, state = f"sqlite://{self.directory}/{name}.db", f"{self.directory}/{name}.state"
        self.machine.ok("set", "a", value, "--log", log, "--state", state)
        return log, state

    def get(self, *arguments, **environment):
        return self.machine.ok(*arguments, "get", "a", env={**self.bare, **environment}).text

    def test_common_options_precede_or_follow_the_command(self):
        log, state = self.fill("1", "one")
        for arguments in (
            ("get", "--log", log, "--state", state, "a"),
            ("--log", log, "get", "a", "--state", state),
            ("--log", log, f"--state={state}", "get", "a"),
            ("--log", log, "--state", state, "--any-file-system", "--deadline=1s", "get", "a"),
            ("--log", log, "--state", state, "-q", "get", "a"),
        ):
            self.assertEqual(self.machine.ok(*arguments, env=self.bare).text, "1", arguments)
        result = self.machine.ok("--json", "--log", log, "--state", state, "get", "a")
        self.assertEqual(result.json["value"], "1")
        self.assertEqual(self.machine.ok("--log", log, "log", "--state", state).code, 0)
        self.assertIn("whycache", self.machine.ok("--log", log, "version", "--quiet").text)
        self.assertIn("Usage:", self.machine.ok("--log", log, "--help").text)
        for arguments, word in (
            (("--log", log), "no command"),
            (("--log",), "no command"),
            (("--nosuch", "get", "a"), "--nosuch"),
            (("--update", "get", "a"), "`whycache COMMAND --update`"),
            (("--json=maybe", "get", "a"), "json"),
        ):
            self.machine.fails("usage", *arguments, expect=word)

    def test_each_common_option_has_an_environment_variable(self):
        log, state = self.fill("1", "one")
        place = {"WHYCACHE_LOG": log, "WHYCACHE_STATE": state}
        self.assertEqual(self.get(**place), "1")
        self.assertEqual(self.get(**place, WHYCACHE_JSON="yes"), '{"key":"a","value":"1"}')
        self.assertEqual(self.get(**place, WHYCACHE_JSON="0"), "1")
        for variable, value in (
            ("WHYCACHE_DEADLINE", "soon"),
            ("WHYCACHE_STATE_MODE", "rw"),
            ("WHYCACHE_ANY_FILE_SYSTEM", "perhaps"),
            ("WHYCACHE_UPDATE_BYTES_MAX", "many"),
            ("WHYCACHE_JSON", "maybe"),
            ("WHYCACHE_QUIET", "maybe"),
            ("WHYCACHE_PROFILE", "nosuch"),
            ("WHYCACHE_CONFIG", f"{self.directory}/nosuch.toml"),
        ):
            expect = [value] if variable == "WHYCACHE_STATE_MODE" else [variable]
            self.machine.fails(
                "usage", "set", "a", "2", env={**self.bare, **place, variable: value}, expect=expect
            )
            self.assertEqual(self.get(**place, **{variable: ""}), "1", "empty is none")
        self.machine.fails(
            "limit",
            *("set", "a", "x" * 9000),
            env={**self.bare, **place, "WHYCACHE_UPDATE_BYTES_MAX": "4096"},
            expect="update_bytes_max",
        )
        self.machine.ok("set", "b", "1", env={**self.bare, **place, "WHYCACHE_STATE_MODE": "0640"})
        self.assertEqual(self.machine.ok("get", "b", env={**self.bare, **place}).text, "1")

    def test_flag_precedes_environment_which_precedes_user_and_system_file(self):
        flag, environment, user = (self.fill(name, name) for name in ("flag", "env", "user"))
        self.write_config(f'log = "{user[0]}"\nstate = "{user[1]}"\njson = true\n')
        self.assertEqual(self.get(), '{"key":"a","value":"user"}')
        in_environment = {"WHYCACHE_LOG": environment[0], "WHYCACHE_STATE": environment[1]}
        self.assertEqual(self.get(**in_environment, WHYCACHE_JSON="0"), "env")
        self.assertEqual(
            self.get("--log", flag[0], "--state", flag[1], "--json=false", **in_environment), "flag"
        )

    def test_configuration_file_holds_values_that_toml_allows(self):
        name = f"sqlite://{self.directory}/with%20%23%20and,%20[comma].db"
        self.machine.ok("set", "a", "2", "--log", name, "--state", f"{self.directory}/s #, x.state")
        self.write_config(
            "\ufeff# a comment\r\n"
            f'log = "{name}"  # one more\r\n'
            f"state = '{self.directory}/s #, x.state'\n"
            'deadline = 5\nupdate-bytes-max = "65536"\n'
            "any-file-system = false\n\n[profile.empty]\n"
        )
        self.assertEqual(self.get(), "2")
        self.write_config(f'log = "sqlite://{self.directory}/n\\u00e4m\\U0001F600\\\\\\"e.db"\n')
        result = self.machine.ok("set", "a", "3", env=self.bare)
        self.assertEqual(result.text, "1")
        self.assertIn('näm😀\\"e.db', os.listdir(self.directory))

    def test_wrong_configuration_is_reported_with_its_line(self):
        for text, words in (
            ("log", ["line=1", "`=` is missing"]),
            ("\nlog = \n", ["line=2", "no string in quotes"]),
            ("log = sqlite:///x.db", ["line=1", "no string in quotes"]),
            ('log = "x', ["line=1", 'closing "']),
            ("log = 'x", ["line=1", "closing '"]),
            ('log = "x" y', ["line=1", "after the end"]),
            ('log = "\\q"', ["line=1", "escape sequence"]),
            ('log = "\\ud800"', ["line=1", "no Unicode"]),
            ('log = "\\u12"', ["line=1", "cut short"]),
            ('log = "\\u12zz"', ["line=1", "hexadecimal"]),
            ('log = """x"""', ["line=1"]),
            ('log = ["x"]', ["line=1"]),
            ("log = true", ["line=1", "text in quotes"]),
            ("log = 7", ["line=1", "text in quotes"]),
            ("state-mode = 0640", ["line=1"]),
            ("state-mode = 640", ["line=1", "text in quotes"]),
            ('json = "true"', ["line=1", "without quotes"]),
            ("json = 1", ["line=1", "without quotes"]),
            ('lgo = "x"', ["line=1", "lgo", "any-file-system"]),
            ('profile = "x"', ["line=1", "profile"]),
            ('a.b = "x"', ["line=1"]),
            ("[profile.a", ["line=1", "`]`"]),
            ("[profile.]", ["line=1"]),
            ('[staging]\nlog = "x"', ["line=2", "[profile.NAME]"]),
            ('[profile.a.b]\nlog = "x"', ["line=2", "[profile.NAME]"]),
            ("[profile.a]\n[profile.a]", ["line=2", "twice"]),
            ('log = "a"\nlog = "b"', ["line=2", "twice"]),
            ('deadline = "soon"', ["line 1", "soon", "--deadline"]),
        ):
            self.write_config(text)
            result = self.machine.fails("usage", "get", "a", env=self.bare, expect=words)
            self.assertIn(self.config, result.err, text)
        self.machine.ok("version", env=self.bare)
        self.machine.ok("get", "--help", env=self.bare)
        pathlib.Path(self.config).write_bytes(ALL_BYTES * 10)
        self.machine.fails("usage", "get", "a", env=self.bare, expect="line=")

    def test_messages_about_configuration_hold_no_value(self):
        for line in ('log = "mysql://u:secret@h/d', "secret", 'secret2 = "secret"', "x = secret"):
            self.write_config(line)
            err = self.machine.fails("usage", "get", "a", env=self.bare).err
            self.assertNotIn("u:secret", err)
        self.write_config('log = "mysql://u:secret@/"\n')
        self.assertNotIn("secret", self.machine.run("get", "a", env=self.bare).err)

    def test_profile_chooses_log_and_state_together(self):
        main_log, main_state = self.fill("main", "main")
        staging_log, staging_state = self.fill("staging", "staging")
        self.write_config(
            f'log = "{main_log}"\nstate = "{main_state}"\ndeadline = "7s"\n'
            f'[profile.staging]\nlog = "{staging_log}"\nstate = "{staging_state}"\n'
            f'[profile.fresh]\nlog = "{staging_log}"\n[profile.none]\n'
        )
        self.assertEqual(self.get(), "main")
        self.assertEqual(self.get("--profile", "staging"), "staging")
        self.assertEqual(self.get(WHYCACHE_PROFILE="staging"), "staging")
        other = {"WHYCACHE_LOG": main_log, "WHYCACHE_STATE": main_state}
        self.assertEqual(self.get("--profile", "staging", **other), "staging")
        self.assertEqual(self.get("--profile=fresh", **other), "staging")
        self.assertTrue(os.path.isdir(f"{self.home}/.local/state/whycache") or os.geteuid() == 0)
        self.assertEqual(self.get(WHYCACHE_PROFILE="staging", **other), "main")
        self.machine.fails(
            "usage", *("--profile", "none", "get", "a"), env={**self.bare, **other}, expect="no log"
        )
        self.machine.fails(
            "usage",
            *("--profile", "stagin", "get", "a"),
            env=self.bare,
            expect=["stagin", "staging, fresh"],
        )

    def test_config_option_replaces_both_files(self):
        log, state = self.fill("1", "one")
        self.write_config("not toml")
        self.machine.fails("usage", "get", "a", env=self.bare, expect="line=1")
        named = self.file("named.toml", f'log = "{log}"\nstate = "{state}"\n')
        self.assertEqual(self.get("--config", named), "1")
        self.assertEqual(self.get(WHYCACHE_CONFIG=named), "1")
        self.machine.fails(
            "usage", *("--config", "/dev/null", "get", "a"), env=self.bare, expect="no log is named"
        )
        self.machine.fails(
            "usage", *("--config", self.directory, "get", "a"), env=self.bare, expect="regular file"
        )

    def test_configuration_that_others_can_change_is_refused(self):
        self.write_config(f'log = "{self.log}"\n')
        for mode in (0o666, 0o620, 0o602):
            os.chmod(self.config, mode)
            self.machine.fails("permission", "get", "a", env=self.bare, expect="chmod go-w")
        os.chmod(self.config, 0o644)
        self.machine.ok("set", "a", "1", env=self.bare)
        if os.geteuid() == 0:
            os.chown(self.config, NOBODY, NOBODY)
            self.machine.fails("permission", "get", "a", env=self.bare, expect="owner=65534")

    def test_home_of_another_user_is_no_obstacle(self):
        self.require_root()
        self.fill("1", "one")
        self.write_config("not toml")
        os.chmod(self.directory, 0o755)
        os.chmod(self.home, 0o700)
        result = self.machine.run("get", "a", env=self.bare, user=NOBODY)
        self.assertIn("no log is named", result.err)

    def test_setuid_program_ignores_environment_and_file_of_its_caller(self):
        self.require_root()
        log, state = self.fill("1", "one")
        self.write_config(f'log = "{log}"\n')
        program = shutil.copy(self.program, f"{self.directory}/program")
        if os.statvfs(program).f_flag & os.ST_NOSUID:
            self.skipTest("NOT TESTED: mounted nosuid")
        os.chmod(self.directory, 0o755)
        os.chown(program, 23456, 23456)  # a user without a home
        os.chmod(program, 0o4755)
        for environment in (
            {"WHYCACHE_LOG": "nosuch://x"},
            {"WHYCACHE_CONFIG": self.config},
            {"WHYCACHE_PROFILE": "nosuch"},
            {"HOME": self.home},
            {"XDG_CONFIG_HOME": f"{self.home}/.config"},
        ):
            done = subprocess.run(
                ["setpriv", "--reuid=65534", "--clear-groups", program, "get", "a"],
                env={**self.machine.environment(**{**self.bare, "HOME": None}), **environment},
                capture_output=True,
                text=True,
            )
            self.assertIn("no log is named", done.stderr, environment)

    @staticmethod
    def parent_directory():
        return None  # a setuid program needs a file system that is not mounted nosuid


if __name__ == "__main__":
    main()
