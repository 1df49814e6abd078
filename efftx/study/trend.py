"""How a gap between rows goes with two sizes: a plane in their logarithms, fitted to the records seed by seed.

`figure.trend` of an experiment names the two sizes: `over` is a key of the columns' parameters (tokens), `beside` one
of the rows' (width), and `against` the word of the rows' `arm` parameter that the others are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from efftx.errors import UserError
from efftx.study.aggregation import CellValue
from efftx.study.experiment import Experiment
from efftx.study.significance import MIN_SEEDS, interval

Place = tuple[float, float]
"""Where a gap was measured: `beside` (width), then `over` (tokens)."""
Gaps = dict[Place, dict[int, float]]
"""Place -> seed -> gap."""


@dataclass(frozen=True)
class Estimate:
    """The mean over the seeds, and its 95 % interval by Student's t; None below MIN_SEEDS seeds."""

    mean: float
    interval: tuple[float, float] | None

    @property
    def includes_zero(self) -> bool:
        """Whether 0 is in the interval, so that nothing says which way it goes."""
        return self.interval is not None and self.interval[0] <= 0.0 <= self.interval[1]


@dataclass(frozen=True)
class Fit:
    """Of each seed the plane gap = level + a log2(over) + b log2(beside), `planes` (seeds, 3), by least squares.

    The gaps of one run at several budgets are not independent, but seeds are: so the interval of anything that the
    planes say is Student's over the seeds.
    """

    planes: np.ndarray

    @property
    def n(self) -> int:
        """How many seeds there are."""
        return len(self.planes)

    @property
    def over(self) -> Estimate:
        """What one doubling of `over` does to the gap."""
        return self._estimate(self.planes[:, 1])

    @property
    def beside(self) -> Estimate:
        """What one doubling of `beside` does to the gap."""
        return self._estimate(self.planes[:, 2])

    def at(self, over: float, beside: float) -> Estimate:
        """The gap of the plane at a place."""
        return self._estimate(self.planes @ np.array([1.0, math.log2(over), math.log2(beside)]))

    def _estimate(self, of_seeds: np.ndarray) -> Estimate:
        return Estimate(float(of_seeds.mean()), interval(of_seeds) if self.n >= MIN_SEEDS else None)


def fit(gaps: Gaps) -> Fit | None:
    """The planes of the seeds that have a gap at every place; None without such a seed or where no plane is determined.

    That takes two values of each size at least.
    """
    if not gaps or any(len({place[axis] for place in gaps}) < 2 for axis in (0, 1)):
        return None
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in gaps.values())))
    design = np.array([[1.0, math.log2(over), math.log2(beside)] for beside, over in gaps])
    if not seeds or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    observed = np.array([[of_seed[seed] for seed in seeds] for of_seed in gaps.values()])
    planes, *_ = np.linalg.lstsq(design, observed, rcond=None)
    return Fit(planes.T)


def gaps_of(experiment: Experiment, cells: Mapping[tuple[str, str], CellValue], size: str) -> dict[str, Gaps]:
    """arm -> where it was measured -> seed -> its value less that of `against` at the same seed.

    UserError for a `figure.trend` that lacks a key, or whose `against` is no row's arm.
    """
    trend = (experiment.figure or {}).get("trend", {})
    missing = [key for key in ("over", "beside", "against") if key not in trend]
    if missing:
        raise UserError("bad_experiment", f"{experiment.id}: figure.trend: {' and '.join(missing)} is not given")
    values: dict[str, Gaps] = {}
    for row, spec in experiment.rows_at(size).items():
        if "arm" not in spec.parameters or trend["beside"] not in spec.parameters:
            continue
        of_arm = values.setdefault(str(spec.parameters["arm"]), {})
        for column, asked in experiment.columns_of(row, size).items():
            cell = cells.get((row, column))
            if cell is None or trend["over"] not in asked.parameters:
                continue
            by_seed = {seed: value for seed, value in cell.values.items() if value is not None}
            if by_seed:
                place = (float(spec.parameters[trend["beside"]]), float(asked.parameters[trend["over"]]))
                of_arm[place] = by_seed
    if trend["against"] not in values:
        raise UserError("bad_experiment", f"{experiment.id}: figure.trend: no row has the arm '{trend['against']}'")
    base = values.pop(trend["against"])
    gaps: dict[str, Gaps] = {}
    for arm, of_arm in values.items():
        for place, of_seed in of_arm.items():
            both = {seed: value - base[place][seed] for seed, value in of_seed.items() if seed in base.get(place, {})}
            if both:
                gaps.setdefault(arm, {})[place] = both
    return gaps
