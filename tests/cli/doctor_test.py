"""whycache doctor: findings about the environment."""

import json
import os
import subprocess

from support import EXIT, CliTest, main


class DoctorTest(CliTest):
    def findings(self, *arguments, **options):
        result = self.machine.run("doctor", "--json", *arguments, **options)
        return result.code, {finding["check"]: finding for finding in result.json_lines}

    def test_suitable_environment_has_no_bad_finding(self):
        self.machine.ok("set", "a", "1")
        code, findings = self.findings()
        self.assertEqual(code, 0, findings)
        for check in (
            "kernel",
            "boot id",
            "membarrier",
            "address space",
            "file size",
            "open files",
            "clock",
            "huge pages",
            "/dev/shm",
            "folder",
            "file system",
            "room",
            "allocation",
            "shared mapping",
            "locks",
            "state",
            "sqlite",
            "log",
        ):
            self.assertIn(check, findings)
        for check in ("folder", "shared mapping", "locks", "state", "log"):
            self.assertEqual(findings[check]["level"], "ok")
        for finding in findings.values():
            self.assertEqual("next" in finding, finding["level"] != "ok", finding)
        self.assertIn("ok    kernel", self.machine.ok("doctor").out.decode())
        self.assertEqual(
            [name for name in os.listdir(self.directory) if "doctor" in name], [], "no file remains"
        )

    def test_unsuitable_directory_log_and_state_are_bad(self):
        code, findings = self.findings("--state", f"{self.directory}/absent/x.state")
        self.assertEqual((code, findings["folder"]["level"]), (EXIT["usage"], "bad"))
        os.mkdir(f"{self.directory}/open")
        os.chmod(f"{self.directory}/open", 0o777)
        code, findings = self.findings("--state", f"{self.directory}/open/x.state")
        self.assertEqual((code, findings["folder"]["level"]), (EXIT["permission"], "bad"))
        code, findings = self.findings("--log", "nosuch://log")
        self.assertEqual((code, findings["log"]["level"]), (EXIT["usage"], "bad"))
        code, findings = self.findings(
            "--state", self.file("text.state", "hello, this is not a state\n" * 100)
        )
        self.assertEqual((code, findings["state"]["level"]), (EXIT["corrupt"], "bad"))

    def test_low_resource_limits_are_warnings(self):
        limited = subprocess.run(
            ["sh", "-c", f"ulimit -n 40; ulimit -f 20000; exec {self.program} doctor --json"],
            capture_output=True,
            env=self.machine.environment(),
        )
        findings = {
            finding["check"]: finding for finding in map(json.loads, limited.stdout.splitlines())
        }
        self.assertEqual(
            [findings[check]["level"] for check in ("open files", "file size")], ["warn", "warn"]
        )


if __name__ == "__main__":
    main()
