"""From one run to its record: a training and its evaluations, a measure, or the trivial answer of a gate."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from efftx.config.schema import Config
from efftx.core.scratch import scratch_folder
from efftx.errors import NotFiniteError, UserError
from efftx.machine.devices import environment
from efftx.reproduce.measures import measure_named
from efftx.reproduce.trainer import SCRATCH, Trainer
from efftx.study.experiment import Experiment
from efftx.study.records import COSTS, Record, RecordStore
from efftx.study.status import STALE, column_hashes, composed_from, measure_hash, measure_parameters
from efftx.study.sweeps import Run
from efftx.training.loop import N_FIRST_LOSSES, TrainResult


def make_record(
    experiment: Experiment, run: Run, trainer: Trainer, again: bool = False, swept: Mapping[str, Any] | None = None
) -> Record:
    """Train, evaluate or measure one row at one seed and return its record, not yet written.

    `again`: an earlier one was stale, and so may be the run that the row starts from.
    `swept`: key and value of the sweep that this is a run of; that it diverged is then a result, too.
    """
    start = time.perf_counter()
    if run.row in experiment.gates:
        made = _trivial(experiment, run, trainer)
    elif experiment.kind == "measure":
        made = _measured(experiment, run, trainer)
    else:
        made = _trained(experiment, run, trainer, again, dict(swept or {}))
    timed_with = made.pop("timed_with", {})
    record = Record(id=experiment.id, row=run.row, seed=run.seed, size=run.size, **made)
    record.environment = asdict(environment()) | timed_with
    record.wall_seconds = round(record.wall_seconds + time.perf_counter() - start, 3)
    record.command = _command(experiment, run)
    return record


def recorded_elsewhere(
    experiment: Experiment, run: Run, trainer: Trainer, store: RecordStore, swept: Mapping[str, Any]
) -> tuple[Record, Record] | None:
    """The record of `run`, not yet written, taken from another item's record of the same training; and that record.

    None where there is none, for a training that goes on from another run, and for one that a column evaluates under
    another configuration: that needs its weights. `swept` as in `make_record`.
    """
    columns = experiment.columns_of(run.row, run.size)
    if experiment.pretraining_overrides(run.row, run.size) or any(column.evaluates for column in columns.values()):
        return None
    config = trainer.compose(experiment.row_overrides(run.row, run.size), run.seed)
    for other in store.of_other_items(experiment.id, run.seed, run.size):
        # What a column of the other item evaluated under a configuration of its own has a hash of its own.
        tests = [metrics for name, metrics in other.metrics.items() if metrics and name not in other.column_hashes]
        if not tests or not other.curve or not other.data or other.pretraining:
            continue
        verification, old = store.verification(other), other.environment
        if verification is not None and verification.verdict == STALE:
            continue
        if trainer.hash(config, other.data, old) != other.hash:
            continue
        if any(_lacks(experiment, run.row, name, tests[0]) for name in columns):
            continue  # it is older than a metric that this item shows
        taken = replace(
            other,
            id=experiment.id,
            row=run.row,
            metrics=dict.fromkeys(columns, tests[0]),
            column_hashes={},
            composed_from=composed_from(experiment, run, trainer),
            costs=other.costs or trainer.costs(config),
            swept=dict(swept),
            command=_command(experiment, run),
        )
        return taken, other
    return None


def _command(experiment: Experiment, run: Run) -> str:
    which = f"--row {shlex.quote(run.row)}" if run.row in experiment.gates else f"seeds={run.seed}"
    command = f"efftx reproduce {shlex.quote(experiment.id)} size={run.size} {which}"
    return command if run.value is None else f"{command} swept={run.value:g}"


def _trained(experiment: Experiment, run: Run, trainer: Trainer, again: bool, swept: dict[str, Any]) -> dict[str, Any]:
    row, size, seed = run.row, run.size, run.seed
    config = trainer.compose(experiment.row_overrides(row, size), seed)
    pretraining: dict[str, Any] = {}
    pretrained_run: Path | None = None
    if before := experiment.pretraining_overrides(row, size):
        pretrained_config = trainer.compose(before, seed)
        pretrained = trainer.grouped(experiment.id).pretrain(pretrained_config, again)
        pretrained_run = pretrained.run
        pretraining = {
            "config": trainer.to_dict(pretrained_config),
            "hash": pretrained.hash,
            "data": pretrained.data,
            "first_losses": pretrained.first_losses,
            "metrics": pretrained.metrics,
            "weights_sha256": pretrained.weights_sha256,
        }
    try:
        result = trainer.grouped(experiment.id).train(config, pretrained=pretrained_run)
    except NotFiniteError as error:
        if not swept:
            raise
        swept["diverged"] = error.message
        result = _before_it_diverged(trainer, config, pretrained_run)
    metrics: dict[str, dict[str, float]] = {}
    for name, column in experiment.columns_of(row, size).items():
        metrics[name] = result.metrics
        if column.evaluates:
            under = trainer.compose(experiment.column_overrides(row, name, size), seed)
            metrics[name] = trainer.evaluate(result.run, under, experiment.carry_of(row, name, size))
        if "diverged" not in swept:
            _check_metric(experiment, row, name, metrics[name])
    return {
        "config": trainer.to_dict(config),
        "hash": result.hash,
        "column_hashes": column_hashes(experiment, run, trainer, result.data),
        "composed_from": composed_from(experiment, run, trainer),
        "first_losses": result.first_losses,
        "data": result.data,
        "metrics": metrics,
        "curve": result.curve,
        "pretraining": pretraining,
        "costs": trainer.costs(config),
        "swept": swept,
        # What an interrupted or shared run had spent before; the caller adds this process's own time.
        "wall_seconds": result.seconds_before,
    }


def _before_it_diverged(trainer: Trainer, config: Config, pretrained: Path | None) -> TrainResult:
    """The run again, for as many of its first steps as a record keeps and as there are before its NaN."""
    for steps in range(N_FIRST_LOSSES, -1, -1):
        with suppress(NotFiniteError), scratch_folder(SCRATCH) as folder:
            return trainer.train(config, folder / "run", steps, pretrained)
    raise AssertionError("no step gives no NaN")


def _measured(experiment: Experiment, run: Run, trainer: Trainer) -> dict[str, Any]:
    measure = measure_named(str(experiment.measure))
    parameters = measure_parameters(experiment, run.row, run.size)
    row_parameters = dict(experiment.rows[run.row].parameters)
    result = measure.run(parameters, run.seed, run.row, row_parameters)
    return {
        "config": {"measure": experiment.measure, "parameters": parameters, "row": row_parameters},
        "hash": measure_hash(experiment, run),
        "column_hashes": column_hashes(experiment, run, trainer, {}),
        "composed_from": composed_from(experiment, run, trainer),
        "first_losses": measure.replay(parameters, run.seed, run.row, row_parameters) if measure.replay else [],
        "metrics": result["metrics"],
        "series": result.get("series", {}),
        # Of a process or a setting of its own, which is no more.
        "timed_with": {"threads": result["threads"]} if "threads" in result else {},
    }


def _trivial(experiment: Experiment, run: Run, trainer: Trainer) -> dict[str, Any]:
    gate, row = experiment.gates[run.row], experiment.gate_row(run.row, run.size)
    asked = gate.asked()
    config = trainer.compose(experiment.gate_overrides(run.row, run.size), run.seed)
    answer = trainer.trivial(config, asked)
    met = {column: cell.metric for column, cell in experiment.cells_of(row).items()}
    for column in gate.meets(met, experiment.cell.metric):
        _check_metric(experiment, row, column, answer.metrics)
    return {
        "config": {"gate": asked, "data": trainer.to_dict(config).get("data", {}), "dtype": "float64"},
        "hash": trainer.trivial_hash(config, asked, answer.data),
        "composed_from": composed_from(experiment, run, trainer),
        "first_losses": list(answer.metrics.values()),
        "data": dict(answer.data),
        "metrics": {"": dict(answer.metrics)},
    }


def _lacks(experiment: Experiment, row: str, column: str, metrics: Mapping[str, Any]) -> bool:
    return experiment.cell_of(row, column).metric not in (*metrics, *experiment.derived, *COSTS)


def _check_metric(experiment: Experiment, row: str, column: str, metrics: Mapping[str, Any]) -> None:
    """UserError where an evaluation lacks what its cell shows: the cell would look as if it had not been run."""
    if _lacks(experiment, row, column, metrics):
        metric = experiment.cell_of(row, column).metric
        message = f"{experiment.id}: the evaluation of '{row}', '{column}', gives no '{metric}'."
        raise UserError("bad_experiment", message, f"It gives {', '.join(sorted(metrics))}.")
