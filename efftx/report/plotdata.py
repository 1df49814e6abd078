"""The numbers behind a figure: lines of points with their spread, from the records and nothing else."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from efftx.errors import UserError, nearest
from efftx.evaluation.metrics import heading
from efftx.report.items import Item, Measured
from efftx.report.markup import rows_to_csv
from efftx.study.experiment import Experiment, places
from efftx.study.published import Published
from efftx.study.records import Record

_Pairs = list[tuple[float, float]]
_PointsOf = Callable[[Experiment, Record, str, str], _Pairs]
CSV_HEADER = ["line", "series", "kind", "x", "y", "std", "n", "half_width"]


@dataclass(frozen=True)
class Point:
    """One point; `std` None below two seeds; `half_width` of the interval of a fitted one."""

    x: float
    y: float
    std: float | None = None
    n: int | None = None
    half_width: float | None = None

    @property
    def band(self) -> float | None:
        """What is drawn above and below it."""
        return self.std if self.half_width is None else self.half_width


@dataclass(frozen=True)
class Line:
    """One line of a figure, a row's; `series` tells a row's lines apart where it has several.

    `kind` is `measured`, `published` or `published-unverified`.
    """

    label: str
    kind: str
    points: tuple[Point, ...]
    series: str = ""


@dataclass(frozen=True)
class Plot:
    """One panel: lines of one quantity, what their axes are called, and the `caption` below, which says what is drawn.

    `panel` goes behind the item in the figure's name; `title` stands above it. `names` are the rows, in their order, by
    which lines have the same colours in every panel of an item.
    """

    caption: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    panel: str = ""
    title: str = ""
    names: tuple[str, ...] = ()


def panels(item: Item, measured: Measured) -> list[Plot]:
    """The plot at one size as panels of one quantity each: where `figure.panels` is true, one for each name in `y`.

    `y_label` is then a list like `y`. A panel with a value of 0 has no logarithmic axis.
    """
    whole, figure = plot(item, measured), item.experiment.figure or {}
    if whole is None or not figure.get("panels"):
        return [whole] if whole else []
    plots = []
    for i, series in enumerate(dict.fromkeys(line.series for line in whole.lines)):
        lines = [replace(line, series="") for line in whole.lines if line.series == series]
        settings = {**figure, "y_label": figure["y_label"][i]} if isinstance(figure.get("y_label"), list) else figure
        panel = _plot(item.experiment, settings, lines, whole.caption, whole.title)
        plots.append(replace(panel, panel=re.sub(r"[^a-z0-9]+", "-", series.lower())))
    return plots


def plot(item: Item, measured: Measured) -> Plot | None:
    """The plot that the experiment's `figure` asks for at one size; None where it asks for none.

    UserError for a figure that names a kind of plot there is not.
    """
    figure = item.experiment.figure
    if figure is None or "over" not in figure:
        return None
    over = str(figure["over"])
    if over not in _POINTS:
        message = f"{item.experiment.id}: figure.over: there is no plot over '{over}'"
        raise UserError("bad_experiment", message, nearest(over, _POINTS))
    lines = _lines(item.experiment, measured, figure, _POINTS[over])
    title = f"measured, size {measured.size}"
    return _plot(item.experiment, figure, lines, _caption(measured), title) if lines else None


def paper_plot(item: Item) -> Plot | None:
    """The paper's own figure, from what was read off its plot: its series on its axes; None where there is nothing."""
    experiment, figure, paper = item.experiment, item.experiment.figure, item.experiment.published
    if figure is None or paper is None or "over" not in figure:
        return None
    kind = "published" if paper.source == "verified" else "published-unverified"
    if paper.curves:
        lines = [
            Line(series, kind, tuple(Point(float(x), value) for x, value in sorted(points.items())))
            for series, points in paper.curves.items()
        ]
        caption = "The paper's own curves, at its size and on its data, read off its plot."
        settings = {**figure, "log_x": False, "log_y": False, "x_label": heading("step", "")}
        settings["y_label"] = paper_quantity(experiment)
        return replace(_plot(experiment, settings, lines, caption, "the paper's"), panel="published")
    if figure["over"] != "columns" or str(figure.get("y", experiment.cell.metric)) != experiment.cell.metric:
        return None
    lines = _readings(experiment, paper, str(figure["x"]), kind)
    caption = f"The paper's own figure. {' '.join(paper.note.split())}".strip()
    return replace(_plot(experiment, figure, lines, caption, "the paper's"), panel="published") if lines else None


def paper_quantity(experiment: Experiment) -> str:
    """What the paper's curves show: `figure.paper_y_label`, or the table's own metric where it is the same."""
    default = heading(experiment.cell.metric, experiment.cell.unit)
    return str((experiment.figure or {}).get("paper_y_label", default))


def _readings(experiment: Experiment, paper: Published, x: str, kind: str) -> list[Line]:
    """The published values of the rows over the columns' parameter, each column once whatever the size."""
    lines = []
    for row in experiment.rows:
        columns_of_row = experiment.rows[row].columns
        columns = experiment.columns if columns_of_row is None else columns_of_row
        values = {at: paper.of(row, name) for name, at in places(columns, x).items()}
        points = tuple(Point(at, float(value)) for at, value in sorted(values.items()) if value is not None)
        if points:
            lines.append(Line(row, kind, points))
    return lines


def _plot(experiment: Experiment, figure: Mapping[str, Any], lines: list[Line], caption: str, title: str) -> Plot:
    cell = experiment.cell
    y = str(figure.get("y", cell.metric)) if not isinstance(figure.get("y"), list) else ""
    default_y = heading(y, cell.unit if y == cell.metric else "")
    rows = tuple(experiment.label(row) for row in experiment.rows)
    labelled = tuple(replace(line, label=experiment.label(line.label)) for line in lines)
    return Plot(
        caption=caption,
        x_label=str(figure.get("x_label", heading(str(figure.get("x", "step")), ""))),
        y_label=str(figure.get("y_label", default_y)),
        lines=labelled,
        log_x=bool(figure.get("log_x", False)),
        log_y=bool(figure.get("log_y", False)) and all(p.y > 0 for line in lines for p in line.points),
        title=title,
        names=rows if all(line.label in rows for line in labelled) else (),
    )


def _caption(measured: Measured) -> str:
    """What is drawn: at which size, on which data, over how many seeds."""
    data = f" on {measured.data}" if measured.data else ""
    counts = sorted(set(Counter(record.row for record in measured.trained).values()))
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    spread = "one seed" if counts == [1] else f"bands ± one sample standard deviation, n = {seeds} seeds"
    return f"Measured at size {measured.size}{data}; {spread}."


def to_csv(plot: Plot) -> str:
    """The plot's points, unrounded, one a line."""
    rows = []
    for line in plot.lines:
        for p in line.points:
            beside = ("" if value is None else repr(value) for value in (p.std, p.n, p.half_width))
            rows.append([line.label, line.series, line.kind, repr(p.x), repr(p.y), *beside])
    return rows_to_csv(CSV_HEADER, rows)


def _lines(experiment: Experiment, measured: Measured, figure: Mapping[str, Any], points_of: _PointsOf) -> list[Line]:
    """One line a row and a name in `y`: at each x, mean and spread over the seeds that have it."""
    x, names = str(figure.get("x", "step")), figure.get("y", experiment.cell.metric)
    names = [str(name) for name in names] if isinstance(names, list) else [str(names)]
    lines = []
    for name, row in itertools.product(names, experiment.rows_at(measured.size)):
        values: dict[float, list[float]] = {}
        for record in measured.records:
            for at, y in points_of(experiment, record, x, name) if record.row == row else ():
                values.setdefault(float(at), []).append(float(y))
        points = tuple(
            Point(at, statistics.fmean(ys), statistics.stdev(ys) if len(ys) > 1 else None, len(ys))
            for at, ys in sorted(values.items())
        )
        if points:
            lines.append(Line(row, "measured", points, heading(name, "") if len(names) > 1 else ""))
    return lines


def _of_curve(experiment: Experiment, record: Record, x: str, y: str) -> _Pairs:
    return [(entry[x], entry[y]) for entry in record.curve if x in entry and entry.get(y) is not None]


def _of_columns(experiment: Experiment, record: Record, x: str, y: str) -> _Pairs:
    at_columns = places(experiment.columns_of(record.row, record.size), x)
    values = [(at, record.metrics.get(name, {}).get(y)) for name, at in at_columns.items()]
    return [(at, value) for at, value in values if value is not None]


def _of_series(experiment: Experiment, record: Record, x: str, y: str) -> _Pairs:
    if x not in record.series or y not in record.series:
        return []
    return list(zip(record.series[x], record.series[y], strict=True))


_POINTS: dict[str, _PointsOf] = {"curve": _of_curve, "columns": _of_columns, "series": _of_series}
