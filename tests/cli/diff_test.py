"""whycache diff: what applying a file would change."""

from support import CliTest, main


class DiffTest(CliTest):
    CHANGES = b'{"key":"a","value":"1"}\n{"key":"b","erase":true}\n{"key":"c","value":""}\n'

    def test_diff_is_what_apply_changes(self):
        self.machine.ok("import", "-", stdin=b"a\t1\nb\told\nf.x\t1\nf.y\t2\n")
        result = self.machine.run("diff", "-", stdin=self.CHANGES)
        self.assertEqual((result.code, result.out), (1, b"- b\told\n+ c\t\n"))
        patch = self.machine.run("diff", "--json", "-", stdin=self.CHANGES)
        self.assertEqual(
            patch.json_lines,
            [{"key": "b", "old": "old", "erase": True}, {"key": "c", "value": ""}],
        )
        self.machine.ok("apply", "-", stdin=patch.out)
        self.assertEqual(self.machine.ok("diff", "-", stdin=self.CHANGES).out, b"")
        mirrored = self.machine.run("diff", "--mirror", "f.", "-", stdin=b"f.x\t3\n")
        self.assertEqual(mirrored.out, b"- f.x\t1\n+ f.x\t3\n- f.y\t2\n")


if __name__ == "__main__":
    main()
