"""Two results folders side by side: every cell that either has, their difference, and what became of each claim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from efftx.core.counts import count
from efftx.core.grid import print_text
from efftx.errors import UserError
from efftx.report import markup, numbers, render
from efftx.report.badges import BADGES
from efftx.report.items import Measured, gather
from efftx.report.model import Block, Cell, Kind, Row, Table
from efftx.report.units import Scale, scales
from efftx.study.aggregation import CellValue
from efftx.study.experiment import Experiment
from efftx.study.records import RecordStore

HERE, THERE = "here", "there"


@dataclass(frozen=True)
class Pair:
    """One cell in both folders, None where one has no record of it; `same` says whether all configurations agree."""

    row: str
    column: str
    here: CellValue | None
    there: CellValue | None
    same: bool | None

    @property
    def differs(self) -> bool:
        """Whether a seed has another value there, or none, or was made under another configuration."""
        values = [side.values if side else None for side in (self.here, self.there)]
        return values[0] != values[1] or self.same is False

    @property
    def difference(self) -> float | None:
        """The mean here less the mean there, None where one is missing or was never reached."""
        means = [side.mean if side else None for side in (self.here, self.there)]
        return None if means[0] is None or means[1] is None else means[0] - means[1]


@dataclass(frozen=True)
class SideBySide:
    """One item at one size: its cells, and claim by claim the verdict here and there ("" without records)."""

    experiment: Experiment
    size: str
    pairs: tuple[Pair, ...]
    claims: tuple[tuple[str, str, str], ...]

    @property
    def changed(self) -> list[tuple[str, str, str]]:
        """The claims whose verdicts differ."""
        return [claim for claim in self.claims if claim[1] != claim[2]]


def compare(here: RecordStore, there: Path, experiments: Iterable[Experiment]) -> list[SideBySide]:
    """Every item and size that either folder has records of; UserError where `there` is no other folder of results."""
    if not (there / "records").is_dir():
        hint = "Give a results folder, which has a folder records/ in it."
        raise UserError("missing_file", f"{there}: no folder of results", hint)
    if there.resolve() == here.root.resolve():
        raise UserError("bad_value", f"{there} is this results folder itself", "Give another, or set EFFTX_RESULTS.")
    pairs, other = [], RecordStore(there)
    for experiment in experiments:
        ours, theirs = ({m.size: m for m in gather(store, experiment).measured} for store in (here, other))
        for size in dict.fromkeys([*ours, *theirs]):
            pairs.append(_side_by_side(experiment, size, ours.get(size), theirs.get(size)))
    return pairs


def _side_by_side(experiment: Experiment, size: str, here: Measured | None, there: Measured | None) -> SideBySide:
    pairs = []
    for row in experiment.rows_at(size):
        for column in experiment.columns_of(row, size):
            cells = [m.cells.get((row, column)) if m else None for m in (here, there)]
            ours, theirs = (cell if cell and cell.values else None for cell in cells)
            if ours or theirs:
                pairs.append(Pair(row, column, ours, theirs, _same(row, here, there)))
    verdicts = [{v.says: v.verdict for v in m.verdicts} if m else {} for m in (here, there)]
    claims = tuple((c.says, verdicts[0].get(c.says, ""), verdicts[1].get(c.says, "")) for c in experiment.claims)
    return SideBySide(experiment, size, tuple(pairs), claims)


def _same(row: str, here: Measured | None, there: Measured | None) -> bool | None:
    """Whether the records of a row have the same configurations where both have the seed; None where none is shared."""
    hashes = [{r.seed: r.hash for r in m.records if r.row == row} if m else {} for m in (here, there)]
    shared = hashes[0].keys() & hashes[1].keys()
    return all(hashes[0][seed] == hashes[1][seed] for seed in shared) if shared else None


def table(item: SideBySide) -> Table:
    """The cells of one item: here, there, and the difference; notes name what is not comparable."""
    experiment = item.experiment
    forms = {(p.row, p.column): experiment.cell_of(p.row, p.column) for p in item.pairs}
    sides = [(forms[p.row, p.column], side) for p in item.pairs for side in (p.here, p.there)]
    shared = scales((form, side.mean if side else None) for form, side in sides)
    rows = []
    for pair in item.pairs:
        scaled = shared[forms[pair.row, pair.column]]
        name = f"{experiment.label(pair.row)}, {pair.column}" if pair.column else experiment.label(pair.row)
        label = f"{name} ({scaled.form.unit})" if scaled.form.unit else name
        cells = (_cell(pair.here, scaled, item.size), _cell(pair.there, scaled, item.size), _difference(pair, scaled))
        rows.append(Row(label, cells))
    others = list(dict.fromkeys(experiment.label(p.row) for p in item.pairs if p.same is False))
    notes = [f"Another configuration there: {', '.join(others)}."] if others else []
    return Table(
        subject=f"{experiment.id}, size {item.size}.",
        caption="Mean ± sample standard deviation over the seeds, and the mean here less the mean there.",
        stub="cell",
        columns=(HERE, THERE, "difference"),
        blocks=(Block("", tuple(rows)),),
        notes=tuple(notes),
    )


def _cell(value: CellValue | None, scaled: Scale, size: str) -> Cell:
    if value is None:
        return Cell(numbers.NOT_RUN, Kind.MISSING)
    if value.mean is None:
        return Cell(numbers.NOT_REACHED, Kind.MISSING)
    text = f"{scaled.written(value.mean, value.std)} (n = {value.n})"
    return Cell(text, Kind.MEASURED, value.row, value.column, size, value.mean, value.std, value.n)


def _difference(pair: Pair, scaled: Scale) -> Cell:
    if pair.difference is None:
        return Cell(numbers.UNDEFINED, Kind.MISSING)
    text = "0" if pair.difference == 0 else scaled.written(pair.difference)
    return Cell(f"+{text}" if pair.difference > 0 else text, Kind.MEASURED)


def as_json(here: RecordStore, there: Path, pairs: Iterable[SideBySide]) -> dict[str, Any]:
    """`here`, `there`, `items`: id, size, `cells` with both sides and the difference, `claims` with both verdicts."""
    items = []
    for item in pairs:
        cells = [
            {"row": pair.row, "column": pair.column, HERE: _side_json(pair.here), THERE: _side_json(pair.there)}
            | {"difference": pair.difference, "same_configuration": pair.same}
            for pair in item.pairs
        ]
        claims = [{"says": says, HERE: ours or None, THERE: theirs or None} for says, ours, theirs in item.claims]
        items.append({"id": item.experiment.id, "size": item.size, "cells": cells, "claims": claims})
    return {HERE: str(here.root), THERE: str(there), "items": items}


def _side_json(cell: CellValue | None) -> Mapping[str, Any] | None:
    return {"mean": cell.mean, "std": cell.std, "n": cell.n} if cell else None


def print_against(pairs: Iterable[SideBySide], console: Console) -> None:
    """Item by item the cells and the claims that differ; last how many cells are the same."""
    n_same = 0
    for item in pairs:
        differing = tuple(pair for pair in item.pairs if pair.differs)
        n_same += len(item.pairs) - len(differing)
        if differing:
            markup.to_terminal(table(replace(item, pairs=differing)), console)
        for says, ours, theirs in item.changed:
            both = " here, ".join(f"{BADGES[word][1]} {word}" if word else numbers.NOT_RUN for word in (ours, theirs))
            where = "" if differing else f"{item.experiment.id}, size {item.size}: "
            print_text(console, f"{where}{both} there: {says}", hanging=2)
        if differing or item.changed:
            console.print()
    print_text(console, f"The same in both: {count(n_same, 'cell')}.")


def html(here: RecordStore, there: Path, pairs: Iterable[SideBySide]) -> str:
    """Both folders on one page, in the report's own style."""
    return render.rendered("against.html", here=here.root, there=there, items=[(item, table(item)) for item in pairs])
