"""All experiments: the reading and checking of their files, and what a user's words choose among them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from efftx.config.values import MOST_SEED
from efftx.core.shipped import shipped
from efftx.errors import UserError, nearest
from efftx.study.claim_language import Name, check_kind, parse, parse_where
from efftx.study.experiment import SIZES, Claim, Experiment, Sweep
from efftx.study.gates import troubles as gate_troubles
from efftx.study.published import troubles as published_troubles
from efftx.study.reading import build, read_yaml
from efftx.study.records import COSTS, slug

PAPERS = "papers.yaml"
"""Beside the experiments: what each paper prints (see `papers`)."""


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
    by_id = {e.id: e for e in map(read_experiment, _files_in(shipped("experiments")))}
    unreadable = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError("missing_file", f"{folder}: no such folder of experiments", "See EFFTX_EXPERIMENTS.")
        for path in _files_in(folder):
            try:
                experiment = read_experiment(path)
                if experiment.id in by_id:
                    message = f"{path}: {by_id[experiment.id].path} has the id '{experiment.id}' too"
                    raise UserError("bad_experiment", message)
            except UserError as error:
                unreadable.append(Unreadable(_id_of(path), error))
            else:
                by_id[experiment.id] = experiment
    experiments = Experiments(sorted(by_id.items()))
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
            raise UserError("unknown_item", f"there is no table or figure '{item}'", _near(item, experiments))
        chosen |= hits
    return list(chosen.values())


def _near(item: str, experiments: Experiments) -> str:
    """The nearest items; of a paper that is known, all of its own where none is near."""
    paper, _, name = item.partition("/")
    of_paper = [id for id in experiments if id.startswith(f"{paper}/")]
    if of_paper:
        near = nearest(name, (id.removeprefix(f"{paper}/") for id in of_paper), at_most=0)
        return nearest(item, of_paper) if near else f"Known: {', '.join(of_paper)}."
    names = [*experiments, *(e.paper for e in experiments.values()), "all"]
    return nearest(item, names, at_most=0) or "`efftx list` names them all."


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
    for seeds in (*e.seeds.values(), *(of_row for row in e.rows.values() for of_row in row.seeds.values())):
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
    trains = e.kind == "train" or all("overrides" in e.parameters.get(size, {}) for size in e.sizes_known())
    yield from gate_troubles(e.gates, trains, cells, e.cell.metric)
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
        criteria = (derived.first_at_least, derived.first_at_most, derived.at_step)
        if sum(one is not None for one in criteria) != 1:
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
    for claim in e.claims:
        yield from claim.only


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


def at_size(experiments: Sequence[Experiment], size: str | None) -> list[Experiment]:
    """The experiments that are defined at `size`, all of them where it is None; UserError where none is."""
    if size is not None and size not in SIZES:
        raise UserError("unknown_size", f"there is no size '{size}'", nearest(size, SIZES))
    here = [experiment for experiment in experiments if size is None or size in experiment.sizes_known()]
    if not here:
        known = sorted({s for experiment in experiments for s in experiment.sizes_known()})
        raise UserError("unknown_size", f"nothing of this is defined at size {size}", f"Defined: {', '.join(known)}.")
    return here


def narrow(experiments: Sequence[Experiment], rows: Sequence[str]) -> list[Experiment]:
    """The experiments that have one of the named rows or gates, of which only these run; UserError for an unknown."""
    known = [row for experiment in experiments for row in (*experiment.rows, *experiment.gates)]
    for row in rows:
        if row not in known:
            raise UserError("unknown_row", f"there is no row '{row}'", nearest(row, known))
    named = [replace(e, chosen=tuple(row for row in (*e.rows, *e.gates) if row in rows)) for e in experiments]
    return [experiment for experiment in named if experiment.chosen]
