"""What a verdict is decided by: paired t tests, margins, intervals, Holm, and numbers without spread."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from efftx.study.claims import judge
from efftx.study.experiment import Cell, Claim, ColumnSpec, Derived, Experiment, Row
from tests.study.claimed import A_OVER_B, Table, experiment, verdict

from ..reproduce.fakes import record


def pair(a: Sequence[float]) -> Table:
    """A with these values, B with zeros: the differences are A's values."""
    return {"A": {"x": list(a)}, "B": {"x": [0.0] * len(a)}}


def test_better_is_a_one_sided_paired_t_test() -> None:
    table = {"A": {"x": [3.0, 4.0, 5.0]}, "B": {"x": [1.0, 2.0, 3.5]}}
    # D = 2, 2, 1.5: mean 1.8333, std 0.28868, t = 11 at 2 degrees of freedom; P(T > t) = 1/2 - t / (2 sqrt(2 + t^2))
    found = verdict(experiment(A_OVER_B), table)
    assert found.verdict == "holds"
    (comparison,) = found.comparisons
    assert comparison.difference == pytest.approx(11 / 6)
    assert comparison.n == 3
    assert comparison.p == pytest.approx(0.5 - 11 / (2 * math.sqrt(123)))
    half = 2.91999 * 0.288675 / math.sqrt(3)
    assert comparison.interval == pytest.approx((11 / 6 - half, 11 / 6 + half), abs=1e-5)
    assert verdict(experiment('cell["A", "x"] < cell["B", "x"]'), table).verdict == "contradicted"


def test_seeds_are_paired() -> None:
    table = {"A": {"x": [10.0, 20.0, 31.0]}, "B": {"x": [9.0, 18.9, 29.8]}}
    assert verdict(experiment(A_OVER_B), table).verdict == "holds"
    assert verdict(experiment(A_OVER_B), {**table, "B": {"x": [29.8, 18.9, 9.0]}}).verdict == "undecided"


@pytest.mark.parametrize("symbol", [">", ">=", "<", "<="])
def test_what_neither_test_rejects_is_undecided_and_says_how_many_seeds_would_decide(symbol: str) -> None:
    # D = 1, -1, 1.5: 0.3780 standard deviations, found one-sided at 5 % with 80 % power in 45 seeds.
    found = verdict(experiment(f'cell["A", "x"] {symbol} cell["B", "x"]'), pair([1.0, -1.0, 1.5]))
    assert found.verdict == "undecided"
    assert found.comparisons[0].seeds == 45


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        ([0.1, -0.1, 0.0], "holds"),
        ([5.0, 5.1, 4.9], "holds"),
        ([-0.9, -1.0, -0.8], "contradicted"),
        ([-0.5, 0.4, -0.3], "undecided"),
    ],
)
def test_as_good_as_one_way_is_no_worse_than_by_the_margin(a: list[float], expected: str) -> None:
    for text in ('cell["A", "x"] >= cell["B", "x"]', 'cell["B", "x"] <= cell["A", "x"]'):
        assert verdict(experiment(text, "as good as", margin=0.5), pair(a)).verdict == expected


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        ([0.1, -0.1, 0.0], "holds"),
        ([5.0, 5.1, 4.9], "contradicted"),
        ([-0.9, -1.0, -0.8], "contradicted"),
        ([-0.5, 0.4, -0.3], "undecided"),
    ],
)
def test_as_good_as_both_ways_is_two_one_sided_tests(a: list[float], expected: str) -> None:
    e = experiment('cell["A", "x"] == cell["B", "x"]', "as good as", margin=0.5)
    assert verdict(e, pair(a)).verdict == expected


DIFFERENCES = st.lists(st.integers(-30, 30), min_size=3, max_size=6).map(lambda found: [x / 10 for x in found])


@given(DIFFERENCES, st.sampled_from([">", ">=", "<", "<="]), st.sampled_from([None, 0.5]))
@example([0.2, 0.5, 1.3], ">", None)  # one-sided p 0.09
@example([0.3, 0.5, 1.3], ">", None)  # one-sided p 0.072
@example([0.4, 0.6, 1.3], ">", None)  # one-sided p 0.046: 0 is outside the 90 % interval, and inside that of 95 %
def test_a_verdict_agrees_with_its_interval(a: list[float], symbol: str, margin: float | None) -> None:
    text = f'cell["A", "x"] {symbol} cell["B", "x"]'
    e = experiment(text, "as good as" if margin else "better", margin=margin)
    (comparison,) = verdict(e, pair(a)).comparisons
    assert comparison.interval is not None
    low, high = comparison.interval if symbol in (">", ">=") else (-comparison.interval[1], -comparison.interval[0])
    assume(np.ptp(a) > 0 and min(abs(abs(low) - (margin or 0.0)), abs(abs(high) - (margin or 0.0))) > 1e-9)
    expected = {low > -(margin or 0.0): "holds", high < -(margin or 0.0): "contradicted"}.get(True, "undecided")
    assert comparison.outcome == expected


@given(DIFFERENCES)
def test_a_verdict_of_equality_agrees_with_its_interval(a: list[float]) -> None:
    e = experiment('cell["A", "x"] == cell["B", "x"]', "as good as", margin=0.5)
    (comparison,) = verdict(e, pair(a)).comparisons
    assert comparison.interval is not None
    low, high = comparison.interval
    assume(np.ptp(a) > 0 and min(abs(abs(low) - 0.5), abs(abs(high) - 0.5)) > 1e-9)
    assert (comparison.outcome == "holds") == (low > -0.5 and high < 0.5)
    assert comparison.outcome != "contradicted" or high < -0.5 or low > 0.5


def test_the_p_of_two_one_sided_tests_by_hand() -> None:
    # D = 0.1, -0.1, 0.3: mean 0.1, std 0.2; the nearer bound is 0.5: t = 0.4 / (0.2 / sqrt(3)) = 3.4641.
    e = experiment('cell["A", "x"] == cell["B", "x"]', "as good as", margin=0.5)
    found = verdict(e, pair([0.1, -0.1, 0.3])).comparisons[0]
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))


def test_equality_without_spread_meets_at_least_and_leaves_more_than_open() -> None:
    table = {"A": {"x": [99.0, 99.0, 99.0]}}
    assert verdict(experiment('cell["A", "x"] >= 99', "at least"), table).verdict == "holds"
    assert verdict(experiment('cell["A", "x"] > 99', "at least"), table).verdict == "undecided"


def test_fewer_than_three_common_seeds_decide_nothing() -> None:
    found = verdict(experiment(A_OVER_B), {"A": {"x": [2.0, 2.0, 2.0]}, "B": {"x": [1.0, 1.0]}})
    assert (found.verdict, found.comparisons[0].n, found.comparisons[0].p) == ("undecided", 2, None)


def test_what_no_seed_can_move_needs_one_seed_and_no_test() -> None:
    table = {"A": {"x": [2.0]}, "B": {"x": [1.0]}}
    assert verdict(experiment(A_OVER_B, "exact"), table).verdict == "holds"
    assert verdict(experiment('cell["A", "x"] <= cell["B", "x"]', "exact"), table).verdict == "contradicted"
    every = experiment(A_OVER_B, "exact")
    assert verdict(every, pair([5.0, 5.0, -0.1])).verdict == "contradicted", "every seed, not their mean"


def test_what_differs_from_seed_to_seed_is_not_exact_though_every_seed_meets_it() -> None:
    found = verdict(experiment(A_OVER_B, "exact"), pair([5.0, 5.0, 4.0]))
    assert (found.verdict, found.comparisons[0].p, found.comparisons[0].seeds) == ("undecided", None, None)


def test_exactly_equal_is_equal_in_every_seed() -> None:
    e = experiment('cell["A", "x"] == cell["B", "x"]', "exact")
    same = {"x": [1.0, 2.5, 3.0]}
    assert verdict(e, {"A": same, "B": same}).verdict == "holds"
    assert verdict(e, {"A": same, "B": {"x": [1.0, 2.5, 3.001]}}).verdict == "contradicted"
    third = {"x": [0.1 + 0.2]}
    assert verdict(e, {"A": third, "B": {"x": [0.3]}}).verdict == "holds", "but for rounding"
    assert verdict(experiment('cell["A", "x"] == 2', "exact"), {"A": {"x": [2.0, 2.0]}}).verdict == "holds"


def test_a_measured_zero_that_is_divided_by_is_told() -> None:
    e = experiment('cell["A", "x"] / cell["B", "x"] > cell["B", "x"]')
    found = verdict(e, {"A": {"x": [1.0, 2.0, 3.0]}, "B": {"x": [1.0, 0.0, 1.0]}})
    assert found.verdict == "not tested here"
    assert found.why.startswith("cell['B', 'x'] is 0")


def test_the_p_of_a_contradicted_claim_is_its_opposites_and_says_so() -> None:
    table = {"A": {"x": [3.0, 4.0, 5.0]}, "B": {"x": [1.0, 2.0, 3.5]}}
    for symbol, of in ((">", "claim"), ("<", "opposite")):
        (comparison,) = verdict(experiment(f'cell["A", "x"] {symbol} cell["B", "x"]'), table).comparisons
        assert comparison.p_of == of
        assert comparison.p == pytest.approx(0.5 - 11 / (2 * math.sqrt(123)))
    assert verdict(experiment(A_OVER_B), pair([1.0])).comparisons[0].p_of is None


def test_holm_asks_more_of_several_comparisons() -> None:
    a = [1.0, 2.0, 3.0]  # t = 2 sqrt(3), p 0.0371: enough alone
    b = [1.0, 1.001, 0.999]
    single = experiment('cell["A", "x"] > 0', "at least")
    assert verdict(single, {"A": {"x": a}}).verdict == "holds"
    both = experiment("cell[row, column] > 0", "at least")
    assert verdict(both, {"A": {"x": a}, "B": {"x": b}}).verdict == "holds", "the smaller p is small enough for both"
    assert verdict(both, {"A": {"x": a}, "B": {"x": a}}).verdict == "undecided"


def test_a_comparison_without_a_free_name_is_one_test_however_often_it_is_bound() -> None:
    a = [1.0, 2.0, 3.0]  # p 0.0371: enough beside one that is sure, not twice among three
    e = experiment('cell["A", "x"] > 0 and cell[row, "y"] > 0', "at least", columns=("x", "y"))
    sure = [5.0, 5.01, 4.99]
    claim = verdict(e, {"A": {"x": a, "y": sure}, "B": {"x": sure, "y": sure}})
    assert len(claim.comparisons) == 3
    assert [c.binding for c in claim.comparisons] == [{}, {"row": "A"}, {"row": "B"}]
    assert claim.verdict == "holds"


def test_a_level_never_reached_is_later_than_every_step() -> None:
    e = Experiment(
        id="paper/item",
        caption="",
        kind="train",
        cell=Cell("accuracy", "%", "higher"),
        rows={"A": Row(), "B": Row()},
        columns={"steps": ColumnSpec(cell=Cell("steps_to_99", "steps", "lower"))},
        sizes={"cpu": []},
        derived={"steps_to_99": Derived("accuracy", first_at_least=99)},
        claims=[
            Claim("A is first", "better", 'cell["A", "steps"] < cell["B", "steps"]'),
            Claim("B is first", "better", 'cell["B", "steps"] < cell["A", "steps"]'),
            Claim("a tie", "better", 'cell["B", "steps"] <= cell["B", "steps"]'),
        ],
    )
    curves = {
        "A": [{"step": 5, "accuracy": 50.0}, {"step": 10, "accuracy": 99.5}],
        "B": [{"step": 10, "accuracy": 2.0}],
    }
    three = judge(e, [record(row, s, {}, curve=curves[row]) for row in "AB" for s in range(3)], "cpu")
    assert [v.verdict for v in three] == ["undecided", "undecided", "not tested here"], "the sign test gives 1/8"
    found = judge(e, [record(row, s, {}, curve=curves[row]) for row in "AB" for s in range(5)], "cpu")
    assert [v.verdict for v in found] == ["holds", "contradicted", "not tested here"]
    assert found[0].comparisons[0].p == 1 / 32
    assert found[2].why == "neither side of cell['B', 'steps'] and cell['B', 'steps'] was reached"
    assert found[0].comparisons[0].interval is None


def test_where_only_some_seeds_reach_a_level_there_is_no_mean_to_test() -> None:
    e = experiment(A_OVER_B)
    found = verdict(e, {"A": {"x": [None, 2.0, 2.0]}, "B": {"x": [1.0, 1.0, 1.0]}})
    assert (found.verdict, found.comparisons[0].p) == ("undecided", None)


@pytest.mark.parametrize(("symbol", "expected"), [("<=", "contradicted"), ("==", "contradicted"), (">=", "holds")])
def test_a_level_never_reached_is_beyond_every_margin(symbol: str, expected: str) -> None:
    e = experiment(f'cell["A", "x"] {symbol} cell["B", "x"]', "as good as", margin=100.0)
    never = {"A": {"x": [None] * 6}, "B": {"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}}
    assert verdict(e, never).verdict == expected


def test_rows_without_a_seed_in_common_are_not_compared() -> None:
    found = judge(experiment(A_OVER_B), [record("A", 0, {"x": 1.0}), record("B", 1, {"x": 2.0})], "cpu")[0]
    assert found.verdict == "not run"
    assert "no seed in common" in found.why


def test_worse_by_the_margin_itself_in_every_seed_is_not_as_good() -> None:
    e = experiment('cell["A", "x"] >= cell["B", "x"]', "as good as", margin=0.5)
    assert verdict(e, pair([-0.5, -0.5, -0.5])).verdict == "undecided"


def test_rounding_is_no_spread_and_no_distance() -> None:
    # 5.1 + 0.3 - 5.1 and 7.7 + 0.3 - 7.7 differ from 0.3, and from one another, in the last place.
    table = {"A": {"x": [5.1, 7.7, 9.9]}, "B": {"x": [5.1 + 0.3, 7.7 + 0.3, 9.9 + 0.3]}}
    e = experiment('cell["A", "x"] >= cell["B", "x"]', "as good as", margin=0.3)
    found = verdict(e, table)
    assert (found.verdict, found.comparisons[0].seeds) == ("undecided", None)


def test_an_equality_is_contradicted_on_either_side_at_half_of_the_level_each() -> None:
    # D = 1.1, 0.9, 1.3: mean 1.1, std 0.2; beyond the margin 0.5 by t = 0.6 / (0.2 / sqrt(3)) = 5.196.
    e = experiment('cell["A", "x"] == cell["B", "x"]', "as good as", margin=0.5)
    found = verdict(e, pair([1.1, 0.9, 1.3])).comparisons[0]
    t = 3 * math.sqrt(3)
    assert found.p_against == pytest.approx(2 * (0.5 - t / (2 * math.sqrt(2 + t * t))))
