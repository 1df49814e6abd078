"""Drawings of the third paper's layers, from records' series: the sparse feed-forward, and a permutation.

Legend: T tokens, G blocks, N units of a block, S modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from efftx.report import figures
from efftx.report.plotdata import Line, Plot, Point
from efftx.study.experiment import Experiment
from efftx.study.records import Record

MOST_TOKENS = 14
CHOSEN = figures.PALETTE[0]
LEFT, RIGHT = 0.2, 0.985  # of the figure's width: what all panels share
SHADES = ("#e8f1f8", "#08407e")  # the first and the last unit of a block


@dataclass(frozen=True)
class Selection:
    """The unit that each token of a text selects in every block of `n` units."""

    texts: tuple[str, ...]
    units_TG: tuple[tuple[int, ...], ...]  # noqa: N815 - shape suffix
    n: int

    @property
    def shown(self) -> int:
        """The token whose weights are drawn: the longest word, the first of equals."""
        return max(range(len(self.texts)), key=lambda t: (len(self.texts[t].strip()), -t))


def read_selection(series: Mapping[str, list[float]]) -> Selection:
    """The first `MOST_TOKENS` tokens of the series `text`, `text_ends`, `choices` and `units_a_block`."""
    text, ends = "".join(chr(int(letter)) for letter in series["text"]), [0, *(int(end) for end in series["text_ends"])]
    texts = [text[start:end] for start, end in pairwise(ends)]
    units, n_blocks = [int(unit) for unit in series["choices"]], len(series["choices"]) // len(texts)
    rows = [tuple(units[t * n_blocks : (t + 1) * n_blocks]) for t in range(min(len(texts), MOST_TOKENS))]
    return Selection(tuple(texts[: len(rows)]), tuple(rows), int(series["units_a_block"][0]))


def selection_plot(experiment: Experiment, records: Sequence[Record]) -> Plot:
    """The numbers of the drawing: a line a token, the selected unit over the block."""
    row, selection = records[0].row, read_selection(records[0].series)
    return Plot(
        caption=f"{row.capitalize()}: (a) for the token “{selection.texts[selection.shown].strip()}”, the one selected "
        f"unit of {selection.n} in every block, and what is read of W1 and W2 for it; (b) the selected units of the "
        f"text “{''.join(selection.texts).strip()}”, token by token. From one record.",
        x_label="block",
        y_label="selected unit",
        lines=tuple(
            Line(f"{t + 1} {text.strip()}", "measured", tuple(Point(float(g), float(u)) for g, u in enumerate(units)))
            for t, (text, units) in enumerate(zip(selection.texts, selection.units_TG, strict=True))
        ),
    )


def draw_selection(experiment: Experiment, records: Sequence[Record]) -> str:
    """W1, the units and W2 for one token over the blocks; below, the units of successive tokens; as SVG text."""
    selection = read_selection(records[0].series)
    n_blocks, n, n_tokens = len(selection.units_TG[0]), selection.n, len(selection.texts)
    chosen = selection.units_TG[selection.shown]
    figure = Figure(figsize=(figures.WIDTH, 4.7))
    heights = {"W1": 0.085, "units": 0.18, "W2": 0.085}
    top = 0.945
    word = selection.texts[selection.shown].strip()
    figure.text(0.012, 0.972, f"(a)  one token: “{word}”", parse_math=False, fontsize=8.0, weight="bold", va="center")
    for name, height in heights.items():
        axes = _panel(figure, top - height, height, n_blocks)
        top -= height + 0.012
        if name == "units":
            axes.set_ylim(n, 0)
            _rule(axes, columns=n_blocks, along=n)
            _rule(axes, rows=n, along=n_blocks)
            _fill(axes, enumerate(chosen))
            label = f"hidden units:\n{n_blocks} blocks of {n}"
        else:
            axes.set_ylim(0, 1)
            stripes = [Rectangle((g + unit / n, 0), 1 / n, 1) for g, unit in enumerate(chosen)]
            axes.add_collection(PatchCollection(stripes, facecolor=CHOSEN, edgecolor="none"))
            label = "columns of W1\nread" if name == "W1" else "rows of W2\nread"
        axes.text(-0.02, 0.5, label, transform=axes.transAxes, ha="right", va="center", fontsize=7.0, parse_math=False)
    figure.text(0.012, top - 0.035, "(b)  successive tokens", fontsize=8.0, weight="bold", va="center")
    bottom = 0.125
    axes = _panel(figure, bottom, top - 0.065 - bottom, n_blocks)
    axes.set_ylim(n_tokens, 0)
    for t, units in enumerate(selection.units_TG):
        _shaded_row(axes, t, units, n)
    axes.set_xticks([g + 0.5 for g in range(0, n_blocks, 5)], [str(g + 1) for g in range(0, n_blocks, 5)])
    axes.set_xlabel("block", labelpad=1.0)
    axes.set_yticks([t + 0.5 for t in range(n_tokens)], [text.strip() or "␣" for text in selection.texts])
    axes.get_yticklabels()[selection.shown].set_fontweight("bold")
    _key(figure, n)
    return figures.to_svg(figure)


def _panel(figure: Figure, bottom: float, height: float, n_blocks: int) -> Axes:
    axes = figure.add_axes((LEFT, bottom, RIGHT - LEFT, height))
    figures.frame(axes, n_blocks, 1)
    axes.tick_params(length=0)
    return axes


def _rule(axes: Axes, *, columns: int = 0, rows: int = 0, along: int) -> None:
    """Lines between so many columns or rows, `along` cells long."""
    for x in range(1, columns):
        axes.plot([x, x], [0, along], color="#dddddd", linewidth=0.5)
    for y in range(1, rows):
        axes.plot([0, along], [y, y], color="#dddddd", linewidth=0.5)


def _fill(axes: Axes, cells: Iterable[tuple[int, int]]) -> None:
    """The cells (column, row) in the colour of what is chosen."""
    patches = [Rectangle(cell, 1, 1) for cell in cells]
    axes.add_collection(PatchCollection(patches, facecolor=CHOSEN, edgecolor="none", zorder=3))


def _shaded_row(axes: Axes, y: int, units: Sequence[int], n: int) -> None:
    """A row of cells, each shaded by its unit of `n`."""
    cells = [Rectangle((x, y), 1, 1) for x in range(len(units))]
    colours = [_shade(unit, n) for unit in units]
    axes.add_collection(PatchCollection(cells, facecolor=colours, edgecolor="#ffffff", linewidth=0.4))


def _key(figure: Figure, n: int) -> None:
    axes = figure.add_axes((LEFT + 0.25, 0.028, RIGHT - LEFT - 0.3, 0.022))
    axes.set_xlim(0, n)
    axes.set_ylim(0, 1)
    axes.set_axis_off()
    _shaded_row(axes, 0, range(n), n)
    axes.text(-0.25, 0.5, "selected unit of its block:  1", ha="right", va="center", fontsize=7.0)
    axes.text(n + 0.25, 0.5, str(n), ha="left", va="center", fontsize=7.0)


def _shade(unit: int, n: int) -> str:
    low, high = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in SHADES)
    part = unit / max(n - 1, 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(low, high, strict=True))


def permutation_plot(experiment: Experiment, records: Sequence[Record]) -> Plot:
    """The numbers of the drawing: of each output the input that it is."""
    row, series = records[0].row, records[0].series
    size = round(len(series["matrix"]) ** 0.5)
    points = [Point(float(k % size), float(k // size)) for k, entry in enumerate(series["matrix"]) if entry]
    S = int(series["modules"][0])
    return Plot(
        caption=f"{row}: a random permutation of {size} numbers as gate times projection, {S} modules of {size // S}. "
        "An input's gate names the module of its output, its projection the place in the module. Outlined are the "
        "blocks that are all a block-diagonal layer has.",
        x_label="output",
        y_label="input",
        lines=(Line("the permutation", "measured", tuple(sorted(points, key=lambda p: p.x))),),
    )


def draw_permutation(experiment: Experiment, records: Sequence[Record]) -> str:
    """Gate, projection and the permutation matrix, one row an input, entries of one filled; as SVG text."""
    series = records[0].series
    size, S = round(len(series["matrix"]) ** 0.5), int(series["modules"][0])
    width = size // S
    gate = [[series["gate"][s * size + i] for s in range(S)] for i in range(size)]
    place = [series["projection"][i * width : (i + 1) * width] for i in range(size)]
    matrix = [series["matrix"][i * size : (i + 1) * size] for i in range(size)]
    figure = Figure(figsize=(figures.WIDTH, 2.75))
    cell, bottom = 0.0275, 0.11
    ratio = figures.WIDTH / 2.75
    left = 0.13
    panels = ((gate, "gate D", "module"), (place, "projection E", "place in it"), (matrix, "permutation", "output"))
    for k, (rows, title, below) in enumerate(panels):
        n_columns = len(rows[0])
        axes = figure.add_axes((left, bottom, cell * n_columns, cell * size * ratio))
        figures.frame(axes, n_columns, size)
        _rule(axes, rows=size, along=n_columns)
        _rule(axes, columns=n_columns, along=size)
        _fill(axes, ((j, i) for i, row in enumerate(rows) for j, entry in enumerate(row) if entry))
        if k == 2:
            blocks = [Rectangle((s * width, s * width), width, width) for s in range(S)]
            orange = figures.PALETTE[1]
            axes.add_collection(PatchCollection(blocks, facecolor="none", edgecolor=orange, linewidth=1.4, zorder=4))
        axes.set_title(title, fontsize=8.0, pad=4.0)
        axes.set_xlabel(below, fontsize=7.0, labelpad=3.0)
        if k == 0:
            axes.set_ylabel("input", fontsize=7.0, labelpad=3.0)
        left += cell * n_columns + 0.065
        if k < 2:
            sign = "·" if k == 0 else "="
            figure.text(left - 0.0325, bottom + cell * size * ratio / 2, sign, fontsize=12.0, ha="center", va="center")
    return figures.to_svg(figure)
