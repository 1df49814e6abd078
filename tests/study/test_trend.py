"""A gap's plane in the logarithms of two sizes: the slopes put in come out, with intervals that cover them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from efftx.errors import UserError
from efftx.study.significance import MIN_SEEDS
from efftx.study.trend import Fit, Gaps, fit, gaps_of

from .claimed import NO_WORSE, experiment

WIDTHS, TOKENS = (64.0, 128.0, 256.0), (1.5e6, 3.1e6, 6.1e6, 12.3e6)
LEVEL, PER_TOKENS, PER_WIDTH = 0.9, -0.02, 0.01


def gap(width: float, tokens: float) -> float:
    return LEVEL + PER_TOKENS * math.log2(tokens) + PER_WIDTH * math.log2(width)


def exact(seeds: int = 3) -> Gaps:
    return {(w, t): dict.fromkeys(range(seeds), gap(w, t)) for w in WIDTHS for t in TOKENS}


def noisy(generator: np.random.Generator, seeds: int) -> Gaps:
    """A run's budgets share what is random in it, as those of one training do, and have noise of their own besides."""
    gaps: Gaps = {(w, t): {} for w in WIDTHS for t in TOKENS}
    for seed in range(seeds):
        for w in WIDTHS:
            of_run, slope = generator.normal(0, 0.02), generator.normal(0, 0.004)
            for t in TOKENS:
                own = of_run + slope * math.log2(t / TOKENS[0]) + generator.normal(0, 0.005)
                gaps[w, t][seed] = gap(w, t) + own
    return gaps


def test_a_plane_without_noise_is_found_exactly() -> None:
    found = fit(exact())
    assert found is not None
    assert found.n == 3
    assert found.over.mean == pytest.approx(PER_TOKENS, abs=1e-12)
    assert found.beside.mean == pytest.approx(PER_WIDTH, abs=1e-12)
    assert found.at(2e6, 100).mean == pytest.approx(gap(100, 2e6), abs=1e-12)


def test_the_fit_is_least_squares_in_the_logarithms() -> None:
    """Against the normal equations of the mean over the seeds, which is the mean of the seeds' planes."""
    gaps = noisy(np.random.default_rng(0), 4)
    found = fit(gaps)
    assert found is not None
    design = np.array([[1, math.log2(t), math.log2(w)] for w, t in gaps])
    means = np.array([np.mean(list(of_seed.values())) for of_seed in gaps.values()])
    level, per_tokens, per_width = np.linalg.solve(design.T @ design, design.T @ means)
    assert (found.over.mean, found.beside.mean) == pytest.approx((per_tokens, per_width), abs=1e-10)
    assert found.at(1.0, 1.0).mean == pytest.approx(level, abs=1e-9)


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_intervals_cover_the_true_slopes_19_times_in_20(seeds: int) -> None:
    """Though the budgets of a run are not independent; within five standard errors of the simulation's share."""
    generator, n = np.random.default_rng(seeds), 2000
    covered = np.zeros(3)
    for _ in range(n):
        found = fit(noisy(generator, seeds))
        assert found is not None
        for i, (estimate, true) in enumerate(
            ((found.over, PER_TOKENS), (found.beside, PER_WIDTH), (found.at(6.1e6, 128), gap(128, 6.1e6)))
        ):
            assert estimate.interval is not None
            covered[i] += estimate.interval[0] <= true <= estimate.interval[1]
    assert np.all(np.abs(covered / n - 0.95) < 5 * math.sqrt(0.95 * 0.05 / n))


def test_a_slope_of_nothing_but_noise_says_so_and_a_plain_one_does_not() -> None:
    planes = np.array([[1.0, -0.02, 0.01], [1.0, -0.021, -0.012], [1.0, -0.019, 0.001]])
    found = Fit(planes)
    assert not found.over.includes_zero
    assert found.beside.includes_zero


def test_fewer_than_three_seeds_have_no_interval() -> None:
    found = fit(exact(MIN_SEEDS - 1))
    assert found is not None
    assert found.over.interval is None
    assert not found.over.includes_zero
    assert found.over.mean == pytest.approx(PER_TOKENS)


def test_a_seed_that_lacks_a_place_is_left_out_of_the_fit() -> None:
    gaps = exact(4)
    del gaps[64.0, TOKENS[0]][2]
    found = fit(gaps)
    assert found is not None
    assert found.n == 3


@pytest.mark.parametrize(
    "gaps",
    [
        {},
        {place: of_seed for place, of_seed in exact().items() if place[0] == 64.0},
        {place: of_seed for place, of_seed in exact().items() if place[1] == TOKENS[0]},
        {(64.0, TOKENS[0]): {0: 1.0}, (128.0, TOKENS[1]): {0: 1.0}},
        {place: {i: 0.1} for i, place in enumerate(exact())},
    ],
    ids=["nothing", "one width", "one budget", "two places", "no seed at all of them"],
)
def test_where_no_plane_is_determined_there_is_none(gaps: Gaps) -> None:
    assert fit(gaps) is None


def test_a_trend_that_lacks_a_key_or_names_no_arm_is_refused() -> None:
    plain = experiment(NO_WORSE)
    with pytest.raises(UserError, match=r"figure\.trend: beside and against is not given") as error:
        gaps_of(replace(plain, figure={"trend": {"over": "tokens"}}), {}, "cpu")
    assert error.value.kind == "bad_experiment"
    trend = {"over": "tokens", "beside": "width", "against": "dense"}
    with pytest.raises(UserError, match=r"figure\.trend: no row has the arm 'dense'"):
        gaps_of(replace(plain, figure={"trend": trend}), {}, "cpu")
