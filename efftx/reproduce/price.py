"""What is left to run and how long that takes: told before it begins, and asked for at the paper's size."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from efftx.core.counts import count
from efftx.core.durations import HOUR, duration
from efftx.errors import UserError
from efftx.reproduce.asked import Asked
from efftx.reproduce.trainer import Trainer
from efftx.study.experiment import Experiment
from efftx.study.records import Record, RecordStore
from efftx.study.status import INCOMPLETE, MISSING, STALE, status_of
from efftx.study.sweeps import Run, is_of_sweep, planned

FREE_HOURS = 24.0
WORTH_TELLING = 60.0
"""Seconds of work below which nobody asks how long it will take."""

Say = Callable[[str], None]


def unrecorded(experiment: Experiment, asked: Asked, trainer: Trainer, store: RecordStore) -> list[Run]:
    """The runs that have no record today (with `stale`: or a stale one), each once: a sweep's own is the row's, too."""
    wanted = (MISSING, INCOMPLETE, STALE) if asked.stale else (MISSING, INCOMPLETE)
    missing = []
    for run in planned(experiment, asked.size, asked.seeds):
        with suppress(UserError):
            if not is_of_sweep(experiment, run) and status_of(experiment, run, trainer, store).word in wanted:
                missing.append(run)
    return missing


def tell_left(
    experiment: Experiment, runs: Sequence[Run], jobs: int, trainer: Trainer, store: RecordStore, say: Say
) -> None:
    """Says how many runs are left, and the hours that they take, `jobs` side by side, where they are several and long.

    A run takes what its row's records took, else what those of the item's other rows did, else what `efftx plan` says.
    A run that another item has made already is found done, and takes less.
    """
    trained = [run for run in runs if run.row in experiment.rows] if experiment.kind == "train" else []
    if len(trained) < 2:
        return
    records = [
        record
        for record in (*store.read_all(experiment.id), *store.read_sweeps(experiment.id))
        if record.size == trained[0].size and record.row in experiment.rows  # and not the gates, which are no trainings
    ]
    seconds = 0.0
    trained_first: set[tuple[tuple[str, ...], int]] = set()
    with suppress(UserError):  # what does not compose is told where it is run
        for run in trained:
            taken = _seconds_taken(records, run.row)
            if taken is not None:  # with what it was pre-trained in
                seconds += taken
                continue
            seconds += HOUR * trainer.hours(trainer.compose(experiment.row_overrides(run.row, run.size), run.seed))
            before = tuple(experiment.pretraining_overrides(run.row, run.size))
            if before and (before, run.seed) not in trained_first:
                trained_first.add((before, run.seed))
                seconds += HOUR * trainer.hours(trainer.compose(before, run.seed))
    if seconds / jobs > WORTH_TELLING:
        known = count(len(records), "record") if records else "efftx plan"
        side = f", {jobs} side by side" if jobs > 1 else ""
        say(f"{experiment.id}: {count(len(trained), 'run')} left, about {duration(seconds / jobs)} by {known}{side}")


def _seconds_taken(records: Sequence[Record], row: str) -> float | None:
    """The median time of the records of a row, or where it has none of all of them; None where there are none."""
    seconds = [r.wall_seconds for r in records if r.row == row] or [r.wall_seconds for r in records]
    return statistics.median(seconds) if seconds else None


def ask_price(
    experiments: Iterable[Experiment],
    todo: dict[str, list[Run]],
    yes: bool,
    trainer: Trainer,
    say: Say,
) -> None:
    """Says what the runs to do cost at the paper's size; UserError without `yes` where that is above FREE_HOURS."""
    total = 0.0
    shared: set[tuple[tuple[str, ...], int]] = set()
    for experiment in experiments:
        if experiment.kind != "train":
            continue
        for row in dict.fromkeys(run.row for run in todo[experiment.id] if run.row in experiment.rows):
            runs = [run.seed for run in todo[experiment.id] if run.row == row]
            try:
                hours = trainer.hours(trainer.compose(experiment.row_overrides(row, "paper"), runs[0])) * len(runs)
            except UserError as error:  # it fails by itself, where it is run
                say(f"{experiment.id}: {row}, {count(len(runs), 'run')}: {error.message}")
                continue
            before = tuple(experiment.pretraining_overrides(row, "paper"))
            trained_first = {(before, seed) for seed in runs if before} - shared
            if trained_first:
                shared |= trained_first
                hours += trainer.hours(trainer.compose(before, runs[0])) * len(trained_first)
            say(f"{experiment.id}: {row}, {count(len(runs), 'run')}: {duration(hours * HOUR)}")
            total += hours
    if total > 0:
        say(f"price at the paper's size: {duration(total * HOUR)} on this device")
    if total > FREE_HOURS and not yes:
        message = f"this would take {duration(total * HOUR)}, more than {FREE_HOURS:.0f} h"
        raise UserError("needs_yes", message, "Add --yes to run it all the same, or choose size=cpu.")
