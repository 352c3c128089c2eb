"""whycache man: manual pages, which the program makes of its tree of commands."""

import os
import re
import shutil
import subprocess

from support import CliTest, main


class ManualPageTest(CliTest):
    def test_pages_have_every_option_and_no_error(self):
        os.mkdir(f"{self.directory}/man1")
        self.machine.ok("man", "--directory", f"{self.directory}/man1")
        pages = sorted(os.listdir(f"{self.directory}/man1"))
        self.assertIn("whycache.1", pages)
        self.assertIn("whycache-get.1", pages)
        for name in pages:
            path = f"{self.directory}/man1/{name}"
            text = self.render(path)
            for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"):
                if title == "OPTIONS" and name in ("whycache-completion.1", "whycache-man.1"):
                    continue
                self.assertRegex(text, rf"(?m)^{title}$", name)
            if name == "whycache.1":
                self.assertRegex(text, r"(?m)^EXIT STATUS$")
                continue
            self.assertRegex(text, r"(?m)^EXIT CODES$", name)
            command = name.removeprefix("whycache-").removesuffix(".1")
            with open(path) as page:
                self.assertEqual(page.read(), self.machine.ok("man", command).out.decode())
            for option in re.findall(r"^ +(--[a-z-]+)", self.machine.ok(command, "--help").text):
                self.assertIn(option, text, name)
        text = self.render(f"{self.directory}/man1/whycache-get.1")
        self.assertIn("whycache get -- -dash", text, "dashes are those of the shell")
        self.machine.fails("usage", "man", "nosuch", expect="nosuch")
        absent = f"{self.directory}/absent"
        self.machine.fails("usage", "man", "--directory", absent, expect="absent")

    def render(self, path):
        if shutil.which("groff") is None:
            self.skipTest("NOT TESTED: groff is not installed")
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tascii", "-P-cbou", path], capture_output=True, text=True
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""), path)
        return done.stdout


if __name__ == "__main__":
    main()
