"""A small command line: python -m whycache get|set|items|update|status|import-original.

The program `whycache` does more (docs/cli.md). This one needs nothing but the package.
"""

import argparse
import ast
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import whycache
from whycache.original import import_original

_EXIT_CODES = {
    whycache.InvalidError: 2,
    whycache.UnavailableError: 3,
    whycache.UncertainError: 3,
    whycache.CorruptError: 5,
    whycache.DecodeError: 5,
    whycache.ConflictError: 6,
    whycache.RefusedError: 8,
    whycache.LimitError: 9,
}


def _bytes(text: str) -> bytes:
    return os.fsencode(text)


def _value(text: str, kind: str) -> Any:
    if kind == "bytes":
        return _bytes(text)
    if kind == "str":
        return text
    if kind == "json":
        return json.loads(text)
    return ast.literal_eval(text)


def _print_bytes(*parts: bytes) -> None:
    sys.stdout.buffer.write(b"".join(parts))


def _shown(value: Any) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace")


def _get(cache: whycache.Cache, arguments: argparse.Namespace) -> int:
    value = cache.get(_bytes(arguments.key), whycache.ABSENT)
    if value is whycache.ABSENT:
        return 1
    _print_bytes(_shown(value), b"\n")
    return 0


def _set(cache: whycache.Cache, arguments: argparse.Namespace) -> int:
    text = arguments.value
    if text == "-":
        text = os.fsdecode(sys.stdin.buffer.read())
    update_id = cache.set(_bytes(arguments.key), _value(text, arguments.type), note=arguments.note)
    print(update_id)
    return 0


def _items(cache: whycache.Cache, arguments: argparse.Namespace) -> int:
    prefix = _bytes(arguments.prefix) if arguments.prefix is not None else None
    for key, value in cache.items(prefix=prefix):
        _print_bytes(key, b"\t", _shown(value), b"\n")
    return 0


def _update(cache: whycache.Cache, arguments: argparse.Namespace) -> int:
    print(cache.update(at_least=arguments.at_least))
    return 0


def _status(cache: whycache.Cache, arguments: argparse.Namespace) -> int:
    stats = {"state": cache.shared_state_filename(), **cache.stats()}
    if stats["staleness"] == float("inf"):
        stats["staleness"] = None
    print(json.dumps(stats, indent=2))
    return 0


def _import_original(cache: whycache.Cache, arguments: argparse.Namespace) -> int:
    cache.update()
    result = import_original(arguments.source, cache, skip_unsupported=arguments.skip_unsupported)
    for key, reason in result.skipped.items():
        print(f"whycache: skipped: key={key!r}: {reason}", file=sys.stderr)
    items = "item" if result.items == 1 else "items"
    updates = "update" if result.updates_read == 1 else "updates"
    print(f"{result.items} {items} of {result.updates_read} {updates}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m whycache", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", default=os.environ.get("WHYCACHE_LOG"), metavar="URL",
                        help="the log; default: $WHYCACHE_LOG")
    parser.add_argument("--state", metavar="PATH", help="the state; default: $WHYCACHE_STATE")
    parser.add_argument("--codec", default="typed", help="typed (default), bytes, utf8 or json")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Any, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__.removeprefix("_").replace("_", "-"),
                                    help=help)
        added.set_defaults(function=function)
        return added

    get = command(_get, "print the value of a key; exit status 1 if it is absent")
    get.add_argument("key")
    set_ = command(_set, "set a key, and print the update id")
    set_.add_argument("key")
    set_.add_argument("value", help="- reads it from the standard input")
    set_.add_argument("--type", default="bytes", choices=["bytes", "str", "json", "python"],
                      help="what the value is; python: a literal")
    set_.add_argument("--note", help="stored with the update, for people")
    items = command(_items, "print keys and values")
    items.add_argument("--prefix", help="only of keys that start with this")
    update = command(_update, "apply what the log has, and print the update id")
    update.add_argument("--at-least", type=int, default=0, metavar="ID",
                        help="wait until this update is applied")
    command(_status, "print the state of health as JSON")
    import_ = command(_import_original, "import the data of the original program into a new log")
    import_.add_argument("source",
                         help="file:///directory, or mysql://user@host/database?table=whycache")
    import_.add_argument("--skip-unsupported", action="store_true",
                         help="leave out values of other classes, and name their keys")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status (docs/cli.md)."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not given.log:
        parser.error("which log? Give --log URL, or set WHYCACHE_LOG")
    try:
        with whycache.Cache(given.log, state_path=given.state, codec=given.codec) as cache:
            return int(given.function(cache, given))
    except (whycache.Error, ValueError, TypeError, SyntaxError) as error:
        print(f"whycache: {error}", file=sys.stderr)
        return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 2)
    except BrokenPipeError:
        # The reader has gone. Python flushes the rest at its end: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
