from __future__ import annotations

import math

import numpy as np
import pytest

from efftx.study.comparisons import Comparison, Side
from efftx.study.significance import (
    LEVEL,
    holm,
    interval,
    power,
    seeds_to_decide,
    student_cdf,
    student_quantile,
    upper_tail,
)


@pytest.mark.parametrize(
    ("p", "df", "tabulated"),
    [
        (0.95, 1, 6.314),
        (0.975, 1, 12.706),
        (0.95, 2, 2.920),
        (0.975, 2, 4.303),
        (0.995, 2, 9.925),
        (0.95, 4, 2.132),
        (0.975, 9, 2.262),
        (0.99, 9, 2.821),
        (0.9995, 10, 4.587),
        (0.95, 30, 1.697),
        (0.975, 120, 1.980),
        (0.9, 3, 1.638),
    ],
)
def test_quantiles_are_those_of_the_printed_tables(p: float, df: int, tabulated: float) -> None:
    assert student_quantile(p, df) == pytest.approx(tabulated, abs=5e-4)
    assert student_quantile(1 - p, df) == pytest.approx(-tabulated, abs=5e-4)


@pytest.mark.parametrize("t", [-31.0, -3.0, -0.2, 0.0, 0.7, 2.0, 12.0])
def test_one_and_two_degrees_of_freedom_have_closed_forms(t: float) -> None:
    assert student_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, rel=1e-12)
    assert student_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), rel=1e-12)


def test_the_quantile_undoes_the_distribution() -> None:
    for df in (1, 2, 5, 40, 999):
        for p in (0.001, 0.05, 0.5, 0.8, 0.9999):
            assert student_cdf(student_quantile(p, df), df) == pytest.approx(p, rel=1e-9)
    assert (student_cdf(-math.inf, 3), student_cdf(math.inf, 3)) == (0.0, 1.0)


def test_a_t_test_by_hand() -> None:
    # Mean 2, standard deviation 1, n = 4: t = 4 at 3 degrees of freedom, one-sided p 0.01401; half of it 3.182 / 2.
    sample = np.array([2 - 1.5**0.5, 2.0, 2.0, 2 + 1.5**0.5])
    assert upper_tail(sample) == pytest.approx(0.01401, abs=2e-5)
    assert upper_tail(-sample) == pytest.approx(1 - 0.01401, abs=2e-5)
    assert upper_tail(sample, 2.0) == pytest.approx(0.5)
    assert interval(sample) == pytest.approx((2 - 3.182 / 2, 2 + 3.182 / 2), abs=5e-4)


def test_without_spread_the_value_decides() -> None:
    same = np.array([2.0, 2.0, 2.0])
    assert (upper_tail(same), upper_tail(same, 3.0), upper_tail(same, 2.0)) == (0.0, 1.0, 0.5)
    assert interval(same) == (2.0, 2.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "n"), [(1.0, 8), (0.8, 12), (0.5, 27), (0.2, 156)])
def test_sample_sizes_are_those_of_the_printed_tables(effect: float, n: int) -> None:
    assert seeds_to_decide(effect) == n
    assert power(effect, n) >= 0.8 > power(effect, n - 1)


def test_power_is_what_a_simulation_gives() -> None:
    draws = np.random.default_rng(1).normal(loc=1.5, size=(4_000, 4))
    found = sum(upper_tail(sample) <= LEVEL for sample in draws) / len(draws)
    assert power(1.5, 4) == pytest.approx(found, abs=0.02)


def test_no_number_of_seeds_is_given_where_it_is_out_of_reach() -> None:
    assert seeds_to_decide(0.01) is None
    assert seeds_to_decide(0.0) is None
    assert seeds_to_decide(50.0) == 3


@pytest.mark.parametrize(("margin", "seeds"), [(2.0, 8), (0.2, 15)])
def test_an_undecided_equality_says_how_many_seeds_decide_it(margin: float, seeds: int) -> None:
    # Mean 1, spread 1. Inside the margin its nearer end is one spread away, on one side; outside the distance is 0.8,
    # and either side counts: 8 and 15 in the printed tables of one-sample t tests at 80 % power.
    side = Side("A", None, True, 1.0, 1.0, None)
    values = np.array([0.0, 1.0, 2.0])
    found = Comparison(side, "==", side, "as good as", margin, "", {}, values, 3)
    assert found.seeds_needed(0.05) == seeds
