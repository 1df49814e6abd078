"""Which gates the models of a claim have not passed, from the records of both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from efftx.study.aggregation import Results
from efftx.study.gates import HIGHEST, LOWEST, p_of_passing
from efftx.study.significance import LEVEL


class MissingRecordError(Exception):
    """A gate, or a model where it meets one, that has no record."""


def gate_value(results: Results, name: str, metric: str) -> float | None:
    """What a gate says of `metric`: its constant, or what was recorded; None where it has nothing to say.

    MissingRecordError where it was not computed yet.
    """
    gate = results.experiment.gates[name]
    if gate.value is not None:
        return gate.value
    for record in results.of_row(name):
        return record.metrics.get("", {}).get(metric)
    raise MissingRecordError(f"no record of the gate '{name}'")


def not_passed(results: Results, places: Mapping[str, Sequence[str]], named: Collection[str] = ()) -> list[str]:
    """A sentence on each model of `places` (row -> columns of a claim) that does not pass a gate before it.

    A model passes where it beats the gate in one of the columns in which they meet (Bonferroni over these). Only the
    first gate that a model fails is told. A claim may ask of its cells how they compare with a gate that it names:
    such a gate the model meets in its other columns, if there are any. MissingRecordError as `gate_value`.
    """
    reasons = []
    for row, columns in places.items():
        for name, gate in results.experiment.gates.items():
            if not gate.stands_before(row, results.size) or not gate.guards_any(columns):
                continue
            asked = columns if name in named else ()
            if why := _failed(results, row, name, asked):
                reasons.append(why)
                break
    return reasons


def _failed(results: Results, row: str, name: str, asked: Collection[str]) -> str:
    """Why a model does not pass a gate in any column but those `asked` for; empty where it does."""
    experiment, met = results.experiment, []
    gate = experiment.gates[name]
    columns = [column for column in experiment.columns_of(row, results.size) if column not in asked]
    metrics = {column: experiment.cell_of(row, column).metric for column in columns}
    for column in gate.meets(metrics, experiment.cell.metric):
        cell = experiment.cell_of(row, column)
        bar = gate_value(results, name, cell.metric)
        if bar is None:
            continue
        by_seed = results.values(row, column)
        if not by_seed:
            raise MissingRecordError(f"no record of {row}" + (f", {column}" if column else ""))
        values = {seed: math.nan if value is None else value for seed, value in by_seed.items()}
        met.append((p_of_passing(values, gate, bar, cell.better), column, statistics.fmean(values.values()), bar, cell))
    if not met:
        if not asked:
            raise MissingRecordError(f"the gate '{name}' says nothing of what {row} is measured by")
        return ""
    p, column, mean, bar, cell = min(met, key=lambda one: (one[0], one[1]))
    if p * len(met) <= LEVEL:
        return ""
    bound = cell.write(bar)
    what = (
        f"is not {gate.kind} {bound} ({name})" if gate.kind in (LOWEST, HIGHEST) else f"does not beat {name} ({bound})"
    )
    beyond = (mean > bar) == (cell.better == "higher") and mean != bar
    close = f", p = {min(1.0, p * len(met)):.2g}" if beyond else ""
    model = experiment.cell_label(row, column) if gate.columns else experiment.label(row)
    return f"{model} ({cell.write(mean)}) {what}{close}"
