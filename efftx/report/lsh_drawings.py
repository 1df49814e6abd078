"""The drawing of angular hashing: the buckets of all directions of a plane under random rotations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

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
