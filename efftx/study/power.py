"""What seeds can see: from the recorded spreads, the differences that a claim's tests find, and what more would cost.

All at 80 % power and the claims' own level, 5 % over the comparisons of one claim.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from efftx.core.durations import HOUR
from efftx.study.aggregation import Results, of_one_device
from efftx.study.claim_language import AS_GOOD_AS, EXACT
from efftx.study.claims import Recorded, recorded
from efftx.study.comparisons import Comparison
from efftx.study.experiment import Claim, Experiment
from efftx.study.records import Record
from efftx.study.significance import LEVEL, detectable, seeds_to_decide, spread

SEEDS = (3, 5, 10, 20)
"""The numbers of seeds of which it is said what they can see."""


@dataclass(frozen=True)
class Power:
    """What the tests of one claim can see.

    comparisons   how many there are; Holm's correction asks of each up to LEVEL over this.
    hardest       the comparison whose seeds spread most, None where there is nothing to test (`why` says why).
    spread        its standard deviation over the seeds, in its unit.
    sees          seeds -> the difference (beyond the margin, where there is one) that they find at 80 % power.
    margin_seeds  seeds that show *as good as* if there is no difference at all; None for other kinds, and where more
                  than `significance.MOST_SEEDS` would be needed.
    seeds         seeds that decide the claim if the differences are those that were measured; None where they are out
                  of reach.
    hours_a_seed  of all the rows that the claim compares, from the records' wall times.
    """

    claim: Claim
    comparisons: int = 0
    hardest: Comparison | None = None
    spread: float = 0.0
    sees: Mapping[int, float] | None = None
    margin_seeds: int | None = None
    seeds: int | None = None
    hours_a_seed: float = 0.0
    why: str = ""

    @property
    def n(self) -> int:
        """Seeds that the hardest comparison has."""
        return self.hardest.n if self.hardest else 0

    @property
    def seeds_asked(self) -> int | None:
        """The seeds that are priced: those that the margin needs, or else the measured differences."""
        return self.margin_seeds if self.claim.kind == AS_GOOD_AS else self.seeds

    @property
    def hours(self) -> float | None:
        """What the seeds beyond the recorded ones cost."""
        return None if self.seeds_asked is None else max(0, self.seeds_asked - self.n) * self.hours_a_seed


def powers(experiment: Experiment, records: Sequence[Record], size: str) -> list[Power]:
    """What the tests of every claim of `experiment` can see, from its records at `size`, whatever the gates say."""
    at_size = [record for record in records if record.size == size]
    results = Results(experiment, of_one_device(at_size)[0], size)
    return [_power(recorded(results, claim), results) for claim in experiment.claims_at(results.size)]


def _power(found: Recorded, results: Results) -> Power:
    claim, m = found.claim, len(found.comparisons)
    hours = _hours_a_seed(found.rows, results)
    if claim.kind == EXACT:
        return Power(claim, m, hours_a_seed=hours, why="exact: no number of seeds changes it")
    if found.missing:
        return Power(claim, m, hours_a_seed=hours, why=found.missing)
    several = [c for c in found.comparisons if c.n > 1 and np.all(np.isfinite(c.differences))]
    if not several:
        return Power(claim, m, hours_a_seed=hours, why="a spread takes two seeds that reached it")
    hardest = max(several, key=lambda c: spread(c.differences))
    widest, level = spread(hardest.differences), LEVEL / m
    if widest <= hardest.resolution:
        return Power(claim, m, hardest, hours_a_seed=hours, why="nothing varies from seed to seed")
    margin = [_margin_seeds(c, level) for c in several] if claim.kind == AS_GOOD_AS else [None]
    needed = [c.seeds_needed(level) for c in several if spread(c.differences) > c.resolution]
    return Power(
        claim,
        m,
        hardest,
        widest,
        {n: detectable(n, level) * widest for n in SEEDS},
        None if None in margin else max(seeds for seeds in margin if seeds is not None),
        None if None in needed else max(seeds for seeds in needed if seeds is not None),
        hours,
    )


def _margin_seeds(c: Comparison, level: float) -> int | None:
    """Seeds that keep a true difference of 0 within the margin."""
    std = spread(c.differences)
    if std <= c.resolution or c.margin is None:
        return 0
    effect = c.margin / std
    return seeds_to_decide(*([effect, effect] if c.symbol == "==" else [effect]), level=level)


def _hours_a_seed(rows: Sequence[str], results: Results) -> float:
    """The mean wall time of each row, added up."""
    times = [[record.wall_seconds for record in results.of_row(row)] for row in rows]
    return sum(statistics.fmean(of_row) for of_row in times if of_row) / HOUR
