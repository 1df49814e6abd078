from __future__ import annotations

from dataclasses import replace

import pytest

from efftx.report.sentences import details, formula, how_tested, why
from efftx.report.units import Scale
from efftx.study.claims import judge
from efftx.study.experiment import Cell, Claim, ColumnSpec, Experiment, Row
from efftx.study.published import Published
from efftx.study.records import Record

from .conftest import make_experiment, make_record

VALUES = {
    ("LSH-4", "LSH-1"): (74.0, 74.5, 74.4),
    ("LSH-1", "LSH-1"): (89.5, 89.1, 89.3),
    ("LSH-1", "LSH-4"): (99.0, 99.0, 99.0),
    ("LSH-4", "LSH-4"): (100.0, 99.9, 99.8),
}


def experiment(claim: Claim, **changes: object) -> Experiment:
    columns = {"LSH-1": ColumnSpec(), "LSH-4": ColumnSpec()}
    rows = {"LSH-4": Row(), "LSH-1": Row()}
    return make_experiment(rows=rows, columns=columns, claims=[claim], published=None, gates={}, **changes)


def records(n: int = 3) -> list[Record]:
    found = []
    for row in ("LSH-4", "LSH-1"):
        for seed in range(n):
            metrics = {c: {"accuracy": values[seed]} for (r, c), values in VALUES.items() if r == row}
            found.append(replace(make_record("LSH", seed), row=row, metrics=metrics))
    return found


def sentence(kind: str, holds_if: str, margin: float | None = None, n: int = 3, **changes: object) -> str:
    e = experiment(Claim("so", kind, holds_if, "", margin), **changes)
    (verdict,) = judge(e, records(n), "cpu")
    return why(verdict, e)


def at_length(kind: str, holds_if: str, margin: float | None = None) -> list[str]:
    e = experiment(Claim("so", kind, holds_if, "", margin))
    (verdict,) = judge(e, records(), "cpu")
    return details(verdict, e)


def test_a_verdict_is_one_sentence_with_difference_interval_and_seeds() -> None:
    # D = -15.5, -14.6, -14.9: mean -15.0, std 0.4583; 2.9200 * 0.4583 / sqrt(3) = 0.7726; t = 56.7.
    claim = ("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]')
    assert sentence(*claim) == "LSH-4 is 15.00 points below LSH-1 (LSH-1), 90 % interval 14.23 to 15.77, 3 seeds"
    assert at_length(*claim) == [
        "LSH-1: LSH-4 (74.3 ± 0.3) is 15.00 points below LSH-1 (89.3 ± 0.2), 90 % interval 14.23 to 15.77, "
        "3 seeds, one-sided p of the opposite = 0.00016"
    ]


def test_rows_go_by_their_labels() -> None:
    e = experiment(Claim("so", "better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]'))
    e = replace(e, rows={"LSH-4": Row(label="LSH, 4 rounds"), "LSH-1": Row()})
    (verdict,) = judge(e, records(), "cpu")
    assert why(verdict, e).startswith("LSH, 4 rounds is 15.00 points below LSH-1 (LSH-1)")


def test_sides_of_one_row_are_called_by_their_columns() -> None:
    told = sentence("better", 'cell["LSH-1", "LSH-4"] > cell["LSH-1", "LSH-1"]')
    assert told.startswith("LSH-4 is 9.70 points above LSH-1 (LSH-1), 90 % interval 9.36 to 10.04")
    (told,) = at_length("better", 'cell["LSH-1", "LSH-4"] > cell["LSH-1", "LSH-1"]')
    assert told.startswith("LSH-1: LSH-4 (99.0 ± 0.0) is 9.70 points above LSH-1 (89.3 ± 0.2), 90 %")


LABELLED = {"LSH-1": ColumnSpec(label="1 round"), "LSH-4": ColumnSpec(label="4 rounds")}


@pytest.mark.parametrize(
    ("kind", "holds_if", "says"),
    [
        ("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]', "LSH-4 is 15.00 points below LSH-1 (1 round),"),
        ("better", 'cell["LSH-1", "LSH-4"] > cell["LSH-1", "LSH-1"]', "4 rounds is 9.70 points above 1 round (LSH-1),"),
        ("at least", 'cell["LSH-1", "LSH-1"] >= 50', "LSH-1 (1 round) is 89.3 ± 0.2, 39.30 points above 50 %,"),
        ("better", '2 * cell["LSH-1", "LSH-1"] > 178', "2 × LSH-1, 1 round is 0.60 points above 178 %,"),
        ("better", 'cell["LSH-1", "none"] > 1', "no record of LSH-1, nothing yet"),
    ],
)
def test_a_column_goes_by_its_name_for_sentences(kind: str, holds_if: str, says: str) -> None:
    e = experiment(Claim("so", kind, holds_if))
    e = replace(e, columns={**LABELLED, "none": ColumnSpec(label="nothing yet")})
    (verdict,) = judge(e, records(), "cpu")
    assert why(verdict, e).startswith(says)


def test_what_is_exactly_what_it_should_be_is_told_once() -> None:
    told = sentence("exact", 'cell["LSH-1", "LSH-4"] == 99')
    assert told == "LSH-4 of LSH-1 is 99.0 ± 0.0, 3 seeds, exact"
    told = sentence("exact", 'cell["LSH-1", "LSH-4"] <= 2 * cell["LSH-1", "LSH-4"] - 99')
    assert told == "LSH-4 of LSH-1 is equal to 2 × LSH-1, LSH-4 - 99, 3 seeds, exact"


def test_a_small_number_of_a_claim_is_written_as_a_power_of_ten() -> None:
    assert " 1×10⁻⁵ %, " in sentence("at least", 'cell["LSH-1", "LSH-1"] >= 0.00001')


def test_a_product_is_written_as_it_stands_and_a_value_against_a_constant_is_told() -> None:
    told = sentence("at least", '2 * cell["LSH-1", "LSH-1"] >= 178')
    assert told.startswith("2 × LSH-1, LSH-1 is 0.60 points above 178 %, 90 % interval -0.07 to 1.27")
    told = sentence("at least", 'cell["LSH-1", "LSH-1"] >= 50')
    assert told == "LSH-1 of LSH-1 is 89.3 ± 0.2, 39.30 points above 50 %, 90 % interval 38.96 to 39.64, 3 seeds"


def test_a_published_value_is_told_as_the_papers() -> None:
    e = experiment(Claim("so", "at least", 'cell["LSH-1", "LSH-1"] >= published["LSH-1", "LSH-1"]'))
    e = replace(e, published=Published("verified", {"LSH-1": {"LSH-1": 77.9}}))
    (verdict,) = judge(e, records(), "cpu")
    assert why(verdict, e).startswith("LSH-1 of LSH-1 is 89.3 ± 0.2, 11.40 points above the paper's 77.9, 90 %")


def test_a_margin_stands_in_the_unit_of_the_difference() -> None:
    told = sentence("as good as", 'cell["LSH-4", "LSH-4"] >= cell["LSH-1", "LSH-4"]', 0.5)
    assert "margin 0.5 points, 3 seeds" in told
    assert "margin 1 point, 3 seeds" in sentence("as good as", 'cell["LSH-4", "LSH-4"] >= cell["LSH-1", "LSH-4"]', 1)


def test_several_comparisons_are_counted_and_the_least_sure_is_told() -> None:
    told = sentence("better", 'cell["LSH-4", column] > cell["LSH-1", column]')
    assert told.startswith("of 2 comparisons (2 columns) 1 holds, 1 is contradicted; LSH-4 is 15.00 points below")
    told = sentence("at least", "cell[row, column] > 50")
    assert told.startswith("all 4 comparisons (2 rows, 2 columns) hold; the least sure: LSH-1 of LSH-4 is 74.3 ± 0.3, ")
    told = at_length("at least", "cell[row, column] > 50")
    assert len(told) == 4
    assert all(line.startswith("holds: ") and line.endswith("(Holm over 4)") for line in told)
    told = sentence("at least", 'cell["LSH-4", "LSH-1"] > 50 and cell["LSH-1", "LSH-1"] > 50')
    assert told.startswith("both comparisons hold; the least sure:")


def test_what_is_undecided_says_how_many_seeds_would_decide_it() -> None:
    # Half a standard deviation above: 27 seeds.
    claim = ("at least", 'cell["LSH-1", "LSH-1"] > 89.2')
    assert sentence(*claim).endswith("; about 27 seeds would decide it")
    assert at_length(*claim)[0].endswith("; about 27 seeds would decide it (80 % power at this difference and spread)")


def test_too_few_seeds_are_named() -> None:
    told = sentence("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]', n=2)
    assert told.endswith("2 seeds; too few seeds, a verdict needs 3")
    told = sentence("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]', n=1)
    assert told == "LSH-4 is 15.5 points below LSH-1 (LSH-1), 1 seed; too few seeds, a verdict needs 3"


def test_equal_values_are_called_equal() -> None:
    told = sentence("at least", 'cell["LSH-1", "LSH-4"] > 99')
    assert told == "LSH-4 of LSH-1 is 99.0 ± 0.0, equal to 99 %, 3 seeds; equal in every seed"


def test_a_time_is_told_in_the_unit_of_its_size() -> None:
    seconds = {"cell": Cell("accuracy", "s", "lower", "{:.4f}")}
    e = experiment(Claim("so", "better", 'cell["LSH-4", "LSH-1"] < cell["LSH-1", "LSH-1"]'), **seconds)
    found = [
        replace(r, metrics={c: {"accuracy": v["accuracy"] / 1e5} for c, v in r.metrics.items()}) for r in records()
    ]
    (verdict,) = judge(e, found, "cpu")
    assert why(verdict, e) == "LSH-4 is 150.0 µs below LSH-1 (LSH-1), 90 % interval 142.3 to 157.7, 3 seeds"


def test_a_time_is_told_in_the_unit_of_its_table() -> None:
    seconds = {"cell": Cell("accuracy", "s", "lower", "{:.4f}")}
    e = experiment(Claim("so", "better", 'cell["LSH-4", "LSH-1"] < cell["LSH-1", "LSH-1"]'), **seconds)
    (verdict,) = judge(e, records(), "cpu")
    assert why(verdict, e).startswith("LSH-4 is 15.00 s below")
    in_ms = {e.cell: Scale(replace(e.cell, unit="ms", format="{:,.1f}"), 1000.0)}
    assert why(verdict, e, in_ms).startswith("LSH-4 is 15,000 ms below LSH-1 (LSH-1), 90 % interval 14,227 to 15,773,")
    (told,) = details(verdict, e, in_ms)
    assert told.startswith("LSH-1: LSH-4 (74,300.0 ± 264.6 ms) is 15,000 ms below LSH-1 (89,300.0 ± 200.0 ms), 90 %")

    e = replace(e, claims=[Claim("so", "at least", '2 * cell["LSH-4", "LSH-1"] < 160.5')])
    (verdict,) = judge(e, records(), "cpu")
    (told,) = details(verdict, e, in_ms)
    assert told.startswith("2 × LSH-4, LSH-1 (148,600 ± 530 ms) is 11,900 ms below 160.5")
    assert " ms below 160,500 ms, " in why(verdict, e, in_ms)


def test_the_mean_of_several_sides_has_its_brackets() -> None:
    told = sentence("at least", '(cell["LSH-4", "LSH-1"] + cell["LSH-1", "LSH-1"]) / 2 > 50')
    assert told.startswith("(LSH-4, LSH-1 + LSH-1, LSH-1) / 2 is ")
    told = sentence("at least", 'cell["LSH-4", "LSH-1"] - (cell["LSH-1", "LSH-1"] - 2 * cell["LSH-4", "LSH-1"]) > 50')
    assert told.startswith("LSH-4, LSH-1 - (LSH-1, LSH-1 - 2 × LSH-4, LSH-1) is ")


def test_of_exact_comparisons_the_closest_is_told() -> None:
    assert "hold; the closest: " in sentence("exact", '2 * cell[row, "LSH-1"] > cell[row, "LSH-1"]', n=1)


def test_the_formula_and_the_test_are_told_apart_from_the_sentence() -> None:
    claim = Claim("so", "as good as", "cell[row]\n  >= cell['a']", "row != 'a'", 0.5, "as the paper says")
    assert formula(claim) == "cell[row] >= cell['a'] where row != 'a'"
    assert how_tested(claim) == (
        "as good as: t test that the difference is not beyond the margin, seed paired with seed; margin 0.5 "
        "(as the paper says)"
    )


@pytest.mark.parametrize(("unit", "told"), [("nats/token", " nats/token below"), ("x", "0 below"), ("", "0 below")])
def test_the_unit_is_the_cells(unit: str, told: str) -> None:
    cell = Cell("accuracy", unit, "higher", "{:.1f}")
    assert told in sentence("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]', cell=cell)


def test_a_ratio_has_no_unit() -> None:
    assert "points" not in sentence("at least", 'cell["LSH-1", "LSH-4"] / cell["LSH-1", "LSH-1"] > 1')


def test_what_is_exact_has_no_interval_and_no_p() -> None:
    told = sentence("exact", 'cell["LSH-1", "LSH-4"] >= 98')
    assert told == "LSH-4 of LSH-1 is 99.0 ± 0.0, 1 point above 98 %, 3 seeds, exact"
