"""What a measure is: the function behind an experiment of `kind: measure`, and how its records are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Parameters = Mapping[str, Any]
Run = Callable[[Parameters, int, str, Parameters], dict[str, Any]]
Replay = Callable[[Parameters, int, str, Parameters], list[float]]
Recount = Callable[[Parameters, str, Parameters, Mapping[str, Any]], tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Measure:
    """`run` measures, and may say of how many `threads` the process was that it timed; `replay` gives in seconds some
    numbers that must come out the same each time, if it has any: to the bit on every machine where it `counts` them.

    `recount` is for records of timings: from the parameters, the row and its own, and what was recorded (`metrics`,
    `series`), the counts in it and the same counts made anew, which are the same on every machine.
    """

    run: Run
    replay: Replay | None = None
    recount: Recount | None = None
    counts: bool = False


def every_number_of(run: Run) -> Replay:
    """The replay of a measure whose metrics are the same under every column and always come out the same: all of it."""

    def replay(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
        metrics = run({**parameters, "columns": {"": {}}}, seed, row, row_parameters)["metrics"][""]
        return [float(value) for _, value in sorted(metrics.items())]

    return replay


def fitted_exponent(x: list[int], y: list[float]) -> float:
    """The slope of log y over log x by least squares."""
    return float(np.polyfit(np.log(np.asarray(x, dtype=np.float64)), np.log(np.asarray(y, dtype=np.float64)), 1)[0])
