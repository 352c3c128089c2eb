#!/usr/bin/env python3
"""Checks the text of the tracked files: language, names, lengths (docs/style.md).

    scripts/check_text.py [--list] [--root DIRECTORY] [RULE...]

Prints one line per rule: what was counted and the bar. --list prints every place as well. Exit
status 1 if a bar is exceeded. Without RULE all rules run. Markdown tables, link definitions and
fenced output may be wider than the others, because they cannot be broken.
"""

import argparse
import collections
import dataclasses
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import source_text

COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70
SENTENCE_WORDS_MAX = 30
LIBRARY = ("src/", "include/", "cli/")

OPENER = re.compile(r"(Who|Whoever|Whom|Whose|What|Of|That|Those|So)\b")
PERSON = re.compile(r"\b(he|him|his|himself|whoever|somebody|nobody)\b", re.IGNORECASE)
WORD = re.compile(r"\b(anew|mends?|mended|believes?|all the same|lest|in the midst of|"
                  r"the version before|comes? to (its|an) end)\b")

# Simple names that types may share, as they are always read with the name of their class.
SHARED_NAMES = {
    "Impl": "the hidden half of a public class",
    "Kind": "the public enumerations Event::Kind and Change::Kind",
}


@dataclasses.dataclass(frozen=True)
class Place:
    path: str
    line: int
    text: str


@dataclasses.dataclass(frozen=True)
class Result:
    places: list[Place]
    total: int | None = None  # what the places are a share of, if the bar is a share

    def measure(self) -> float:
        count = len(self.places)
        return count if self.total is None else 100 * count / max(self.total, 1)


class Tree:
    """The tracked files below a root, read once."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, text=True,
                                stdout=subprocess.PIPE).stdout
        self.paths = [path for path in listed.split("\0") if path and (root / path).is_file()]
        self._texts: dict[str, str] = {}

    def text(self, path: str) -> str:
        if path not in self._texts:
            self._texts[path] = (self.root / path).read_text(errors="replace")
        return self._texts[path]

    def cpp(self, *directories: str) -> list[str]:
        return [path for path in self.paths
                if path.endswith((".h", ".cc")) and path.startswith(directories or "")]

    def markdown(self) -> list[str]:
        return [path for path in self.paths if path.endswith(".md")]

    def hash_commented(self) -> list[str]:
        return [path for path in self.paths
                if path.endswith((".py", ".sh", ".cmake", "CMakeLists.txt", "Makefile"))]


def faults_of(sentence: str) -> list[str]:
    words = len(sentence.split())
    return [fault for fault, holds in (
        ("opener", OPENER.match(sentence) and not sentence.endswith("?")),
        ("person", PERSON.search(sentence)), ("word", WORD.search(sentence)),
        (f"{words} words", words > SENTENCE_WORDS_MAX)) if holds]


def check_sentences(tree: Tree, paths: list[str]) -> Result:
    """Sentences to rewrite."""
    places, total = [], 0
    for path in paths:
        for line, sentence in source_text.sentences(path, tree.text(path)):
            total += 1
            if faults := faults_of(sentence):
                places.append(Place(path, line, f"[{', '.join(faults)}] {sentence[:150]}"))
    return Result(places, total)


def check_persons(tree: Tree) -> Result:
    """A process is "it": personal pronouns in comments and documents."""
    places = []
    for paths, lines_of in ((tree.cpp(), source_text.cpp_comments),
                            (tree.markdown(), source_text.markdown_lines),
                            (tree.hash_commented(), source_text.hash_comments)):
        for path in paths:
            for line in lines_of(tree.text(path)):
                places += [Place(path, line.number, line.text.strip())
                           for _ in PERSON.findall(re.sub(r"`[^`]*`", "", line.text))]
    return Result(places)


def check_layers(tree: Tree) -> Result:
    """Wrong-way includes, and include cycles within a folder, by tests/layers_test.py."""
    test = subprocess.run([sys.executable, tree.root / "tests/layers_test.py"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    faults = test.stdout.splitlines() if test.returncode != 0 else []
    return Result([Place("tests/layers_test.py", 1, fault) for fault in faults])


def check_type_names(tree: Tree) -> Result:
    """Two types of src, include and cli that have one simple name."""
    defined = collections.defaultdict(list)
    for path in tree.cpp(*LIBRARY):
        for line, name in source_text.types(tree.text(path)):
            defined[name].append(Place(path, line, name))
    return Result([place for name, places in sorted(defined.items())
                  if len(places) > 1 and name not in SHARED_NAMES for place in places])


def check_functions(tree: Tree) -> Result:
    """Functions that are too long, in all C++, tests included."""
    places = []
    for path in tree.cpp():
        lines = tree.text(path).splitlines()
        places += [Place(path, first, f"{last - first + 1} lines: {lines[first - 1].strip()}")
                   for first, last in source_text.functions(tree.text(path))
                   if last - first + 1 > FUNCTION_LINES_MAX]
    return Result(places)


def check_columns(tree: Tree) -> Result:
    """Lines that are too long, except Markdown tables, link definitions and fenced output."""
    places = []
    for path in tree.cpp() + tree.markdown() + tree.hash_commented():
        block = None  # the language of the fenced block that the line is in; "" if it names none
        for number, line in enumerate(tree.text(path).splitlines(), 1):
            if path.endswith(".md"):
                if fence := re.match(r"\s*```(.*)", line):
                    block = fence[1].split(" ")[0] if block is None else None
                is_output = block is not None and block not in ("cpp", "sh", "python")
                if is_output or re.match(r"\s*\||\[[^]]*\]: ", line):
                    continue
            if len(line) > COLUMNS_MAX:
                places.append(Place(path, number, f"{len(line)} columns"))
    return Result(places)


@dataclasses.dataclass(frozen=True)
class Rule:
    check: Callable[[Tree], Result]
    what: str
    bar: float = 0


RULES = {
    "comments": Rule(lambda tree: check_sentences(tree, tree.cpp(*LIBRARY)),
                     "flagged sentences in comments of src, include and cli", 3),
    "markdown": Rule(lambda tree: check_sentences(tree, tree.markdown()),
                     "flagged sentences in Markdown", 3),
    "persons": Rule(check_persons, "personal pronouns in comments and documents"),
    "layers": Rule(check_layers, "wrong-way or cyclic includes"),
    "types": Rule(check_type_names, "types of src, include and cli that share a name"),
    "functions": Rule(check_functions, f"functions of more than {FUNCTION_LINES_MAX} lines"),
    "columns": Rule(check_columns, f"lines of more than {COLUMNS_MAX} columns"),
}


def report(name: str, rule: Rule, found: Result) -> bool:
    """Prints the line of a rule. Returns whether its bar is exceeded."""
    exceeded = found.measure() > rule.bar
    share = "" if found.total is None else f" of {found.total} ({found.measure():.1f}%)"
    unit = "" if found.total is None else "%"
    print(f"{'EXCEEDED' if exceeded else 'ok':8}  {name:9}  {rule.what}: "
          f"{len(found.places)}{share}, at most {rule.bar}{unit}")
    return exceeded


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the text of the tracked files.",
                                     epilog="rules: " + ", ".join(RULES))
    parser.add_argument("--list", action="store_true", help="print every place")
    parser.add_argument("--root", type=pathlib.Path, help="the tree to check",
                        default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("rules", nargs="*", metavar="RULE", help="default: all of them")
    arguments = parser.parse_args()
    if unknown := set(arguments.rules) - set(RULES):
        parser.error(f"no such rule: {', '.join(unknown)}")
    tree = Tree(arguments.root)
    exceeded = False
    for name in arguments.rules or RULES:
        found = RULES[name].check(tree)
        if arguments.list:
            for place in found.places:
                print(f"{place.path}:{place.line}: {place.text}")
        exceeded |= report(name, RULES[name], found)
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
