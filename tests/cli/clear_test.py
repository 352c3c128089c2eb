"""whycache clear: confirmation, and its effect on other machines."""

import servers
from support import CliTest, main


class ClearTest(CliTest):
    def filled(self, count=5):
        for i in range(1, count + 1):
            self.machine.ok("set", f"key{i % 3}", str(i))

    def test_clear_requires_yes_and_reaches_every_machine(self):
        self.filled()
        other = self.another_machine()
        other.ok("update")
        self.machine.fails("refused", "clear", expect=["3 keys", "--yes"])
        self.assertEqual(self.machine.ok("count").text, "3")
        self.assertEqual(self.machine.ok("clear", "--yes", "--json").json, {"base": 6})
        self.assertEqual(self.machine.ok("count").text, "0")
        other.ok("update")
        self.assertEqual(other.ok("count").text, "0")

    def test_user_without_right_to_rewrite_erases_nothing(self):
        """In MySQL, a writer may append the update that erases all keys, and not the new base."""
        mariadb = servers.Mariadb(self)
        url = lambda user: f"mysql://{user}:pw@127.0.0.1:{mariadb.port}/flags"
        mariadb.sql("CREATE USER writer@'%' IDENTIFIED BY 'pw', rewriter@'%' IDENTIFIED BY 'pw'")
        owner = f"mysql://flags:secret@127.0.0.1:{mariadb.port}/flags"
        self.another_machine("owner", owner).ok("set", "a", "1")
        for table, more in (("logs", ", UPDATE"), ("updates", ", DELETE"), ("parts", ", DELETE")):
            insert = ", INSERT" if table == "updates" else ""
            mariadb.sql(f"GRANT SELECT{insert} ON flags.whycache_{table} TO writer@'%'")
            insert = "" if table == "logs" else ", INSERT"
            mariadb.sql(f"GRANT SELECT{insert}{more} ON flags.whycache_{table} TO rewriter@'%'")
        writer = self.another_machine("writer", url("writer"))
        writer.ok("set", "b", "2")
        for command in (("clear",), ("rewrite", "--erase-all-but", "x")):
            writer.fails("permission", *command, "--yes", expect="denied")
            self.assertEqual(writer.ok("count", "--update").text, "2", command)
        self.another_machine("rewriter", url("rewriter")).ok("clear", "--yes")
        self.assertEqual(writer.ok("count", "--update").text, "0")


if __name__ == "__main__":
    main()
