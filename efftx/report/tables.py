"""From an item to its tables: measured cells at one size, the paper's beside them and never among them.

Narrow items (up to three columns) put the published values into columns of their own to the left of the measured ones;
wider ones put them into a block of rows of their own above.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from efftx.core.counts import count
from efftx.core.durations import SPREAD
from efftx.evaluation.metrics import heading
from efftx.report import numbers
from efftx.report.items import Item, Measured
from efftx.report.model import Block, Cell, Kind, Row, Span, Table
from efftx.report.plotdata import paper_quantity
from efftx.report.units import Scale, is_time, table_scales
from efftx.study.aggregation import CellValue, Crossing, Results
from efftx.study.experiment import Cell as CellFormat
from efftx.study.experiment import Experiment
from efftx.study.gating import MissingRecordError, gate_value, not_passed

WIDEST_BESIDE = 3
PUBLISHED_HEADING = {
    "verified": "Published",
    "unverified": f"Published, unverified {numbers.UNVERIFIED_MARK}",
}
OTHERS_HEADING = "In the paper alone, not run at this size"
UNVERIFIED_NOTE = f"{numbers.UNVERIFIED_MARK} published, but not checked against the paper itself."
TIMES_NOTE = (
    "Times of different items were taken on other days, machines or allocators; compare ratios within one item."
)
QUANTITIES = {
    "seconds": "time",
    "block_milliseconds": "time of a block",
    "row_milliseconds": "time of a row",
    "megabytes": "memory",
    "time_error": "error of the planned time",
    "rouge1": "ROUGE-1",
}
"""What a caption calls a metric whose own name is the code's."""
MEASURED_BOUND = (
    "above 100 % by the error of the rate that it is a share of, which is itself measured, apart, in the same process"
)


def tables(item: Item) -> list[Table]:
    """One table a size that has records, or one that has none of ours; last the paper's curves, where it has some."""
    made = [_table(item.experiment, measured) for measured in item.measured] or [_table(item.experiment, None)]
    curves = _curves_table(item.experiment)
    return made if curves is None else [*made, curves]


def _caption(experiment: Experiment, measured: Measured | None, unit: str) -> str:
    """What the cells are: size, data variant, metric, over how many seeds the spread is."""
    cell = experiment.cell
    about = _quantity(experiment, measured, unit)
    if cell.better != "none":
        about += f", {cell.better} is better"
    if measured is None:
        return f"Not run at any size. Cells: {about}."
    if not measured.trained:
        return f"At size {measured.size} only the gates are computed so far. Cells: {about}."
    where = f"Measured at size {measured.size}"
    if measured.data:
        where += f" on {measured.data}"
    return f"{where}: {about}; {_seeds(measured)}."


def _columns(experiment: Experiment, size: str) -> list[str]:
    """The columns at `size`, and those of other sizes in which the paper prints a value of a row that is shown."""
    here, paper = experiment.columns_at(size), experiment.published
    rows = [*experiment.rows_at(size), *(paper.others if paper else ())]
    printed = [c for c in experiment.columns if paper and any(paper.of(row, c) is not None for row in rows)]
    if set(printed) <= set(here):
        return here
    order = list(dict.fromkeys([*experiment.columns, *here]))
    return sorted({*here, *printed}, key=order.index)


def _quantity(experiment: Experiment, measured: Measured | None, unit: str) -> str:
    """What the cells are, with their unit: called as the one column of the table's metric, else by the metric.

    A column that is a condition (a width, a pattern at evaluation) gives no name.
    """
    size, metric = measured.size if measured else experiment.usual_size(), experiment.cell.metric
    named = {
        name: spec for name, spec in experiment.columns.items() if not spec.cell and name in _columns(experiment, size)
    }
    name, spec = next(iter(named.items()), ("", None))
    if spec is None or len(named) > 1 or spec.parameters or spec.evaluates:
        name = QUANTITIES.get(metric, metric)
    return unit if name.replace(" a ", "/") == unit else heading(name, unit)


def _table(experiment: Experiment, measured: Measured | None) -> Table:
    size = measured.size if measured else experiment.usual_size()
    cells, published = _Cells(experiment, measured, size), experiment.published
    columns, labels = _columns(experiment, size), list(filter(experiment.is_chosen, experiment.rows_at(size)))
    text_heads = list(dict.fromkeys(chain.from_iterable(row.text for row in experiment.rows_at(size).values())))
    printed = published.columns() if published else ()
    known = experiment.rows_at(size)
    others = [r for r in published.rows() if r not in known] if published and not experiment.chosen else []
    theirs = PUBLISHED_HEADING[published.source] if published else ""
    ours = f"Measured, size {size}" if measured else "Measured"

    def rows(names: Iterable[str], *parts: tuple[Callable[[str, str], Cell], Sequence[str]]) -> tuple[Row, ...]:
        lines = []
        for row in names:
            text = experiment.rows[row].text if row in experiment.rows else {}
            words = [Cell(text.get(head, ""), Kind.WORDS) for head in text_heads]
            values = [make(row, column) for make, shown in parts for column in shown]
            count = cells.own_count(row) if any(make == cells.measured for make, _ in parts) else 0
            label = experiment.label(row) + (f" (n = {count})" if count else "")
            lines.append(Row(label, (*words, *values)))
        return tuple(lines)

    blocks: list[Block] = []
    spans: list[Span] = []
    left: list[str] = []  # the paper's columns beside ours
    if printed and len(columns) <= WIDEST_BESIDE:
        left = [column for column in columns if column in printed]
        blocks.append(Block("", rows(labels, (cells.published, left), (cells.measured, columns))))
        if others:
            blocks.append(Block(OTHERS_HEADING, rows(others, (cells.published, left), (_not_run_here, columns))))
        spans = [Span("", len(text_heads))] if text_heads else []
        spans += [Span(theirs, len(left)), Span(ours, len(columns))]
    else:
        if published and printed:
            shown = [row for row in labels if published.has(row)] + others
            blocks.append(Block(theirs, rows(shown, (cells.published, columns))))
        # Without rows of the paper's the caption says it.
        blocks.append(Block(ours if blocks else "", rows(labels, (cells.measured, columns))))
    here = list(filter(experiment.is_chosen, experiment.gates_at(size)))
    gates = [name for name, gate in experiment.gates.items() if not gate.is_computed or name in here]
    if gates:
        blank = [Cell("", Kind.WORDS)] * (len(text_heads) + len(left))
        trivial = [Row(name, (*blank, *(cells.gate(name, column) for column in columns))) for name in gates]
        blocks.append(Block("Gates: what a model must beat", tuple(trivial)))
    notes = _notes(experiment, measured)
    if any(cell.bold for block in blocks for row in block.rows for cell in row.cells):
        best = "better than every other row of its column" + (" and task" if _several_tasks(experiment, size) else "")
        past = ", and past the gates" if experiment.gates else ""
        notes.append(f"Bold: {best} (one-sided t tests, seeds paired, Holm, 5 %){past}.")
    return Table(
        subject=numbers.sentence(experiment.caption),
        caption=_caption(experiment, measured, cells.scale_of(experiment.cell).form.unit),
        stub="row" if experiment.kind == "measure" else "model",
        columns=(*text_heads, *(cells.heading(column) for column in (*left, *columns))),
        blocks=tuple(blocks),
        spans=tuple(spans),
        notes=tuple(notes),
    )


def _several_tasks(experiment: Experiment, size: str) -> bool:
    rows = list(experiment.rows_at(size))
    return any(len(experiment.rivals_of(row, size)) < len(rows) - 1 for row in rows)


def _reached(cell: CellValue) -> dict[int, float]:
    """The values of the seeds that reached what the cell asks for."""
    return {seed: value for seed, value in cell.values.items() if value is not None}


def _not_run_here(row: str, column: str) -> Cell:
    return Cell(numbers.UNDEFINED, Kind.MISSING)


class _Cells:
    """The cells of one table; those of one form, measured and published, have one unit, that of the smallest."""

    def __init__(self, experiment: Experiment, measured: Measured | None, size: str) -> None:
        self.experiment, self.size = experiment, size
        self.records = measured.records if measured else ()
        self.means = measured.cells if measured else {}
        self.usual = _usual_count(measured) if measured else 0
        self.scales = table_scales(experiment, self.means, size)

    def scale_of(self, form: CellFormat) -> Scale:
        """The unit and format of the cells of `form`."""
        return self.scales.get(form) or Scale(form)

    def measured(self, row: str, column: str) -> Cell:
        """What was run: mean, spread, n where it differs within the row; the clear best of a column bold."""
        form = self.experiment.cell_of(row, column)
        if column not in self.experiment.columns_of(row, self.size):
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        value = self.means.get((row, column))
        if value is None or not value.values:
            return Cell(numbers.NOT_RUN, Kind.MISSING, row, column, self.size, n=0)
        if value.mean is None:
            return Cell(numbers.NOT_REACHED, Kind.MISSING, row, column, self.size, n=value.n)
        text = self.scale_of(form).written(value.mean, value.std)
        text += "" if value.n in (self.usual, self.own_count(row)) else f" (n = {value.n})"
        others = [self.means.get((other, column)) for other in self._rivals(row, column)]
        rivals = [_reached(other) if other else {} for other in others]  # {}: not run yet, so not beaten
        best = numbers.clearly_best(_reached(value), rivals, form.better) and self._is_past_gates(row, column)
        return Cell(text, Kind.MEASURED, row, column, self.size, value.mean, value.std, value.n, bold=best)

    def _rivals(self, row: str, column: str) -> list[str]:
        """The other rows whose cell in `column` is or will be measured."""
        e, size = self.experiment, self.size
        return [r for r in e.rivals_of(row, size) if column in e.columns_of(r, size) and e.seeds_of(r, size)]

    def own_count(self, row: str) -> int:
        """The n of every cell of `row` that was run, where it is not the table's; else 0."""
        counts = {value.n for (name, _), value in self.means.items() if name == row and value.values} - {0}
        count = counts.pop() if len(counts) == 1 else 0
        return 0 if count == self.usual else count

    def _is_past_gates(self, row: str, column: str) -> bool:
        try:
            return not not_passed(Results(self.experiment, self.records, self.size), {row: [column]})
        except MissingRecordError:
            return False

    def published(self, row: str, column: str) -> Cell:
        """What the paper prints."""
        paper = self.experiment.published
        value = paper.of(row, column) if paper else None
        if paper is None or value is None:
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        source, spread = paper.source_of(row, column), paper.spread_of(row, column)
        text = self.scale_of(self.experiment.cell_of(row, column)).published(value, source, spread)
        return Cell(text, Kind.of_source(source), row, column, mean=value)

    def gate(self, name: str, column: str) -> Cell:
        """What a model must beat or reach: one value, in every column where some model meets it."""
        e, gate = self.experiment, self.experiment.gates[name]
        if column not in e.columns_at(self.size):  # the paper's alone
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        forms = [cells[column] for row in gate.rows or e.rows if column in (cells := e.cells_of(row))]
        form = next((form for form in forms if gate.meets({column: form.metric}, e.cell.metric)), None)
        if form is None:
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        try:
            value = gate_value(Results(e, self.records, self.size if self.records else ""), name, form.metric)
        except MissingRecordError:
            return Cell(numbers.NOT_RUN, Kind.MISSING)
        if value is None:
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        size = "" if gate.value is not None else self.size
        return Cell(self.scale_of(form).written(value), Kind.BASELINE, name, column, size, mean=value)

    def heading(self, column: str) -> str:
        """A column's name, with the unit where it is not the table's; the metric where a table has but one column."""
        e, table = self.experiment, self.scale_of(self.experiment.cell).form
        if not column:
            return heading(table.metric, table.unit)
        units = {self.scale_of(e.cell_of(row, column)).form.unit for row in e.rows_at(self.size)} - {table.unit}
        unit = units.pop() if len(units) == 1 else ""
        return f"{column} ({unit})" if unit else column


def _notes(experiment: Experiment, measured: Measured | None) -> list[str]:
    notes = []
    if experiment.published and experiment.published.columns():
        notes.append("Published: the paper's own values, at its own size, with its data and machines.")
    if experiment.published and experiment.published.some_unverified():
        notes.append(UNVERIFIED_NOTE)
    if experiment.published and experiment.published.note:
        notes.append(numbers.sentence(experiment.published.note))
    for value in measured.cells.values() if measured else ():
        if value.note and experiment.is_chosen(value.row):
            row = experiment.label(value.row)
            place = f"{row}, {value.column}" if value.column else row
            notes.append(f"{place}: {numbers.sentence(value.note)}")
    for crossing in measured.crossings if measured else ():
        if all(map(experiment.is_chosen, crossing.between)):
            first, second = map(experiment.label, crossing.between)
            notes.append(_crossing_note(first, second, crossing))
    notes += [
        f"{name}: {numbers.sentence(spec.note)}"
        for name, spec in experiment.columns.items()
        if spec.note and (not measured or any(column == name for _, column in measured.cells))
    ]
    notes += _above_bounds(experiment, measured)
    notes += _uneven(experiment, measured)
    if any(is_time(experiment.cell_of(c.row, c.column).unit) for c in (measured.cells.values() if measured else ())):
        notes.append(TIMES_NOTE)
    return notes


def _above_bounds(experiment: Experiment, measured: Measured | None) -> list[str]:
    """What a share above 100 % of a measured bound means, one note for all columns that have one."""
    values = measured.cells.values() if measured else ()
    shares = [c for c in values if experiment.cell_of(c.row, c.column).metric.startswith("share_of_")]
    above = dict.fromkeys(c.column for c in shares if c.mean is not None and c.mean > 100)
    return [f"{column}: {MEASURED_BOUND}." for column in above]


def _uneven(experiment: Experiment, measured: Measured | None) -> list[str]:
    """In how many runs of `efftx bench decode` tokens differed so much that something else must have run meanwhile."""
    runs = [r.metrics for r in measured.records if experiment.is_chosen(r.row)] if measured else []
    timed = [of_run for of_run in runs if any("uneven" in metrics for metrics in of_run.values())]
    uneven = sum(any(metrics.get("uneven") for metrics in of_run.values()) for of_run in timed)
    if not uneven:
        return []
    values = [metrics.get("stolen") for of_run in timed for metrics in of_run.values()]
    stolen = [value for value in values if value is not None]
    why = "The machine was at other work"
    if any(stolen):
        why = f"The host of this virtual machine kept {min(stolen):.1f} to {max(stolen):.1f} % of its processors' time"
    of_runs = f"In {uneven} of {count(len(timed), 'run')}"
    return [f"{of_runs} the slowest token took more than {SPREAD:g} times as long as the fastest. {why} meanwhile."]


def _crossing_note(first: str, second: str, crossing: Crossing) -> str:
    """Where two rows' lines cross: at the means' crossing, where all seeds have one, or at those of the seeds alone."""
    if crossing.why == numbers.NOT_RUN:
        return f"Whether {first} and {second} cross was not measured ({crossing.why})."
    crossed, n = sorted(x for x in crossing.by_seed if x is not None), len(crossing.by_seed)
    ends = " to ".join(dict.fromkeys(map(numbers.three_digits, crossed[:1] + crossed[-1:])))
    if n > 1 and crossing.x is not None and not crossed:
        place = f"cross in no seed, only in the means ({crossing.why})"
    elif crossed and len(crossed) < n:
        place = f"cross in {len(crossed)} of {n} seeds, at {ends}"
    elif crossing.x is None:
        place = f"do not cross here ({crossing.why})"
    else:
        by_seed = f"; by seed {ends}" if n > 1 else ""
        place = f"cross at {numbers.three_digits(crossing.x)} ({crossing.why}{by_seed})"
    paper = f"; the paper's cross at about {crossing.published:g}" if crossing.published is not None else ""
    return f"{first} and {second} {place}{paper}."


def _counts(measured: Measured) -> Counter[int]:
    return Counter(value.n for value in measured.cells.values() if value.values)


def _usual_count(measured: Measured) -> int:
    """The n of most cells, the larger of two that are as frequent."""
    return max(_counts(measured).items(), key=lambda pair: (pair[1], pair[0]), default=(0, 0))[0]


def _seeds(measured: Measured) -> str:
    counts, usual = _counts(measured), _usual_count(measured)
    if set(counts) <= {1}:
        return "one seed, no spread"
    where = " where no other n is given; claims compare the seeds in common" if len(counts) > 1 else ""
    return f"mean ± sample standard deviation over n = {usual} seeds{where}"


def _curves_table(experiment: Experiment) -> Table | None:
    """One row a series of `published.curves`, one column a step; None where the paper has no curves here."""
    published = experiment.published
    if published is None or not published.curves or experiment.chosen:
        return None
    steps = sorted({step for points in published.curves.values() for step in points})
    kind = Kind.of_source(published.source)

    def cell(series: str, step: int) -> Cell:
        value = published.curves[series].get(step)
        if value is None:
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        return Cell(numbers.published(value, published.source, experiment.cell), kind, series, str(step), mean=value)

    rows = tuple(Row(series, tuple(cell(series, step) for step in steps)) for series in published.curves)
    about = paper_quantity(experiment)
    return Table(
        subject=numbers.sentence(experiment.caption),
        caption=f"The paper's own curves, read off its plot: {about}. No value in this table was measured here.",
        stub="series",
        columns=tuple(f"step {step:,}" for step in steps),
        blocks=(Block("", rows),),
    )
