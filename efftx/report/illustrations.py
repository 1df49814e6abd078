"""Drawings that are no plot of lines, by the name that an experiment's `figure.draw` gives, from records' series."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from efftx.errors import UserError, nearest
from efftx.report import figures, pattern_drawings, picture_drawings, sparse_drawings
from efftx.report.items import Item, Measured
from efftx.report.plotdata import Line, Plot, Point
from efftx.study.experiment import Experiment
from efftx.study.records import Record

ROTATIONS = 3
DARK = "#1a1a1a"  # on the pale sectors, by night as well
PALE = ("#cfe3f1", "#f6dccb", "#cdeae0", "#f3e2ec", "#dcebf7", "#f9ead0", "#e6e6e6", "#e3dcef")


@dataclass(frozen=True)
class Illustration:
    """A drawing, and the numbers it was drawn from as lines of points."""

    data: Plot
    svg: str


def illustrate(item: Item, measured: Measured) -> Illustration | None:
    """The illustration that `figure.draw` names; None where it names none, or where the records lack its series.

    UserError for a name that there is not.
    """
    figure = item.experiment.figure
    if figure is None or "draw" not in figure:
        return None
    name = str(figure["draw"])
    if name not in _ILLUSTRATIONS:
        message = f"{item.experiment.id}: figure.draw: there is no illustration '{name}'"
        raise UserError("bad_experiment", message, nearest(name, _ILLUSTRATIONS))
    return _ILLUSTRATIONS[name](item.experiment, measured)


def angular_lsh(experiment: Experiment, measured: Measured) -> Illustration | None:
    """Reformer, figure 1: two pairs of points on a circle, one far and one near, under three random rotations.

    Drawn from the first record with the series `circle_degrees` (0 .. 359), `circle_codes_0` and on to `_2` (the bucket
    of each under one rotation), `near_degrees` and `far_degrees` (the two points of a pair, in whole degrees).
    """
    circle = next((r.series for r in measured.records if "circle_degrees" in r.series), None)
    if circle is None:
        return None
    data = Plot(
        subject=f"{' '.join(experiment.caption.split()).rstrip('.')}.",
        caption=f"Buckets of all directions of a plane under {ROTATIONS} random rotations, from one record.",
        x_label="direction (degrees)",
        y_label="bucket",
        lines=tuple(_rotation(circle, r) for r in range(ROTATIONS)),
    )
    with figures.style():
        figure = Figure(figsize=(figures.WIDTH, 3.2))
        _draw_circles(figure, circle)
        return Illustration(data, figures.to_svg(figure))


def sparse_ff(experiment: Experiment, measured: Measured) -> Illustration | None:
    """Sparse is Enough, figure 2: the units that a sparse feed-forward layer selects, and the weights that it reads.

    Drawn from the first record with the series `choices`.
    """
    record = next((r for r in measured.records if "choices" in r.series), None)
    if record is None:
        return None
    found = sparse_drawings.read_selection(record.series)
    with figures.style():
        svg = sparse_drawings.draw_selection(found)
    return Illustration(sparse_drawings.selection_plot(experiment, record.row, found), svg)


def permutation(experiment: Experiment, measured: Measured) -> Illustration | None:
    """Sparse is Enough, figure 4a: a permutation matrix as the product of a gate and a projection.

    Drawn from the first record with the series `gate`, `projection`, `matrix` and `modules`.
    """
    record = next((r for r in measured.records if "gate" in r.series), None)
    if record is None:
        return None
    with figures.style():
        svg = sparse_drawings.draw_permutation(record.series)
    return Illustration(sparse_drawings.permutation_plot(experiment, record.row, record.series), svg)


def connectivity(experiment: Experiment, measured: Measured) -> Illustration | None:
    """Sparse Transformer, figure 3: the positions that outputs are connected with, a panel a pattern.

    Drawn from the records with the series `connectivity` and `query`, one a row, in the order of the rows.
    """
    records = _first_of_rows(experiment, measured, "connectivity")
    if not records:
        return None
    with figures.style():
        svg = pattern_drawings.draw_connectivity(experiment, records)
    return Illustration(pattern_drawings.connectivity_plot(experiment, records), svg)


def attention_maps(experiment: Experiment, measured: Measured) -> Illustration | None:
    """Sparse Transformer, figure 2: the pixels that heads look at, a column a layer.

    Drawn from the records with the series `map`, `query` and `side`, one a row.
    """
    records = _first_of_rows(experiment, measured, "map")
    if not records:
        return None
    return Illustration(picture_drawings.maps_plot(experiment, records), picture_drawings.draw_maps(records))


def samples(experiment: Experiment, measured: Measured) -> Illustration | None:
    """Sparse Transformer, figures 1 and 5: pictures and spectra of sounds that models draw.

    Drawn from the records with the series `rows` and `shape`, one a row.
    """
    records = _first_of_rows(experiment, measured, "rows")
    if not records:
        return None
    svg = picture_drawings.draw_samples(experiment, records)
    return Illustration(picture_drawings.samples_plot(experiment, records), svg)


def _first_of_rows(experiment: Experiment, measured: Measured, series: str) -> list[Record]:
    """The first record of each row that has the series, in the order of the rows."""
    found = {r.row: r for r in reversed(measured.records) if series in r.series}
    return [found[row] for row in experiment.rows if row in found]


def _draw_circles(figure: Figure, circle: Mapping[str, list[float]]) -> None:
    """Two rows (the near pair, the far pair) of one circle a rotation, coloured by the bucket of each direction."""
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


def _draw_sectors(axes: Axes, codes: dict[int, int]) -> None:
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-1.15, 1.15)
    axes.set_ylim(-1.15, 1.15)
    for start, end, code in _sectors(codes):
        axes.add_patch(Wedge((0, 0), 1.0, start - 0.5, end + 0.5, facecolor=PALE[code % len(PALE)], edgecolor="none"))
        middle = math.radians((start + end) / 2)
        axes.text(
            0.55 * math.cos(middle),
            0.55 * math.sin(middle),
            str(code),
            color=DARK,
            ha="center",
            va="center",
            fontsize=7.0,
        )
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


_ILLUSTRATIONS: dict[str, Callable[[Experiment, Measured], Illustration | None]] = {
    "angular_lsh": angular_lsh,
    "attention_maps": attention_maps,
    "connectivity": connectivity,
    "permutation": permutation,
    "samples": samples,
    "sparse_ff": sparse_ff,
}
