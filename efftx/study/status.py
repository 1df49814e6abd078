"""The status of every record against today's experiment, configuration and code; nothing is trained to list it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efftx.config.hash import OUTSIDE
from efftx.core.files import DamagedFileError
from efftx.errors import UserError
from efftx.study.experiment import Experiment
from efftx.study.experiments import Unreadable
from efftx.study.measures import check_name
from efftx.study.records import COSTS, Record, RecordStore
from efftx.study.sweeps import Run, chosen, lacking, planned, resolved, sweep_values

if TYPE_CHECKING:  # it imports Hydra, which the report never needs
    from efftx.study.composer import Composer

UNCOUNTED = "its costs are not counted"
RECOUNTED = "its costs are others by today's code"
"""How the reason of a record begins whose training is as it was."""
MISSING, INCOMPLETE, STALE, FRESH = "missing", "incomplete", "stale", "fresh"
NOT_RUN = "not run"
NOT_REPLAYABLE, NOT_AT_HAND = "not replayable", "not at hand"


@dataclass(frozen=True)
class Status:
    """`missing`, `incomplete` (a column without a value), `stale` or `fresh`, and why."""

    word: str
    why: str = ""


def measure_parameters(experiment: Experiment, row: str, size: str) -> dict[str, Any]:
    """What a measure is given beside its row's own parameters: those of the size, and its columns'."""
    columns = {name: dict(c.parameters) for name, c in experiment.columns_of(row, size).items()}
    return {**experiment.parameters[size], "columns": columns}


def measure_hash(experiment: Experiment, run: Run) -> str:
    """The hash of all that a measure is given; the columns are hashed apart, each by itself."""
    hashed = {
        "measure": experiment.measure,
        "parameters": experiment.parameters[run.size],
        "row": experiment.rows[run.row].parameters,
        "seed": run.seed,
    }
    return _digest(hashed)


def column_hashes(
    experiment: Experiment,
    run: Run,
    composer: Composer,
    data: Mapping[str, str],
    made_on: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """column -> hash of what it is evaluated under; columns that read the training run itself have none."""
    columns = experiment.columns_of(run.row, run.size)
    if experiment.kind == "measure":
        return {name: _digest(column.parameters) for name, column in columns.items()}
    hashes = {}
    for name, column in columns.items():
        if column.evaluates:
            config = composer.compose(experiment.column_overrides(run.row, name, run.size), run.seed)
            carry = experiment.carry_of(run.row, name, run.size)
            hashes[name] = _digest([composer.hash(config, data, made_on), carry])
    return hashes


def composed_from(experiment: Experiment, run: Run, composer: Composer) -> str:
    """A digest of all that the configurations of a row are composed from.

    For a measure it is of the configurations that it is given the overrides of, composed, and "" where it has none.
    """
    row, size = run.row, run.size
    if row in experiment.gates:
        asked = experiment.gates[row].asked()
        return _digest([composer.sources(), experiment.gate_overrides(row, size), asked])
    if experiment.kind == "measure":
        lists = _lists_of_overrides([experiment.parameters[size], experiment.rows[row].parameters])
        configs = [composer.compose(words, run.seed) for words in lists]
        return _digest([composer.values(config) for config in configs]) if configs else ""
    columns = {
        name: [experiment.column_overrides(row, name, size), experiment.carry_of(row, name, size)]
        for name, column in experiment.columns_of(row, size).items()
        if column.evaluates
    }
    before = experiment.pretraining_overrides(row, size)
    return _digest([composer.sources(), experiment.row_overrides(row, size), columns, *([before] if before else [])])


def status_of(
    experiment: Experiment, run: Run, composer: Composer | None, store: RecordStore, *, replayed: bool = True
) -> Status:
    """The status of the record of `run`; composes configurations only where needed, trains nothing.

    Without a composer the configuration is taken to be what it was. `replayed`: what its last replay said counts.
    """
    record = store.read(*run.key(experiment))
    if record is None:
        return Status(MISSING)
    at = resolved(experiment, run, store)
    if at is None:
        return Status(INCOMPLETE, lacking(experiment, run.row, run.size, store))
    if run.value is None and (other := _other_choice(experiment, record, store)):
        return Status(STALE, other)
    if composer and _may_have_changed(at, run, record, composer):
        changed = _what_changed(at, run, record, composer)
        if changed:
            return Status(STALE, f"{changed} is another today")
    verification = store.verification(record) if replayed else None
    if verification is not None and verification.verdict == STALE:
        return Status(STALE, verification.why)
    columns = at.columns_of(run.row, run.size) if run.row in at.rows else ()
    costs = [name for name in columns if at.cell_of(run.row, name).metric in COSTS]
    without = [name for name in columns if name not in costs and _lacks(at, record, name)]
    if without:
        return Status(INCOMPLETE, f"'{without[0]}' was not evaluated")
    if costs and not record.costs:
        return Status(INCOMPLETE, UNCOUNTED)
    return Status(FRESH)


def _may_have_changed(experiment: Experiment, run: Run, record: Record, composer: Composer) -> bool:
    """False where all that its hashes are of is what it was; of a measure `composed_from` is a part of that alone."""
    if experiment.kind == "measure" and run.row in experiment.rows:
        return True
    return not record.composed_from or record.composed_from != composed_from(experiment, run, composer)


def _other_choice(experiment: Experiment, record: Record, store: RecordStore) -> str:
    """What the row's sweep chooses today, in words, where it is not what the record was trained at."""
    if not sweep_values(experiment, record.row, record.size):
        return ""
    choice = chosen(experiment, record.row, record.size, store)
    assert choice is not None  # else the run would not have been resolved
    at: Any = record.config
    for key in choice.key.split("."):
        at = at.get(key) if isinstance(at, dict) else None
    return "" if at in (None, choice.value) else f"its sweep chooses {choice.key}={choice.value:g} today, not {at:g}"


def _lacks(experiment: Experiment, record: Record, column: str) -> bool:
    """Whether a column was not evaluated, or without the metric that its cell shows."""
    metrics, metric = record.metrics.get(column), experiment.cell_of(record.row, column).metric
    return metrics is None or ("diverged" not in record.swept and metric not in (*metrics, *experiment.derived))


def state_of(
    experiment: Experiment, store: RecordStore, composer: Composer | None, sizes: Collection[str] = ()
) -> dict[str, Any]:
    """What every command and the report say of an item's state, as one line of `efftx list`.

    `{id, paper, caption, state, why, sizes, runs_at, records, damaged}`: `sizes` have records, `runs_at` are all at
    which the item is defined. The state is that of the records at `sizes`, those of evidence where none are given:
    `stale` where one of them is, else `recorded` where a size has all that it should, else `partial`, or `not run`.
    Without a composer, as in the written report, which must not depend on a machine, a replay alone makes one stale.
    """
    line: dict[str, Any] = {"id": experiment.id, "paper": experiment.paper, "caption": experiment.caption}
    line["runs_at"] = experiment.sizes_known()
    counts: dict[str, dict[str, int]] = {}
    whys: dict[str, list[str]] = {STALE: [], INCOMPLETE: []}
    damaged: list[str] = []
    asked = sizes or experiment.sizes_of_evidence()
    try:
        for size in experiment.sizes_known():
            count = {"of": 0, FRESH: 0, STALE: 0, INCOMPLETE: 0}
            for run in planned(experiment, size):
                count["of"] += 1
                try:
                    status = status_of(experiment, run, composer, store)
                except DamagedFileError as error:
                    damaged.append(error.message)
                    continue
                if status.word != MISSING:
                    count[status.word] += 1
                if status.word in whys and size in asked:
                    whys[status.word].append(f"{run.told(experiment)}, size {size}: {status.why}")
            if composer is None and size in asked:
                whys[STALE] += [
                    f"{row}, size {size}: {why}" for row, why in _trained_otherwise(experiment, size, store)
                ]
            if count[FRESH] + count[STALE] + count[INCOMPLETE]:
                counts[size] = count
        if composer and not counts:
            _check_that_it_runs(experiment, composer)
    except UserError as error:
        return {**line, "state": "not runnable", "why": error.message, "sizes": list(counts), "records": counts}
    state, why = _state({size: count for size, count in counts.items() if size in asked}, whys)
    if counts and state == NOT_RUN:
        why = f"records at size {', '.join(counts)} alone"
    return {**line, "state": state, "why": why, "sizes": list(counts), "records": counts, "damaged": damaged}


def _state(counts: Mapping[str, Mapping[str, int]], whys: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """The state that the counts of these sizes make, and why it is not `recorded`."""
    if not counts:
        return NOT_RUN, ""
    if whys[STALE]:
        return STALE, _first(whys[STALE])
    if any(count[FRESH] == count["of"] for count in counts.values()):
        return "recorded", ""
    for size, count in counts.items():
        if (there := count[FRESH] + count[INCOMPLETE]) < count["of"]:
            return "partial", f"size {size}: {there} of {count['of']} runs"
    return "partial", _first(whys[INCOMPLETE])


def _trained_otherwise(experiment: Experiment, size: str, store: RecordStore) -> Iterator[tuple[str, str]]:
    """The rows at `size` whose seeds are not of one configuration and one data set, and in what they differ.

    A key that only some of their records have is of another version of the schema, and no difference.
    """
    if experiment.kind != "train":
        return
    records = [record for record in store.read_all(experiment.id) if record.size == size]
    for row in experiment.rows_at(size):
        configs = [dict(_flat({"data": r.data, "config": r.config})) for r in records if r.row == row]
        shared = set.intersection(*map(set, configs)) if configs else set()
        for key in sorted(shared):
            if any(config[key] != configs[0][key] for config in configs):
                yield row, f"its seeds were not trained alike ({key.partition('.')[2]})"
                break


_APART = ("seed", "threads", "device", *OUTSIDE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value, of a record's data and of what of its configuration is the same for all seeds."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name.removeprefix("config.") in _APART or name == "data.name":
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _first(whys: Sequence[str]) -> str:
    return whys[0] + (f" (and {len(whys) - 1} more)" if len(whys) > 1 else "")


def not_readable(file: Unreadable) -> dict[str, Any]:
    """The line of `efftx list` of an item whose file cannot be read."""
    line: dict[str, Any] = {"id": file.id, "paper": file.id.partition("/")[0], "caption": "", "runs_at": []}
    return {**line, "state": "not runnable", "why": file.error.message, "sizes": [], "records": {}, "damaged": []}


def _what_changed(experiment: Experiment, run: Run, record: Record, composer: Composer) -> str:
    """The configuration or evaluation whose hash is not the record's; empty where there is none."""
    row, size = run.row, run.size
    if row in experiment.gates:
        config = composer.compose(experiment.gate_overrides(row, size), 0)
        today = composer.trivial_hash(config, experiment.gates[row].asked(), record.data)
        return "" if today == record.hash else "what is asked, or the data,"
    if experiment.kind == "measure":
        today = measure_hash(experiment, run)
    else:
        before, pretrained = experiment.pretraining_overrides(row, size), None
        if bool(before) != bool(record.pretraining):
            return "the pre-training"
        if before:
            pretraining = composer.compose(before, run.seed)
            pretrained = composer.hash(pretraining, record.pretraining["data"], record.environment)
            if pretrained != record.pretraining["hash"]:
                return "the pre-training"
        config = composer.compose(experiment.row_overrides(row, size), run.seed)
        today = composer.hash(config, record.data, record.environment, pretrained)
    if today != record.hash:
        return "the configuration"
    if (
        experiment.kind == "measure"
        and record.composed_from
        and record.composed_from != composed_from(experiment, run, composer)
    ):
        return "the configuration that its overrides compose to"
    columns = column_hashes(experiment, run, composer, record.data, record.environment)
    known = [name for name in experiment.columns_of(row, size) if name in record.metrics]
    changed = [name for name in known if record.column_hashes.get(name) != columns.get(name)]
    return f"the evaluation '{changed[0]}'" if changed else ""


def _lists_of_overrides(given: Any) -> Iterator[list[str]]:
    """The lists of overrides among a measure's parameters: those of words that name a model."""
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list):
        if all(isinstance(word, str) for word in given):
            if any(word.startswith("model=") for word in given):
                yield given
        else:
            for item in given:
                yield from _lists_of_overrides(item)


def _check_that_it_runs(experiment: Experiment, composer: Composer) -> None:
    """UserError where today's code does not know the item's measure, or its first row does not compose."""
    if experiment.kind == "measure":
        check_name(str(experiment.measure))
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
