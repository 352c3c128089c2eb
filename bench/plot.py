#!/usr/bin/env python3
"""Makes SVG plots of the results that the benchmarks wrote with --json.

    bench/plot.py build/bench/figures.json build/bench

    get.svg       a get by whycache and by its rivals
    latency.svg   latency of single gets with and without a concurrent writer
    bytes.svg     bytes per item, after loading and after overwriting
    items.svg     time of a get, by number of items
    fleet.svg     statements per second that a fleet sends to its database, by followers
    visible.svg   how soon a fleet sees a write, by followers

Needs only the standard library. A plot without results is left out.
"""

import argparse
import json
import math
import os
from xml.sax.saxutils import escape

WIDTH = 760
FONT = "font-family='system-ui, sans-serif' font-size='13'"
TEXT = "#333333"
FAINT = "#dddddd"
OURS = "#d1495b"
THEIRS = "#6c8ead"
COLOURS = ["#d1495b", "#30638e", "#edae49", "#4f9d69", "#7d5ba6", "#8d6e63", "#3d3d3d", "#5fb3b3"]

FLEET_COLOURS = {
    "redis+mysql": OURS,
    "memcached+mysql": "#edae49",
    "mysql": THEIRS,
    "redis+postgres": "#7d5ba6",
    "memcached+postgres": "#8d6e63",
    "postgres": "#4f9d69",
}


class Drawing:
    """An SVG file under construction."""

    def __init__(self, height, title, subtitle):
        self.height = height
        self.pieces = []
        self.text(16, 26, title, weight="bold", size=16)
        self.text(16, 46, subtitle, colour="#777777", size=12)

    def text(self, x, y, words, anchor="start", colour=TEXT, weight="normal", size=13):
        self.pieces.append(
            f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}' "
            f"font-weight='{weight}' style='font-size:{size}px'>{escape(str(words))}</text>"
        )

    def line(self, x1, y1, x2, y2, colour=FAINT, width=1.0):
        self.pieces.append(
            f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' "
            f"stroke-width='{width}'/>"
        )

    def bar(self, x, y, width, height, colour):
        self.pieces.append(
            f"<rect x='{x:.1f}' y='{y:.1f}' width='{max(width, 1):.1f}' height='{height:.1f}' "
            f"fill='{colour}' rx='2'/>"
        )

    def curve(self, points, colour, dashed):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = " stroke-dasharray='6 4'" if dashed else ""
        self.pieces.append(
            f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'{dashes}/>"
        )
        for x, y in points:
            self.pieces.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>")

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(
                f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{self.height}' "
                f"viewBox='0 0 {WIDTH} {self.height}' {FONT}>\n"
                f"<rect width='{WIDTH}' height='{self.height}' fill='#ffffff'/>\n"
            )
            file.write("\n".join(self.pieces) + "\n</svg>\n")
        print(path)


class Scale:
    """Maps values to positions between two ends of the paper."""

    def __init__(self, low, high, begin, end, logarithmic):
        self.logarithmic = logarithmic
        self.low, self.high, self.begin, self.end = self.bend(low), self.bend(high), begin, end

    def bend(self, value):
        return math.log10(value) if self.logarithmic else value

    def __call__(self, value):
        part = (self.bend(value) - self.low) / ((self.high - self.low) or 1)
        return self.begin + part * (self.end - self.begin)


def decades(low, high):
    """The powers of ten that enclose the two."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def time_label(ns):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def count_label(count):
    for unit, size in ((" million", 1e6), (" thousand", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


class Figures:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.rows = [json.loads(line) for line in file]

    def of(self, workload, items=None):
        """Rows of a workload; of the number of items nearest to a million, or of `items`."""
        rows = [row for row in self.rows if row["workload"] == workload]
        if items is None and rows:
            items = min(
                (row["items"] for row in rows), key=lambda count: abs(math.log(count / 1e6))
            )
        return [row for row in rows if row["items"] == items]

    def items_of(self, workload):
        return sorted({row["items"] for row in self.rows if row["workload"] == workload})


def bars(rows, second, title, subtitle, label, logarithmic, names):
    """Draws a bar per subject, and a fainter one below for the second workload.

    Thin lines reach from minimum to maximum.
    """
    others = {row["subject"]: row for row in second}
    step = 44 if others else 30
    top, left, right = 66, 160, WIDTH - 110
    drawing = Drawing(top + step * len(rows) + 40 + (22 if others else 0), title, subtitle)
    values = [row[key] for row in rows + second for key in ("median", "max")]
    if logarithmic:
        ticks = decades(min(row["min"] for row in rows + second), max(values))
        scale = Scale(ticks[0], ticks[-1], left, right, True)
    else:
        unit = 10 ** math.floor(math.log10(max(values)))
        unit = next(unit * part for part in (0.2, 0.5, 1, 2) if max(values) / (unit * part) <= 8)
        ticks = [unit * i for i in range(math.ceil(max(values) / unit) + 1)]
        scale = Scale(0, ticks[-1], left, right, False)
    bottom = top + step * len(rows)
    for tick in ticks:
        drawing.line(scale(tick), top - 6, scale(tick), bottom)
        drawing.text(
            scale(tick), bottom + 18, label(tick), anchor="middle", colour="#777777", size=11
        )
    for i, row in enumerate(rows):
        y = top + i * step
        colour = OURS if row["subject"] == "whycache" else THEIRS
        drawing.text(
            left - 10,
            y + (24 if others else 16),
            row["subject"],
            anchor="end",
            weight="bold" if row["subject"] == "whycache" else "normal",
        )
        for figure, offset, shade in (
            (row, 2, colour),
            (others.get(row["subject"]), 21, colour + "88"),
        ):
            if figure is None:
                continue
            drawing.bar(left, y + offset, scale(figure["median"]) - left, 17, shade)
            drawing.line(
                scale(figure["min"]),
                y + offset + 8.5,
                scale(figure["max"]),
                y + offset + 8.5,
                "#222222",
                1.5,
            )
            drawing.text(
                scale(figure["max"]) + 6, y + offset + 13, label(figure["median"]), size=12
            )
    if others:
        for name, x, shade in ((names[0], left, THEIRS), (names[1], left + 190, THEIRS + "88")):
            drawing.bar(x, bottom + 32, 14, 14, shade)
            drawing.text(x + 20, bottom + 44, name, size=12)
    return drawing


def curves(lines, x_of, x_ticks, title, subtitle, y_label):
    """`lines`: (name, colour, dashed, [(x, value)]); `x_ticks`: (x, label)."""
    top, left, right, bottom = 70, 76, WIDTH - 210, 400
    drawing = Drawing(bottom + 50, title, subtitle)
    values = [value for _, _, _, points in lines for _, value in points]
    ticks = decades(min(values), max(values))
    scale = Scale(ticks[0], ticks[-1], bottom, top, True)
    across = Scale(x_of(x_ticks[0][0]), x_of(x_ticks[-1][0]), left + 10, right - 10, False)
    for tick in ticks:
        drawing.line(left, scale(tick), right, scale(tick))
        drawing.text(
            left - 8, scale(tick) + 4, y_label(tick), anchor="end", colour="#777777", size=11
        )
    for x, label in x_ticks:
        drawing.line(across(x_of(x)), top, across(x_of(x)), bottom)
        drawing.text(
            across(x_of(x)), bottom + 20, label, anchor="middle", colour="#777777", size=11
        )
    # Place names beside the ends of their lines, as far as there is room.
    room = -math.inf
    for name, colour, dashed, points in sorted(lines, key=lambda line: -line[3][-1][1]):
        drawing.curve([(across(x_of(x)), scale(value)) for x, value in points], colour, dashed)
        room = max(scale(points[-1][1]), room + 17)
        drawing.text(
            right + 6,
            room + 4,
            name,
            colour=colour,
            size=12,
            weight="bold" if name.startswith("whycache") else "normal",
        )
    return drawing


def plot_get(figures):
    rows = figures.of("get_uniform")
    if not rows:
        return None
    rows.sort(key=lambda row: row["median"])
    zipf = [
        row
        for row in figures.of("get_zipf", rows[0]["items"])
        if row["subject"] in {r["subject"] for r in rows}
    ]
    return bars(
        rows,
        zipf,
        "One get",
        f"copying get, {count_label(rows[0]['items'])} items, 15-byte keys, 100-byte values; "
        "logarithmic; thin lines: least to greatest of the repetitions",
        time_label,
        True,
        ["keys drawn evenly", "zipf 0.99"],
    )


def plot_bytes(figures):
    rows = figures.of("bytes_per_item")
    if not rows:
        return None
    rows.sort(key=lambda row: row["median"])
    return bars(
        rows,
        figures.of("bytes_per_item_overwritten", rows[0]["items"]),
        "Bytes per item",
        f"{count_label(rows[0]['items'])} items; 115 of the bytes are key and value",
        lambda value: f"{value:.0f}",
        False,
        ["loaded", "overwritten five times"],
    )


def plot_latency(figures):
    names = ["p10", "p50", "p90", "p99", "p99.9", "p99.99"]
    lines = []
    for i, subject in enumerate(
        dict.fromkeys(row["subject"] for row in figures.of("get_beside_writer_p50"))
    ):
        for workload, dashed, words in (
            ("get_beside_writer", False, "beside a writer"),
            ("get_without_writer", True, "no writer"),
        ):
            points = [
                (names.index(name), row["median"])
                for name in names
                for row in figures.of(f"{workload}_{name}")
                if row["subject"] == subject
            ]
            if points:
                lines.append((f"{subject}, {words}", COLOURS[i % len(COLOURS)], dashed, points))
    if not lines:
        return None
    items = figures.of("get_beside_writer_p50")[0]["items"]
    return curves(
        lines,
        lambda x: x,
        list(enumerate(names)),
        "Latency of single gets beside a writer at full speed",
        f"{count_label(items)} items, overwritten in updates of 1,000 by another process; "
        "with the time to read the clock; "
        "logarithmic",
        time_label,
    )


def plot_items(figures):
    counts = figures.items_of("get_uniform")
    lines = []
    for i, subject in enumerate(
        dict.fromkeys(row["subject"] for row in figures.rows if row["workload"] == "get_uniform")
    ):
        points = [
            (items, row["median"])
            for items in counts
            for row in figures.of("get_uniform", items)
            if row["subject"] == subject
        ]
        if len(points) == len(counts) > 1 and subject not in ("redis", "memcached"):
            lines.append((subject, COLOURS[i % len(COLOURS)], False, points))
    if not lines:
        return None
    return curves(
        lines,
        math.log10,
        [(items, count_label(items)) for items in counts],
        "One get, against the number of items",
        "copying get, keys drawn evenly; both axes logarithmic",
        time_label,
    )


def fleet_lines(figures, workloads, value_min):
    """`workloads`: (name, dashed, words)."""
    lines = []
    for subject, colour in FLEET_COLOURS.items():
        for workload, dashed, words in workloads:
            points = [
                (count, max(row["median"], value_min))
                for count in figures.items_of(workload)
                for row in figures.of(workload, count)
                if row["subject"] == subject
            ]
            if points:
                lines.append((f"{subject}, {words}", colour, dashed, points))
    return lines


def plot_fleet(figures):
    counts = figures.items_of("fleet_statements")
    if len(counts) < 2:
        return None
    return curves(
        fleet_lines(
            figures,
            [
                ("fleet_statements", False, "statements/s"),
                ("fleet_connections", True, "connections"),
            ],
            1,
        ),
        math.log10,
        [(count, count_label(count)) for count in counts],
        "What a fleet asks of its database, against the number of followers",
        "one writer appends, all followers see it; both axes logarithmic",
        count_label,
    )


def plot_visible(figures):
    counts = figures.items_of("fleet_visible_p50")
    if len(counts) < 2:
        return None
    return curves(
        fleet_lines(
            figures,
            [("fleet_visible_p50", False, "p50"), ("fleet_visible_p99", True, "p99")],
            0.01,
        ),
        math.log10,
        [(count, count_label(count)) for count in counts],
        "From the begin of a write until a follower has it, against their number",
        "followers that are not woken poll once a second; both axes logarithmic",
        lambda milliseconds: time_label(milliseconds * 1e6),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures")
    parser.add_argument("directory")
    options = parser.parse_args()
    figures = Figures(options.figures)
    os.makedirs(options.directory, exist_ok=True)
    plots = {
        "get": plot_get,
        "latency": plot_latency,
        "bytes": plot_bytes,
        "items": plot_items,
        "fleet": plot_fleet,
        "visible": plot_visible,
    }
    for name, plot in plots.items():
        drawing = plot(figures)
        if drawing is None:
            print(f"left out: {name}.svg (its figures are not there)")
        else:
            drawing.save(os.path.join(options.directory, name + ".svg"))


if __name__ == "__main__":
    main()
