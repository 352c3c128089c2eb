"""What redis-cli, etcdctl and git have taught people to type: it works, or the message says how.

Each row has a command line, the exit code, and words of what is printed.
"""

from support import CliTest, main

ROWS = [
    # redis-cli
    ("set a 1", "done", "1"),
    ("get a", "done", "x"),
    ("mget a b", "not_found", "a\tx"),
    ("del a b", "done", ""),
    ("set a 1 NX", "usage", "--if-absent"),
    ("set a 1 XX", "usage", "--if OLD"),
    ("set a 1 EX 10", "usage", "no expiry"),
    ("set a 1 px 10", "usage", "no expiry"),
    ("set -x a", "usage", "`whycache set KEY -`"),
    ("set a 1 b 2", "usage", "apply"),
    ("setnx a 1", "usage", "`whycache set --help`"),
    ("mset a 1 b 2", "usage", "`whycache import --help`"),
    ("get a b", "usage", "mget"),
    ("exists a", "usage", "`whycache get --help`"),
    ("incr n", "usage", "`whycache add --help`"),
    ("incrby n 5", "usage", "`whycache add --help`"),
    ("decr n", "usage", "`whycache add --help`"),
    ("unlink a", "usage", "`whycache del --help`"),
    ("keys *", "done", "not as a pattern"),
    ("keys user.*", "done", "`whycache keys user.` prints"),
    ("scan user.?", "done", "not as a pattern"),
    ("count user.*", "done", "not as a pattern"),
    ("del user.*", "done", "not as a pattern"),
    ("scan 0 MATCH user.*", "usage", "no patterns"),
    ("dbsize", "usage", "`whycache count --help`"),
    ("flushall", "usage", "`whycache clear --help`"),
    ("monitor", "usage", "`whycache watch --help`"),
    ("multi", "usage", "`whycache apply --help`"),
    ("-h", "done", "Usage: whycache"),
    ("-p 6379 get a", "usage", "-p"),
    ("get a -p 6379", "usage", "--log URL names server"),
    # etcdctl
    ("put a 1", "usage", "`whycache set --help`"),
    ("get user. --prefix", "usage", "`whycache scan PREFIX`"),
    ("get --prefix --keys-only user.", "usage", "whycache scan PREFIX"),
    ("get a --rev=3", "usage", "`whycache log --key KEY --values`"),
    ("get -w json a", "usage", "--json"),
    ("del user. --prefix", "usage", "`whycache keys --null PREFIX | whycache del --null -`"),
    ("del a --prev-kv", "usage", "--prev-kv"),
    ("watch --prefix a", "usage", "`whycache watch PREFIX`"),
    ("txn", "usage", "`whycache apply --help`"),
    ("compaction 5", "usage", "`whycache rewrite --help`"),
    ("endpoint status", "usage", "`whycache status --help`"),
    ("get a --endpoints=x:2379", "usage", "--log URL"),
    ("version", "done", "whycache"),
    # git
    ("log", "done", "set a"),
    ("log --oneline", "usage", "an update per line"),
    ("log -n 1", "usage", "--last N"),
    ("log -p", "usage", "--values"),
    ("log --since 2h", "done", "set a"),
    ("log --author=me", "usage", "--json"),
    ("log a", "usage", "--key KEY"),
    ("log --last 1 --json", "done", '"id":1'),
    ("blame a", "usage", "`whycache log --help`"),
    ("show a", "usage", "`whycache get --help`"),
    ("status", "done", "applied id"),
    ("pull", "usage", "`whycache update --help`"),
    ("fetch", "usage", "`whycache update --help`"),
    ("rm a", "usage", "`whycache del --help`"),
    ("gc", "usage", "`whycache rewrite --help`"),
    ("fsck", "usage", "`whycache check --help`"),
    ("add a", "usage", "`whycache set KEY VALUE`"),
    ("set a 1 -m why", "usage", "--note TEXT"),
    ("clear --force", "usage", "--yes"),
    ("clear -y", "usage", "--yes"),
    ("clear", "refused", "--yes"),
    ("diff no-such-file", "usage", "no-such-file"),
    ("apply no-such-file", "usage", "no-such-file"),
    ("help set", "done", "Usage: whycache set"),
    ("set --help", "done", "Usage: whycache set"),
    ("--version", "done", "whycache 0"),
    # and mistypings
    ("sett a 1", "usage", "`whycache set --help`"),
    ("stauts", "usage", "`whycache status --help`"),
    ("get a --jsn", "usage", "--jsn"),
]


class SpellingsTest(CliTest):
    def test_each_row(self):
        for number, (command, outcome, words) in enumerate(ROWS):
            with self.subTest(command):
                machine = self.another_machine(
                    f"m{number}", f"sqlite://{self.directory}/{number}.db"
                )
                if command != "set a 1":
                    machine.ok("set", "a", "x")
                if outcome == "usage" or outcome == "refused":
                    result = machine.fails(outcome, *command.split(), expect=words)
                    self.assertEqual(result.out, b"")
                    self.assertIn("\n  next: ", result.err)
                    self.assertEqual(len(result.err.splitlines()), 2, result.err)
                else:
                    result = machine.run(*command.split())
                    self.assertEqual(result.code, {"done": 0, "not_found": 1}[outcome], result.err)
                    self.assertIn(words, result.text + result.err)


if __name__ == "__main__":
    main()
