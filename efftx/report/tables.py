"""From an item to its tables: measured cells at one size, the paper's beside them and never among them.

Narrow items (up to three columns) put the published values into columns of their own to the left of the measured ones;
wider ones put them into a block of rows of their own above.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from efftx.evaluation.metrics import heading
from efftx.report import numbers
from efftx.report.curves import curves_table
from efftx.report.items import Item, Measured
from efftx.report.model import Block, Cell, Kind, Row, Span, Table
from efftx.report.units import Scale, scale
from efftx.study.aggregation import CellValue
from efftx.study.experiment import Cell as CellFormat
from efftx.study.experiment import Experiment
from efftx.study.gating import MissingRecordError, gate_value

WIDEST_BESIDE = 3
PUBLISHED_HEADING = {
    "verified": "Published",
    "unverified": f"Published, unverified {numbers.UNVERIFIED_MARK}",
}
OTHERS_HEADING = "In the paper alone, not run at this size"
UNVERIFIED_NOTE = f"{numbers.UNVERIFIED_MARK} published, but not checked against the paper itself."
MEASURED_BOUND = (
    "above 100 % by the error of the rate that it is a share of, which is itself measured, apart, in the same process"
)


def tables(item: Item) -> list[Table]:
    """One table a size that has records, or one that has none of ours; last the paper's curves, where it has some."""
    made = [_table(item.experiment, measured) for measured in item.measured] or [_table(item.experiment, None)]
    curves = curves_table(item.experiment)
    return made if curves is None else [*made, curves]


def _caption(experiment: Experiment, measured: Measured | None, unit: str) -> str:
    """What the cells are: size, data variant, metric, over how many seeds the spread is."""
    cell = experiment.cell
    about = heading("time" if cell.metric == "seconds" else cell.metric, unit)
    if cell.better != "none":
        about += f", {cell.better} is better"
    if measured is None:
        return f"Not run at any size. Cells: {about}."
    if all("gate" in record.config for record in measured.records):
        return f"At size {measured.size} only the gates are computed so far. Cells: {about}."
    where = f"Measured at size {measured.size}"
    if measured.data:
        where += f" on {measured.data}"
    return f"{where}: {about}; {_seeds(measured)}."


def _table(experiment: Experiment, measured: Measured | None) -> Table:
    size = measured.size if measured else experiment.usual_size()
    columns = experiment.columns_at(size)
    scales = _Scales(experiment, measured.cells if measured else {}, size)
    ours = _Measured(experiment, measured, size, scales)
    theirs, trivial = _Published(experiment, scales), _Gates(experiment, measured, scales)
    text_heads = list(dict.fromkeys(chain.from_iterable(row.text for row in experiment.rows_at(size).values())))
    headings = tuple(_heading(experiment, column, size, scales) for column in columns)
    labels = list(experiment.rows_at(size))
    measured_heading = f"Measured, size {size}" if measured else "Measured"
    published_heading = PUBLISHED_HEADING[experiment.published.source] if experiment.published else ""
    others = [row for row in experiment.published.rows() if row not in labels] if experiment.published else []

    def words(row: str) -> tuple[Cell, ...]:
        text = experiment.rows[row].text if row in experiment.rows else {}
        return tuple(Cell(text.get(head, ""), Kind.WORDS) for head in text_heads)

    def line(row: str, *parts: tuple[Callable[[str, str], Cell], Sequence[str]]) -> Row:
        return Row(
            experiment.label(row), words(row) + tuple(make(row, column) for make, shown in parts for column in shown)
        )

    gates = [n for n, gate in experiment.gates.items() if not gate.is_computed or n in experiment.gates_at(size)]

    def trivial_rows(filler: int) -> tuple[Row, ...]:
        blank = tuple(Cell("", Kind.WORDS) for _ in range(len(text_heads) + filler))
        return tuple(Row(name, blank + tuple(trivial(name, c) for c in columns)) for name in gates)

    notes = _notes(experiment, measured)
    stub = "row" if experiment.kind == "measure" else "model"
    if experiment.published and experiment.published.columns() and len(columns) <= WIDEST_BESIDE:
        printed_columns = [c for c in columns if c in experiment.published.columns()]
        blocks = [Block("", tuple(line(row, (theirs, printed_columns), (ours, columns)) for row in labels))]
        if others:
            apart = [line(row, (theirs, printed_columns), (_not_run_here, columns)) for row in others]
            blocks.append(Block(OTHERS_HEADING, tuple(apart)))
        spans = [Span(published_heading, len(printed_columns)), Span(measured_heading, len(columns))]
        if text_heads:
            spans.insert(0, Span("", len(text_heads)))
        headings = tuple(_heading(experiment, column, size, scales) for column in printed_columns) + headings
        filler = len(printed_columns)
    else:
        blocks, spans, filler = [], [], 0
        if experiment.published and experiment.published.columns():
            rows = [row for row in labels if experiment.published.has(row)] + others
            printed = tuple(line(row, (theirs, columns)) for row in rows)
            blocks.append(Block(published_heading, printed))
        # Without rows of the paper's the caption says it.
        heading = measured_heading if blocks else ""
        blocks.append(Block(heading, tuple(line(row, (ours, columns)) for row in labels)))
    if gates:
        blocks.append(Block("Gates: what a model must beat", trivial_rows(filler)))
    return Table(
        subject=numbers.sentence(experiment.caption),
        caption=_caption(experiment, measured, scales.of(experiment.cell).form.unit),
        stub=stub,
        columns=tuple(text_heads) + headings,
        blocks=tuple(blocks),
        spans=tuple(spans),
        notes=tuple(notes),
    )


def _not_run_here(row: str, column: str) -> Cell:
    return Cell(numbers.UNDEFINED, Kind.MISSING)


class _Scales:
    """The unit and format of all cells of one form, measured and published, chosen by the smallest of their values."""

    def __init__(self, experiment: Experiment, measured: Mapping[tuple[str, str], CellValue], size: str) -> None:
        values: dict[CellFormat, list[float]] = {}
        for row in experiment.rows_at(size):
            for column in experiment.columns_of(row, size):
                found = measured.get((row, column))
                published = experiment.published.of(row, column) if experiment.published else None
                both = (found.mean if found else None, published)
                values.setdefault(experiment.cell_of(row, column), []).extend(v for v in both if v is not None)
        for row, printed in (experiment.published.others if experiment.published else {}).items():
            for column, value in printed.items():
                values.setdefault(experiment.cell_of(row, column), []).append(value)
        self._scales = {form: scale(form, found) for form, found in values.items()}

    def of(self, form: CellFormat) -> Scale:
        """The scale of the cells of `form`."""
        return self._scales.get(form) or Scale(form)


class _Measured:
    """Cells of what was run: mean, spread, n where it differs from cell to cell; the clear best of a column bold."""

    def __init__(self, experiment: Experiment, measured: Measured | None, size: str, scales: _Scales) -> None:
        self.experiment, self.measured, self.size, self.scales = experiment, measured, size, scales
        self.cells = measured.cells if measured else {}
        self.usual = _usual_count(measured) if measured else 0

    def __call__(self, row: str, column: str) -> Cell:
        if column not in self.experiment.columns_of(row, self.size):
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        found = self.cells.get((row, column))
        if found is None or not found.values:
            return Cell(numbers.NOT_RUN, Kind.MISSING, row, column, self.size, n=0)
        if found.mean is None:
            return Cell(numbers.NOT_REACHED, Kind.MISSING, row, column, self.size, n=found.n)
        scaled = self.scales.of(self.experiment.cell_of(row, column))
        std = None if found.std is None else found.std * scaled.factor
        text = numbers.mean_and_spread(found.mean * scaled.factor, std, scaled.form)
        text += "" if found.n == self.usual else f" (n = {found.n})"
        best = self._is_clear_best(row, column)
        return Cell(text, Kind.MEASURED, row, column, self.size, found.mean, found.std, found.n, bold=best)

    def _is_clear_best(self, row: str, column: str) -> bool:
        form = self.experiment.cell_of(row, column)
        mine = self._values(row, column)
        rivals = [
            self._values(other, column)
            for other in self.experiment.rows_at(self.size)
            if other != row and (other, column) in self.cells and self.cells[other, column].values
        ]
        return numbers.clearly_best(mine, rivals, form.better)

    def _values(self, row: str, column: str) -> dict[int, float]:
        return {seed: value for seed, value in self.cells[row, column].values.items() if value is not None}


class _Published:
    """Cells of what the paper prints."""

    def __init__(self, experiment: Experiment, scales: _Scales) -> None:
        self.experiment, self.published, self.scales = experiment, experiment.published, scales

    def __call__(self, row: str, column: str) -> Cell:
        value = self.published.of(row, column) if self.published else None
        if self.published is None or value is None:
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        source = self.published.source_of(row, column)
        kind = Kind.VERIFIED if source == "verified" else Kind.UNVERIFIED
        spread = self.published.spread_of(row, column)
        scaled = self.scales.of(self.experiment.cell_of(row, column))
        spread = None if spread is None else spread * scaled.factor
        text = numbers.published(value * scaled.factor, source, scaled.form, spread)
        return Cell(text, kind, row, column, mean=value)


class _Gates:
    """Cells of what a model must beat or reach: one value, in every column where some model meets it."""

    def __init__(self, experiment: Experiment, measured: Measured | None, scales: _Scales) -> None:
        self.experiment, self.measured, self.scales = experiment, measured, scales

    def __call__(self, name: str, column: str) -> Cell:
        e, gate = self.experiment, self.experiment.gates[name]
        forms = [cells[column] for row in gate.rows or e.rows if column in (cells := e.cells_of(row))]
        form = next((form for form in forms if gate.meets({column: form.metric}, e.cell.metric)), None)
        if form is None:
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        try:
            size = self.measured.size if self.measured else ""
            value = gate_value(e, self.measured.records if self.measured else (), size, name, form.metric)
        except MissingRecordError:
            return Cell(numbers.NOT_RUN, Kind.MISSING)
        if value is None:
            return Cell(numbers.UNDEFINED, Kind.MISSING)
        scaled = self.scales.of(form)
        text = numbers.number(value * scaled.factor, scaled.form)
        return Cell(text, Kind.BASELINE, name, column, "" if gate.value is not None else size, mean=value)


def _heading(experiment: Experiment, column: str, size: str, scales: _Scales) -> str:
    """A column's name, with the unit where it is not the table's; the metric where a table has but one column."""
    tables = scales.of(experiment.cell).form
    if not column:
        return heading(tables.metric, tables.unit)
    units = {scales.of(experiment.cell_of(row, column)).form.unit for row in experiment.rows_at(size)} - {tables.unit}
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
    for found in measured.cells.values() if measured else ():
        if found.note:
            row = experiment.label(found.row)
            place = f"{row}, {found.column}" if found.column else row
            notes.append(f"{place}: {numbers.sentence(found.note)}")
    for crossing in measured.crossings if measured else ():
        first, second = map(experiment.label, crossing.between)
        notes.append(_crossing_note((first, second), crossing.x, crossing.published, crossing.why))
    notes += [
        f"{name}: {numbers.sentence(spec.note)}"
        for name, spec in experiment.columns.items()
        if spec.note and (not measured or any(column == name for _, column in measured.cells))
    ]
    notes += _above_bounds(experiment, measured)
    if measured and any(cell.bold for cell in _all_cells(experiment, measured)):
        notes.append("Bold: better than every other row of its column (one-sided t tests, seeds paired, Holm, 5 %).")
    return notes


def _above_bounds(experiment: Experiment, measured: Measured | None) -> list[str]:
    """What a share above 100 % of a measured bound means, one note for all columns that have one."""
    found = measured.cells.values() if measured else ()
    shares = [c for c in found if experiment.cell_of(c.row, c.column).metric.startswith("share_of_")]
    above = dict.fromkeys(c.column for c in shares if c.mean is not None and c.mean > 100)
    return [f"{column}: {MEASURED_BOUND}." for column in above]


def _all_cells(experiment: Experiment, measured: Measured) -> list[Cell]:
    make = _Measured(experiment, measured, measured.size, _Scales(experiment, {}, measured.size))
    rows = experiment.rows_at(measured.size)
    return [make(row, column) for row in rows for column in experiment.columns_of(row, measured.size)]


def _crossing_note(between: tuple[str, str], x: float | None, published: float | None, why: str) -> str:
    place = f"cross at {numbers.three_digits(x)} ({why})" if x is not None else f"do not cross here ({why})"
    paper = f"; the paper's cross at about {published:g}" if published is not None else ""
    return f"{between[0]} and {between[1]} {place}{paper}."


def _counts(measured: Measured) -> Counter[int]:
    return Counter(found.n for found in measured.cells.values() if found.values)


def _usual_count(measured: Measured) -> int:
    """The n of most cells, the larger of two that are as frequent."""
    return max(_counts(measured).items(), key=lambda pair: (pair[1], pair[0]), default=(0, 0))[0]


def _seeds(measured: Measured) -> str:
    counts, usual = _counts(measured), _usual_count(measured)
    if set(counts) <= {1}:
        return "one seed, no spread"
    where = " where no other n is given" if len(counts) > 1 else ""
    return f"mean ± sample standard deviation over n = {usual} seeds{where}"
