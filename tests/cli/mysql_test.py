"""Each command on a log in MariaDB: the tests of other files, with a database for each."""

import itertools

import servers
from support import main

server = servers.share(servers.Mariadb)
numbers = itertools.count()


def create_log(test):
    name = f"flags{next(numbers)}"
    server().sql(f"CREATE DATABASE {name}; GRANT ALL ON {name}.* TO flags@'%';")
    return f"mysql://flags:secret@127.0.0.1:{server().port}/{name}"


def load_tests(loader, *_):
    return servers.tests_on(loader, create_log)


if __name__ == "__main__":
    main()
