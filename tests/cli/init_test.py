"""whycache init: creates logs, and prints rights that the store accepts."""

import os
import pathlib
import subprocess

import servers
from support import CliTest, main

SOURCE = pathlib.Path(__file__).resolve().parents[2]


def documented_procedures():
    """The statements of docs/formats/sql.md, which a test of the log runs, too."""
    text = (SOURCE / "docs/formats/sql.md").read_text()
    begin = text.index("```mysql procedures\n") + len("```mysql procedures\n")
    return text[begin : text.index("```", begin)]


class InitTest(CliTest):
    def test_creates_log_once(self):
        for url in (f"sqlite://{self.directory}/new.db", f"file://{self.directory}/new"):
            with self.subTest(url):
                made = self.machine.ok("init", "--json", url).json
                self.assertEqual((made["created"], made["head"]), (True, 0))
                again = self.machine.ok("init", "--json", f"{url}?create=off").json
                self.assertEqual((again["created"], again["log_uuid"]), (False, made["log_uuid"]))
                self.assertIn("chgrp readers", again["grants"])
                self.machine.ok("set", "a", "1", "--log", f"{url}?create=off", "--state",
                                f"{self.directory}/{len(url)}.state")

    def test_creates_log_that_url_in_environment_forbids_to_create(self):
        for url in (f"{self.log}?create=off", f"{self.log}?create=off&instance=blue",
                    f"{self.log}?instance=green&create=off",
                    f"{self.log}?instance=red&create=%6Fff",
                    f"sqlite://{self.directory}/create=off.db?create=off",
                    f"sqlite://{self.directory}/a%3Fcreate=off&b%23.db?deadline_ms=500&create=off",
                    f"file://{self.directory}/create=off&x?create=off"):
            with self.subTest(url):
                self.machine.fails("usage", "set", "a", "1", "--log", url, expect="does not exist")
                self.assertIn("created the log", self.machine.ok("init", "--log", url).err)

    def test_missing_directory_and_wrong_url_are_usage_errors(self):
        self.machine.fails("usage", "init", f"sqlite://{self.directory}/absent/x.db",
                           expect=["absent", "next: "])
        self.machine.fails("usage", "init", "nosuch://x", expect="nosuch")
        self.machine.fails("usage", "init", env={"WHYCACHE_LOG": None}, expect="no log is named")

    def test_shell_commands_let_group_follow(self):
        self.require_root()
        group = 4711
        os.chmod(self.directory, 0o755)
        for scheme in ("file", "sqlite"):
            with self.subTest(scheme):
                url = f"{scheme}://{self.directory}/{scheme}"
                self.machine.ok("set", "a", "1", "--log", url, "--state",
                                f"{self.directory}/{scheme}.state")
                commands = self.machine.ok("init", url).out.decode()
                subprocess.run(["sh", "-e"], input=commands.replace("readers", str(group)).encode(),
                               check=True)
                home = f"{self.directory}/home-{scheme}"
                os.mkdir(home)
                os.chown(home, 4712, group)
                done = subprocess.run(
                    [self.copy_of_program(), "get", "a", "--log", url, "--state", f"{home}/s"],
                    env=self.machine.environment(), capture_output=True, check=False,
                    user=4712, group=group, extra_groups=[])
                self.assertEqual((done.returncode, done.stdout), (0, b"1"), done.stderr)

    def copy_of_program(self):
        copy = f"{self.directory}/program"
        if not os.path.exists(copy):
            pathlib.Path(copy).write_bytes(pathlib.Path(self.program).read_bytes())
            os.chmod(copy, 0o755)
        return copy


class InitMysqlTest(CliTest):
    def test_printed_statements_give_each_role_its_rights(self):
        server = servers.Mariadb(self)
        client = ["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root"]

        def sql(text, database="roles"):
            subprocess.run([*client, database], input=text.encode(), check=True)

        sql("CREATE DATABASE roles", "mysql")
        root = f"mysql://root@/roles?socket={server.socket}"
        made = self.machine.ok("init", root)
        statements = made.out.decode()
        self.assertIn("created the log", made.err)
        for procedure in documented_procedures().split("CREATE PROCEDURE "):
            self.assertIn(procedure, statements)
        sql(statements)
        sql(statements)  # again, which changes nothing

        def url(user, more=""):
            return f"mysql://{user}:pw@/roles?socket={server.socket}{more}"

        def run(expected, user, *command):
            state = f"{self.directory}/{user}.state"
            arguments = (*command, "--log", url(user), "--state", state)
            if expected == "ok":
                return self.machine.ok(*arguments)
            return self.machine.fails(expected, *arguments)

        run("permission", "writer", "set", "a", "1")  # users begin locked
        for user in ("follower", "writer", "rewriter"):
            sql(f"ALTER USER '{user}'@'%' IDENTIFIED BY 'pw' ACCOUNT UNLOCK")
        run("ok", "writer", "set", "a", "1")
        self.assertEqual(run("ok", "follower", "get", "a").out, b"1")
        run("permission", "follower", "set", "a", "2")
        run("permission", "writer", "rewrite", "--yes")
        run("ok", "rewriter", "rewrite", "--yes")
        run("ok", "follower", "update")
        # A mistyped instance: a short message that names the instances there are.
        for command in (("get", "a"), ("status", "--lag-max", "0"), ("update",)):
            result = self.machine.run(*command, "--log", url("rewriter", "&instance=blau"),
                                      "--state", f"{self.directory}/typo.state")
            self.assertNotEqual(result.code, 0)
            self.assertLessEqual(len(result.err.splitlines()), 3, result.err)
            if command[0] != "status":
                self.assertIn("'default'", result.err)
        self.assertEqual(server_instances(client), ["default"])


class InitPostgresTest(CliTest):
    def test_printed_statements_give_each_role_its_rights(self):
        server = servers.Postgres(self)
        made = self.machine.ok("init", f"postgres://postgres@127.0.0.1:{server.port}/flags")
        self.assertIn("created the log", made.err)
        server.sql(made.out.decode())
        server.sql(made.out.decode())  # again, which changes nothing

        def run(expected, user, *command):
            arguments = (*command, "--log", f"postgresql://{user}@127.0.0.1:{server.port}/flags",
                         "--state", f"{self.directory}/{user}.state")
            if expected == "ok":
                return self.machine.ok(*arguments)
            return self.machine.fails(expected, *arguments)

        run("permission", "writer", "set", "a", "1")  # roles begin without the right to log in
        for user in ("follower", "writer", "rewriter"):
            server.sql(f"ALTER ROLE {user} LOGIN")
        run("ok", "writer", "set", "a", "1")
        self.assertEqual(run("ok", "follower", "get", "a").out, b"1")
        run("permission", "follower", "set", "a", "2")
        run("permission", "writer", "rewrite", "--yes")
        run("ok", "rewriter", "rewrite", "--yes")
        run("ok", "follower", "update")
        self.assertEqual(server.sql("SELECT instance FROM whycache_logs").split(), ["default"])


def server_instances(client):
    done = subprocess.run([*client, "-N", "-e", "SELECT instance FROM roles.whycache_logs"],
                          capture_output=True, check=True, text=True)
    return done.stdout.split()


if __name__ == "__main__":
    main()
