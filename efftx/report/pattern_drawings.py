"""Drawings of the Sparse Transformer's patterns, from records' series: which positions an output is connected with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isqrt

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from efftx.report import figures
from efftx.report.plotdata import Line, Plot, Point
from efftx.study.experiment import Experiment
from efftx.study.records import Record

OUTPUT = "#08306b"
COLOURS = {0: "#f4f4f4", 1: "#4292c6", 2: "#b9d6ec", 3: "#1f6aab"}
"""By what `connectivity` holds: a key in no factor's set, in the first's, in the second's, in both."""
WORDS = {1: "seen by A1", 2: "by A2", 3: "by both"}


def connectivity_plot(experiment: Experiment, records: Sequence[Record]) -> Plot:
    """The numbers of the drawing: a line a row and factor, output over input."""
    names = {1: "A1", 2: "A2"}
    lines = []
    for record in records:
        codes, n = _codes(record.series)
        for bit, name in names.items():
            points = tuple(Point(float(k % n), float(k // n)) for k, code in enumerate(codes) if code & bit)
            lines += [Line(experiment.label(record.row), "measured", points, name)] if points else []
    _, n = _codes(records[0].series)
    return Plot(
        caption=f"Above: one output of an image of {isqrt(n)} × {isqrt(n)} and the positions that two heads, or two "
        f"layers, see of it. Below: all {n} outputs (rows) against all inputs (columns). From one record each.",
        x_label="input",
        y_label="output",
        lines=tuple(lines),
    )


def draw_connectivity(experiment: Experiment, records: Sequence[Record]) -> str:
    """A column a record: above the image, below the connectivity matrix; as SVG text."""
    height = 3.3
    figure = Figure(figsize=(figures.WIDTH, height))
    gap, left, right = 0.03, 0.06, 0.99
    width = (right - left - gap * (len(records) - 1)) / len(records)
    tall = width * figures.WIDTH / height
    used = {1, 2}
    for i, record in enumerate(records):
        codes, n = _codes(record.series)
        at, side = int(record.series["query"][0]), isqrt(n)
        x = left + i * (width + gap)
        image = _panel(figure, (x, 0.93 - tall, width, tall), side)
        _cells(
            image, [OUTPUT if k == at else COLOURS[code] for k, code in enumerate(codes[at * n : (at + 1) * n])], 0.8
        )
        image.set_title(experiment.label(record.row).partition(",")[0], fontsize=figures.SMALL, pad=3.0)
        matrix = _panel(figure, (x, 0.89 - 2 * tall, width, tall), n)
        _cells(matrix, [OUTPUT if k % n == k // n else COLOURS[code] for k, code in enumerate(codes)], 0.15)
        used |= {code for k, code in enumerate(codes) if k % n != k // n}
        if i == 0:
            image.set_ylabel("image", fontsize=7.0, labelpad=3.0)
            matrix.set_ylabel("output", fontsize=7.0, labelpad=3.0)
        matrix.set_xlabel("input", fontsize=7.0, labelpad=3.0)
    _key(figure, {"the output": OUTPUT, **{WORDS[code]: COLOURS[code] for code in WORDS if code in used}})
    return figures.to_svg(figure)


def _codes(series: Mapping[str, list[float]]) -> tuple[list[int], int]:
    codes = [int(code) for code in series["connectivity"]]
    return codes, isqrt(len(codes))


def _panel(figure: Figure, place: tuple[float, float, float, float], n: int) -> Axes:
    axes = figure.add_axes(place, facecolor=COLOURS[0])
    figures.frame(axes, n, n)
    return axes


def _cells(axes: Axes, colours: Sequence[str], line: float) -> None:
    """Square cells row by row, one rectangle for neighbours of one colour, and a white grid between them all."""
    n = isqrt(len(colours))
    runs: list[Rectangle] = []
    shades: list[str] = []
    for row in range(n):
        start = row * n
        for colour, run in groupby(colours[start : start + n]):
            length = len(list(run))
            if colour != COLOURS[0]:
                runs.append(Rectangle((start - row * n, row), length, 1))
                shades.append(colour)
            start += length
    axes.add_collection(PatchCollection(runs, facecolor=shades, edgecolor="none"))
    axes.hlines(range(1, n), 0, n, colors="#ffffff", linewidth=line)
    axes.vlines(range(1, n), 0, n, colors="#ffffff", linewidth=line)


def _key(figure: Figure, words: Mapping[str, str]) -> None:
    axes = figure.add_axes((0.06, 0.015, 0.93, 0.045))
    axes.set_xlim(0, 40)
    axes.set_ylim(0, 1)
    axes.set_axis_off()
    for i, (word, colour) in enumerate(words.items()):
        axes.add_patch(Rectangle((10 * i, 0.1), 1.4, 0.8, facecolor=colour, edgecolor="none"))
        axes.text(10 * i + 2.0, 0.5, word, va="center", fontsize=7.0)
