"""Times in the unit of their size: 0.0000532 s is 53.2 µs, and a whole column shares one unit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from efftx.report import numbers
from efftx.study.aggregation import CellValue
from efftx.study.experiment import Cell, Experiment

_SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
_LEAST = 0.1  # of a column's unit
_FORMAT = re.compile(r"\{:,?\.(\d+)([feg])\}")


@dataclass(frozen=True)
class Scale:
    """What values are multiplied by before they are written in `form`."""

    form: Cell
    factor: float = 1.0

    def written(self, mean: float, std: float | None = None) -> str:
        """A mean, and its spread where there is one."""
        return numbers.mean_and_spread(mean * self.factor, None if std is None else std * self.factor, self.form)

    def published(self, value: float, source: str | None, spread: float | None = None) -> str:
        """A paper's value, and the spread printed beside it."""
        return numbers.published(value, source, self.form, spread, self.factor)


def is_time(unit: str) -> bool:
    """Whether `unit` is one of time."""
    return unit in _SECONDS


def time_unit(unit: str, smallest: float, least: float = 1.0) -> tuple[str, float]:
    """The unit of which `smallest`, given in `unit`, is at least `least`, and the factor; what is no time keeps its."""
    if unit not in _SECONDS or not 0 < smallest < math.inf:
        return unit, 1.0
    seconds = smallest * _SECONDS[unit]
    chosen = next((name for name, size in _SECONDS.items() if seconds >= least * size), "ns")
    exponent = round(math.log10(_SECONDS[unit] / _SECONDS[chosen]))
    return chosen, 10.0**exponent


def scale(form: Cell, values: Iterable[float]) -> Scale:
    """The unit and format for cells of `form` with these values, chosen by the smallest of them that is not 0.

    As many digits are written as in the given unit; of a format with an exponent as many as it gives the smallest.
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    unit, factor = time_unit(form.unit, min(sizes, default=0.0), _LEAST)
    match = _FORMAT.fullmatch(form.format)
    if unit == form.unit or not match:
        return Scale(form)
    digits = int(match[1])
    if match[2] == "f":
        decimals = digits - round(math.log10(factor))
    else:
        significant = digits + (match[2] == "e")
        decimals = significant - 1 - math.floor(math.log10(min(sizes) * factor))
    return Scale(replace(form, unit=unit, format=f"{{:,.{max(0, decimals)}f}}"), factor)


def scales(values: Iterable[tuple[Cell, float | None]]) -> dict[Cell, Scale]:
    """For every form the scale of all values written in it; None says that there is none."""
    values_of: dict[Cell, list[float]] = {}
    for form, value in values:
        values_of.setdefault(form, []).extend([] if value is None else [value])
    return {form: scale(form, of_form) for form, of_form in values_of.items()}


def table_scales(experiment: Experiment, means: Mapping[tuple[str, str], CellValue], size: str) -> dict[Cell, Scale]:
    """The scale of every form of a table: one for all that is measured at `size` and for what the paper prints."""
    values: list[tuple[Cell, float | None]] = []
    paper = experiment.published
    for row in experiment.rows_at(size):
        for column in experiment.columns_of(row, size):
            form, mean = experiment.cell_of(row, column), means.get((row, column))
            values += [(form, mean.mean if mean else None), (form, paper.of(row, column) if paper else None)]
    for row, printed in (paper.others if paper else {}).items():
        values += [(experiment.cell_of(row, column), value) for column, value in printed.items()]
    return scales(values)
