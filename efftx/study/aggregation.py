"""From records to the cells of a table: mean, spread and n of every row and column, and where lines cross."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from efftx.core.environment import Environment
from efftx.study.experiment import Experiment, places
from efftx.study.records import Record

CPU = "CPU"


@dataclass
class CellValue:
    """One cell: mean and sample standard deviation over `n` seeds, in the unit of the cell's format.

    `mean` is None where some seed never reached what the cell asks for (a first step at which ...); `note` says so.
    `std` is None below two seeds. `published` is the paper's own value and is never mixed with the others.
    """

    row: str
    column: str
    size: str
    mean: float | None
    std: float | None
    n: int
    values: dict[int, float | None] = field(default_factory=dict)
    published: float | None = None
    published_source: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Crossing:
    """Where the line of one row crosses that of another: `x` interpolated, None with a reason in `why`.

    `by_seed`: the same of each seed that both rows have, None where its lines do not cross.
    """

    between: tuple[str, str]
    x: float | None
    published: float | None
    why: str
    by_seed: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Results:
    """What was recorded of one item at one size; `records` may hold others, which are passed over."""

    experiment: Experiment
    records: Sequence[Record]
    size: str

    def of_row(self, row: str) -> list[Record]:
        """The records of a row or gate, seeds in order."""
        place = self.experiment.id, row, self.size
        return sorted((r for r in self.records if (r.id, r.row, r.size) == place), key=lambda r: r.seed)

    def values(self, row: str, column: str) -> dict[int, float | None]:
        """seed -> value of one cell, seeds in order; a metric derived from the curve is derived here, from the record.

        A cost (`records.COSTS`) is the trained configuration's own, whatever the column evaluates.
        """
        metric = self.experiment.cell_of(row, column).metric
        derived = self.experiment.derived.get(metric)
        values: dict[int, float | None] = {}
        for record in self.of_row(row):
            if derived is not None:
                if derived.is_in(record.curve):
                    values[record.seed] = derived.value(record.curve)
            elif metric in record.costs:
                values[record.seed] = record.costs[metric]
            elif metric in record.metrics.get(column, {}):
                values[record.seed] = record.metrics[column][metric]
        return values


def of_one_device(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records that make one table, and those that are left out: a table never mixes devices, nor a row threads.

    The device with the most records stays, at a tie that of the first; so do, of what a row measures, those on the most
    frequent number of threads. What is counted of the data (a gate) is the same on all of them and stays.
    """
    gates = [record for record in records if "gate" in record.config]
    made = [record for record in records if "gate" not in record.config]
    same = _most_frequent(made, device_of)
    # Earlier records do not say their instructions; the name of a processor may be that of a whole line.
    say = [record for record in same if "measure" in record.config and record.environment.get("instructions")]
    others = [record for record in say if record not in _most_frequent(say, _instructions_of)]
    same = [record for record in same if record not in others]
    for row in dict.fromkeys(record.row for record in same):
        of_row = [record for record in same if record.row == row and "measure" in record.config]
        on_usual_threads = _most_frequent(of_row, _threads_of)
        same = [record for record in same if record not in of_row or record in on_usual_threads]
    kept = [record for record in records if record in gates or record in same]
    return kept, [record for record in records if record not in kept]


def _most_frequent(records: Sequence[Record], key: Callable[[Record], str]) -> list[Record]:
    counts = Counter(map(key, records))
    return [record for record in records if key(record) == counts.most_common(1)[0][0]]


def device_of(record: Record) -> str:
    """The GPU that a record was made on; else the processor of a measurement, and of a training `CPU` alone.

    Two processors train to the same quality within its spread. Times are of one machine.
    """
    environment = Environment.of(record.environment)
    if environment.gpu:
        return environment.gpu
    return str(environment.processor) if "measure" in record.config else CPU


def _instructions_of(record: Record) -> str:
    return str(record.environment["instructions"])


def _threads_of(record: Record) -> str:
    return str(record.environment.get("threads"))


def cells(experiment: Experiment, records: Sequence[Record], size: str) -> list[CellValue]:
    """The cells of `experiment` at `size` that have a record or a published value, row by row as in the file."""
    results, cell_values = Results(experiment, records, size), list[CellValue]()
    for row in experiment.rows_at(size):
        for column in experiment.columns_of(row, size):
            values = results.values(row, column)
            published = experiment.published.of(row, column) if experiment.published else None
            if not values and published is None:
                continue
            reached = [v for v in values.values() if v is not None]
            complete = bool(reached) and len(reached) == len(values)
            cell_values.append(
                CellValue(
                    row=row,
                    column=column,
                    size=size,
                    mean=statistics.fmean(reached) if complete else None,
                    std=statistics.stdev(reached) if complete and len(reached) > 1 else None,
                    n=len(values),
                    values=values,
                    published=published,
                    published_source=experiment.published.source_of(row, column)
                    if experiment.published and published is not None
                    else None,
                    note=_unreached(results.of_row(row), values) if values and not complete else "",
                )
            )
    return cell_values


def published_alone(experiment: Experiment, rows: Iterable[str]) -> list[CellValue]:
    """The paper's cells outside `rows`, those that are shown with what was measured."""
    published, shown = experiment.published, set(rows)
    return [
        CellValue(row, column, "", None, None, 0, published=value, published_source=published.source_of(row, column))
        for row, column, value in (published.cells() if published else ())
        if published and row not in shown
    ]


def crossings(experiment: Experiment, records: Sequence[Record], size: str) -> list[Crossing]:
    """The crossings that `figure.crossings` asks for, between two rows' lines over the columns' `figure.x`.

    Of the means, and of each seed by itself; interpolated on logarithmic axes between the last two columns that the
    two rows are in another order at.
    """
    figure = experiment.figure or {}
    table = {(c.row, c.column): c for c in cells(experiment, records, size) if c.mean is not None}
    return [
        _crossing(experiment, table, size, str(figure["x"]), tuple(wanted["between"]), wanted.get("published"))
        for wanted in figure.get("crossings", [])
    ]


def _crossing(
    experiment: Experiment,
    table: Mapping[tuple[str, str], CellValue],
    size: str,
    axis: str,
    between: tuple[str, str],
    published: float | None,
) -> Crossing:
    first, second = between
    pairs = sorted(
        (at, table[first, name], table[second, name])
        for name, at in places(experiment.columns_of(first, size), axis).items()
        if (first, name) in table and (second, name) in table
    )
    if len(pairs) < 2:
        return Crossing(between, None, published, "not run")
    seeds = set.intersection(*(set(a.values) & set(b.values) for _, a, b in pairs))
    of_seeds = [[(at, _log_ratio(a.values[seed], b.values[seed])) for at, a, b in pairs] for seed in sorted(seeds)]
    by_seed = tuple(_where_the_sign_changes(points)[0] for points in of_seeds)
    points = [(at, _log_ratio(a.mean, b.mean)) for at, a, b in pairs]
    x, why = _where_the_sign_changes(points)
    if x is None:
        word = "above" if points[0][1] > 0 else "below"
        why = f"{first} stays {word} {second} from {points[0][0]:g} to {points[-1][0]:g}"
    return Crossing(between, x, published, why, by_seed)


def _log_ratio(a: float | None, b: float | None) -> float:
    assert a is not None
    assert b is not None  # a cell whose mean is known has all its values
    return math.log(a / b)


def _where_the_sign_changes(points: Sequence[tuple[float, float]]) -> tuple[float | None, str]:
    """The last x at which a line through points (x, y) changes its sign, on a logarithmic x axis, and between which."""
    for (x0, y0), (x1, y1) in reversed(list(pairwise(points))):
        if y0 <= 0 < y1 or y1 < 0 <= y0:
            share = y0 / (y0 - y1)
            return math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0))), f"between {x0:g} and {x1:g}"
    return None, ""


def _unreached(of_row: Iterable[Record], values: dict[int, float | None]) -> str:
    missed = [seed for seed, value in values.items() if value is None]
    caps = {record.config.get("training", {}).get("steps") for record in of_row}
    cap = f" within {caps.pop()} steps" if len(caps) == 1 and None not in caps else ""
    return f"not reached{cap} by {len(missed)} of {len(values)}"
