"""Measures: what an experiment of `kind: measure` calls, by name, one row and one seed at a time.

A measure is given the parameters of the size (with `columns`: column -> its parameters), the seed, the row's name and
the row's parameters, and returns `{"metrics": {column: {metric: value}}, "series": {name: list of numbers}}`.
"""

from __future__ import annotations

import importlib

from efftx.reproduce.measures.measure import Measure
from efftx.study.measures import MODULES, check_name


def measure_named(name: str) -> Measure:
    """The measure called `name`; UserError with the nearest name for any other."""
    check_name(name)
    measures: dict[str, Measure] = importlib.import_module(f"{__name__}.{MODULES[name]}").MEASURES
    return measures[name]
