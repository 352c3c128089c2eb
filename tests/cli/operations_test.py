"""docs/operations.md: what it tells operators to run works, as root, in namespaces of its own.

The blocks marked `sh users` run in order, in one shell, with users that exist in no other place.
Those marked `sh users fails` must fail with exit code 7. Those marked `sh postgres` run in order
against a PostgreSQL server.
"""

import os
import pathlib
import re
import shutil
import subprocess

import servers
from support import EXIT, CliTest, main

SOURCE = pathlib.Path(__file__).resolve().parents[2]

# /etc and /var/lib are copies, so that the machine keeps its users and files.
NAMESPACE = r"""
set -eu
umask 022
mount --make-rprivate /
cp -a /etc "$ROOT/etc" && mount --bind "$ROOT/etc" /etc
mkdir "$ROOT/lib" && mount --bind "$ROOT/lib" /var/lib
exec bash "$ROOT/script"
"""


def blocks(page, mark="users(?: fails)?"):
    """Returns (mark, text) of each block marked `sh users...`, or otherwise."""
    text = (SOURCE / "docs" / page).read_text()
    return re.findall(rf"^```sh ({mark})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class OperationsTest(CliTest):
    def test_recipe_for_users_works_with_three_users(self):
        self.require_root()
        if not shutil.which("useradd") or not shutil.which("runuser"):
            self.skipTest("needs useradd and runuser")
        os.chmod(self.directory, 0o755)
        programs = pathlib.Path(self.directory, "bin")
        programs.mkdir(mode=0o755)
        os.chmod(programs, 0o755)
        shutil.copy(self.program, programs / "whycache")
        os.chmod(programs / "whycache", 0o755)
        script = ["set -e", "umask 077"]
        for mark, text in blocks("operations.md"):
            if mark == "users":
                script.append(text)
                continue
            script.append(f"code=0; ( {text} ) 2>/dev/null || code=$?")
            expected = EXIT["permission"]
            script.append(f"[ $code = {expected} ] || {{ echo failed with $code; exit 1; }}")
        self.file("script", "\n".join(script))
        environment = {
            **self.machine.environment(WHYCACHE_LOG=None, WHYCACHE_STATE=None),
            "ROOT": self.directory,
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
        if probe.returncode != 0:
            self.skipTest(f"needs mount namespaces: {probe.stderr}")
        done = subprocess.run(["unshare", "--mount", "bash", "-c", NAMESPACE], env=environment,
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        printed = [line for line in done.stdout.splitlines() if not line.startswith(("#", "chgrp"))]
        self.assertIn("1 item at update 1, ", printed[2], done.stdout)
        del printed[2]
        self.assertEqual(printed, ["1", "hello1", "640 flags flagreaders", "hello"])

    def test_recipes_for_postgres_create_back_up_and_restore_a_log(self):
        server = servers.Postgres(self)
        server.sql("DROP DATABASE flags", "postgres")
        script = "".join(text for _, text in blocks("operations.md", "postgres"))
        self.assertEqual(script.count("pg_dump"), 1)
        # TLS is off on loopback, and files belong to the test.
        script = script.replace("db.example/flags?tls_ca=/etc/ssl/ca.pem",
                                f"127.0.0.1:{server.port}/flags")
        script = re.sub(r"/(tmp|var)/", rf"{self.directory}/\1/", script)
        for directory in ("tmp", "var/backups", "var/lib/whycache"):
            os.makedirs(f"{self.directory}/{directory}", mode=0o700)
        environment = {
            **self.machine.environment(WHYCACHE_LOG=None, WHYCACHE_STATE=None),
            "PGHOST": server.directory, "PGPORT": str(server.port), "PGUSER": "postgres",
            "PATH": f"{pathlib.Path(self.program).parent}:{server.programs}:{os.environ['PATH']}",
        }
        done = subprocess.run(["bash", "-euxo", "pipefail", "-c", script], env=environment,
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("rebuilt", done.stderr)


if __name__ == "__main__":
    main()
