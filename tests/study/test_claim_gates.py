"""A claim about models that have not beaten their gates is not tested."""

from __future__ import annotations

from dataclasses import replace

import pytest

from efftx.study.claims import judge
from efftx.study.gates import Gate
from tests.study.claimed import NO_WORSE, Table, experiment, records, verdict

from ..reproduce.fakes import record

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


def test_a_level_in_a_column_that_a_row_does_not_have_passes_nothing() -> None:
    gate = Gate("at least", 99, columns=["as trained"])
    e = experiment(NO_WORSE, columns=("x", "as trained"), gates={"learned": gate})
    e = replace(e, columns={**e.columns, "as trained": replace(e.columns["as trained"], only=["paper"])})
    found = verdict(e, pair_of(40, 31))
    assert (found.verdict, found.why) == ("not run", "the gate 'learned' says nothing of what A is measured by")


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
