"""The status of every record against today's experiment, configuration and code; nothing is trained to list it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from efftx.core.files import DamagedFileError
from efftx.errors import UserError
from efftx.study.experiment import SIZES, Experiment, Unreadable
from efftx.study.records import COSTS, Record, RecordStore
from efftx.study.sweeps import Run, lacking, planned, resolved

UNCOUNTED = "its costs are not counted"
MISSING, INCOMPLETE, STALE, FRESH = "missing", "incomplete", "stale", "fresh"


class Composer(Protocol):
    """What the status of a record asks of configurations and measures; no model is built to answer."""

    def compose(self, overrides: Sequence[str], seed: int) -> Any:
        """The resolved config of these overrides at `seed`; UserError where they do not compose."""

    def hash(
        self,
        config: Any,
        data: Mapping[str, str],
        made_on: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
    ) -> str:
        """The hash of `config` on a data set of this name, variant and checksum, begun from the run of that hash.

        What the config leaves to the machine (device, threads) is as in the environment `made_on`, where it is given.
        """

    def sources(self) -> str:
        """A digest of all that composing reads beside the overrides; where it is the same, so is what is composed."""

    def trivial_hash(self, config: Any, asked: Mapping[str, Any], data: Mapping[str, str]) -> str:
        """The hash of all that can change a trivial answer (`Gate.asked`) on the data of `config`."""

    def check_measure(self, name: str) -> None:
        """UserError with the nearest name where there is no measure of this name."""


@dataclass(frozen=True)
class Status:
    """`missing`, `incomplete` (a column without a value), `stale` or `fresh`, and why."""

    word: str
    why: str = ""


def measure_parameters(experiment: Experiment, row: str, size: str) -> dict[str, Any]:
    """What a measure is given beside its row's own parameters: those of the size, and its columns'."""
    columns = {name: dict(c.parameters) for name, c in experiment.columns_of(row, size).items()}
    return {**experiment.parameters[size], "columns": columns}


def measure_hash(experiment: Experiment, row: str, seed: int, size: str) -> str:
    """The hash of all that a measure is given; the columns are hashed apart, each by itself."""
    given = {
        "measure": experiment.measure,
        "parameters": experiment.parameters[size],
        "row": experiment.rows[row].parameters,
        "seed": seed,
    }
    return _digest(given)


def column_hashes(
    experiment: Experiment,
    row: str,
    seed: int,
    size: str,
    composer: Composer,
    data: Mapping[str, str],
    made_on: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """column -> hash of what it is evaluated under; columns that read the training run itself have none."""
    columns = experiment.columns_of(row, size)
    if experiment.kind == "measure":
        return {name: _digest(column.parameters) for name, column in columns.items()}
    found = {}
    for name, column in columns.items():
        if column.evaluates:
            config = composer.compose(experiment.column_overrides(row, name, size), seed)
            carry = experiment.carry_of(row, name, size)
            found[name] = _digest([composer.hash(config, data, made_on), carry])
    return found


def composed_from(experiment: Experiment, row: str, size: str, composer: Composer) -> str:
    """A digest of all that the configurations of a row are composed from ("" for a measure, which composes none)."""
    if experiment.kind == "measure":
        return ""
    if row in experiment.gates:
        asked = experiment.gates[row].asked()
        return _digest([composer.sources(), experiment.row_overrides(experiment.gate_row(row, size), size), asked])
    columns = {
        name: [experiment.column_overrides(row, name, size), experiment.carry_of(row, name, size)]
        for name, column in experiment.columns_of(row, size).items()
        if column.evaluates
    }
    before = experiment.pretraining_overrides(row, size)
    return _digest([composer.sources(), experiment.row_overrides(row, size), columns, *([before] if before else [])])


def status_of(experiment: Experiment, run: Run, size: str, composer: Composer, store: RecordStore) -> Status:
    """The status of the record of `run`; composes configurations only where needed, trains nothing."""
    record = store.read(experiment.id, run.row, run.seed, size, run.value)
    if record is None:
        return Status(MISSING)
    at = resolved(experiment, run, size, store)
    if at is None:
        return Status(INCOMPLETE, lacking(experiment, run.row, size, store))
    if not record.composed_from or record.composed_from != composed_from(at, run.row, size, composer):
        changed = _what_changed(at, record, composer)
        if changed:
            return Status(STALE, f"{changed} is another today")
    columns = at.columns_of(run.row, size) if run.row in at.rows else ()
    costs = [name for name in columns if at.cell_of(run.row, name).metric in COSTS]
    without = [name for name in columns if name not in (*record.metrics, *costs)]
    if without:
        return Status(INCOMPLETE, f"'{without[0]}' was not evaluated")
    if costs and not record.costs:
        return Status(INCOMPLETE, UNCOUNTED)
    verification = store.verification(record)
    if verification is not None and verification.verdict == "stale":
        return Status(STALE, verification.why)
    return Status(FRESH)


def state_of(experiment: Experiment, store: RecordStore, composer: Composer) -> dict[str, Any]:
    """One line of `efftx list`: `{id, paper, caption, state, sizes, runs_at, records, damaged}`, and maybe `why`.

    `sizes` have records, `runs_at` are all at which the item is defined. The state is that of the sizes
    that carry evidence, paper, gpu and cpu; a smoke run counts only where there is no other.
    """
    line: dict[str, Any] = {"id": experiment.id, "paper": experiment.paper, "caption": experiment.caption}
    line["runs_at"] = experiment.sizes_known()
    counts: dict[str, dict[str, int]] = {}
    whys: list[str] = []
    damaged: list[str] = []
    try:
        for size in experiment.sizes_known():
            count = {"of": 0, FRESH: 0, STALE: 0, INCOMPLETE: 0}
            for run in planned(experiment, size):
                count["of"] += 1
                try:
                    found = status_of(experiment, run, size, composer, store)
                except DamagedFileError as error:
                    damaged.append(error.message)
                    continue
                if found.word != MISSING:
                    count[found.word] += 1
                if found.word == STALE:
                    whys.append(f"{run.told(experiment)}, size {size}: {found.why}")
            if count[FRESH] + count[STALE] + count[INCOMPLETE]:
                counts[size] = count
        if not counts:
            _ask_whether_it_runs(experiment, composer)
    except UserError as error:
        return {**line, "state": "not runnable", "why": error.message, "sizes": list(counts), "records": counts}
    weighty = [counts[s] for s in SIZES if s in counts and s != "smoke"] or list(counts.values())
    if any(count[STALE] for count in weighty):
        state = "stale"
    elif any(count[FRESH] == count["of"] for count in weighty):
        state = "recorded"
    else:
        state = "partial" if weighty else "not run"
    line |= {"state": state, "sizes": list(counts), "records": counts, "damaged": damaged}
    whys = damaged or (whys if state == "stale" else [])
    return {**line, "why": whys[0]} if whys else line


def not_readable(file: Unreadable) -> dict[str, Any]:
    """The line of `efftx list` of an item whose file cannot be read."""
    line: dict[str, Any] = {"id": file.id, "paper": file.id.partition("/")[0], "caption": "", "runs_at": []}
    return {**line, "state": "not runnable", "why": file.error.message, "sizes": [], "records": {}, "damaged": []}


def _what_changed(experiment: Experiment, record: Record, composer: Composer) -> str:
    """The configuration or evaluation whose hash is not the record's; empty where there is none."""
    row, seed, size = record.row, record.seed, record.size
    if row in experiment.gates:
        config = composer.compose(experiment.row_overrides(experiment.gate_row(row, size), size), 0)
        today = composer.trivial_hash(config, experiment.gates[row].asked(), record.data)
        return "" if today == record.hash else "what is asked, or the data,"
    if experiment.kind == "measure":
        today = measure_hash(experiment, row, seed, size)
    else:
        before, pretrained = experiment.pretraining_overrides(row, size), None
        if bool(before) != bool(record.pretraining):
            return "the pre-training"
        if before:
            pretraining = composer.compose(before, seed)
            pretrained = composer.hash(pretraining, record.pretraining["data"], record.environment)
            if pretrained != record.pretraining["hash"]:
                return "the pre-training"
        config = composer.compose(experiment.row_overrides(row, size), seed)
        today = composer.hash(config, record.data, record.environment, pretrained)
    if today != record.hash:
        return "the configuration"
    columns = column_hashes(experiment, row, seed, size, composer, record.data, record.environment)
    changed = [name for name, digest in columns.items() if record.column_hashes.get(name, digest) != digest]
    return f"the evaluation '{changed[0]}'" if changed else ""


def _ask_whether_it_runs(experiment: Experiment, composer: Composer) -> None:
    """UserError where today's code does not know the item's measure, or its first row does not compose."""
    if experiment.kind == "measure":
        composer.check_measure(str(experiment.measure))
        return
    sizes = experiment.sizes_known()
    size = "cpu" if "cpu" in sizes else sizes[-1]
    row = next(iter(experiment.rows_at(size)))
    seed = next(iter(experiment.seeds_of(row, size)), 0)
    composer.compose(experiment.row_overrides(row, size), seed)
    if before := experiment.pretraining_overrides(row, size):
        composer.compose(before, seed)


def _digest(content: Any) -> str:
    def plain(value: Any) -> Any:
        return dict(value) if isinstance(value, Mapping) else list(value)

    return hashlib.sha256(json.dumps(content, sort_keys=True, default=plain).encode()).hexdigest()[:16]
