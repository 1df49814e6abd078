"""What a claim says: free names, conditions, arithmetic, and the sizes whose records are evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from efftx.study.claims import judge
from efftx.study.published import Published
from tests.study.claimed import A_OVER_B, experiment, records, verdict

from ..reproduce.fakes import record


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
        ('mean(cell["A", "x"], 8, 2) > 4.9 and mean(cell["A", "x"], 8, 2) < 5.1', "holds"),
        ('cell["A", "x"] > published["A", "x"]', "contradicted"),
    ],
)
def test_arithmetic_and_conditions(text: str, expected: str) -> None:
    published = Published("verified", {"A": {"x": 6.0}})
    e = experiment(text, "at least", published=published)
    assert verdict(e, {"A": {"x": [5.0, 5.0, 5.0]}}).verdict == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('mean(cell["A", "x"], cell["B", "x"]) > 0', "the mean of A and B (x)"),
        ('max(cell["A", "x"], cell["B", "x"], 3) > 0', "the largest of A, x, B, x and 3"),
        ('min(cell["A", "x"]) > 0', "the smallest of A (x)"),
        ('abs(cell["A", "x"] - cell["B", "x"]) > 0', "the distance of A, x from B, x"),
        ('abs(cell["A", "x"]) > 0', "the size of A, x"),
    ],
)
def test_what_a_function_gives_is_said_in_words(text: str, words: str) -> None:
    table = {"A": {"x": [5.0, 6.0, 7.1]}, "B": {"x": [1.0, 2.0, 3.0]}}
    (comparison,) = verdict(experiment(text, "at least"), table).comparisons
    assert comparison.left.words == words


def test_a_claim_is_judged_at_the_sizes_it_names() -> None:
    both = experiment('cell["A", "x"] > cell["B", "x"]')
    there = replace(both.claims[0], only=["cpu"])
    elsewhere = replace(both.claims[0], says="that is so", only=["gpu", "paper"])
    e = replace(both, claims=[elsewhere, there])
    table = {"A": {"x": [5.0, 6.0, 7.1]}, "B": {"x": [1.0, 2.0, 3.0]}}
    assert [(v.says, v.verdict) for v in judge(e, records(table), "cpu")] == [("it is so", "holds")]
    assert e.claims_at("gpu") == [elsewhere]
    assert e.claims_at("smoke") == []
