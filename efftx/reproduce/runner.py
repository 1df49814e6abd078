"""`efftx reproduce`: run what has no record yet, replay what has one, and say what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from efftx.core.scratch import scratch_folder
from efftx.core.work import Work, current_work, working_on
from efftx.errors import Interrupted, NotFiniteError, UserError, nearest
from efftx.reproduce.efftx_trainer import EfftxTrainer
from efftx.reproduce.measures import measure_named
from efftx.reproduce.parallel import Task, run_tasks
from efftx.reproduce.price import ask_price, tell_left, unrecorded
from efftx.reproduce.replay import NOT_AT_HAND, NOT_REPLAYABLE, REPLAYED_STEPS, SCRATCH, NotAtHandError, replay
from efftx.reproduce.sharing import check_writable, holding
from efftx.reproduce.trainer import Trainer
from efftx.study.experiment import SIZES, Experiment
from efftx.study.records import COSTS, Record, RecordStore
from efftx.study.status import (
    FRESH,
    INCOMPLETE,
    MISSING,
    STALE,
    UNCOUNTED,
    column_hashes,
    composed_from,
    measure_hash,
    measure_parameters,
    status_of,
)
from efftx.study.sweeps import Run, is_of_sweep, lacking, planned, resolved, sweep_values

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
    swept: float | None = None,
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
    swept    only the runs of the sweeps at this value.

    Sweeps come first; a row whose sweep has a gap is not run at other seeds. `failures` of a line lists `{row, seed,
    message}`: a row that fails does not stop the others. Raises UserError for an unknown size, for items none of which
    exist at it or sweep over `swept`, and for a price without `yes`.
    """
    store, trainer = store or RecordStore(), trainer or EfftxTrainer(tracker)
    if size not in SIZES:
        raise UserError("unknown_size", f"there is no size '{size}'", nearest(size, SIZES))
    if not any(size in e.sizes_known() for e in experiments):
        known = sorted({s for e in experiments for s in e.sizes_known()})
        raise UserError("unknown_size", f"nothing of this is defined at size {size}", f"Defined: {', '.join(known)}.")
    values = sorted({value for e in experiments for row in e.rows_at(size) for value in sweep_values(e, row, size)})
    if swept is not None and swept not in values:
        message = f"nothing of this is swept at the value {swept:g} at size {size}"
        raise UserError("bad_value", message, f"Swept: {', '.join(f'{v:g}' for v in values) or 'nothing'}.")
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
    if size == "paper":
        ask_price(here, {e.id: unrecorded(e, size, seeds, stale, trainer, store) for e in here}, yes, trainer, say)
    for of_sweep in (True, False):  # the rows are trained at the values that their sweeps then have chosen
        todo = {}
        for e in here:
            runs = [run for run in planned(e, size, seeds) if (run.value is not None) == of_sweep]
            if swept is not None:
                runs = [run for run in runs if run.value == swept]
            todo[e.id] = _to_do(e, runs, size, stale, by_id[e.id], trainer, store, say)
        if any(todo.values()):  # what would fail in every row is said once, and before anything else
            check_writable(store)
            if size == "gpu":
                from efftx.machine.devices import resolve_device

                resolve_device("cuda")
        if any(todo.values()) and swept is None:
            for e in here:
                tell_left(e, unrecorded(e, size, seeds, stale, trainer, store), size, jobs, trainer, store, say)
        _run_all(here, todo, size, jobs, tracker, by_id, trainer, store, say)
    return lines


def _run_all(
    experiments: Sequence[Experiment],
    todo: dict[str, list[tuple[Run, bool]]],
    size: str,
    jobs: int,
    tracker: Sequence[str],
    by_id: dict[str, dict[str, Any]],
    trainer: Trainer,
    store: RecordStore,
    say: Say,
) -> None:
    """Runs what is to do, `jobs` trainings side by side; the lines of `by_id` count what came of it."""
    if jobs > 1:
        trained = [e for e in experiments if e.kind == "train"]
        tasks = [
            # Its process knows a stale row at its sweep's seed, too, by --stale alone.
            Task(e.id, run.row, run.seed, size, again or is_of_sweep(e, run, size), tuple(tracker), run.value)
            for e in trained
            for run, again in todo[e.id]
            if run.row in e.rows
        ]
        for task, outcome in zip(tasks, run_tasks(tasks, jobs), strict=True):
            line = by_id[task.id]
            line["ran"] += outcome["ran"]
            # Its process finds the sweep of its row recorded, too, which was counted already.
            line["skipped"] += not (outcome["ran"] or outcome["failures"])
            line["failed"] += len(outcome["failures"])
            line["failures"] += outcome["failures"]
        todo |= {e.id: [(run, again) for run, again in todo[e.id] if run.row in e.gates] for e in trained}
    left = [(experiment, *what) for experiment in experiments for what in todo[experiment.id]]
    for wait in (False, True):  # what another process has at hand comes last, when that may have recorded it
        others = []
        for number, (experiment, run, again) in enumerate(left, 1):
            with working_on(Work(run.told(experiment), number, len(left))):
                line = by_id[experiment.id]
                if not _attempt(experiment, run, size, again, line, trainer, store, say, wait=wait):
                    others.append((experiment, run, again))
        left = others


def run_row(
    experiment: Experiment,
    row: str,
    seed: int,
    size: str,
    trainer: Trainer,
    again: bool = False,
    swept: Mapping[str, Any] | None = None,
) -> Record:
    """Train, evaluate or measure one row at one seed and return its record, not yet written.

    `again`: an earlier one was stale, and so may be the run that the row starts from.
    `swept`: key and value of the sweep that this is a run of; that it diverged is then a result, too.
    """
    from efftx.machine.devices import environment

    start = time.perf_counter()
    if row in experiment.gates:
        record = _trivial(experiment, row, seed, size, trainer)
    elif experiment.kind == "measure":
        record = _measured(experiment, row, seed, size, trainer)
    else:
        record = _trained(experiment, row, seed, size, trainer, again, dict(swept or {}))
    record.environment = asdict(environment())
    record.wall_seconds = round(record.wall_seconds + time.perf_counter() - start, 3)
    which = f"--row {shlex.quote(row)}" if row in experiment.gates else f"seeds={seed}"
    record.command = f"efftx reproduce {shlex.quote(experiment.id)} size={size} {which}"
    record.command += f" swept={record.value:g}" if record.value is not None else ""
    return record


def _check_metric(experiment: Experiment, row: str, column: str, metrics: Mapping[str, Any]) -> None:
    """UserError where an evaluation lacks what its cell shows: the cell would look as if it had not been run."""
    metric = experiment.cell_of(row, column).metric
    if metric not in (*metrics, *experiment.derived, *COSTS):
        message = f"{experiment.id}: the evaluation of '{row}', '{column}', gives no '{metric}'."
        raise UserError("bad_experiment", message, f"It gives {', '.join(sorted(metrics))}.")


def _trained(
    experiment: Experiment, row: str, seed: int, size: str, trainer: Trainer, again: bool, swept: dict[str, Any]
) -> Record:
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
            "data": dict(pretrained.data),
            "first_losses": list(pretrained.first_losses),
            "metrics": dict(pretrained.metrics),
            "weights_sha256": pretrained.weights_sha256,
        }
    try:
        result = trainer.grouped(experiment.id).train(config, pretrained=pretrained_run)
    except NotFiniteError as error:
        if not swept:
            raise
        swept["diverged"] = error.message
        with scratch_folder(SCRATCH) as folder:
            result = trainer.train(config, folder / "run", REPLAYED_STEPS, pretrained_run)
    metrics: dict[str, dict[str, float | None]] = {}
    for name, column in experiment.columns_of(row, size).items():
        if column.evaluates:
            under = trainer.compose(experiment.column_overrides(row, name, size), seed)
            carry = experiment.carry_of(row, name, size)
            metrics[name] = dict(trainer.evaluate(result.run, under, carry))
        else:
            metrics[name] = dict(result.metrics)
        if "diverged" not in swept:
            _check_metric(experiment, row, name, metrics[name])
    return Record(
        id=experiment.id,
        row=row,
        seed=seed,
        size=size,
        config=trainer.to_dict(config),
        hash=result.hash,
        column_hashes=column_hashes(experiment, row, seed, size, trainer, result.data),
        composed_from=composed_from(experiment, row, size, trainer),
        first_losses=list(result.first_losses),
        data=dict(result.data),
        metrics=metrics,
        curve=list(result.curve),
        pretraining=pretraining,
        costs=trainer.costs(config),
        swept=swept,
        # What an interrupted or shared run had spent before; the caller adds this process's own time.
        wall_seconds=result.timings["train_seconds"] if result.resumed_from is not None else 0.0,
    )


def _measured(experiment: Experiment, row: str, seed: int, size: str, trainer: Trainer) -> Record:
    measure = measure_named(str(experiment.measure))
    parameters = measure_parameters(experiment, row, size)
    own = dict(experiment.rows[row].parameters)
    result = measure.run(parameters, seed, row, own)
    return Record(
        id=experiment.id,
        row=row,
        seed=seed,
        size=size,
        config={"measure": experiment.measure, "parameters": parameters, "row": own},
        hash=measure_hash(experiment, row, seed, size),
        column_hashes=column_hashes(experiment, row, seed, size, trainer, {}),
        first_losses=measure.replay(parameters, seed, row, own) if measure.replay else [],
        metrics=result["metrics"],
        series=result.get("series", {}),
    )


def _trivial(experiment: Experiment, name: str, seed: int, size: str, trainer: Trainer) -> Record:
    asked = experiment.gates[name].asked()
    config = trainer.compose(experiment.row_overrides(experiment.gate_row(name, size), size), seed)
    answer = trainer.trivial(config, asked)
    met = {column: cell.metric for column, cell in experiment.cells_of(experiment.gate_row(name, size)).items()}
    for column in experiment.gates[name].meets(met, experiment.cell.metric):
        _check_metric(experiment, experiment.gate_row(name, size), column, answer.metrics)
    return Record(
        id=experiment.id,
        row=name,
        seed=seed,
        size=size,
        config={"gate": asked, "data": trainer.to_dict(config).get("data", {}), "dtype": "float64"},
        hash=trainer.trivial_hash(config, asked, answer.data),
        composed_from=composed_from(experiment, name, size, trainer),
        first_losses=list(answer.metrics.values()),
        data=dict(answer.data),
        metrics={"": dict(answer.metrics)},
    )


def _line(experiment: Experiment, size: str) -> dict[str, Any]:
    return {"id": experiment.id, "size": size, "ran": 0, "skipped": 0, "failed": 0, "failures": []}


def _to_do(
    experiment: Experiment,
    runs: Iterable[Run],
    size: str,
    stale: bool,
    line: dict[str, Any],
    trainer: Trainer,
    store: RecordStore,
    say: Say,
) -> list[tuple[Run, bool]]:
    """Of these runs those to do, and whether each must begin anew."""
    todo = []
    gaps: dict[str, str] = {}
    for run in runs:
        try:
            found = status_of(experiment, run, size, trainer, store)
            if run.value is None and run.row not in gaps and sweep_values(experiment, run.row, size):
                gaps[run.row] = _gap(experiment, run.row, size, trainer, store)
        except UserError as error:
            _fail(experiment, run, error, line, say)
            continue
        if found.word in (MISSING, INCOMPLETE) and gaps.get(run.row):
            _fail(experiment, run, UserError("incomplete_sweep", f"not trained: {gaps[run.row]}"), line, say)
        elif found.word in (MISSING, INCOMPLETE):
            todo.append((run, False))
        elif found.word == STALE and stale:
            # The sweep's own run, which has begun anew before, is the row's at that seed.
            todo.append((run, not is_of_sweep(experiment, run, size)))
        else:
            line["skipped"] += 1
            if found.word == STALE:
                say(f"{experiment.id}: {run.told(experiment)} is stale ({found.why}); --stale runs it again")
    return todo


def _gap(experiment: Experiment, row: str, size: str, trainer: Trainer, store: RecordStore) -> str:
    """Why the sweep of `row` chooses no value today, in words; empty where it does."""
    for run in planned(experiment, size):
        if run.row == row and run.value is not None:
            found = status_of(experiment, run, size, trainer, store)
            if found.word == STALE:
                return f"of its sweep {run.told(experiment)} is stale ({found.why}); --stale runs it again"
    return lacking(experiment, row, size, store)


def _attempt(
    experiment: Experiment,
    run: Run,
    size: str,
    again: bool,
    line: dict[str, Any],
    trainer: Trainer,
    store: RecordStore,
    say: Say,
    *,
    wait: bool,
) -> bool:
    """Does and records a run; False, unless `wait`, where another process is at it or at a run it shares."""
    place = work.place if (work := current_work()) else ""
    told = f"{experiment.id}: {run.told(experiment)}"
    try:
        with holding(store, experiment.id, run.row, run.seed, size, run.value, wait=wait) as mine:
            if not mine:
                say(f"{told}: another process is at it")
                return False
            found = status_of(experiment, run, size, trainer, store)
            if found.word == FRESH:
                line["skipped"] += 1
                return True
            if found.why == UNCOUNTED:
                _count_costs(experiment, run, size, trainer, store)
                line["ran"] += 1
                return True
            say(f"{told}, size {size} {place}".rstrip())
            at = resolved(experiment, run, size, store)
            assert at is not None  # no run is to do before its sweep has chosen
            old = store.read(experiment.id, run.row, run.seed, size, run.value) if again else None
            if old is not None and experiment.kind == "train" and run.row in experiment.rows:
                config = trainer.compose(at.row_overrides(run.row, size), run.seed)
                data, pretrained = old.data, old.pretraining.get("hash")
                _when_free(lambda: trainer.set_aside(config, data, pretrained), wait=wait)
            swept = (
                {"key": experiment.sweep.key, "value": run.value} if experiment.sweep and run.value is not None else {}
            )
            record = _when_free(lambda: run_row(at, run.row, run.seed, size, trainer, again, swept), wait=wait)
            store.write(record)
            line["ran"] += 1
            if "diverged" in record.swept:
                say(f"{told} diverged: {record.swept['diverged']}")
    except Interrupted:
        raise
    except Exception as error:  # the other rows are independent of whatever went wrong here
        if not wait and _in_use(error):
            say(f"{told}: another process is at a run that it shares")
            return False
        _fail(experiment, run, error, line, say)
    return True


def _count_costs(experiment: Experiment, run: Run, size: str, trainer: Trainer, store: RecordStore) -> None:
    """Adds to a record, made before there were any, what its configuration costs; its replay stands as it is."""
    record, at = store.read(experiment.id, run.row, run.seed, size, run.value), resolved(experiment, run, size, store)
    assert record is not None
    assert at is not None
    verification = store.verification(record)
    record.costs = trainer.costs(trainer.compose(at.row_overrides(run.row, size), run.seed))
    store.write(record)
    if verification is not None:
        store.write_verification(record, verification)


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


def _fail(experiment: Experiment, run: Run, error: Exception, line: dict[str, Any], say: Say) -> None:
    message = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    hint = f" {error.hint}" if isinstance(error, UserError) and error.hint else ""
    line["failed"] += 1
    swept = {} if run.value is None else {"swept": run.value}
    line["failures"].append({"row": run.row, "seed": run.seed, **swept, "message": message + hint})
    say(f"{experiment.id}: {run.told(experiment)} failed: {message}{hint}")


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
    places = [(e, run) for e in experiments for run in planned(e, size, seeds)]
    held = [(e, run) for e, run in places if store.path(e.id, run.row, run.seed, size, run.value).exists()]
    if held:
        check_writable(store)
    first, every = part
    for experiment, run in held[first - 1 :: every]:
        line, told = lines[experiment.id], f"{experiment.id}: {run.told(experiment)}"
        try:
            record = store.read(experiment.id, run.row, run.seed, size, run.value)
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
            _fail(experiment, run, error, line, say)
            continue
        line[verification.verdict] += 1
        say(f"{told}: {verification.verdict} ({verification.why})")
