"""The paper's own curves as a table: its series against training steps, read off its plot."""

from __future__ import annotations

from efftx.report import numbers
from efftx.report.model import Block, Cell, Kind, Row, Table
from efftx.report.plotdata import paper_quantity
from efftx.study.experiment import Experiment


def curves_table(experiment: Experiment) -> Table | None:
    """One row a series of `published.curves`, one column a step; None where the paper has no curves here."""
    published = experiment.published
    if published is None or not published.curves:
        return None
    steps = sorted({step for points in published.curves.values() for step in points})
    kind = Kind.VERIFIED if published.source == "verified" else Kind.UNVERIFIED

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
