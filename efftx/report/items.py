"""All that the report knows of one table or figure: the experiment, its records size by size, verdicts, state."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from efftx.core.numbered import by_number
from efftx.errors import UserError
from efftx.report import sentences
from efftx.report.units import Scale, table_scales
from efftx.study.aggregation import CellValue, Crossing, cells, crossings, of_one_device
from efftx.study.claims import NOT_RUN, Verdict, judge
from efftx.study.experiment import SIZES, Cell, Experiment
from efftx.study.records import Record, RecordStore, Verification
from efftx.study.status import state_of
from efftx.study.sweeps import Choice, chosen

if TYPE_CHECKING:  # it imports Hydra, which the written report never needs
    from efftx.study.composer import Composer

MOST_VARIANTS = 4
"""A caption names no more variants of data than these."""


@dataclass(frozen=True)
class Measured:
    """What the records of one item at one size say; `cells` by (row, column), `verifications` as long as `records`.

    They are of one device; those of others are `elsewhere`. `sweeps` are the runs by which swept values were chosen.
    `scales` has the unit of the cells of each form.
    """

    size: str
    records: tuple[Record, ...]
    verifications: tuple[Verification | None, ...]
    cells: Mapping[tuple[str, str], CellValue]
    verdicts: tuple[Verdict, ...]
    crossings: tuple[Crossing, ...]
    choices: tuple[Choice, ...] = ()
    elsewhere: tuple[Record, ...] = ()
    sweeps: tuple[Record, ...] = ()
    scales: Mapping[Cell, Scale] = field(default_factory=dict)

    @property
    def trained(self) -> list[Record]:
        """The records without those of gates, which are computed from the data."""
        return [record for record in self.records if "gate" not in record.config]

    @property
    def data(self) -> str:
        """The data sets and variants behind these records, in words; empty for a measure, which has none.

        Of more than MOST_VARIANTS only how many: each record names its own.
        """
        named = {(r.data.get("name", ""), r.data.get("variant", "")) for r in self.trained if r.data}
        if len(named) > MOST_VARIANTS:
            return f"{len(named)} variants of {' and '.join(sorted({name for name, _ in named}))}"
        return ", ".join(sorted((data_words(*pair) for pair in named), key=by_number))


@dataclass(frozen=True)
class Item:
    """One table or figure; `measured` holds the sizes that have records, the largest first."""

    experiment: Experiment
    state: str
    why: str
    measured: tuple[Measured, ...]

    @property
    def slug(self) -> str:
        """The item's id as a file name and as an anchor: `reformer-table2`, of harmless characters."""
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.experiment.id)

    @property
    def foremost(self) -> Measured | None:
        """The largest size at which some claim could be judged, else the largest with records."""
        judged = (m for m in self.measured if any(v.verdict != NOT_RUN for v in m.verdicts))
        return next(judged, self.measured[0] if self.measured else None)

    @property
    def verdicts_by_size(self) -> list[tuple[str, tuple[Verdict, ...]]]:
        """The verdicts at each size with records; those before any run at the size ""."""
        return [(m.size, m.verdicts) for m in self.measured] or [("", self.verdicts)]

    def scales_at(self, size: str) -> Mapping[Cell, Scale]:
        """The units of the table at one size; none before any run."""
        return next((m.scales for m in self.measured if m.size == size), {})

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts at the foremost size; before any run, every claim is *not run*."""
        if self.foremost:
            return self.foremost.verdicts
        return tuple(Verdict(claim, NOT_RUN, "no record yet") for claim in self.experiment.claims)


def data_words(name: str, variant: str) -> str:
    """A data set and its variant, the name once: `duplicate[length=256]`, `c4 (train-00000)`."""
    if not variant:
        return name
    return variant if variant.startswith(name) else f"{name} ({variant})"


def gather(
    store: RecordStore, experiment: Experiment, sizes: Collection[str] = (), composer: Composer | None = None
) -> Item:
    """The records of `experiment` at `sizes`, all where none are given, and its state as `state_of` has it."""
    records = store.read_all(experiment.id)
    order = [*experiment.rows, *experiment.gates]
    measured = []
    for size in (size for size in SIZES if not sizes or size in sizes):
        rows = [*experiment.rows_at(size), *experiment.gates_at(size)]
        here = sorted(
            (r for r in records if r.size == size and r.row in rows), key=lambda r: (order.index(r.row), r.seed)
        )
        if not here:
            continue
        here, elsewhere = of_one_device(here)
        means = {(c.row, c.column): c for c in cells(experiment, here, size)}
        scales, verdicts = table_scales(experiment, means, size), judge(experiment, here, size)
        measured.append(
            Measured(
                size=size,
                records=tuple(here),
                verifications=tuple(store.verification(record) for record in here),
                cells=means,
                verdicts=tuple(replace(v, why=sentences.why(v, experiment, scales)) for v in verdicts),
                crossings=tuple(crossings(experiment, here, size)),
                choices=_choices(store, experiment, size),
                elsewhere=tuple(elsewhere),
                sweeps=tuple(_swept(store, experiment, size)),
                scales=scales,
            )
        )
    line = state_of(experiment, store, composer, sizes)
    return Item(experiment, line["state"], line["why"], tuple(measured))


def _swept(store: RecordStore, experiment: Experiment, size: str) -> list[Record]:
    """The runs of all rows' sweeps at a size."""
    rows = experiment.rows_at(size)
    with contextlib.suppress(UserError):  # a damaged record, which is told apart
        return [record for record in store.read_sweeps(experiment.id) if record.size == size and record.row in rows]
    return []


def _choices(store: RecordStore, experiment: Experiment, size: str) -> tuple[Choice, ...]:
    """The value of each row that was swept to the end, with the scores of all."""
    choices = []
    for row in filter(experiment.is_chosen, experiment.rows_at(size)):
        with contextlib.suppress(UserError):  # a damaged record, which is told apart
            choices.append(chosen(experiment, row, size, store))
    return tuple(choice for choice in choices if choice is not None)
