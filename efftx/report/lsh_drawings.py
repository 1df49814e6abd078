"""Drawings of hashing: the buckets of all directions of a plane, and a sequence on its way through hash attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, Wedge

from efftx.report import figures
from efftx.report.plotdata import Line, Plot, Point
from efftx.study.experiment import Experiment
from efftx.study.records import Record

ROTATIONS = 3
DARK = "#1a1a1a"  # on the pale sectors, by night as well
PALE = ("#cfe3f1", "#f6dccb", "#cdeae0", "#f3e2ec", "#dcebf7", "#f9ead0", "#e6e6e6", "#e3dcef")


def circles_plot(experiment: Experiment, records: Sequence[Record]) -> Plot:
    """The numbers of `draw_circles`: a line a rotation, the bucket over the direction."""
    return Plot(
        caption=f"Buckets of all directions of a plane under {ROTATIONS} random rotations, from one record.",
        x_label="direction (degrees)",
        y_label="bucket",
        lines=tuple(_rotation(records[0].series, r) for r in range(ROTATIONS)),
    )


def draw_circles(experiment: Experiment, records: Sequence[Record]) -> str:
    """Two rows (a far pair, a near pair) of one circle a rotation, coloured by the bucket of each direction; as SVG."""
    circle = records[0].series
    figure = Figure(figsize=(figures.WIDTH, 3.2))
    for i, pair in enumerate(("far", "near")):
        for r in range(ROTATIONS):
            axes = figure.add_axes((0.12 + 0.29 * r, 0.01 + 0.5 * (1 - i), 0.27, 0.41))
            codes = _codes(circle, r)
            _draw_sectors(axes, codes)
            points = [int(degrees) % 360 for degrees in circle[f"{pair}_degrees"]]
            angles = [math.radians(point) for point in points]
            xs, ys = [0.87 * math.cos(a) for a in angles], [0.87 * math.sin(a) for a in angles]
            axes.plot(xs, ys, "o", color=DARK, ms=4.5)
            buckets = [codes[point] for point in points]
            same = buckets[0] == buckets[1]
            word = f"both in {buckets[0]}" if same else f"{buckets[0]} and {buckets[1]}"
            axes.set_title(f"rotation {r + 1}: {word}", fontsize=7.0, pad=2.0, weight="bold" if same else "normal")
            if r == 0:
                axes.text(-1.45, 0, f"{pair} pair", rotation=90, ha="center", va="center", fontsize=8.0)
    return figures.to_svg(figure)


def _draw_sectors(axes: Axes, codes: dict[int, int]) -> None:
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-1.15, 1.15)
    axes.set_ylim(-1.15, 1.15)
    for start, end, code in _sectors(codes):
        axes.add_patch(Wedge((0, 0), 1.0, start - 0.5, end + 0.5, facecolor=PALE[code % len(PALE)], edgecolor="none"))
        middle = math.radians((start + end) / 2)
        x, y = 0.55 * math.cos(middle), 0.55 * math.sin(middle)
        axes.text(x, y, str(code), color=DARK, ha="center", va="center", fontsize=7.0)
        for border in (start - 0.5, end + 0.5):
            angle = math.radians(border)
            axes.plot([0, math.cos(angle)], [0, math.sin(angle)], color=figures.FAINT, linewidth=0.5)
    around = [math.radians(a) for a in range(361)]
    axes.plot([math.cos(a) for a in around], [math.sin(a) for a in around], color=figures.FAINT, linewidth=0.6)


def _sectors(codes: dict[int, int]) -> list[tuple[int, int, int]]:
    """Runs of neighbouring degrees with one bucket as (first, last, bucket); a run across 0 ends above 359."""
    degrees = sorted(codes)
    borders = [d for before, d in zip([degrees[-1], *degrees], degrees, strict=False) if codes[before] != codes[d]]
    if not borders:
        return [(degrees[0], degrees[-1], codes[degrees[0]])]
    ends = [*borders[1:], borders[0] + 360]
    return [(start, end - 1, codes[start]) for start, end in zip(borders, ends, strict=True)]


def _codes(circle: Mapping[str, list[float]], rotation: int) -> dict[int, int]:
    buckets = circle[f"circle_codes_{rotation}"]
    return {int(at) % 360: int(code) for at, code in zip(circle["circle_degrees"], buckets, strict=True)}


def _rotation(circle: Mapping[str, list[float]], rotation: int) -> Line:
    points = tuple(Point(float(degrees), float(code)) for degrees, code in sorted(_codes(circle, rotation).items()))
    return Line(f"rotation {rotation + 1}", "measured", points)


BUCKETS = ("#9ecae1", "#fdae6b", "#a1d99b", "#f4a6c5", "#c7b3e5", "#ffe08a", "#bdbdbd", "#66c2a5")
STAGE_WORDS = ("sequence", "bucketed", "sorted", "chunked, attended to")


def pipeline_plot(experiment: Experiment, records: Sequence[Record]) -> Plot:
    """The numbers of `draw_pipeline`: a line a record and kind of pair, query over key."""
    lines = []
    for record in records:
        codes = [int(code) for code in record.series["matrix"]]
        n = math.isqrt(len(codes))
        for code, name in ((1, "attended to"), (2, "computed and hidden")):
            points = tuple(Point(float(i % n), float(i // n)) for i, its in enumerate(codes) if its == code)
            lines += [Line(experiment.label(record.row), "measured", points, name)] if points else []
    return Plot(
        caption="Left: a sequence whose queries and keys are one, coloured by bucket, as it is, sorted, and cut into "
        "chunks that see themselves and the one before. Right: which pairs of a query (rows) and a key (columns) are "
        "attended to, dark, and computed and hidden, pale. From one record each.",
        x_label="key",
        y_label="query",
        lines=tuple(lines),
    )


def draw_pipeline(experiment: Experiment, records: Sequence[Record]) -> str:
    """On the left the sequence on its way, on the right a matrix a record; as SVG text."""
    figure = Figure(figsize=(figures.WIDTH, 3.1))
    chunked = records[-1].series
    buckets, order = ([int(v) for v in chunked[name]] for name in ("buckets_q", "order_q"))
    m, n = int(chunked["chunk_len"][0]), len(buckets)
    for i, word in enumerate(STAGE_WORDS):
        axes = figure.add_axes((0.01, 0.77 - 0.24 * i, 0.44, 0.13))
        axes.set_xlim(-0.5, n * 1.12)
        axes.set_ylim(0, 1)
        axes.set_axis_off()
        axes.set_title(word, fontsize=figures.SMALL, loc="left", pad=2.0)
        for place in range(n):
            position = order[place] if i >= 2 else place
            x = place + (place // m * 0.12 * m if i == 3 and m else 0.0)
            colour = "#e6e6e6" if i == 0 else BUCKETS[buckets[position] % len(BUCKETS)]
            axes.add_patch(Rectangle((x + 0.05, 0.25), 0.9, 0.7, facecolor=colour, edgecolor="none"))
        if i == 3 and m:
            for chunk in range(n // m):
                start, previous = (c * m * 1.12 for c in (chunk, max(0, chunk - 1)))
                axes.hlines(0.12, start, start + m, colors=DARK, linewidth=1.2)
                if chunk:
                    axes.annotate(
                        "", (previous + m / 2, 0.12), (start + m / 2, 0.12),
                        arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.5", "linewidth": 0.6},
                        annotation_clip=False,
                    )  # fmt: skip
    side = 0.225
    for i, record in enumerate(records):
        axes = figure.add_axes((0.50 + 0.26 * (i % 2), 0.53 - 0.50 * (i // 2), side, side * figures.WIDTH / 3.1))
        _matrix(axes, [int(code) for code in record.series["matrix"]])
        axes.set_title(experiment.label(record.row), fontsize=figures.SMALL, pad=3.0)
    return figures.to_svg(figure)


def _matrix(axes: Axes, codes: Sequence[int]) -> None:
    n = math.isqrt(len(codes))
    figures.frame(axes, n, n)
    for colour, code in (("#b9d6ec", 2), ("#08306b", 1)):
        cells = [Rectangle((i % n, i // n), 1, 1) for i, its in enumerate(codes) if its == code]
        axes.add_collection(PatchCollection(cells, facecolor=colour, edgecolor="white", linewidth=0.2))
