"""Each command on a log with memcached in front of it: the tests of other files."""

import servers
from support import main

server = servers.share(servers.Memcached)


def create_log(test):
    return f"memcached+sqlite://{test.directory}/flags.db?memcached={server().socket}"


def load_tests(loader, *_):
    return servers.tests_on(loader, create_log)


if __name__ == "__main__":
    main()
