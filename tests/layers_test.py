#!/usr/bin/env python3
"""Includes point downwards, and no include leads back to where it started (ARCHITECTURE.md).

A layer includes itself and the layers below it. Layers on one line never include each other.
A unit is a header together with the source of the same name. Units form no cycle.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Lowest first.
LAYERS = [
    ["include/whycache"],
    ["src/base"],
    ["src/update", "src/value"],
    ["src/state", "src/log"],
    ["src/original"],
    ["src/client"],
    ["cli", "examples", "demo", "fuzz", "python"],
    ["bench"],  # above demo: it measures with the demo's data
    ["tests"],
]
# The same inside src/state, where a name is a directory or one unit. The last layer is the facade:
# the units that no other name takes.
STATE_LAYERS = [
    ["src/state/errors"],
    ["src/state/file"],
    ["src/state/index", "src/state/btree"],
    ["src/state/overflow"],  # a tree that belongs to the point index
    ["src/state/read", "src/state/verify"],  # verify reads a mapping without a pin
    ["src/state/write"],  # above read: a builder gives pins on what it built, adopt calls verify
    ["src/state"],
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
STATE_HEIGHT = {name: height for height, names in enumerate(STATE_LAYERS) for name in names}
PUBLIC = LAYERS[0][0]


def unit_of(path):
    return path.relative_to(ROOT).with_suffix("").as_posix()


def layer_of(path, heights=HEIGHT):
    """The longest name that the unit has or is below; None if there is none."""
    unit = unit_of(path)
    names = [name for name in heights if unit == name or unit.startswith(name + "/")]
    return max(names, key=len, default=None)


def may_include(user, used, heights=HEIGHT):
    return used == user or heights[used] < heights[user]


def includes_of(file):
    """Yields line number, text between the quotes, and the path if it is a file of this project."""
    for line, text in enumerate(file.read_text().splitlines(), 1):
        if include := re.match(r'\s*#\s*include\s*[<"]([^>"]+)', text):
            directories = (ROOT / "include", ROOT / "src", ROOT / "tests", ROOT, file.parent)
            paths = (directory / include[1] for directory in directories)
            yield line, include[1], next((path.resolve() for path in paths if path.is_file()), None)


def find_cycle(graph):
    """Returns the units of one cycle, or none."""
    finished, path = set(), []

    def visit(unit):
        if unit in path:
            return path[path.index(unit):] + [unit]
        if unit in finished:
            return []
        path.append(unit)
        for used in sorted(graph.get(unit, ())):
            if cycle := visit(used):
                return cycle
        finished.add(path.pop())
        return []

    return next((cycle for unit in sorted(graph) if (cycle := visit(unit))), [])


faults = [f"layer {name} does not exist" for name in HEIGHT | STATE_HEIGHT
          if not (ROOT / name).is_dir() and not (ROOT / (name + ".h")).is_file()]
graph = {}
tops = sorted({name.split("/")[0] for name in HEIGHT})
for file in sorted(path for top in tops for path in (ROOT / top).rglob("*")):
    if file.suffix not in (".h", ".cc", ".c"):
        continue
    where = file.relative_to(ROOT)
    user = layer_of(file)
    if user is None:
        faults.append(f"{where} is in no layer")
        continue
    for line, text, path in includes_of(file):
        used = layer_of(path) if path else None
        if used is None:
            if user == PUBLIC and not re.fullmatch(r"[a-z_]+", text):
                faults.append(f"{where}:{line} includes {text}: neither ours nor standard")
            continue
        if user == used == "src/state":
            user_inner, used_inner = (layer_of(end, STATE_HEIGHT) for end in (file, path))
            if not may_include(user_inner, used_inner, STATE_HEIGHT):
                faults.append(f"{where}:{line} includes {text}: "
                              f"{user_inner} is not above {used_inner}")
        elif not may_include(user, used):
            faults.append(f"{where}:{line} includes {text}: {user} is not above {used}")
        if unit_of(path) != unit_of(file):
            graph.setdefault(unit_of(file), set()).add(unit_of(path))
if cycle := find_cycle(graph):
    faults.append("include cycle: " + " > ".join(cycle))

print("\n".join(faults) or "every include points downwards")
sys.exit(bool(faults))
