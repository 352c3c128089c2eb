#!/usr/bin/env python3
"""A folder includes itself and what stands below it; siblings never see each other (ARCHITECTURE.md)."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = [["include/whycache"], ["src/base"], ["src/update"], ["src/state", "src/log", "src/snapshot"], ["src/client"],
          ["cli", "python", "examples", "demo", "fuzz"], ["bench"], ["tests"]]  # bench measures with the demo's real data
HEIGHT = {folder: height for height, folders in enumerate(LAYERS) for folder in folders}


def folder_of(path):
    return next((folder for folder in HEIGHT if path.is_relative_to(ROOT / folder)), None)


def may_include(user, used):
    return used == user or HEIGHT[used] < HEIGHT[user]


faults = []
for file in sorted(path for top in ("include", "src", *LAYERS[-3], *LAYERS[-2], *LAYERS[-1]) for path in (ROOT / top).rglob("*")):
    if file.suffix not in (".h", ".cc", ".c"):
        continue
    user = folder_of(file)
    if user is None:
        faults.append(f"{file.relative_to(ROOT)} lies in no layer")
        continue
    for line, text in enumerate(file.read_text().splitlines(), 1):
        include = re.match(r'\s*#\s*include\s*([<"])([^>"]+)', text)
        if not include:
            continue
        found = [place / include[2] for place in (ROOT / "include", ROOT / "src", ROOT / "tests", ROOT, file.parent)]
        used = next((folder_of(path.resolve()) for path in found if path.is_file()), None)
        if used is not None and not may_include(user, used):
            faults.append(f"{file.relative_to(ROOT)}:{line} includes {include[2]}: {user} stands not above {used}")
        if user == LAYERS[0][0] and used is None and not re.fullmatch(r"[a-z_]+", include[2]):
            faults.append(f"{file.relative_to(ROOT)}:{line} includes {include[2]}: neither ours nor the standard library's")

print("\n".join(faults) or "every include goes down")
sys.exit(bool(faults))
