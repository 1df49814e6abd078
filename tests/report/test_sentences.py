from __future__ import annotations

from dataclasses import replace

import pytest

from efftx.report.sentences import why
from efftx.reproduce.claims import judge
from efftx.reproduce.experiment import Cell, Claim, ColumnSpec, Experiment, Row
from efftx.reproduce.records import Record

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


def test_a_verdict_is_one_sentence_with_spread_interval_seeds_and_p() -> None:
    # D = -15.5, -14.6, -14.9: mean -15.0, std 0.4583; 4.3027 * 0.4583 / sqrt(3) = 1.1384; t = 56.7.
    told = sentence("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]')
    assert told == (
        "column LSH-1: LSH-4 (74.3 ± 0.3) is 15.0 points below LSH-1 (89.3 ± 0.2), 95 % interval 13.9 to 16.1, "
        "3 seeds, one-sided p = 0.00016"
    )


def test_sides_of_one_row_are_called_by_their_columns() -> None:
    told = sentence("better", 'cell["LSH-1", "LSH-4"] > cell["LSH-1", "LSH-1"]')
    assert told.startswith(
        "row LSH-1: LSH-4 (99.0 ± 0.0) is 9.70 points above LSH-1 (89.3 ± 0.2), 95 % interval 9.20 to 10.20"
    )


def test_a_constant_and_a_product_are_written_as_they_stand() -> None:
    told = sentence("at least", '2 * cell["LSH-1", "LSH-1"] >= 178')
    assert told.startswith("2 × LSH-1, LSH-1 (178.6 ± 0.4) is 0.60 points above 178, 95 % interval -0.39 to 1.59")


def test_a_margin_stands_in_the_unit_of_the_difference() -> None:
    told = sentence("as good as", 'cell["LSH-4", "LSH-4"] >= cell["LSH-1", "LSH-4"]', 0.5)
    assert "margin 0.5 points, 3 seeds" in told
    assert "margin 1 point, 3 seeds" in sentence("as good as", 'cell["LSH-4", "LSH-4"] >= cell["LSH-1", "LSH-4"]', 1)


def test_several_comparisons_are_counted_and_the_closest_is_told() -> None:
    told = sentence("better", 'cell["LSH-4", column] > cell["LSH-1", column]')
    assert told.startswith("of 2 comparisons 1 holds, 1 is contradicted; column LSH-1: LSH-4 (74.3")
    told = sentence("at least", "cell[row, column] > 50")
    assert told.startswith("of 4 comparisons 4 hold; the closest: LSH-4, LSH-1 (74.3 ± 0.3) is 24.30 points above 50")
    assert told.endswith("(Holm over 4)")


def test_what_is_undecided_says_how_many_seeds_would_decide_it() -> None:
    # Half a standard deviation above: 27 seeds.
    told = sentence("at least", 'cell["LSH-1", "LSH-1"] > 89.2')
    assert told.endswith("; about 27 seeds would decide it (80 % power at this difference and spread)")


def test_too_few_seeds_are_named() -> None:
    told = sentence("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]', n=2)
    assert told.endswith("2 seeds; too few seeds, a verdict needs 3")
    told = sentence("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]', n=1)
    assert (
        told == "column LSH-1: LSH-4 (74.0) is 15.5 points below LSH-1 (89.5), 1 seed; too few seeds, a verdict needs 3"
    )


def test_equal_values_are_called_equal() -> None:
    told = sentence("at least", 'cell["LSH-1", "LSH-4"] > 99')
    assert told == "LSH-1, LSH-4 (99.0 ± 0.0) is equal to 99, 3 seeds, one-sided p = 0.5; equal in every seed"


@pytest.mark.parametrize(("unit", "told"), [("nats/token", " nats/token below"), ("x", "0 below"), ("", "0 below")])
def test_the_unit_is_the_cells(unit: str, told: str) -> None:
    cell = Cell("accuracy", unit, "higher", "{:.1f}")
    assert told in sentence("better", 'cell["LSH-4", "LSH-1"] > cell["LSH-1", "LSH-1"]', cell=cell)


def test_a_ratio_has_no_unit() -> None:
    assert "points" not in sentence("at least", 'cell["LSH-1", "LSH-4"] / cell["LSH-1", "LSH-1"] > 1')


def test_what_is_exact_has_no_interval_and_no_p() -> None:
    told = sentence("exact", 'cell["LSH-1", "LSH-4"] >= 98')
    assert told == "LSH-1, LSH-4 (99.0 ± 0.0) is 1 point above 98, 3 seeds, exact"
