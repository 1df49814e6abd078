"""Student's t distribution, and the tests that decide claims: one-sided, over the seeds, at one level of 5 %."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
POWER = 0.8
CONFIDENCE = 0.95
TESTED = 1.0 - 2.0 * LEVEL
"""Of the interval beside a verdict: what a one-sided test at LEVEL, and each of two such, excludes lies outside it."""
MIN_SEEDS = 3
MOST_SEEDS = 1000
"""No more seeds than this are searched for a comparison that is not decided."""

Sample = NDArray[np.float64]


def student_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's distribution with `df` degrees of freedom."""
    if math.isinf(t):
        return 0.0 if t < 0 else 1.0
    tail = 0.5 * _incomplete_beta(df / (df + t * t), df / 2, 0.5)
    return tail if t < 0 else 1.0 - tail


def student_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, 0 < p < 1."""
    if p < 0.5:
        return -student_quantile(1.0 - p, df)
    high = 1.0
    while student_cdf(high, df) < p:
        high *= 2.0
    return _root(lambda t: student_cdf(t, df) - p, 0.0, high)


def spread(sample: Sample) -> float:
    """The sample standard deviation (two values at least)."""
    return float(np.std(sample, ddof=1))


def rounding(*sides: Sample) -> float:
    """The rounding error that a difference of the sides may have, a few units in the last place of the largest."""
    finite = [float(np.max(np.abs(side))) for side in sides if np.all(np.isfinite(side))]
    return 8 * float(np.finfo(np.float64).eps) * max(finite, default=0.0)


def upper_tail(sample: Sample, bound: float = 0.0, resolution: float = 0.0) -> float:
    """The p of a one-sided t test that the mean of `sample` (two values at least) is above `bound`.

    Without spread it is 0 or 1 by the mean itself, and 1/2 where the mean is the bound; what is not more than
    `resolution`, the rounding error of the values, is no spread and no distance.
    """
    distance, std = float(np.mean(sample)) - bound, spread(sample)
    if std <= resolution:
        return 0.5 if abs(distance) <= resolution else float(distance < 0.0)
    return student_cdf(-distance / std * math.sqrt(sample.size), sample.size - 1)


def interval(sample: Sample, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two-sided interval of the mean of `sample` (two values at least)."""
    mean = float(np.mean(sample))
    half = student_quantile((1 + confidence) / 2, sample.size - 1) * spread(sample) / math.sqrt(sample.size)
    return mean - half, mean + half


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each of `ps`: below the level together, whatever of them is true, with that probability."""
    adjusted = [0.0] * len(ps)
    so_far = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        so_far = max(so_far, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = so_far
    return adjusted


def power(effect: float, n: int, level: float = LEVEL) -> float:
    """How often a one-sided t test over `n` seeds finds a mean of `effect` standard deviations above its bound.

    The non-central t: the normal tail, averaged over the distribution of the estimated standard deviation.
    """
    df = n - 1
    critical = student_quantile(1.0 - level, df)
    ratio = np.linspace(1e-6, 1.0 + 10.0 / math.sqrt(2 * df), 2001)  # estimated over true standard deviation
    log_density = (df - 1) * np.log(ratio) - df * ratio**2 / 2
    density = np.exp(log_density - log_density.max())
    shift = (effect * math.sqrt(n) - critical * ratio) / math.sqrt(2.0)
    chances = np.array([0.5 * math.erfc(-s) for s in shift])
    return float(np.sum(chances * density) / np.sum(density))


@cache
def detectable(n: int, level: float = LEVEL) -> float:
    """The mean, in standard deviations above its bound, that a one-sided t test over `n` seeds finds at 80 % power."""
    high = 1.0
    while power(high, n, level) < POWER:
        high *= 2.0
    return _root(lambda effect: power(effect, n, level) - POWER, 0.0, high)


def seeds_to_decide(*effects: float, level: float = LEVEL) -> int | None:
    """The fewest seeds that find all `effects` together at 80 % power; None where that is above MOST_SEEDS."""

    def enough(n: int) -> bool:
        return 1.0 - sum(1.0 - power(effect, n, level) for effect in effects) >= POWER

    low, high = MIN_SEEDS - 1, MIN_SEEDS
    while not enough(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where the increasing function `f` is 0, by halving until the interval no longer shrinks."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Abramowitz and Stegun 26.5.8)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _beta_fraction(x, a, b) / a


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 / (1 + d1 / (1 + d2 / ...)) by Lentz's method; some 30 terms give all digits."""
    c, d = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _not_zero(1.0 + term * d)
            c = _not_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
