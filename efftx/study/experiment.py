"""What a table or figure is: the data classes of one file of `experiments/`.

An experiment is data. `kind: train` trains every row at every seed and evaluates it under every column; `kind: measure`
calls one of `measures` instead. Names of rows and columns are those of the printed table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from efftx.study.gates import Gate
from efftx.study.published import Published

SIZES = ("paper", "gpu", "cpu", "smoke")
DEFAULT_SEEDS = (0,)
NOT_IN_FILE = {"in_file": False}


@dataclass(frozen=True)
class Cell:
    """How one number of the table is taken and written: the metric's name, its unit, its direction, its format.

    `better` is `higher`, `lower` or `none`; `format` is a Python format string such as `"{:.1f}"`.
    """

    metric: str
    unit: str = ""
    better: str = "none"
    format: str = "{:.2f}"

    def write(self, value: float) -> str:
        """`value` in the format; what rounds to zero has no minus sign."""
        text = self.format.format(value)
        return text if re.search("[1-9]", text) or not math.isfinite(value) else self.format.format(0.0)


@dataclass(frozen=True)
class Claim:
    """One sentence about the table, the expression that decides it and how it is tested (`claims.judge`).

    `kind` is `better`, `as good as`, `at least` or `exact` (see `claim_language`); `margin`, in the metric's unit, goes
    with `as good as`, and `reason` says why it is that large. `where` restricts the quantified names (`row != "Full"`).
    `only`: the sizes at which it is judged ([]: all). `by` is who claims it, `paper` or `ours`; `quote` holds the
    paper's own words, without it `says` is a paraphrase.
    """

    says: str
    kind: str
    holds_if: str
    where: str = ""
    margin: float | None = None
    reason: str = ""
    only: list[str] = field(default_factory=list)
    by: str = "ours"
    quote: str = ""


@dataclass(frozen=True)
class Derived:
    """A metric taken from a run's validation curve: the first step at which `of` reached a level, or `of` at a step.

    A run that never reached the level has the value None, which is a result and not a gap.
    """

    of: str
    first_at_least: float | None = None
    first_at_most: float | None = None
    at_step: int | None = None

    def is_in(self, curve: list[dict[str, float]]) -> bool:
        """Whether `curve` can give it: a value at a step needs an evaluation at that step."""
        return self.at_step is None or any(e["step"] == self.at_step and self.of in e for e in curve)

    def value(self, curve: list[dict[str, float]]) -> float | None:
        """The value at the step, or the first step of `curve` at the level, None where it was never reached."""
        for entry in sorted(curve, key=lambda e: e["step"]):
            if self.of not in entry:
                continue
            if entry["step"] == self.at_step:
                return float(entry[self.of])
            if self.first_at_least is not None and entry[self.of] >= self.first_at_least:
                return float(entry["step"])
            if self.first_at_most is not None and entry[self.of] <= self.first_at_most:
                return float(entry["step"])
        return None


@dataclass(frozen=True)
class Sweep:
    """Each row is trained at every value of `key` a size names, and recorded at the one that validates best (`sweeps`).

    `metric` and `better` are those of `cell` where they are not given; at a size without values nothing is swept.
    """

    key: str
    values: Mapping[str, list[float]]
    metric: str | None = None
    better: str | None = None


@dataclass(frozen=True)
class ColumnSpec:
    """One column: how each trained row is evaluated, or what a measure is asked.

    overrides        put on top of the row's own; with `instead_of_row` they stand in their place, after the base and
                     the size (a row's `lsh.*` keys would be errors under a column with full attention).
    carry            how the checkpoint's parameters carry over: a named mapping, or row -> named mapping.
    sizes            further overrides a size; only: the sizes at which the column exists ([]: all).
    cell             its own metric, unit, direction and format, where they differ from the table's.
    parameters       what a measure is given for this column.
    note             printed under the table: what a reader needs in order to read the column.
    label            the column's name in a sentence, where its heading alone says too little there.

    A column without overrides and without carry reads the metrics of the training run itself.
    """

    shorthand: ClassVar[str] = "overrides"
    overrides: list[str] = field(default_factory=list)
    carry: str | Mapping[str, str] | None = None
    instead_of_row: bool = False
    sizes: Mapping[str, list[str]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    cell: Cell | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    label: str = ""

    @property
    def evaluates(self) -> bool:
        """Whether the checkpoint is evaluated anew for this column."""
        return bool(self.overrides or self.carry or self.instead_of_row)


def places(columns: Mapping[str, ColumnSpec], axis: str) -> dict[str, float]:
    """Column -> where it stands on the axis, a key of its parameters; of several at one place the first alone."""
    by_place: dict[float, str] = {}
    for name, column in columns.items():
        if axis in column.parameters:
            by_place.setdefault(float(column.parameters[axis]), name)
    return {name: at for at, name in by_place.items()}


@dataclass(frozen=True)
class Row:
    """One row: a training run (its overrides), or one line of a measure (its parameters; a training's are for figures).

    sizes, only as for a column; `seeds` a size in place of the experiment's (none: not run at that size); `columns` in
    place of the experiment's; `pretraining` is added to the experiment's;
    `text` is printed before the cells, column heading -> words (the formulas of a complexity table); `label` is the
    row's name on the page, where what was run is not what the paper's row is called; `task` parts the rows of a table
    that are no rivals (enwik8 and CIFAR-10), where their gates do not.
    """

    shorthand: ClassVar[str] = "overrides"
    overrides: list[str] = field(default_factory=list)
    sizes: Mapping[str, list[str]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    seeds: Mapping[str, list[int]] = field(default_factory=dict)
    pretraining: list[str] = field(default_factory=list)
    columns: Mapping[str, ColumnSpec] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    task: str = ""


@dataclass(frozen=True)
class Experiment:
    """One table or figure of one paper.

    figure     how the report draws it: `{kind: lines, over: curve | columns | series, x: ..., y: ..., log_x, log_y,
               x_label, y_label}`; `over: curve` draws one line a row from the records' curves (x `step`, y a metric),
               `over: columns` one line a row over the columns (x: a key of the columns' parameters, y: a metric),
               `over: series` one line a row and name in the list y, from the records' series. `crossings` lists pairs
               of rows and the paper's reading, see `aggregation.crossings`. `trend` fits the gap between rows against
               two sizes, see `trend`. `draw` names an illustration of the report, drawn beside the lines or alone.
    pretraining, pretraining_sizes
               overrides of a training that comes first, at the same seed, and those a size; the row then starts from
               its weights. Rows with equal ones share it.
    gates      label -> what a model must beat or reach before claims about it are tested (`gates.Gate`).
    sweep      of one key, over which each row has its own best value, as a fair comparison wants.
    formerly   ids that the item had in earlier releases; asked for by one of them, efftx names the new id.
    chosen     the rows and gates that are run, where not all are (`narrow`).
    head       the comment the file begins with: paper, what it should reach, hardware and time, exact command.
    """

    id: str
    caption: str
    kind: str
    cell: Cell
    rows: Mapping[str, Row]
    base: list[str] = field(default_factory=list)
    sizes: Mapping[str, list[str]] = field(default_factory=dict)
    pretraining: list[str] = field(default_factory=list)
    pretraining_sizes: Mapping[str, list[str]] = field(default_factory=dict)
    columns: Mapping[str, ColumnSpec] = field(default_factory=dict)
    seeds: Mapping[str, list[int]] = field(default_factory=dict)
    published: Published | None = None
    claims: list[Claim] = field(default_factory=list)
    measure: str | None = None
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    derived: Mapping[str, Derived] = field(default_factory=dict)
    sweep: Sweep | None = None
    figure: Mapping[str, Any] | None = None
    gates: Mapping[str, Gate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    formerly: list[str] = field(default_factory=list)
    paper: str = field(default="", metadata=NOT_IN_FILE)
    head: str = field(default="", metadata=NOT_IN_FILE)
    path: str = field(default="", metadata=NOT_IN_FILE)
    chosen: tuple[str, ...] = field(default=(), metadata=NOT_IN_FILE)

    def sizes_known(self) -> list[str]:
        """The sizes at which this item is defined, largest first."""
        named = self.sizes if self.kind == "train" else self.parameters
        return [size for size in SIZES if size in named]

    def usual_size(self) -> str:
        """What `reproduce` runs where no size is given: cpu, or paper where that alone carries evidence."""
        return "cpu" if "cpu" in self.sizes_known() else "paper"

    def sizes_of_evidence(self) -> list[str]:
        """The sizes whose records count: all but smoke, which only proves the path, unless there is no other."""
        return [size for size in self.sizes_known() if size != "smoke"] or self.sizes_known()

    def is_chosen(self, row: str) -> bool:
        """Whether this row or gate is run."""
        return not self.chosen or row in self.chosen

    def rows_at(self, size: str) -> dict[str, Row]:
        """The rows that exist at `size`."""
        return {name: row for name, row in self.rows.items() if not row.only or size in row.only}

    def claims_at(self, size: str) -> list[Claim]:
        """The claims that are judged at `size`."""
        return [claim for claim in self.claims if not claim.only or size in claim.only]

    def columns_of(self, row: str, size: str) -> dict[str, ColumnSpec]:
        """The columns of `row` at `size`; a table without columns has the one column `""`."""
        columns = self._columns_at_any_size(row)
        if not columns:
            return {"": ColumnSpec()}
        return {name: column for name, column in columns.items() if not column.only or size in column.only}

    def cells_of(self, row: str) -> dict[str, Cell]:
        """The columns of `row` at any size, `""` alone where the table has none, and the format of each."""
        return {column: self.cell_of(row, column) for column in self._columns_at_any_size(row) or ("",)}

    def rivals_of(self, row: str, size: str) -> list[str]:
        """The other rows at `size` of the same task, which have the same trivial answers before them."""

        def task(name: str) -> tuple[str, frozenset[str]]:
            before = (label for label, gate in self.gates_at(size).items() if gate.stands_before(name, size))
            return self.rows[name].task, frozenset(before)

        return [other for other in self.rows_at(size) if other != row and task(other) == task(row)]

    def gates_at(self, size: str) -> dict[str, Gate]:
        """The gates that are computed at `size`: trivial answers that stand before a row which is run there."""
        run = [row for row in self.rows_at(size) if self.seeds_of(row, size)]
        return {
            name: gate
            for name, gate in self.gates.items()
            if gate.is_computed and any(gate.stands_before(row, size) for row in run)
        }

    def gate_row(self, name: str, size: str) -> str:
        """The row whose data a gate is computed from: the first that it stands before and that is run at `size`."""
        gate = self.gates[name]
        return next(r for r in self.rows_at(size) if gate.stands_before(r, size) and self.seeds_of(r, size))

    def gate_overrides(self, name: str, size: str) -> list[str]:
        """What composes the configuration from whose data a gate is computed; of a measure those it is given."""
        row = self.gate_row(name, size)
        if self.kind != "measure":
            return self.row_overrides(row, size)
        return [*self.parameters[size]["overrides"], *self.rows[row].parameters.get("overrides", [])]

    def columns_at(self, size: str) -> list[str]:
        """All columns of the printed table, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows_at(size) for name in self.columns_of(row, size)))

    def label(self, row: str) -> str:
        """What `row` is called on the page."""
        spec = self.rows.get(row)
        return spec.label or row if spec else row

    def cell_of(self, row: str, column: str) -> Cell:
        """The cell's format, in a row of ours or of the paper's: the column's own if it has one, else the table's."""
        columns = self._columns_at_any_size(row)
        return columns[column].cell or self.cell if column in columns else self.cell

    def column_label(self, row: str, column: str) -> str:
        """What `column` of `row` is called in a sentence."""
        columns = self._columns_at_any_size(row)
        return columns[column].label or column if column in columns else column

    def cell_label(self, row: str, column: str) -> str:
        """A cell in a sentence: `row, column`, the row alone where the table has no columns."""
        of_column = self.column_label(row, column)
        return f"{self.label(row)}, {of_column}" if of_column else self.label(row)

    def _columns_at_any_size(self, row: str) -> Mapping[str, ColumnSpec]:
        of_row = self.rows[row].columns if row in self.rows else None
        return self.columns if of_row is None else of_row

    def seeds_of(self, row: str, size: str) -> list[int]:
        """The seeds of `row` at `size`: its own where it has some, else the table's, else one."""
        of_row = self.rows[row].seeds.get(size)
        return list(of_row if of_row is not None else self.seeds.get(size, DEFAULT_SEEDS))

    def row_overrides(self, row: str, size: str) -> list[str]:
        """What trains `row` at every seed: base, the size's preset, the size's overrides, the row's, the row's here."""
        spec = self.rows[row]
        return [*self.common_overrides(size), *spec.overrides, *spec.sizes.get(size, [])]

    def pretraining_overrides(self, row: str, size: str) -> list[str]:
        """What trains the run that `row` starts from, in the order of `row_overrides`; empty where it starts afresh."""
        of_row = self.rows[row].pretraining
        if not self.pretraining and not of_row:
            return []
        return [*self.pretraining, f"size={size}", *self.pretraining_sizes.get(size, []), *of_row]

    def column_overrides(self, row: str, column: str, size: str) -> list[str]:
        """What evaluates `row` under `column`."""
        spec = self.columns_of(row, size)[column]
        below = self.common_overrides(size) if spec.instead_of_row else self.row_overrides(row, size)
        return [*below, *spec.overrides, *spec.sizes.get(size, [])]

    def carry_of(self, row: str, column: str, size: str) -> str | None:
        """The named mapping under which the checkpoint of `row` carries over to `column`."""
        carry = self.columns_of(row, size)[column].carry
        return carry.get(row) if isinstance(carry, Mapping) else carry

    def common_overrides(self, size: str) -> list[str]:
        """What every row is composed from: the base, the size's preset, the size's overrides."""
        return [*self.base, f"size={size}", *self.sizes.get(size, [])]
