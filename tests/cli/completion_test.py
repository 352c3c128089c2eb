"""whycache completion: scripts for shells, which the program makes of its tree of commands."""

import os
import re
import shutil
import subprocess

from support import CliTest, main


class CompletionTest(CliTest):
    def complete(self, line):
        """Returns what bash offers at the end of the line."""
        script = self.file("completion.bash", self.machine.ok("completion", "bash").out)
        done = subprocess.run(
            ["bash", "--norc", "-c", COMPLETE_LINE, "bash", script, line],
            cwd=self.directory,
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.stderr, "", line)
        self.assertEqual(done.returncode, 0, line)
        return done.stdout.split()

    def test_bash_completes_commands_options_and_files(self):
        os.mkdir(f"{self.directory}/files")
        self.file("files/one.state", "")
        for line, words in (
            ("whycache in", ["init", "inspect"]),
            ("whycache help in", ["init", "inspect"]),
            ("whycache --log sqlite:///x.db sca", ["scan"]),
            ("whycache --log=sqlite:///x.db --json sca", ["scan"]),
            ("whycache --sta", ["--state", "--state-mode"]),
            ("whycache get --upd", ["--update"]),
            ("whycache --log mysql://u@h/d get --upd", ["--update"]),
            ("whycache get --state files/o", ["files/one.state"]),
            ("whycache get --state=files/o", ["files/one.state"]),
            ("whycache inspect files/o", ["files/one.state"]),
            ("whycache get --log ", []),
            ("whycache get fi", []),
            ("whycache completion ", ["bash", "zsh", "fish"]),
        ):
            self.assertEqual(sorted(self.complete(line)), sorted(words), line)
        self.assertIn("get", self.complete("whycache "))
        self.assertNotIn("--nosuch", self.complete("whycache get --"))
        common = self.complete("whycache --")
        for option in ("--log", "--json", "--quiet", "--writer", "--update-bytes-max"):
            self.assertIn(option, common)
        self.assertNotIn("--raw-bytes", common)

    def test_every_command_and_option_of_the_help_is_in_each_script(self):
        scripts = {
            shell: self.machine.ok("completion", shell).out.decode()
            for shell in ("bash", "zsh", "fish")
        }
        overview = self.machine.ok("--help").out.decode()
        commands = re.findall(
            r"^  ([a-z-]+) +", overview.partition("Which cache:")[0], re.MULTILINE
        )
        self.assertIn("get", commands)
        for command in commands:
            options = re.findall(
                r"^ +(?:-\w,)?--([a-z-]+)", self.machine.ok(command, "--help").text, re.MULTILINE
            )
            for shell, script in scripts.items():
                self.assertIn(command, script, shell)
                for option in options:
                    found = f"-l {option} " if shell == "fish" else f"--{option}"
                    self.assertIn(found, script, (shell, command))
        self.machine.fails("usage", "completion", "tcsh", expect="bash, zsh or fish")

    def test_shells_accept_their_scripts(self):
        for shell, check in (("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")):
            if shutil.which(shell) is None:
                continue
            script = self.file(f"script.{shell}", self.machine.ok("completion", shell).out)
            done = subprocess.run([shell, check, script], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""), shell)
        if shutil.which("shellcheck"):
            done = subprocess.run(
                ["shellcheck", "-s", "bash", f"{self.directory}/script.bash"],
                capture_output=True,
                text=True,
            )
            self.assertEqual(done.stdout, "")

    def test_fish_completes_after_options_with_values(self):
        if shutil.which("fish") is None:
            self.skipTest("NOT TESTED: fish is not installed")
        script = self.file("script.fish", self.machine.ok("completion", "fish").out)
        for line, word in (
            ("whycache insp", "inspect"),
            ("whycache --log sqlite:///x.db sca", "scan"),
            ("whycache --log sqlite:///x.db get --upd", "--update"),
            ("whycache completion z", "zsh"),
        ):
            done = subprocess.run(
                ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"],
                capture_output=True,
                text=True,
                env={**os.environ, "HOME": self.directory},
            )
            self.assertEqual([found.split("\t")[0] for found in done.stdout.splitlines()], [word])

COMPLETE_LINE = r"""
source "$1"
compopt() { :; }
COMP_LINE=$2 COMP_POINT=${#2}
# Words as bash makes them: it also splits at : and =.
COMP_WORDS=()
read -ra parts <<<"$2"
for part in "${parts[@]}"; do
  while [[ $part =~ ^([^:=]*)([:=]+)(.*)$ ]]; do
    [[ ${BASH_REMATCH[1]} ]] && COMP_WORDS+=("${BASH_REMATCH[1]}")
    COMP_WORDS+=("${BASH_REMATCH[2]}") part=${BASH_REMATCH[3]}
  done
  [[ $part ]] && COMP_WORDS+=("$part")
done
[[ $2 == *' ' ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_whycache
printf '%s\n' "${COMPREPLY[@]}"
"""


if __name__ == "__main__":
    main()
