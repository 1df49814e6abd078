"""Fair arms: each row at the best value of a small recorded sweep, chosen on the validation split.

At the sweep's seed, the first of the row's own, every row is trained at every value with its full budget, each run in a
record of its own. The row's records are then at the value whose validation is best, at all seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from efftx.errors import UserError, nearest
from efftx.study.experiment import Experiment
from efftx.study.gates import GATE_SEED
from efftx.study.records import RecordStore


@dataclass(frozen=True)
class Choice:
    """What the sweep of one row gave: the value chosen, and each value's validation score (None: it diverged).

    `at_end` is `lowest` or `highest` where the best value is an end of the range, so that a better one may lie beyond.
    """

    row: str
    key: str
    value: float
    scores: dict[float, float | None]
    at_end: str = ""


@dataclass(frozen=True)
class Run:
    """One record that a full table has: of a row or gate at a seed, or with `value` of its sweep's run at that."""

    row: str
    seed: int
    size: str
    value: float | None = None

    def key(self, experiment: Experiment) -> tuple[str, str, int, str, float | None]:
        """What the `RecordStore` finds its record by."""
        return experiment.id, self.row, self.seed, self.size, self.value

    def told(self, experiment: Experiment) -> str:
        """Its name in a message."""
        swept = f", {experiment.sweep.key}={self.value:g}" if experiment.sweep and self.value is not None else ""
        return f"{self.row}, seed {self.seed}{swept}"


def planned(experiment: Experiment, size: str, seeds: list[int] | None = None) -> list[Run]:
    """Every record of a full table at `size`: gates, sweeps, then rows; `seeds` in place of a row's own, if it has any.

    A sweep has its own seed, whatever `seeds` says.
    """
    rows = [row for row in experiment.rows_at(size) if experiment.seeds_of(row, size)]
    gates = [Run(name, GATE_SEED, size) for name in experiment.gates_at(size)]
    swept = [
        Run(row, seed, size, value)
        for row in rows
        if (seed := sweep_seed(experiment, row, size)) is not None
        for value in sweep_values(experiment, row, size)
    ]
    of_seeds = [Run(row, s, size) for row in rows for s in (experiment.seeds_of(row, size) if seeds is None else seeds)]
    return [run for run in (*gates, *swept, *of_seeds) if experiment.is_chosen(run.row)]


def resolved(experiment: Experiment, run: Run, store: RecordStore) -> Experiment | None:
    """The item as `run` is trained: at its own value of the sweep, or at the one chosen for its row (None: not yet)."""
    if run.value is not None:
        return run_of_sweep(experiment, run.row, run.size, run.value)
    if not sweep_values(experiment, run.row, run.size):
        return experiment
    choice = chosen(experiment, run.row, run.size, store)
    return None if choice is None else at_value(experiment, run.row, run.size, choice.value)


def sweep_values(experiment: Experiment, row: str, size: str) -> list[float]:
    """The values that `row` is trained at; none for a gate, and where the item has no sweep at this size."""
    return list(experiment.sweep.values.get(size, [])) if experiment.sweep and row in experiment.rows else []


def sweep_seed(experiment: Experiment, row: str, size: str) -> int | None:
    """The seed of the sweep of `row`: the first of its own; None where it is not run at this size."""
    return next(iter(experiment.seeds_of(row, size)), None)


def is_of_sweep(experiment: Experiment, run: Run) -> bool:
    """Whether a row's own run is one of its sweep's, which comes first."""
    swept = run.value is None and bool(sweep_values(experiment, run.row, run.size))
    return swept and run.seed == sweep_seed(experiment, run.row, run.size)


def at_value(experiment: Experiment, row: str, size: str, value: float) -> Experiment:
    """The item with `row` at this value of the sweep, and without the sweep."""
    assert experiment.sweep is not None
    spec = experiment.rows[row]
    words = [*spec.sizes.get(size, []), f"{experiment.sweep.key}={value!r}"]
    rows = {**experiment.rows, row: replace(spec, sizes={**spec.sizes, size: words})}
    return replace(experiment, rows=rows, sweep=None)


def run_of_sweep(experiment: Experiment, row: str, size: str, value: float) -> Experiment:
    """As `at_value`, for a run of the sweep itself, which no column evaluates."""
    at = at_value(experiment, row, size, value)
    return replace(at, columns={}, rows={**at.rows, row: replace(at.rows[row], columns=None)})


def chosen(experiment: Experiment, row: str, size: str, store: RecordStore) -> Choice | None:
    """The value of `row` as its recorded sweep says; None where the sweep is not complete, or all of it diverged.

    The earlier value wins a tie. UserError for a damaged record, and where validation gave no such metric.
    """
    seed, sweep = sweep_seed(experiment, row, size), experiment.sweep
    if sweep is None or seed is None:
        return None
    metric, better = sweep.metric or experiment.cell.metric, sweep.better or experiment.cell.better
    scores: dict[float, float | None] = {}
    for value in sweep_values(experiment, row, size):
        record = store.read(experiment.id, row, seed, size, value)
        if record is None:
            return None
        last = record.curve[-1] if record.curve else {}
        if record.curve and metric not in last:
            message = f"{experiment.id}: {row}: validation gave no '{metric}' to choose a value of {sweep.key} by"
            raise UserError("bad_experiment", message, nearest(metric, last))
        scores[value] = last.get(metric)
    reached = {value: score for value, score in scores.items() if score is not None}
    if not reached:
        return None
    best = (max if better == "higher" else min)(reached.values())
    value = next(v for v, score in reached.items() if score == best)
    ends = {max(scores): "highest", min(scores): "lowest"} if len(scores) > 1 else {}
    return Choice(row, sweep.key, value, scores, ends.get(value, ""))


def lacking(experiment: Experiment, row: str, size: str, store: RecordStore) -> str:
    """Why no value of `row` can be chosen, in words; empty where one can."""
    seed = sweep_seed(experiment, row, size)
    assert experiment.sweep is not None
    if seed is None:
        return ""
    values = sweep_values(experiment, row, size)
    absent = [v for v in values if store.read(experiment.id, row, seed, size, v) is None]
    if absent:
        return f"its sweep lacks {experiment.sweep.key}={', '.join(f'{v:g}' for v in absent)}"
    return "" if chosen(experiment, row, size, store) else f"it diverged at every value of {experiment.sweep.key}"
