"""`efftx reproduce`: run what has no record yet, replay what has one, and say what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from efftx.core.work import Work, current_work, working_on
from efftx.errors import Interrupted, UserError
from efftx.machine.devices import resolve_device
from efftx.reproduce.asked import Asked
from efftx.reproduce.parallel import Task, failure, run_tasks
from efftx.reproduce.price import Say, ask_price, tell_left, unrecorded
from efftx.reproduce.recording import make_record, recorded_elsewhere
from efftx.reproduce.replay import NotAtHandError, replay
from efftx.reproduce.sharing import check_writable, holding
from efftx.reproduce.trainer import Trainer
from efftx.study.experiment import Experiment
from efftx.study.experiments import at_size
from efftx.study.records import RecordStore
from efftx.study.status import (
    FRESH,
    INCOMPLETE,
    MISSING,
    NOT_AT_HAND,
    NOT_REPLAYABLE,
    RECOUNTED,
    STALE,
    UNCOUNTED,
    status_of,
)
from efftx.study.sweeps import Run, chosen, is_of_sweep, lacking, planned, resolved, sweep_values

LOOK_AGAIN = 1.0
"""Seconds between two tries at a run directory that another process holds."""

T = TypeVar("T")


def reproduce(
    experiments: Sequence[Experiment],
    asked: Asked,
    *,
    say: Say = print,
    store: RecordStore | None = None,
    trainer: Trainer | None = None,
) -> list[dict[str, Any]]:
    """Run every row and seed at a size that has no record; one `{id, size, ran, skipped, failed}` an experiment.

    Sweeps come first; a row whose sweep has a gap is not run at other seeds. `failures` of a line lists `{row, seed,
    message}`: a row that fails does not stop the others. Raises UserError for an unknown size, for items none of which
    exist at it or sweep over `asked.swept`, and for a price without `asked.yes`.
    """
    store, trainer, size = store or RecordStore(), trainer or Trainer(asked.tracker), asked.size
    here = at_size(experiments, size)
    _check_swept(here, asked)
    store.sweep()
    for experiment in experiments:
        if experiment not in here:
            say(f"{experiment.id}: not defined at size {size}")
    runner = _Runner(asked, trainer, store, say, {e.id: _line(e, size) for e in experiments})
    lines = list(runner.lines.values())
    if asked.verify:
        runner.verify(here)
        if not asked.stale:
            return lines
    if size == "paper":
        ask_price(here, {e.id: unrecorded(e, asked, trainer, store) for e in here}, asked.yes, trainer, say)
    for of_sweep in (True, False):  # the rows are trained at the values that their sweeps then have chosen
        todo = []
        for e in here:
            runs = [run for run in planned(e, size, asked.seeds) if (run.value is not None) == of_sweep]
            todo += runner.to_do(e, [run for run in runs if asked.swept is None or run.value == asked.swept])
        if todo:  # what would fail in every row is said once, and before anything else
            check_writable(store)
            if size == "gpu":
                resolve_device("cuda")
        if todo and asked.swept is None:
            for e in here:
                tell_left(e, unrecorded(e, asked, trainer, store), asked.jobs, trainer, store, say)
        runner.run_all(todo)
    return lines


def _check_swept(experiments: Sequence[Experiment], asked: Asked) -> None:
    size = asked.size
    values = sorted({value for e in experiments for row in e.rows_at(size) for value in sweep_values(e, row, size)})
    if asked.swept is not None and asked.swept not in values:
        message = f"nothing of this is swept at the value {asked.swept:g} at size {size}"
        raise UserError("bad_value", message, f"Swept: {', '.join(f'{v:g}' for v in values) or 'nothing'}.")


def _line(experiment: Experiment, size: str) -> dict[str, Any]:
    return {"id": experiment.id, "size": size, "ran": 0, "skipped": 0, "failed": 0, "failures": []}


@dataclass(frozen=True)
class _ToDo:
    """A run to do; `again`: its record is stale, and its training begins anew."""

    experiment: Experiment
    run: Run
    again: bool

    @property
    def is_training(self) -> bool:
        return self.experiment.kind == "train" and self.run.row in self.experiment.rows

    def __str__(self) -> str:
        return f"{self.experiment.id}: {self.run.told(self.experiment)}"


@dataclass
class _Runner:
    """Does runs and counts what came of them in `lines`, one an item."""

    asked: Asked
    trainer: Trainer
    store: RecordStore
    say: Say
    lines: dict[str, dict[str, Any]]

    def to_do(self, experiment: Experiment, runs: Iterable[Run]) -> list[_ToDo]:
        """Of these runs those to do; the others are counted."""
        todo = []
        gaps: dict[str, str] = {}
        for run in runs:
            try:
                status = status_of(experiment, run, self.trainer, self.store)
                if run.value is None and run.row not in gaps and sweep_values(experiment, run.row, run.size):
                    gaps[run.row] = self._gap(experiment, run)
            except UserError as error:
                self._fail(experiment, run, error)
                continue
            wanted = (MISSING, INCOMPLETE, STALE) if self.asked.stale else (MISSING, INCOMPLETE)
            if status.word in wanted and gaps.get(run.row):
                self._fail(experiment, run, UserError("incomplete_sweep", f"not trained: {gaps[run.row]}"))
            elif status.word in (MISSING, INCOMPLETE):
                todo.append(_ToDo(experiment, run, again=False))
            elif status.word == STALE and self.asked.stale:
                todo.append(_ToDo(experiment, run, again=self._begins_anew(experiment, run)))
            else:
                self.lines[experiment.id]["skipped"] += 1
                if status.word == STALE:
                    self.say(f"{experiment.id}: {run.told(experiment)} is stale ({status.why}); --stale runs it again")
        return todo

    def run_all(self, todo: Sequence[_ToDo]) -> None:
        """Runs what is to do."""
        left = list(todo)
        if self.asked.jobs > 1:
            apart = [one for one in todo if one.is_training]
            left = [one for one in todo if not one.is_training]
            options = tuple(self.asked.tracker)
            # Its process knows a stale row at its sweep's seed, too, by --stale alone.
            tasks = [
                Task(one.experiment.id, one.run, one.again or is_of_sweep(one.experiment, one.run), options)
                for one in apart
            ]
            for task, outcome in zip(tasks, run_tasks(tasks, self.asked.jobs), strict=True):
                line = self.lines[task.id]
                line["ran"] += outcome["ran"]
                # Its process finds the sweep of its row recorded, too, which was counted already.
                line["skipped"] += not (outcome["ran"] or outcome["failures"])
                line["failed"] += len(outcome["failures"])
                line["failures"] += outcome["failures"]
        for wait in (False, True):  # what another process has at hand comes last, when that may have recorded it
            others = []
            for number, one in enumerate(left, 1):
                with working_on(Work(one.run.told(one.experiment), number, len(left))):
                    if not self._attempt(one, wait=wait):
                        others.append(one)
            left = others

    def verify(self, experiments: Sequence[Experiment]) -> None:
        """Replays the records of these items, every n-th of them from the k-th on."""
        runs = [(e, run) for e in experiments for run in planned(e, self.asked.size, self.asked.seeds)]
        held = [(e, run) for e, run in runs if self.store.path(*run.key(e)).exists()]
        for experiment in experiments:
            self.lines[experiment.id] |= {FRESH: 0, STALE: 0, NOT_REPLAYABLE: 0, NOT_AT_HAND: 0}
        if held:
            check_writable(self.store)
        first, every = self.asked.part
        for experiment, run in held[first - 1 :: every]:
            line, title = self.lines[experiment.id], f"{experiment.id}: {run.told(experiment)}"
            try:
                record = self.store.read(*run.key(experiment))
                if record is None:
                    continue
                verification = replay(experiment, record, self.trainer, self.store)
            except Interrupted:
                raise
            except NotAtHandError as error:
                line[NOT_AT_HAND] += 1
                self.say(f"{title}: {NOT_AT_HAND} ({error.message})")
            except Exception as error:  # as in _attempt
                self._fail(experiment, run, error)
            else:
                line[verification.verdict] += 1
                self.say(f"{title}: {verification.verdict} ({verification.why})")

    def _begins_anew(self, experiment: Experiment, run: Run) -> bool:
        """Whether a stale record's training has to be run anew.

        At its sweep's seed the sweep's own run comes first and is the row's, but where a replay found the row's stale
        and the sweep's is that very run still.
        """
        if not is_of_sweep(experiment, run):
            return True
        choice, record = chosen(experiment, run.row, run.size, self.store), self.store.read(*run.key(experiment))
        if choice is None or record is None:
            return False
        verification = self.store.verification(record)
        if verification is None or verification.verdict != STALE:
            return False
        of_sweep = self.store.read(*replace(run, value=choice.value).key(experiment))
        return of_sweep is not None and (of_sweep.hash, of_sweep.first_losses) == (record.hash, record.first_losses)

    def _gap(self, experiment: Experiment, row: Run) -> str:
        """Why the sweep of a row chooses no value today, in words; empty where it does."""
        for run in planned(experiment, row.size):
            if run.row == row.row and run.value is not None:
                status = status_of(experiment, run, self.trainer, self.store)
                if status.word == STALE:
                    return f"of its sweep {run.told(experiment)} is stale ({status.why}); --stale runs it again"
        return lacking(experiment, row.row, row.size, self.store)

    def _attempt(self, todo: _ToDo, *, wait: bool) -> bool:
        """Does and records a run; False, unless `wait`, where another process is at it or at a run it shares."""
        experiment, run, line = todo.experiment, todo.run, self.lines[todo.experiment.id]
        place = work.place if (work := current_work()) else ""
        try:
            with holding(self.store, experiment, run, wait=wait) as mine:
                if not mine:
                    self.say(f"{todo}: another process is at it")
                    return False
                status = status_of(experiment, run, self.trainer, self.store)
                if status.word == FRESH:
                    line["skipped"] += 1
                    return True
                if status.why.startswith((UNCOUNTED, RECOUNTED)):
                    self._count_costs(experiment, run)
                else:
                    self.say(f"{todo}, size {run.size} {place}".rstrip())
                    self._make(todo, wait=wait)
                line["ran"] += 1
        except Interrupted:
            raise
        except Exception as error:  # the other rows are independent of whatever went wrong here
            if not wait and _in_use(error):
                self.say(f"{todo}: another process is at a run that it shares")
                return False
            self._fail(experiment, run, error)
        return True

    def _make(self, todo: _ToDo, *, wait: bool) -> None:
        """Makes the record of a run and writes it."""
        experiment, run, trainer = todo.experiment, todo.run, self.trainer
        at = resolved(experiment, run, self.store)
        assert at is not None  # no run is to do before its sweep has chosen
        old = self.store.read(*run.key(experiment)) if todo.again else None
        if old is not None and todo.is_training:
            config = trainer.compose(at.row_overrides(run.row, run.size), run.seed)
            data, pretrained = old.data, old.pretraining.get("hash")
            _when_free(lambda: trainer.set_aside(config, data, pretrained), wait=wait)
        swept = {} if run.value is None or not experiment.sweep else {"key": experiment.sweep.key, "value": run.value}
        if todo.is_training and not todo.again and self._taken_over(todo, at, swept):
            return
        record = _when_free(lambda: make_record(at, run, trainer, todo.again, swept), wait=wait)
        self.store.write(record)
        if "diverged" in record.swept:
            self.say(f"{todo} diverged: {record.swept['diverged']}")

    def _taken_over(self, todo: _ToDo, at: Experiment, swept: Mapping[str, Any]) -> bool:
        """Whether another item has a record of the very training, which is then this item's too, its replay with it."""
        pair = recorded_elsewhere(at, todo.run, self.trainer, self.store, swept)
        if pair is None:
            return False
        record, other = pair
        self.store.write(record)
        if (verification := self.store.verification(other)) is not None:
            self.store.write_verification(record, verification)
        self.say(f"{todo}: the same run as in {other.id}, taken over from there")
        return True

    def _count_costs(self, experiment: Experiment, run: Run) -> None:
        """Puts into a record what its configuration costs today; what its replay said of its losses stands."""
        record, at = self.store.read(*run.key(experiment)), resolved(experiment, run, self.store)
        assert record is not None
        assert at is not None
        verification = self.store.verification(record)
        record.costs = self.trainer.costs(self.trainer.compose(at.row_overrides(run.row, run.size), run.seed))
        self.store.write(record)
        if verification is not None and not verification.why.startswith(RECOUNTED):
            self.store.write_verification(record, verification)

    def _fail(self, experiment: Experiment, run: Run, error: Exception) -> None:
        message = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        hint = f" {error.hint}" if isinstance(error, UserError) and error.hint else ""
        line = self.lines[experiment.id]
        line["failed"] += 1
        line["failures"].append(failure(run, message + hint))
        self.say(f"{experiment.id}: {run.told(experiment)} failed: {message}{hint}")


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
