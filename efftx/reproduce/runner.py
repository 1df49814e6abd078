"""`efftx reproduce`: run what has no record yet, replay what has one, and say what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from efftx.core.durations import HOUR, duration
from efftx.core.work import Work, current_work, working_on
from efftx.errors import Interrupted, UserError, nearest
from efftx.reproduce import standing as standings
from efftx.reproduce.experiment import SIZES, Experiment, planned
from efftx.reproduce.measures import measure_named
from efftx.reproduce.parallel import Task, run_tasks
from efftx.reproduce.records import Record, RecordStore
from efftx.reproduce.replay import NOT_AT_HAND, NOT_REPLAYABLE, NotAtHandError, replay
from efftx.reproduce.sharing import holding
from efftx.reproduce.standing import FRESH, INCOMPLETE, MISSING, STALE, standing
from efftx.reproduce.trainer import EfftxTrainer, Trainer

FREE_HOURS = 24.0
LOOK_AGAIN = 1.0
"""Seconds between two tries at a run directory that another process holds."""

Say = Callable[[str], None]
T = TypeVar("T")


def reproduce(
    experiments: Sequence[Experiment],
    size: str,
    seeds: list[int] | None = None,
    *,
    stale: bool = False,
    verify: bool = False,
    part: tuple[int, int] = (1, 1),
    yes: bool = False,
    jobs: int = 1,
    tracker: Sequence[str] = (),
    say: Say = print,
    store: RecordStore | None = None,
    trainer: Trainer | None = None,
) -> list[dict[str, Any]]:
    """Run every row and seed at `size` that has no record; one `{id, size, ran, skipped, failed}` an experiment.

    stale    run again what no longer comes out, too.
    verify   run nothing, replay each record's first three steps, count `fresh`, `stale`, `not replayable` and
             `not at hand` (its data or its device); with `stale`: then run again what that showed.
    part     (k, n): of the records to verify every n-th, from the k-th on, counted over all experiments.
    yes      needed at size paper where the price of what is left to run is above 24 hours.
    jobs     so many trainings side by side, each in a process of its own; measures always run alone, one at a time.
    tracker  overrides such as tracker.wandb=true, of which records know nothing.

    `failures` of a line lists `{row, seed, message}`: a row that fails does not stop the others. Raises UserError for
    an unknown size, for items none of which exist at it, and for a price without `yes`.
    """
    store, trainer = store or RecordStore(), trainer or EfftxTrainer(tracker)
    if size not in SIZES:
        raise UserError("unknown_size", f"there is no size '{size}'", nearest(size, SIZES))
    if not any(size in e.sizes_known() for e in experiments):
        known = sorted({s for e in experiments for s in e.sizes_known()})
        raise UserError("unknown_size", f"nothing of this is defined at size {size}", f"Defined: {', '.join(known)}.")
    store.sweep()
    here = [e for e in experiments if size in e.sizes_known()]
    lines = [_line(e, size) for e in experiments]
    by_id = {line["id"]: line for line in lines}
    for experiment in experiments:
        if experiment not in here:
            say(f"{experiment.id}: not defined at size {size}")
    if verify:
        _verify(here, size, seeds, part, by_id, trainer, store, say)
        if not stale:
            return lines
    todo = {e.id: _to_do(e, size, seeds, stale, by_id[e.id], trainer, store, say) for e in here}
    if size == "paper":
        _ask_price(here, todo, yes, trainer, say)
    if jobs > 1:
        trained = [e for e in here if e.kind == "train"]
        tasks = [
            Task(e.id, row, seed, size, again, tuple(tracker))
            for e in trained
            for row, seed, again in todo[e.id]
            if row in e.rows
        ]
        for task, outcome in zip(tasks, run_tasks(tasks, jobs), strict=True):
            line = by_id[task.id]
            line["ran"] += outcome["ran"]
            line["skipped"] += outcome["skipped"]
            line["failed"] += len(outcome["failures"])
            line["failures"] += outcome["failures"]
        todo |= {e.id: [what for what in todo[e.id] if what[0] in e.gates] for e in trained}
    left = [(experiment, *what) for experiment in here for what in todo[experiment.id]]
    for wait in (False, True):  # what another process has at hand comes last, when that may have recorded it
        others = []
        for number, (experiment, row, seed, again) in enumerate(left, 1):
            with working_on(Work(f"{row}, seed {seed}", number, len(left))):
                line = by_id[experiment.id]
                if not _attempt(experiment, row, seed, size, again, line, trainer, store, say, wait=wait):
                    others.append((experiment, row, seed, again))
        left = others
    return lines


def state_of(experiment: Experiment, store: RecordStore, trainer: Trainer | None = None) -> dict[str, Any]:
    """One line of `efftx list`; see `standing.state_of`."""
    return standings.state_of(experiment, store, trainer or EfftxTrainer())


def run_row(experiment: Experiment, row: str, seed: int, size: str, trainer: Trainer, again: bool = False) -> Record:
    """Train, evaluate or measure one row at one seed and return its record, not yet written.

    `again`: an earlier one was stale, and so may be the run that the row starts from.
    """
    from efftx.training.devices import environment

    start = time.perf_counter()
    if row in experiment.gates:
        record = _trivial(experiment, row, seed, size, trainer)
    elif experiment.kind == "measure":
        record = _measured(experiment, row, seed, size, trainer)
    else:
        record = _trained(experiment, row, seed, size, trainer, again)
    record.environment = asdict(environment())
    record.wall_seconds = round(record.wall_seconds + time.perf_counter() - start, 3)
    which = f"--row {shlex.quote(row)}" if row in experiment.gates else f"seeds={seed}"
    record.command = f"efftx reproduce {shlex.quote(experiment.id)} size={size} {which}"
    return record


def _trained(experiment: Experiment, row: str, seed: int, size: str, trainer: Trainer, again: bool) -> Record:
    config = trainer.compose(experiment.row_overrides(row, size), seed)
    pretraining: dict[str, Any] = {}
    if before := experiment.pretraining_overrides(row, size):
        pretrained_config = trainer.compose(before, seed)
        pretrained = trainer.grouped(experiment.id).pretrain(pretrained_config, again)
        result = trainer.grouped(experiment.id).train(config, pretrained=pretrained.run)
        pretraining = {
            "config": trainer.to_dict(pretrained_config),
            "hash": pretrained.hash,
            "data": dict(pretrained.data),
            "first_losses": list(pretrained.first_losses),
            "metrics": dict(pretrained.metrics),
            "weights_sha256": pretrained.weights_sha256,
        }
    else:
        result = trainer.grouped(experiment.id).train(config)
    metrics: dict[str, dict[str, float | None]] = {}
    for name, column in experiment.columns_of(row, size).items():
        if column.evaluates:
            under = trainer.compose(experiment.column_overrides(row, name, size), seed)
            carry = experiment.carry_of(row, name, size)
            metrics[name] = dict(trainer.evaluate(result.run, under, carry))
        else:
            metrics[name] = dict(result.metrics)
    return Record(
        id=experiment.id,
        row=row,
        seed=seed,
        size=size,
        config=trainer.to_dict(config),
        hash=result.hash,
        column_hashes=standings.column_hashes(experiment, row, seed, size, trainer, result.data),
        composed_from=standings.composed_from(experiment, row, size, trainer),
        first_losses=list(result.first_losses),
        data=dict(result.data),
        metrics=metrics,
        curve=list(result.curve),
        pretraining=pretraining,
        # What an interrupted or shared run had spent before; the caller adds this process's own time.
        wall_seconds=result.timings["train_seconds"] if result.resumed_from is not None else 0.0,
    )


def _measured(experiment: Experiment, row: str, seed: int, size: str, trainer: Trainer) -> Record:
    measure = measure_named(str(experiment.measure))
    parameters = standings.measure_parameters(experiment, row, size)
    own = dict(experiment.rows[row].parameters)
    result = measure.run(parameters, seed, row, own)
    return Record(
        id=experiment.id,
        row=row,
        seed=seed,
        size=size,
        config={"measure": experiment.measure, "parameters": parameters, "row": own},
        hash=standings.measure_hash(experiment, row, seed, size),
        column_hashes=standings.column_hashes(experiment, row, seed, size, trainer, {}),
        first_losses=measure.replay(parameters, seed, row, own) if measure.replay else [],
        metrics=result["metrics"],
        series=result.get("series", {}),
    )


def _trivial(experiment: Experiment, name: str, seed: int, size: str, trainer: Trainer) -> Record:
    asked = experiment.gates[name].asked()
    config = trainer.compose(experiment.row_overrides(experiment.gate_row(name, size), size), seed)
    answer = trainer.trivial(config, asked)
    return Record(
        id=experiment.id,
        row=name,
        seed=seed,
        size=size,
        config={"gate": asked, "data": trainer.to_dict(config).get("data", {}), "dtype": "float64"},
        hash=trainer.trivial_hash(config, asked, answer.data),
        composed_from=standings.composed_from(experiment, name, size, trainer),
        first_losses=list(answer.metrics.values()),
        data=dict(answer.data),
        metrics={"": dict(answer.metrics)},
    )


def _line(experiment: Experiment, size: str) -> dict[str, Any]:
    return {"id": experiment.id, "size": size, "ran": 0, "skipped": 0, "failed": 0, "failures": []}


def _to_do(
    experiment: Experiment,
    size: str,
    seeds: list[int] | None,
    stale: bool,
    line: dict[str, Any],
    trainer: Trainer,
    store: RecordStore,
    say: Say,
) -> list[tuple[str, int, bool]]:
    """Rows and seeds to run, and whether each must begin anew."""
    todo = []
    for row, seed in planned(experiment, size, seeds):
        try:
            found = standing(experiment, row, seed, size, trainer, store)
        except UserError as error:
            _fail(experiment, row, seed, error, line, say)
            continue
        if found.word in (MISSING, INCOMPLETE):
            todo.append((row, seed, False))
        elif found.word == STALE and stale:
            todo.append((row, seed, True))
        else:
            line["skipped"] += 1
            if found.word == STALE:
                say(f"{experiment.id}: {row}, seed {seed} is stale ({found.why}); --stale runs it again")
    return todo


def _attempt(
    experiment: Experiment,
    row: str,
    seed: int,
    size: str,
    again: bool,
    line: dict[str, Any],
    trainer: Trainer,
    store: RecordStore,
    say: Say,
    *,
    wait: bool,
) -> bool:
    """Runs and records a row at a seed; False, unless `wait`, where another process is at it or at a run it shares."""
    place = work.place if (work := current_work()) else ""
    told = f"{experiment.id}: {row}, seed {seed}"
    try:
        with holding(store, experiment.id, row, seed, size, wait=wait) as mine:
            if not mine:
                say(f"{told}: another process is at it")
                return False
            if standing(experiment, row, seed, size, trainer, store).word == FRESH:
                line["skipped"] += 1
                return True
            say(f"{told}, size {size} {place}".rstrip())
            old = store.read(experiment.id, row, seed, size) if again else None
            if old is not None and experiment.kind == "train" and row in experiment.rows:
                config = trainer.compose(experiment.row_overrides(row, size), seed)
                data, pretrained = old.data, old.pretraining.get("hash")
                _when_free(lambda: trainer.set_aside(config, data, pretrained), wait=wait)
            store.write(_when_free(lambda: run_row(experiment, row, seed, size, trainer, again), wait=wait))
            line["ran"] += 1
    except Interrupted:
        raise
    except Exception as error:  # the other rows are independent of whatever went wrong here
        if not wait and _in_use(error):
            say(f"{told}: another process is at a run that it shares")
            return False
        _fail(experiment, row, seed, error, line, say)
    return True


def _when_free(act: Callable[[], T], *, wait: bool) -> T:
    """What `act` gives; with `wait`, as soon as no other process holds the run directory that two rows share."""
    while True:
        try:
            return act()
        except UserError as error:
            if not (wait and _in_use(error)):
                raise
            time.sleep(LOOK_AGAIN)


def _in_use(error: Exception) -> bool:
    return isinstance(error, UserError) and error.kind == "run_in_use"


def _fail(experiment: Experiment, row: str, seed: int, error: Exception, line: dict[str, Any], say: Say) -> None:
    message = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    hint = f" {error.hint}" if isinstance(error, UserError) and error.hint else ""
    line["failed"] += 1
    line["failures"].append({"row": row, "seed": seed, "message": message + hint})
    say(f"{experiment.id}: {row}, seed {seed} failed: {message}{hint}")


def _verify(
    experiments: Sequence[Experiment],
    size: str,
    seeds: list[int] | None,
    part: tuple[int, int],
    lines: dict[str, dict[str, Any]],
    trainer: Trainer,
    store: RecordStore,
    say: Say,
) -> None:
    for experiment in experiments:
        lines[experiment.id] |= {FRESH: 0, STALE: 0, NOT_REPLAYABLE: 0, NOT_AT_HAND: 0}
    places = [(e, row, seed) for e in experiments for row, seed in planned(e, size, seeds)]
    held = [place for place in places if store.path(place[0].id, place[1], place[2], size).exists()]
    first, every = part
    for experiment, row, seed in held[first - 1 :: every]:
        line, told = lines[experiment.id], f"{experiment.id}: {row}, seed {seed}"
        try:
            record = store.read(experiment.id, row, seed, size)
            if record is None:
                continue
            verification = replay(experiment, record, trainer, store)
        except Interrupted:
            raise
        except NotAtHandError as error:
            line[NOT_AT_HAND] += 1
            say(f"{told}: {NOT_AT_HAND} ({error.message})")
            continue
        except Exception as error:  # as in _attempt
            _fail(experiment, row, seed, error, line, say)
            continue
        line[verification.verdict] += 1
        say(f"{told}: {verification.verdict} ({verification.why})")


def _ask_price(
    experiments: Iterable[Experiment],
    todo: dict[str, list[tuple[str, int, bool]]],
    yes: bool,
    trainer: Trainer,
    say: Say,
) -> None:
    total = 0.0
    shared: set[tuple[tuple[str, ...], int]] = set()
    for experiment in experiments:
        if experiment.kind != "train":
            continue
        for row in dict.fromkeys(row for row, _, _ in todo[experiment.id] if row in experiment.rows):
            runs = [seed for r, seed, _ in todo[experiment.id] if r == row]
            hours = trainer.hours(trainer.compose(experiment.row_overrides(row, "paper"), runs[0])) * len(runs)
            before = tuple(experiment.pretraining_overrides(row, "paper"))
            trained_first = {(before, seed) for seed in runs if before} - shared
            if trained_first:
                shared |= trained_first
                hours += trainer.hours(trainer.compose(before, runs[0])) * len(trained_first)
            say(f"{experiment.id}: {row}, {len(runs)} run(s): {duration(hours * HOUR)}")
            total += hours
    if total > 0:
        say(f"price at the paper's size: {duration(total * HOUR)} on this device")
    if total > FREE_HOURS and not yes:
        message = f"this would take {duration(total * HOUR)}, more than {FREE_HOURS:.0f} h"
        raise UserError("needs_yes", message, "Add --yes to run it all the same, or choose size=cpu.")
