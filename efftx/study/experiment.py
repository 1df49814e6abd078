"""What a table or figure is: the data classes of one file of `experiments/`, and the reading of all of them.

An experiment is data. `kind: train` trains every row at every seed and evaluates it under every column; `kind: measure`
calls a function of the registry in `measures` instead. Names of rows and columns are those of the printed table.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from efftx.config.values import MOST_SEED
from efftx.core.shipped import shipped
from efftx.errors import UserError, nearest
from efftx.study.claim_language import Name, check_kind, parse, parse_where
from efftx.study.gates import Gate
from efftx.study.gates import troubles as gate_troubles
from efftx.study.published import Published
from efftx.study.published import troubles as published_troubles
from efftx.study.reading import build, read_yaml
from efftx.study.records import COSTS, slug

SIZES = ("paper", "gpu", "cpu", "smoke")
DEFAULT_SEEDS = (0,)
NOT_IN_FILE = {"in_file": False}
PAPERS = "papers.yaml"
"""Beside the experiments: what each paper prints (see `papers`)."""


@dataclass(frozen=True)
class Cell:
    """How one number of the table is taken and written: the metric's name, its unit, its direction, its format.

    `better` is `higher`, `lower` or `none`; `format` is a Python format string such as `"{:.1f}"`.
    """

    metric: str
    unit: str = ""
    better: str = "none"
    format: str = "{:.2f}"


@dataclass(frozen=True)
class Claim:
    """One sentence about the table, the expression that decides it and how it is tested (`claims.judge`).

    `kind` is `better`, `as good as`, `at least` or `exact` (see `claim_language`); `margin`, in the metric's unit, goes
    with `as good as`, and `reason` says why it is that large. `where` restricts the quantified names (`row != "Full"`).
    `by` is who claims it, `paper` or `ours`; `quote` holds the paper's own words, without it `says` is a paraphrase.
    """

    says: str
    kind: str
    holds_if: str
    where: str = ""
    margin: float | None = None
    reason: str = ""
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

    overrides: list[str] = field(default_factory=list)
    carry: str | Mapping[str, str] | None = None
    instead_of_row: bool = False
    sizes: Mapping[str, list[str]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    cell: Cell | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    label: str = ""

    @staticmethod
    def shorthand() -> str:
        """The field that a bare list in the file stands for."""
        return "overrides"

    @property
    def evaluates(self) -> bool:
        """Whether the checkpoint is evaluated anew for this column."""
        return bool(self.overrides or self.carry or self.instead_of_row)


@dataclass(frozen=True)
class Row:
    """One row: a training run (its overrides), or one line of a measure (its parameters; a training's are for figures).

    sizes, only as for a column; `seeds` a size in place of the experiment's (none: not run at that size); `columns` in
    place of the experiment's; `pretraining` is added to the experiment's;
    `text` is printed before the cells, column heading -> words (the formulas of a complexity table); `label` is the
    row's name on the page, where what was run is not what the paper's row is called.
    """

    overrides: list[str] = field(default_factory=list)
    sizes: Mapping[str, list[str]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    seeds: Mapping[str, list[int]] = field(default_factory=dict)
    pretraining: list[str] = field(default_factory=list)
    columns: Mapping[str, ColumnSpec] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    @staticmethod
    def shorthand() -> str:
        """The field that a bare list in the file stands for."""
        return "overrides"


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

    def rows_at(self, size: str) -> dict[str, Row]:
        """The rows that exist at `size`."""
        return {name: row for name, row in self.rows.items() if not row.only or size in row.only}

    def columns_of(self, row: str, size: str) -> dict[str, ColumnSpec]:
        """The columns of `row` at `size`; a table without columns has the one column `""`."""
        own = self.rows[row].columns
        columns = self.columns if own is None else own
        if not columns:
            return {"": ColumnSpec()}
        return {name: column for name, column in columns.items() if not column.only or size in column.only}

    def cells_of(self, row: str) -> dict[str, Cell]:
        """The columns of `row` at any size, `""` alone where the table has none, and the format of each."""
        own = self.rows[row].columns
        return {column: self.cell_of(row, column) for column in (self.columns if own is None else own) or ("",)}

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
        """What composes the configuration from whose data a gate is computed."""
        return self.row_overrides(self.gate_row(name, size), size)

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
        told = self.column_label(row, column)
        return f"{self.label(row)}, {told}" if told else self.label(row)

    def _columns_at_any_size(self, row: str) -> Mapping[str, ColumnSpec]:
        own = self.rows[row].columns if row in self.rows else None
        return self.columns if own is None else own

    def seeds_of(self, row: str, size: str) -> list[int]:
        """The seeds of `row` at `size`: its own where it has some, else the table's, else one."""
        own = self.rows[row].seeds.get(size)
        return list(own if own is not None else self.seeds.get(size, DEFAULT_SEEDS))

    def row_overrides(self, row: str, size: str) -> list[str]:
        """What trains `row` at every seed: base, the size's preset, the size's overrides, the row's, the row's here."""
        spec = self.rows[row]
        return [*self.common_overrides(size), *spec.overrides, *spec.sizes.get(size, [])]

    def pretraining_overrides(self, row: str, size: str) -> list[str]:
        """What trains the run that `row` starts from, in the order of `row_overrides`; empty where it starts afresh."""
        own = self.rows[row].pretraining
        if not self.pretraining and not own:
            return []
        return [*self.pretraining, f"size={size}", *self.pretraining_sizes.get(size, []), *own]

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


@dataclass(frozen=True)
class Unreadable:
    """A user's file that is no experiment: `id` is its item's as far as it can be told, else `folder/file`."""

    id: str
    error: UserError

    def is_meant(self, items: Collection[str]) -> bool:
        """Whether `items` name it: its id, its paper, or all; no items mean all."""
        return not items or any(item in ("all", self.id, self.id.partition("/")[0]) for item in items)


class Experiments(dict[str, Experiment]):
    """Experiments by id, in order of ids; `unreadable` are the files of a user's own that are left out."""

    unreadable: tuple[Unreadable, ...] = ()


def load_experiments(extra: Path | None = None) -> Experiments:
    """Every experiment that is shipped, in the folders of `EFFTX_EXPERIMENTS`, and in `extra`.

    A user's file that cannot be read, or gives an id that another has, is left out and kept beside the others. Raises
    UserError where a folder is none, and for a file that is shipped.
    """
    folders = [Path(part) for part in os.environ.get("EFFTX_EXPERIMENTS", "").split(os.pathsep) if part]
    folders += [extra] if extra is not None else []
    found = {e.id: e for e in map(read_experiment, _files_in(shipped("experiments")))}
    unreadable = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError("missing_file", f"{folder}: no such folder of experiments", "See EFFTX_EXPERIMENTS.")
        for path in _files_in(folder):
            try:
                experiment = read_experiment(path)
                if experiment.id in found:
                    message = f"{path}: {found[experiment.id].path} has the id '{experiment.id}' too"
                    raise UserError("bad_experiment", message)
            except UserError as error:
                unreadable.append(Unreadable(_id_of(path), error))
            else:
                found[experiment.id] = experiment
    experiments = Experiments(sorted(found.items()))
    experiments.unreadable = tuple(unreadable)
    return experiments


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.yaml") if path.name != PAPERS)


def _id_of(path: Path) -> str:
    """The id that a file gives, which may be no experiment otherwise; else its folder and name."""
    try:
        _, content = read_yaml(path)
    except UserError:
        content = {}
    id = content.get("id")
    return id if isinstance(id, str) else f"{path.parent.name}/{path.stem}"


def select(experiments: Experiments, items: Collection[str]) -> list[Experiment]:
    """The experiments that `items` name: an id, a paper, or `all`; UserError with the nearest name for any other.

    For an item whose file cannot be read it is that file's error.
    """
    chosen: dict[str, Experiment] = {}
    for item in items:
        hits = {id: e for id, e in experiments.items() if item in ("all", id, e.paper)}
        for file in experiments.unreadable:
            if item == file.id or (not hits and file.is_meant([item])):
                raise file.error
        if not hits:
            for e in experiments.values():
                if item in e.formerly:
                    raise UserError("unknown_item", f"'{item}' is called {e.id} now")
            names = [*experiments, *(e.paper for e in experiments.values()), "all"]
            raise UserError("unknown_item", f"there is no table or figure '{item}'", nearest(item, names))
        chosen |= hits
    return list(chosen.values())


def read_experiment(path: Path) -> Experiment:
    """One file of `experiments/`, checked: names, sizes, published cells and claims all refer to what is there."""
    head, content = read_yaml(path)
    read: Experiment = build(Experiment, content, str(path))
    experiment = replace(read, paper=read.id.partition("/")[0], head=head, path=str(path))
    for trouble, hint in _troubles(experiment):
        raise UserError("bad_experiment", f"{path}: {trouble}", hint)
    for claim in experiment.claims:
        try:
            _check_claim(experiment, claim)
        except UserError as error:
            raise UserError(error.kind, f"{path}: {error.message}", error.hint) from error
    return experiment


def _troubles(e: Experiment) -> Iterable[tuple[str, str]]:
    if len(e.id.split("/")) != 2 or not all(e.id.split("/")) or ".." in e.id:
        yield f"id: '{e.id}' is not of the form paper/item", ""
    if e.kind not in ("train", "measure"):
        yield f"kind: '{e.kind}' is neither train nor measure", nearest(e.kind, ["train", "measure"])
    if (e.kind == "measure") != (e.measure is not None):
        yield "measure: a measure is named where kind is measure, and only there", ""
    if e.kind == "measure" and (e.pretraining or any(row.pretraining for row in e.rows.values())):
        yield "pretraining: a measure trains nothing", ""
    if e.pretraining_sizes and not (e.pretraining or any(row.pretraining for row in e.rows.values())):
        yield "pretraining_sizes: there is no pretraining", ""
    if e.id in e.formerly:
        yield f"formerly: '{e.id}' is the item's id of today", ""
    if e.sweep:
        yield from _sweep_troubles(e, e.sweep)
    if not e.rows:
        yield "rows: a table has rows", ""
    if not e.sizes_known():
        yield f"{'sizes' if e.kind == 'train' else 'parameters'}: no size is given", ""
    for seeds in (*e.seeds.values(), *(own for row in e.rows.values() for own in row.seeds.values())):
        if any(not 0 <= seed <= MOST_SEED for seed in seeds) or len(set(seeds)) < len(seeds):
            yield "seeds: each is given once, from 0 to 2^63 - 1", ""
    slugs: dict[str, str] = {}
    for row in (*e.rows, *e.gates):
        if slugs.setdefault(slug(row), row) != row:
            yield f"rows and gates: '{row}' and '{slugs[slug(row)]}' would write the same file", ""
    cells = {row: {column: (cell.metric, cell.better) for column, cell in e.cells_of(row).items()} for row in e.rows}
    shown = {metric for row in cells.values() for metric, _ in row.values()}
    if e.kind == "measure" and (counted := sorted(shown & set(COSTS))):
        yield f"cell.metric: '{counted[0]}' is what the model of a training costs, and a measure has none", ""
    yield from gate_troubles(e.gates, e.kind, cells, e.cell.metric)
    if e.published:
        yield from published_troubles(e.published, e.rows, {column for row in cells.values() for column in row})
    for claim in e.claims:
        if claim.by not in ("paper", "ours"):
            yield f"claims.by: '{claim.by}' is neither paper nor ours", nearest(claim.by, ["paper", "ours"])
        if claim.quote and claim.by != "paper":
            yield f"claims.quote: '{claim.says}' is not the paper's", "by: paper"
    for size in _sizes_named(e):
        if size not in SIZES:
            yield f"there is no size '{size}'", nearest(size, SIZES)
    for cell in [e.cell, *(c.cell for c in e.columns.values() if c.cell)]:
        if cell.better not in ("higher", "lower", "none"):
            yield f"cell.better: '{cell.better}' is not higher, lower or none", ""
        try:
            cell.format.format(1.0)
        except (ValueError, IndexError, KeyError, AttributeError) as error:
            yield f"cell.format: '{cell.format}' does not format a number ({error})", ""
    for name, derived in e.derived.items():
        given = (derived.first_at_least, derived.first_at_most, derived.at_step)
        if sum(one is not None for one in given) != 1:
            yield f"derived.{name}: one of first_at_least, first_at_most and at_step is given", ""


def _sweep_troubles(e: Experiment, sweep: Sweep) -> Iterable[tuple[str, str]]:
    if e.kind == "measure":
        yield "sweep: a measure trains nothing", ""
    if (better := sweep.better or e.cell.better) not in ("higher", "lower"):
        yield f"sweep: of two values of {sweep.key} neither 'higher' nor 'lower' is better ('{better}')", ""
    if (metric := sweep.metric or e.cell.metric) in e.derived:
        yield f"sweep: '{metric}' is derived from the curve; give sweep.metric, a metric of the validation split", ""
    for size, values in sweep.values.items():
        if not values or sorted(set(values)) != values:
            yield f"sweep.values.{size}: the values of {sweep.key} are given once each, the smallest first", ""


def _sizes_named(e: Experiment) -> Iterable[str]:
    yield from (*e.sizes, *e.pretraining_sizes, *e.seeds, *e.parameters, *(e.sweep.values if e.sweep else ()))
    for row in e.rows.values():
        yield from (*row.sizes, *row.only, *row.seeds)
    for gate in e.gates.values():
        yield from gate.only
    for column in [*e.columns.values(), *(c for row in e.rows.values() for c in (row.columns or {}).values())]:
        yield from (*column.sizes, *column.only)


def _check_claim(e: Experiment, claim: Claim) -> None:
    parsed = parse(claim.holds_if)
    parse_where(claim.where, parsed.free)
    check_kind(parsed, claim.holds_if, claim.kind, claim.margin)
    columns = {c for row in e.rows for c in e.cells_of(row)}
    for table, index in parsed.lookups:
        printed = e.published.others if table == "published" and e.published else {}
        known = [e.gates if table == "gate" else [*e.rows, *printed], columns]
        for item, names in zip(index, known, strict=False):
            if not isinstance(item, Name) and item not in names:
                message = f"the claim '{claim.says}': {table} has no '{item}'"
                raise UserError("bad_claim", message, nearest(item, names))


def narrow(experiments: Sequence[Experiment], rows: Sequence[str]) -> list[Experiment]:
    """The experiments that have one of the named rows or gates, of which only these run; UserError for an unknown."""
    known = [row for experiment in experiments for row in (*experiment.rows, *experiment.gates)]
    for row in rows:
        if row not in known:
            raise UserError("unknown_row", f"there is no row '{row}'", nearest(row, known))
    named = [replace(e, chosen=tuple(row for row in (*e.rows, *e.gates) if row in rows)) for e in experiments]
    return [experiment for experiment in named if experiment.chosen]
