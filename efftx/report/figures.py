"""Plots as SVG: equal numbers give equal bytes, everyone can tell the colours apart, the text reads at half a page.

Lines are named at their ends, not in a box; measured lines are full with filled markers, the paper's dashed and hollow.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from efftx.report.plotdata import Line, Plot

# Okabe and Ito's palette without its yellow, which is too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#222222", "#888888"
WIDTH, HEIGHT = 5.0, 3.0  # inches; at half a page (3.2 in) 8 pt text is still 5.6 pt
LABEL_CHARACTERS, LABEL_HEIGHT, LETTER = 20, 0.05, 0.0105  # letters a line; of the axes' height; of the width
FARTHEST = 0.12  # how far a name may stand from the end of its line, of the axes' height
PAPER = "paper, read off the plot"
STYLE: Any = {
    "svg.hashsalt": "efftx",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "path.simplify": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib as every figure of the report has it, whatever the user's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def to_svg(figure: Figure) -> str:
    """The figure as SVG text without date or creator, so that it depends on nothing but what is drawn."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def draw(plot: Plot) -> str:
    """The plot as SVG text."""
    with style():
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((0.13, 0.17, 0.78 - LETTER * _longest(plot), 0.75))
        _draw_lines(axes, plot)
        return to_svg(figure)


def _draw_lines(axes: Axes, plot: Plot) -> None:
    """Lines, bands, names of the rows at the right, and above the axes what full and dashed or a marker alone mean."""
    names = list(dict.fromkeys(line.label for line in plot.lines))
    looks = dict(zip(names, islice(cycle(zip(PALETTE, MARKERS, strict=True)), len(names)), strict=True))
    ends: dict[str, float] = {}
    for line in plot.lines:
        colour, marker = looks[line.label]
        look = _look(plot, line)
        if look.get("marker") == "o":
            look["marker"] = marker
        axes.plot([p.x for p in line.points], [p.y for p in line.points], color=colour, **look)
        if line.kind == "measured":
            _band(axes, line, colour, plot.log_y)
        ends.setdefault(line.label, line.points[-1].y)
    _scales(axes, plot)
    _name_rows(axes, ends, looks)
    axes.set_xlabel(plot.x_label, parse_math=False)
    axes.set_ylabel(plot.y_label, parse_math=False)
    _explain(axes, plot)


def _longest(plot: Plot) -> int:
    """Letters of the longest line of a row's name."""
    return max(len(text) for line in plot.lines for text in textwrap.wrap(line.label, LABEL_CHARACTERS) or [""])


def _look(plot: Plot, line: Line) -> dict[str, Any]:
    """How a line is drawn: the paper's dashed, hollow; of a row's several series the first as points on the others."""
    if line.kind != "measured":
        return {"linestyle": (0, (4, 2)), "linewidth": 0.9, "marker": "o", "mfc": "white", "zorder": 2}
    if line.series == "":
        return {"marker": "o" if len(line.points) <= 20 else "", "zorder": 3}
    order = list(dict.fromkeys(other.series for other in plot.lines))
    if order.index(line.series) == 0:
        return {"linestyle": "none", "marker": "o", "ms": 2.6, "zorder": 3}
    return {"linewidth": 1.0, "linestyle": ("-", "--", ":")[(order.index(line.series) - 1) % 3], "zorder": 2}


def _band(axes: Axes, line: Line, colour: str, log_y: bool) -> None:
    spread = [p for p in line.points if p.std is not None]
    if not spread:
        return
    low = [p.y - (p.std or 0.0) for p in spread]
    if log_y:
        low = [max(bottom, p.y * 1e-3) for bottom, p in zip(low, spread, strict=True)]
    high = [p.y + (p.std or 0.0) for p in spread]
    axes.fill_between([p.x for p in spread], low, high, color=colour, alpha=0.18, linewidth=0, zorder=1)


def _scales(axes: Axes, plot: Plot) -> None:
    if plot.log_x:
        axes.set_xscale("log")
        xs = sorted({p.x for line in plot.lines for p in line.points})
        if len(xs) <= 8:
            axes.set_xticks(xs, [_short(x) for x in xs])
            axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 3, 5, 10]))
    if plot.log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 30:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _short(x: float) -> str:
    """A tick's number: 32768 is `32K` (K is 1024 where that is exact), 1500 is `1.5k`."""
    if x >= 1024 and x % 1024 == 0:
        return f"{x / 1024:g}K"
    return f"{x / 1000:g}k" if x >= 10_000 else f"{x:g}"


def _name_rows(axes: Axes, ends: dict[str, float], looks: dict[str, tuple[str, str]]) -> None:
    """Each row's name at the right of the axes: at the height of its last point, moved apart where names would touch.

    Where the lines end too close together for that to say which is which, the names stand in the order of the rows.
    """
    transform = axes.transData + axes.transAxes.inverted()
    x_end = axes.get_xlim()[1]
    texts = {name: textwrap.fill(name, LABEL_CHARACTERS) for name in ends}
    heights = {name: LABEL_HEIGHT * (texts[name].count("\n") + 1.25) for name in ends}
    wanted = {name: float(transform.transform((x_end, y))[1]) for name, y in ends.items()}
    names = sorted(ends, key=lambda name: wanted[name])
    places = dict(zip(names, _apart([wanted[n] for n in names], [heights[n] for n in names]), strict=True))
    at_ends = all(abs(places[name] - wanted[name]) <= FARTHEST for name in names)
    if not at_ends:
        tops = [1.0 - sum(heights[n] for n in list(ends)[:i]) for i in range(len(ends))]
        places = {name: top - heights[name] / 2 for name, top in zip(ends, tops, strict=True)}
    for name, (colour, marker) in looks.items():
        place = places[name]
        xs, ys = ([1.0, 1.05], [wanted[name], place]) if at_ends else ([1.03, 1.09], [place, place])
        axes.plot(xs, ys, color=colour, linewidth=1.0, transform=axes.transAxes, clip_on=False)
        axes.plot([1.06], [place], marker, color=colour, transform=axes.transAxes, clip_on=False)
        look: dict[str, Any] = {"va": "center", "fontsize": 7.0, "linespacing": 1.0, "parse_math": False}
        axes.text(1.10, place, texts[name], transform=axes.transAxes, **look)


def _apart(wanted: list[float], heights: list[float]) -> list[float]:
    """Places for labels in the order given, as near to `wanted` as they can be without touching."""
    groups: list[list[int]] = []  # labels that touch move as one, centred on the mean of what they wanted
    for i in range(len(wanted)):
        groups.append([i])
        while len(groups) > 1:
            (_, below_top), (above_bottom, _) = (_extent(g, wanted, heights) for g in groups[-2:])
            if below_top <= above_bottom:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
    places = []
    for group in groups:
        at, _ = _extent(group, wanted, heights)
        for i in group:
            places.append(at + heights[i] / 2)
            at += heights[i]
    return places


def _extent(group: list[int], wanted: list[float], heights: list[float]) -> tuple[float, float]:
    total = sum(heights[i] for i in group)
    centre = sum(wanted[i] for i in group) / len(group)
    return centre - total / 2, centre + total / 2


def _explain(axes: Axes, plot: Plot) -> None:
    """A key above the axes where not every line is of the same sort."""
    sorts: dict[tuple[str, str], Line] = {}
    for line in plot.lines:
        sorts.setdefault((line.kind, line.series), line)
    if len(sorts) == 1:
        return
    words = {"measured": "measured", "published": PAPER, "published-unverified": f"{PAPER}, unverified"}
    handles = [
        Line2D([], [], color=INK, label=series or words[kind], **_look(plot, line))
        for (kind, series), line in sorts.items()
    ]
    legend = axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.01),
        ncols=len(handles),
        frameon=False,
        fontsize=7.0,
        borderaxespad=0.0,
        handlelength=2.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
