"""Measures: what an experiment of `kind: measure` calls, by name, one row and one seed at a time.

A measure is given the parameters of the size (with `columns`: column -> its parameters), the seed, the row's name and
the row's parameters, and returns `{"metrics": {column: {metric: value}}, "series": {name: list of numbers}}`.
"""

from __future__ import annotations

import importlib

from efftx.errors import UserError, nearest
from efftx.reproduce.measures.measure import Measure

# A module is imported when one of its measures runs: `efftx list` asks for the names alone, and starts without torch.
MODULES = {
    "attention_cost": "attention",
    "attention_maps": "pictures",
    "attention_time": "attention",
    "collision_probability": "lsh",
    "connectivity": "patterns",
    "context_time": "context",
    "drawn_samples": "samples",
    "iteration_time": "training",
    "model_size": "parameters",
    "multiplicative_layer": "multiplicative",
    "score_memory": "attention",
    "selected_units": "sparse_ff",
    "token_time": "token_time",
    "training_memory": "training",
    "width_time": "token_time",
}


def check_name(name: str) -> None:
    """UserError with the nearest name where there is no measure called `name`."""
    if name not in MODULES:
        raise UserError("unknown_measure", f"there is no measure '{name}'", nearest(name, MODULES))


def measure_named(name: str) -> Measure:
    """The measure called `name`; UserError as `check_name`."""
    check_name(name)
    measures: dict[str, Measure] = importlib.import_module(f"{__name__}.{MODULES[name]}").MEASURES
    return measures[name]
