#!/usr/bin/env python3
"""Checks what the documents say of the source: named files exist, and so do paths of calls.

A file that is named in backticks or linked must exist. ARCHITECTURE.md lists paths call by call.

A path is a numbered list under a heading `### ... (at most N files, M calls)`. Each item is
`function` in `file`, or `function` in `file`, through `function`, where a function of one line is
between them. Each function has to be defined in that file, and to mention the next.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import source_text  # noqa: E402

HEADING = re.compile(r"### ([^\n]*) \(at most (\d+) files, (\d+) calls\)\n(.*?)(?=\n##|\Z)",
                     re.DOTALL)
ITEM = re.compile(r"^\d+\. `([\w:]+)` in `([\w/.]+)`(?:,\s+through\s+`([\w:]+)`)?", re.MULTILINE)


def definitions(function: str, file: str) -> list[str]:
    """The text of every function of that name in the file. In a header its class may be outside."""
    path = ROOT / file
    if not path.is_file():
        return []
    text = path.read_text()
    lines = text.splitlines()
    name = function if file.endswith(".cc") else function.rpartition("::")[2]
    found = []
    for first, last in source_text.functions(text):
        body = "\n".join(lines[first - 1:last])
        signature = body[:body.find("{")]
        if re.search(rf"(?<![\w:]){re.escape(name)}\s*\(", signature):
            found.append(body)
    return found


def faults_of(items: list[tuple[str, str, str]]) -> list[str]:
    faults = []
    for (function, file, through), following in zip(items, [*items[1:], None], strict=True):
        found = definitions(function, file)
        if not found:
            faults.append(f"{function} is not defined in {file}")
        elif following is not None:
            called = (through or following[0]).rpartition("::")[2]
            if not any(re.search(rf"\b{called}\b", body[body.find("{"):]) for body in found):
                faults.append(f"{function} in {file} does not call {following[0]}")
    return faults


NAMED = re.compile(r"`((?:src|include|cli|tests|docs|bench|scripts|examples|fuzz)/[\w/.*-]+)")
PLACEHOLDER = re.compile(r"\b(NAME|FOLDER)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def missing_files() -> list[str]:
    faults = []
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]:
        text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for base, names in ((ROOT, NAMED.findall(text)), (document.parent, LINK.findall(text))):
            faults += [f"{document.relative_to(ROOT)} names {name}, which does not exist"
                       for name in names if not PLACEHOLDER.search(name)
                       and not (base / name).exists() and not any(ROOT.glob(name))]
    return faults


def main() -> int:
    paths = HEADING.findall((ROOT / "ARCHITECTURE.md").read_text())
    faults = missing_files() if paths else ["ARCHITECTURE.md lists no path"]
    for title, files_max, calls_max, text in paths:
        items = ITEM.findall(text)
        files, calls = len({file for _, file, _ in items}), len(items)
        print(f"{title}: {files} files, {calls} calls")
        if files > int(files_max) or calls > int(calls_max):
            faults.append(f"{title}: more than {files_max} files or {calls_max} calls")
        faults += [f"{title}: {fault}" for fault in faults_of(items)]
    print("\n".join(faults) or "every named file exists, and every function calls the next")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
