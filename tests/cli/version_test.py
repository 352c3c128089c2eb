"""whycache version, and --version."""

from support import CliTest, main


class VersionTest(CliTest):
    def test_names_formats_logs_and_libraries(self):
        version = self.machine.ok("version", "--json").json
        self.assertRegex(version["version"], r"^\d+\.\d+\.\d+$")
        self.assertIn("sqlite", version["logs"])
        self.assertEqual(sorted(version["formats"]), ["state", "update"])
        self.assertIn(version["libraries"]["sqlite"], self.machine.ok("version").out.decode())
        self.assertTrue(
            self.machine.ok("--version").text.startswith("whycache " + version["version"])
        )


if __name__ == "__main__":
    main()
