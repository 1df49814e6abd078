"""What is counted of the Sparse Transformer's patterns is what the paper's definitions give, position by position."""

from __future__ import annotations

from typing import Any

import pytest

from efftx.reproduce.experiment import load_experiments
from efftx.reproduce.measures import measure_named
from efftx.reproduce.pattern_measures import connectivity

EXPERIMENTS = load_experiments()
FIGURE_3 = EXPERIMENTS["sparse/figure3"]


def by_hand(kind: str, n: int, stride: int, c: int) -> tuple[list[set[int]], list[set[int]]]:
    """The keys of every query in the two factors (Sparse Transformer, section 4.3; a window of l positions)."""
    if kind == "strided":
        first = [{j for j in range(n) if i - stride < j <= i} for i in range(n)]
        return first, [{j for j in range(i + 1) if (i - j) % stride == 0} for i in range(n)]
    first = [{j for j in range(i + 1) if i // stride == j // stride} for i in range(n)]
    return first, [{j for j in range(i + 1) if j % stride >= stride - c} for i in range(n)]


def lost_by_hand(below: list[set[int]], above: list[set[int]]) -> int:
    n = len(below)
    heard = [{j for k in above[i] | {i} for j in below[k] | {k}} for i in range(n)]
    return sum(j not in heard[i] for i in range(n) for j in range(i + 1))


@pytest.mark.parametrize(
    ("kind", "n", "stride", "c"),
    [("strided", 64, 8, 0), ("fixed", 64, 8, 2), ("fixed", 30, 7, 7), ("strided", 30, 7, 0), ("fixed", 5, 4, 1)],
)
def test_keys_and_lost_pairs_are_those_counted_by_hand(kind: str, n: int, stride: int, c: int) -> None:
    own = {"attention": kind, "length": n, "stride": stride, "c": c, "draw": 0}
    found = connectivity({"columns": {"a": {}}}, 0, "row", own)
    metrics, (first, second) = found["metrics"]["a"], by_hand(kind, n, stride, c)
    union = [a | b for a, b in zip(first, second, strict=True)]
    assert [metrics[name] for name in ("keys_first", "keys_second", "keys")] == [
        max(map(len, sets)) for sets in (first, second, union)
    ]
    assert metrics["share"] == pytest.approx(100 * sum(map(len, union)) / (n * (n + 1) / 2))
    orders = {"lost_first_second": (first, second), "lost_second_first": (second, first), "lost_merged": (union, union)}
    assert {name: metrics[name] for name in orders} == {name: lost_by_hand(*two) for name, two in orders.items()}
    code = {(i, j): (j in first[i]) + 2 * (j in second[i]) for i in range(n) for j in range(n)}
    assert found["series"]["connectivity"] == [float(code[i, j]) for i in range(n) for j in range(n)]


def test_at_the_sheet_s_example_strided_loses_nothing_and_fixed_only_with_the_summaries_first() -> None:
    strided, fixed = (
        connectivity({"columns": {"": {}}}, 0, "row", {"attention": kind, "length": 64, "stride": 8, "c": 2})
        for kind in ("strided", "fixed")
    )
    assert strided["metrics"][""]["lost_first_second"] == strided["metrics"][""]["lost_second_first"] == 0
    assert fixed["metrics"][""]["lost_first_second"] == 0
    assert fixed["metrics"][""]["lost_second_first"] > 1000


def test_the_formulas_are_those_of_the_paper_s_sizes() -> None:
    enwik8 = {"attention": "fixed", "length": 12288, "stride": 128, "c": 32, "reach": False}
    found = connectivity({"columns": {"": {}}}, 0, "row", enwik8)["metrics"][""]
    assert found["bound"] == 128 + 32 * 95 == found["keys"]
    assert "lost_merged" not in found
    cifar = {"attention": "strided", "length": 3072, "stride": 96, "reach": False}
    assert connectivity({"columns": {"": {}}}, 0, "row", cifar)["metrics"][""]["bound"] == 96 + 32 - 1


def test_more_than_one_stretch_of_queries_is_counted_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"attention": "strided", "length": 50, "stride": 7}
    whole = connectivity({"columns": {"": {}}}, 0, "row", own)
    monkeypatch.setattr("efftx.reproduce.pattern_measures._QUERIES_AT_ONCE", 16)
    assert connectivity({"columns": {"": {}}}, 0, "row", own) == whole


@pytest.mark.parametrize("row", FIGURE_3.rows_at("smoke"))
def test_figure_3_is_replayed_from_every_number_of_it(row: str) -> None:
    measure, own = measure_named("connectivity"), FIGURE_3.rows[row].parameters
    assert measure.replay is not None
    columns: dict[str, Any] = {"columns": {"a": {}}}
    assert sorted(measure.replay(columns, 0, row, own)) == sorted(
        measure.run(columns, 0, row, own)["metrics"]["a"].values()
    )
