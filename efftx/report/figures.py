"""Plots as SVG: equal numbers give equal bytes, everyone can tell the lines apart, the text reads on a telephone.

A line is named at its end, and a thinner one joins the two; measured lines are full with filled markers, the paper's
dashed and hollow. No two lines of a figure have the same colour.
"""

from __future__ import annotations

import colorsys
import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from efftx.report.plotdata import Line, Plot, Point

# Okabe and Ito's palette without its yellow, which is too pale on white; then darker ones of Paul Tol's muted palette.
# Whoever does not tell two of them apart has the markers.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"),
    *("#882255", "#999933", "#332288", "#7F7F7F", "#661100", "#AA4499"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
INK, FAINT = "#222222", "#888888"
WIDTH, HEIGHT = 4.2, 3.0  # inches: 403 px, so that 8.5 pt are 9.5 px on a telephone
SMALL, TEXT = 8.5, 9.0  # points
LABEL_CHARACTERS, LABEL_HEIGHT, LETTER = 18, 0.13, 0.0155  # letters a line; inches; of the width
BELOW, ABOVE = 0.5, 0.42  # inches around the axes
STYLE: Any = {
    "svg.hashsalt": "efftx",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
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
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "path.simplify": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib as every figure of the report has it, whatever the user's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def frame(axes: Axes, columns: float, rows: float) -> None:
    """Axes as a frame around cells, the first row on top: no grid, no ticks."""
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def to_svg(figure: Figure) -> str:
    """The figure as SVG text without date or creator, so that it depends on nothing but what is drawn."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def draw(plot: Plot) -> str:
    """The plot as SVG text; taller where its names need the room."""
    with style():
        names = dict.fromkeys(line.label for line in plot.lines)
        lines = sum(len(_wrapped(name)) + 0.25 for name in names)
        tall = max(HEIGHT - BELOW - ABOVE, LABEL_HEIGHT * lines)
        height = tall + BELOW + ABOVE
        figure = Figure(figsize=(WIDTH, height))
        bottom, top = BELOW / height, 1 - ABOVE / height
        axes = figure.add_axes((0.15, bottom, 0.74 - LETTER * _longest(plot), top - bottom))
        figure.text(0.02, 1 - 0.12 / height, plot.title, fontsize=TEXT, weight="bold", va="center", parse_math=False)
        _draw_lines(axes, plot, LABEL_HEIGHT / tall)
        return to_svg(figure)


def _draw_lines(axes: Axes, plot: Plot, label_height: float) -> None:
    """Lines, bands, names of the rows at the right, and above the axes what full and dashed or a marker alone mean."""
    names = list(dict.fromkeys(line.label for line in plot.lines))
    looks = looks_of(plot.names if len(plot.names) <= len(PALETTE) and plot.names else names)
    ends: dict[str, Point] = {}
    for line in plot.lines:
        colour, marker = looks[line.label]
        look = _look(plot, line)
        if look.get("marker") == "o":
            look["marker"] = marker
        (drawn,) = axes.plot([p.x for p in line.points], [p.y for p in line.points], color=colour, **look)
        drawn.set_gid(f"row-{names.index(line.label)}-{line.series or line.kind}".replace(" ", "-"))
        if line.kind == "measured":
            _band(axes, line, colour, plot.log_y)
        ends.setdefault(line.label, line.points[-1])
    _scales(axes, plot)
    _name_rows(axes, ends, {name: looks[name] for name in names}, label_height)
    axes.set_xlabel(plot.x_label, parse_math=False)
    axes.set_ylabel(plot.y_label, parse_math=False)
    _explain(axes, plot)


def looks_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name; no two colours are equal, beyond the palette they go round the hues."""
    n_more = max(0, len(names) - len(PALETTE))
    more = [to_hex(colorsys.hsv_to_rgb(i / max(n_more, 1), 0.9, 0.55 + 0.2 * (i % 2))) for i in range(n_more)]
    return dict(zip(names, zip([*PALETTE, *more], cycle(MARKERS), strict=False), strict=False))


def _wrapped(name: str) -> list[str]:
    return textwrap.wrap(name, LABEL_CHARACTERS) or [""]


def _longest(plot: Plot) -> int:
    """Letters of the longest line of a row's name."""
    return max(len(text) for line in plot.lines for text in _wrapped(line.label))


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
    spread = [p for p in line.points if p.band is not None]
    if not spread:
        return
    low = [p.y - (p.band or 0.0) for p in spread]
    if log_y:
        low = [max(bottom, p.y * 1e-3) for bottom, p in zip(low, spread, strict=True)]
    high = [p.y + (p.band or 0.0) for p in spread]
    axes.fill_between([p.x for p in spread], low, high, color=colour, alpha=0.18, linewidth=0, zorder=1)


def _scales(axes: Axes, plot: Plot) -> None:
    if plot.log_x:
        axes.set_xscale("log")
        xs = sorted({p.x for line in plot.lines for p in line.points})
        if len(xs) <= 8:
            axes.set_xticks(xs, [_short(x) for x in xs])
            axes.minorticks_off()
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(float(x))))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 3, 5, 10]))
    if plot.log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 30:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _short(x: float) -> str:
    """A tick's number: 32768 is `32K` (K is 1024 where that is exact), 1500 is `1.5k`, 1,536,000 is `1.54M`."""
    if x >= 1e6 and x % 2**20:
        return f"{x / 1e6:.3g}M"
    if x >= 1024 and x % 1024 == 0:
        return f"{x / 1024:g}K"
    return f"{x / 1000:g}k" if x >= 10_000 else f"{x:g}"


def _name_rows(axes: Axes, ends: dict[str, Point], looks: dict[str, tuple[str, str]], height: float) -> None:
    """Each row's name at the right of the axes, in the order of the lines' ends, joined to the end that it names."""
    axes.get_xlim(), axes.get_ylim()  # settles the limits, by which points are placed
    transform = axes.transData + axes.transAxes.inverted()
    texts = {name: "\n".join(_wrapped(name)) for name in ends}
    heights = {name: height * (texts[name].count("\n") + 1.25) for name in ends}
    at = {name: tuple(map(float, transform.transform((end.x, end.y)))) for name, end in ends.items()}
    names = sorted(ends, key=lambda name: at[name][1])
    tall = [heights[name] for name in names]
    places = dict(zip(names, _within(_apart([at[name][1] for name in names], tall), tall), strict=True))
    for name, (colour, marker) in looks.items():
        (x, y), place = at[name], places[name]
        axes.plot(
            [x, max(x, 1.0), 1.05], [y, y, place], color=colour, linewidth=0.6, transform=axes.transAxes, clip_on=False
        )
        axes.plot([1.07], [place], marker, color=colour, transform=axes.transAxes, clip_on=False)
        look: dict[str, Any] = {"va": "center", "fontsize": SMALL, "linespacing": 1.0, "parse_math": False}
        axes.text(1.105, place, texts[name], transform=axes.transAxes, **look)


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


def _within(places: list[float], heights: list[float]) -> list[float]:
    """Places pushed between the bottom and the top of the axes, where the labels have room; from the top first."""
    moved = list(places)
    ceiling = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling - heights[i] / 2)
        ceiling = moved[i] - heights[i] / 2
    floor = 0.0
    for i, height in enumerate(heights):
        moved[i] = max(moved[i], floor + height / 2)
        floor = moved[i] + height / 2
    return moved


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
    words = {"measured": "measured", "published": "the paper's", "published-unverified": "the paper's, unverified"}
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
        fontsize=SMALL,
        borderaxespad=0.0,
        handlelength=2.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
