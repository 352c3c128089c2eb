"""Standard output that is full or closed."""

import signal
import subprocess

from support import EXIT, CliTest, main


class OutputTest(CliTest):
    def fill(self):
        self.machine.ok(
            "import", "-", stdin=b"".join(b"key%05d\t%s\n" % (i, b"x" * 100) for i in range(5_000))
        )

    def test_full_disk_under_standard_output_is_reported(self):
        self.fill()
        with open("/dev/full", "wb") as full:
            for command in (
                ("scan",),
                ("get", "key00000"),
                ("count",),
                ("status",),
                ("log",),
                ("--help",),
                ("version",),
            ):
                self.machine.fails("limit", *command, stdout=full, expect="No space left")

    def test_closed_standard_output_is_reported(self):
        self.fill()
        for command in ("scan", "count"):
            result = subprocess.run(
                ["sh", "-c", f"exec {self.program} {command} >&-"],
                capture_output=True,
                env=self.machine.environment(),
            )
            self.assertEqual(result.returncode, EXIT["limit"], result.stderr)
        self.machine.ok("check")

    def test_closed_pipe_ends_process_by_signal(self):
        self.fill()
        reader = self.machine.start("scan")
        reader.stdout.read(10)
        reader.stdout.close()
        reader.stdout = None
        self.assertEqual(reader.stderr.read(), b"")
        self.assertEqual(reader.wait(timeout=30), -signal.SIGPIPE)

    def test_closed_standard_descriptors_are_not_reused(self):
        self.machine.ok("set", "a", "1")
        subprocess.run(
            ["sh", "-c", f"exec {self.program} set b 2 <&- >&- 2>&-"],
            env=self.machine.environment(),
        )
        self.machine.ok("check")
        self.assertEqual(self.machine.ok("get", "b").out, b"2")


if __name__ == "__main__":
    main()
