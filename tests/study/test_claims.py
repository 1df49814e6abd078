from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from efftx.study.claims import Verdict, judge
from efftx.study.experiment import Cell, Claim, ColumnSpec, Derived, Experiment, Row
from efftx.study.gates import Gate
from efftx.study.published import Published
from efftx.study.records import Record

from ..reproduce.fakes import record

Table = Mapping[str, Mapping[str, Sequence[float | None]]]


def experiment(
    holds_if: str,
    kind: str = "better",
    *,
    margin: float | None = None,
    where: str = "",
    rows: Sequence[str] = ("A", "B"),
    columns: Sequence[str] = ("x",),
    better: str = "higher",
    gates: Mapping[str, Gate] | None = None,
    published: Published | None = None,
) -> Experiment:
    return Experiment(
        id="paper/item",
        caption="",
        kind="train",
        cell=Cell("accuracy", "%", better),
        rows={name: Row() for name in rows},
        columns={name: ColumnSpec() for name in columns},
        sizes={"cpu": []},
        claims=[Claim("it is so", kind, holds_if, where, margin)],
        gates=gates or {},
        published=published,
    )


def records(table: Table) -> list[Record]:
    """Records of a table row -> column -> value a seed."""
    found = []
    for row, columns in table.items():
        for seed in range(max(len(values) for values in columns.values())):
            found.append(record(row, seed, {c: v[seed] for c, v in columns.items() if seed < len(v)}))
    return found


def verdict(e: Experiment, table: Table) -> Verdict:
    return judge(e, records(table), "cpu")[0]


A_OVER_B = 'cell["A", "x"] > cell["B", "x"]'


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


def test_a_missing_cell_means_not_run() -> None:
    found = verdict(experiment(A_OVER_B), {"A": {"x": [2.0, 2.0, 2.0]}})
    assert found.verdict == "not run"
    assert "B, x" in found.why


def test_records_of_another_size_are_no_evidence() -> None:
    e = experiment('cell["A", "x"] > 1', "at least")
    smoke = [record("A", seed, {"x": 5.0}, size="smoke") for seed in range(3)]
    assert judge(e, smoke, "cpu")[0].verdict == "not run"


def test_free_names_are_quantified_over_all_rows_and_columns() -> None:
    e = experiment('cell[row, column] >= cell[row, "x"]', "as good as", margin=0.1, columns=("x", "y"))
    table = {"A": {"x": [1.0, 1.0, 1.0], "y": [2.0, 2.0, 2.0]}, "B": {"x": [1.0, 1.0, 1.0], "y": [0.5, 0.5, 0.5]}}
    found = verdict(e, table)
    assert found.verdict == "contradicted"
    assert [(c.binding["row"], c.binding["column"], c.outcome) for c in found.comparisons] == [
        ("A", "x", "holds"),
        ("A", "y", "holds"),
        ("B", "x", "holds"),
        ("B", "y", "contradicted"),
    ]


def test_where_restricts_what_is_quantified() -> None:
    table = {"A": {"x": [1.0, 1.0, 1.0], "y": [2.0, 2.0, 2.0]}, "B": {"x": [1.0, 1.0, 1.0], "y": [0.5, 0.5, 0.5]}}
    for where in ('row == "A"', 'row != "B"', 'row in ["A"]', 'row not in ["B"]', 'not row == "B" and row == "A"'):
        found = verdict(experiment('cell[row, "y"] > cell[row, "x"]', where=where, columns=("x", "y")), table)
        assert (found.verdict, len(found.comparisons)) == ("holds", 1), where


def test_the_weakest_binding_gives_the_verdict() -> None:
    table = {"A": {"x": [5.0, 5.0, 5.0]}, "B": {"x": [1.0, -1.0, 1.5]}}
    assert verdict(experiment("cell[row, column] > 0", "at least"), table).verdict == "undecided"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('cell["A", "x"] > 1 and cell["A", "x"] > 9', "contradicted"),
        ('cell["A", "x"] > 1 or cell["A", "x"] > 9', "holds"),
        ('not cell["A", "x"] > 9', "holds"),
        ('cell["A", "x"] / 2 - 1 <= 1.6 and max(cell["A", "x"], 7) >= 7', "holds"),
        ('min(cell["A", "x"], 4) < 4.5 and abs(-cell["A", "x"]) > 4', "holds"),
        ('cell["A", "x"] > published["A", "x"]', "contradicted"),
    ],
)
def test_arithmetic_and_conditions(text: str, expected: str) -> None:
    published = Published("verified", {"A": {"x": 6.0}})
    e = experiment(text, "at least", published=published)
    assert verdict(e, {"A": {"x": [5.0, 5.0, 5.0]}}).verdict == expected


NO_WORSE = 'cell["A", "x"] >= cell["B", "x"]'
CHANCE = {"chance": Gate("constant", 0.8)}


def test_two_rows_at_chance_teach_nothing() -> None:
    e = experiment(NO_WORSE, "as good as", margin=1, gates=CHANCE)
    found = verdict(e, {"A": {"x": [0.8, 0.9, 0.7]}, "B": {"x": [0.7, 0.8, 0.6]}})
    assert found.verdict == "not tested here"
    assert "chance" in found.why


def test_a_model_that_repeats_a_rounded_trivial_answer_has_not_beaten_it() -> None:
    e = experiment(NO_WORSE, "as good as", margin=1, gates={"most frequent class": Gate("constant", 68.6)})
    same = [59 / 86 * 100] * 3  # 68.605
    assert verdict(e, {"A": {"x": same}, "B": {"x": same}}).verdict == "not tested here"
    assert verdict(e, {"A": {"x": [68.7] * 3}, "B": {"x": [68.8] * 3}}).verdict == "holds"


@pytest.mark.parametrize("kind", ["better", "as good as"])
def test_one_model_that_learned_nothing_leaves_the_comparison_untested_on_either_side(kind: str) -> None:
    margin = 1.0 if kind == "as good as" else None
    learned, chance = [50.0, 51.0, 52.0], [0.7, 0.8, 0.6]
    e = experiment(NO_WORSE, kind, margin=margin, gates=CHANCE)
    for table in ({"A": {"x": learned}, "B": {"x": chance}}, {"A": {"x": chance}, "B": {"x": learned}}):
        found = verdict(e, table)
        assert found.verdict == "not tested here"
        assert found.why.endswith("(0.70) does not beat chance (0.80)")
        assert found.why.count(";") == 0
    assert verdict(e, {"A": {"x": learned}, "B": {"x": [40.0, 41.0, 41.5]}}).verdict == "holds"


def test_where_lower_is_better_learning_is_below_the_gate() -> None:
    text = 'cell["A", "x"] <= cell["B", "x"]'
    e = experiment(text, "as good as", margin=1, gates={"uniform": Gate("constant", 4.85)}, better="lower")
    assert verdict(e, {"A": {"x": [4.9, 4.9, 4.9]}, "B": {"x": [4.9, 5.0, 4.95]}}).verdict == "not tested here"
    assert verdict(e, {"A": {"x": [1.0, 1.1, 1.0]}, "B": {"x": [4.7, 4.6, 4.7]}}).verdict == "holds"


def test_a_model_whose_seeds_leave_it_open_whether_it_beats_the_gate_has_not() -> None:
    e = experiment("cell[row, column] >= 50", "at least", rows=("A",), gates={"chance": Gate("constant", 50)})
    found = verdict(e, {"A": {"x": [49.0, 55.0, 60.0]}})
    # Above 50.5: -1.5, 4.5, 9.5, t = 1.307 at 2 degrees of freedom.
    assert (found.verdict, found.why) == ("not tested here", "A (54.67) does not beat chance (50.00), p = 0.16")


def test_one_binding_with_a_model_that_learned_nothing_leaves_the_whole_claim_untested() -> None:
    e = experiment("cell[row, column] >= 50", "at least", gates=CHANCE)
    found = verdict(e, {"A": {"x": [60.0, 60.0, 60.0]}, "B": {"x": [0.8, 0.8, 0.8]}})
    assert (found.verdict, found.comparisons) == ("not tested here", ())


def test_a_claim_about_the_gate_itself_is_judged() -> None:
    e = experiment('cell["A", "x"] <= gate["chance"]', "at least", gates=CHANCE)
    assert verdict(e, {"A": {"x": [0.8, 0.8, 0.8]}}).verdict == "holds"


def test_a_claim_about_a_gate_in_one_column_has_it_before_it_in_the_others() -> None:
    e = experiment('cell["A", "x"] <= gate["chance"]', "at least", columns=("x", "y"), gates=CHANCE)
    for learned, expected in ((60.0, "holds"), (0.8, "not tested here")):
        assert verdict(e, {"A": {"x": [0.8] * 3, "y": [learned] * 3}}).verdict == expected


def test_every_gate_is_to_be_beaten_and_the_first_that_is_not_is_told() -> None:
    gates = {name: Gate("constant", value) for name, value in (("low", 10), ("middle", 20), ("high", 30))}
    e = experiment(NO_WORSE, gates=gates)
    assert verdict(e, pair_of(40, 31)).verdict == "holds"
    assert verdict(e, pair_of(40, 25)).why == "B (25.00) does not beat high (30.00)"
    both = [f"{row} (15.00) does not beat middle (20.00)" for row in "AB"]
    assert verdict(e, pair_of(15, 15)).why == "; ".join(both)


def test_gates_stand_before_the_rows_that_they_name_at_their_sizes() -> None:
    for gate, expected in (
        (Gate("constant", 20, rows=["A"]), "holds"),
        (Gate("constant", 20, rows=["B"]), "not tested here"),
        (Gate("constant", 90, only=["paper"]), "holds"),
        (Gate("constant", 90, only=["cpu"]), "not tested here"),
    ):
        assert verdict(experiment(NO_WORSE, gates={"gate": gate}), pair_of(25, 10)).verdict == expected


def test_of_several_columns_a_model_may_beat_the_gate_in_one() -> None:
    e = experiment(NO_WORSE, columns=("x", "y"), gates=CHANCE)
    at_chance = {"x": [0.8, 0.8, 0.8], "y": [0.7, 0.8, 0.9]}
    table = {"A": {**at_chance, "x": [0.9] * 3}, "B": {**at_chance, "y": [5.0, 6.0, 7.0]}}
    assert verdict(e, table).verdict == "holds"
    assert verdict(e, {**table, "B": at_chance}).verdict == "not tested here"


def test_that_one_of_several_columns_suffices_is_paid_for_in_the_level() -> None:
    # Above 0.85: 1.45, 2.45, 3.75, t = 3.82 at 2 degrees of freedom, p = 0.031.
    values = [0.8 + d for d in (1.5, 2.5, 3.8)]
    e = experiment(NO_WORSE, columns=("x",), gates=CHANCE)
    assert verdict(e, {"A": {"x": values}, "B": {"x": [50.0] * 3}}).verdict == "contradicted"
    e = experiment(NO_WORSE, columns=("x", "y"), gates=CHANCE)
    both = {"A": {"x": values, "y": [0.1] * 3}, "B": {"x": [50.0] * 3, "y": [50.0] * 3}}
    assert verdict(e, both).verdict == "not tested here"


def test_a_level_that_is_to_be_reached_stands_before_other_columns() -> None:
    gate = Gate("at least", 99, columns=["as trained"], guards=["longer"])
    e = experiment(
        'cell["A", "longer"] > cell["B", "longer"]', columns=("longer", "as trained"), gates={"learned": gate}
    )
    solved, not_solved = {"as trained": [99.0, 99.0, 99.0]}, {"as trained": [97.0, 99.0, 99.2]}
    longer_a, longer_b = {"longer": [50.0, 51.0, 52.0]}, {"longer": [10.0, 11.0, 12.5]}
    assert verdict(e, {"A": {**longer_a, **solved}, "B": {**longer_b, **solved}}).verdict == "holds"
    found = verdict(e, {"A": {**longer_a, **not_solved}, "B": {**longer_b, **solved}})
    assert (found.verdict, found.why) == ("not tested here", "A, as trained (98.40) is not at least 99.00 (learned)")
    named = replace(e, columns={**e.columns, "as trained": replace(e.columns["as trained"], label="lengths trained")})
    found = verdict(named, {"A": {**longer_a, **not_solved}, "B": {**longer_b, **solved}})
    assert found.why == "A, lengths trained (98.40) is not at least 99.00 (learned)"
    e = experiment(
        'cell["A", "as trained"] >= 95', "at least", columns=("longer", "as trained"), gates={"learned": gate}
    )
    assert verdict(e, {"A": {**longer_a, **not_solved}}).verdict == "holds"


def test_a_computed_gate_is_read_from_its_record_in_the_metric_of_the_cell() -> None:
    e = experiment(NO_WORSE, gates={"bigram": Gate("ngram", order=2)})
    table = pair_of(40, 31)
    assert (verdict(e, table).verdict, verdict(e, table).why) == ("not run", "no record of the gate 'bigram'")
    for bar, expected in ((20.0, "holds"), (35.0, "not tested here")):
        gate = replace(record("bigram", 0, {}), metrics={"": {"accuracy": bar, "loss": 99.0}})
        assert judge(e, [*records(table), gate], "cpu")[0].verdict == expected


def test_a_gate_that_says_nothing_of_what_models_are_measured_by_is_not_passed_unseen() -> None:
    e = experiment(NO_WORSE, gates={"bigram": Gate("ngram", order=2)})
    gate = replace(record("bigram", 0, {}), metrics={"": {"bits_per_dim": 2.0}})
    (found,) = judge(e, [*records(pair_of(40, 31)), gate], "cpu")
    assert (found.verdict, found.why) == ("not run", "the gate 'bigram' says nothing of what A is measured by")


def test_what_is_exact_has_no_gate_before_it() -> None:
    e = experiment('cell["A", "x"] >= cell["B", "x"]', "exact", gates=CHANCE)
    assert verdict(e, pair_of(0.5, 0.5)).verdict == "holds"


def pair_of(a: float, b: float) -> Table:
    return {"A": {"x": [a] * 3}, "B": {"x": [b] * 3}}


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
    found = judge(e, [record(row, s, {}, curve=curves[row]) for row in "AB" for s in range(3)], "cpu")
    assert [v.verdict for v in found] == ["holds", "contradicted", "not tested here"]
    assert found[0].comparisons[0].interval is None


def test_where_only_some_seeds_reach_a_level_there_is_no_mean_to_test() -> None:
    e = experiment(A_OVER_B)
    found = verdict(e, {"A": {"x": [None, 2.0, 2.0]}, "B": {"x": [1.0, 1.0, 1.0]}})
    assert (found.verdict, found.comparisons[0].p) == ("undecided", None)


@pytest.mark.parametrize(("symbol", "expected"), [("<=", "contradicted"), ("==", "contradicted"), (">=", "holds")])
def test_a_level_never_reached_is_beyond_every_margin(symbol: str, expected: str) -> None:
    e = experiment(f'cell["A", "x"] {symbol} cell["B", "x"]', "as good as", margin=100.0)
    never = {"A": {"x": [None, None, None]}, "B": {"x": [1.0, 2.0, 3.0]}}
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


def test_a_claim_is_judged_at_the_sizes_it_names() -> None:
    both = experiment('cell["A", "x"] > cell["B", "x"]')
    there = replace(both.claims[0], only=["cpu"])
    elsewhere = replace(both.claims[0], says="that is so", only=["gpu", "paper"])
    e = replace(both, claims=[elsewhere, there])
    table = {"A": {"x": [5.0, 6.0, 7.1]}, "B": {"x": [1.0, 2.0, 3.0]}}
    assert [(v.says, v.verdict) for v in judge(e, records(table), "cpu")] == [("it is so", "holds")]
    assert e.claims_at("gpu") == [elsewhere]
    assert e.claims_at("smoke") == []
