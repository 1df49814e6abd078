"""How fair a comparison is: the sweep of each row, and the value that its records were made at."""

from __future__ import annotations

from efftx.evaluation.metrics import heading
from efftx.report import numbers
from efftx.report.items import Item, Measured
from efftx.report.model import Block, Cell, Kind, Row, Table
from efftx.study.experiment import Cell as CellFormat

DIVERGED = "diverged"


def sweep_tables(item: Item) -> list[Table]:
    """One table a size at which rows were swept: validation at every value, the chosen one bold."""
    return [_sweep(item, measured) for measured in item.measured if measured.choices]


def _sweep(item: Item, measured: Measured) -> Table:
    experiment, sweep = item.experiment, item.experiment.sweep
    assert sweep is not None
    metric = sweep.metric or experiment.cell.metric
    same = metric == experiment.cell.metric
    form = experiment.cell if same else CellFormat(metric, format="{:.4g}")
    values = sorted({value for choice in measured.choices for value in choice.scores})
    rows = []
    for choice in measured.choices:
        cells = [_cell(choice.scores.get(value, 0.0), value == choice.value, form) for value in values]
        rows.append(Row(experiment.label(choice.row), (*cells, Cell(f"{choice.value:g}", Kind.MEASURED))))
    ends = [f"{experiment.label(c.row)} ({c.at_end})" for c in measured.choices if c.at_end]
    notes = [f"Best at an end of the range, so that a better value may lie beyond: {', '.join(ends)}."] if ends else []
    return Table(
        subject=numbers.sentence(experiment.caption),
        caption=f"Sweep at size {measured.size}: validation {heading(metric, form.unit)} after the full budget at each "
        f"{sweep.key}, one seed; bold: the best, at which all seeds of the row were then trained.",
        stub="model",
        columns=(*(f"{sweep.key} = {value:g}" for value in values), "chosen"),
        blocks=(Block("", tuple(rows)),),
        notes=tuple(notes),
    )


def _cell(score: float | None, best: bool, form: CellFormat) -> Cell:
    if score is None:
        return Cell(DIVERGED, Kind.MISSING)
    return Cell(numbers.number(score, form), Kind.MEASURED, bold=best)
