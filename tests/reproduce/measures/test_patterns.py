"""What is counted of the Sparse Transformer's patterns is what the paper's definitions give, position by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from efftx.bench.stacks import attention_of
from efftx.config.compose import compose
from efftx.layers.patterns import ByHead, Softmax
from efftx.machine.timing import Timing
from efftx.reproduce.measures import measure_named
from efftx.reproduce.measures.attention import score_entries, score_memory
from efftx.reproduce.measures.patterns import connectivity
from efftx.reproduce.measures.training import iteration_counts, iteration_time, training_memory
from efftx.study.experiments import load_experiments

EXPERIMENTS = load_experiments()
FIGURE_3, TIME = EXPERIMENTS["sparse/figure3"], EXPERIMENTS["sparse/table2_time"]


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
    monkeypatch.setattr("efftx.reproduce.measures.patterns._QUERIES_AT_ONCE", 16)
    assert connectivity({"columns": {"": {}}}, 0, "row", own) == whole


@pytest.mark.parametrize("row", FIGURE_3.rows_at("smoke"))
def test_figure_3_is_replayed_from_every_number_of_it(row: str) -> None:
    measure, own = measure_named("connectivity"), FIGURE_3.rows[row].parameters
    assert measure.replay is not None
    columns: dict[str, Any] = {"columns": {"a": {}}}
    assert sorted(measure.replay(columns, 0, row, own)) == sorted(
        measure.run(columns, 0, row, own)["metrics"]["a"].values()
    )


def timed_as(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Every call is run once and said to have taken these seconds; gives the names of the calls."""
    called: list[str] = []

    def interleaved(calls: Any, **_: Any) -> dict[str, Timing]:
        for name, call in calls.items():
            call()
            called.append(name)
        return {name: Timing(seconds[name], 0.0) for name in calls}

    monkeypatch.setattr("efftx.reproduce.measures.training.interleaved", interleaved)
    return called


def test_an_iteration_s_speed_up_is_over_the_dense_model_of_the_same_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    called = timed_as(monkeypatch, {"step": 2.0, "other step": 6.0, "attention": 0.5, "other attention": 3.0})
    given = {**TIME.parameters["smoke"], "columns": {"a": {}}}
    metrics = iteration_time(given, 0, "row", TIME.rows["Enwik8 fixed"].parameters)["metrics"]["a"]
    assert called == ["step", "other step", "attention", "other attention"]
    assert (metrics["seconds"], metrics["speedup"]) == (2.0, 3.0)
    assert (metrics["attention_seconds"], metrics["rest_seconds"], metrics["attention_speedup"]) == (0.5, 1.5, 6.0)
    measure = measure_named("iteration_time")
    assert measure.recount is not None
    recorded, again = measure.recount(given, "row", TIME.rows["Enwik8 fixed"].parameters, {"metrics": {"a": metrics}})
    assert recorded == again
    assert recorded[0] > 1


def test_the_dense_row_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    called = timed_as(monkeypatch, {"step": 2.0, "attention": 0.5})
    given = {**TIME.parameters["smoke"], "columns": {"a": {}}}
    metrics = iteration_time(given, 0, "row", TIME.rows["Enwik8 dense"].parameters)["metrics"]["a"]
    assert called == ["step", "attention"]
    assert (metrics["speedup"], metrics["attention_speedup"], metrics["work_speedup"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("row", "length", "scores"),
    [("Enwik8 fixed", 12288, 3.838), ("Enwik8 strided", 12288, 51.28), ("CIFAR-10 strided", 3072, 19.45)],
)
def test_the_rows_are_the_paper_s_contexts_and_widths(row: str, length: int, scores: float) -> None:
    own, given = TIME.rows[row].parameters, TIME.parameters["cpu"]
    config = compose([*given["models"][own["model"]], *own["overrides"]])
    assert config.data.length == length
    assert (config.d_model, config.n_heads) == ((512, 8) if "Enwik8" in row else (256, 2))
    found = iteration_counts(given, row, own, {"metrics": {"": {"score_speedup": 0, "work_speedup": 0}}})[1]
    assert found[0] == pytest.approx(scores, rel=1e-3)


def test_attention_alone_runs_every_layer_s_own_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["model=sparse_transformer", "data=stdlib", "size=smoke", "n_layers=3"])
    seen: list[str] = []
    attend = ByHead.attend

    def noted(self: ByHead, q: Any, k: Any, v: Any, how: Softmax) -> Any:
        assert q.shape == (config.training.batch_size, config.n_heads, config.data.length, 16)
        seen.append(type(self.sets[0]).__name__)
        return attend(self, q, k, v, how)

    monkeypatch.setattr(ByHead, "attend", noted)
    attention_of(config, torch.device("cpu"))()
    assert seen == ["Window", "Column", "Window"]


@pytest.mark.parametrize("length", [5, 64])
def test_a_layer_that_stores_its_scores_keeps_what_is_counted_and_the_fused_kernel_a_sum_a_query(length: int) -> None:
    own = {"length": length, "measured": ["stored", "recomputed", "fused"]}
    given = {"n_layers": 3, "n_heads": 2, "d_head": 16, "columns": {"": {}}}
    found = score_memory(given, 0, "row", own)["metrics"][""]
    assert found["stored"] == 4 * length**2 * 2 * 3 / 1e9 == found["stored_measured"]
    assert found["recomputed"] == found["stored"] / 3
    assert found["recomputed_measured"] >= found["recomputed"]
    assert found["fused_measured"] * 1e9 == pytest.approx(3 * 4 * length * 2)


def test_the_blog_s_memory_table_is_four_bytes_a_score() -> None:
    blog = EXPERIMENTS["sparse/memory"]
    assert blog.published is not None
    for row, spec in blog.rows_at("paper").items():
        counted = score_memory(
            {**blog.parameters["paper"], "columns": {"": {}}}, 0, row, {"length": spec.parameters["length"]}
        )
        for column in ("stored", "recomputed"):
            printed = blog.published.of(row, column)
            assert printed is not None
            assert 0.999 <= counted["metrics"][""][column] / printed <= 1.08


def test_each_further_block_keeps_its_input_when_recomputed_and_nothing_when_reversible() -> None:
    e = EXPERIMENTS["sparse/figure4"]
    given = {**e.parameters["smoke"], "depths": [1, 3], "columns": {"": {}}}
    kept = {
        row: training_memory(given, 0, row, spec.parameters)["metrics"][""]["tensors_a_layer"]
        for row, spec in e.rows.items()
    }
    assert kept["stored"] > 10
    assert kept["recomputed"] == pytest.approx(1.0, abs=0.1)
    assert kept["reversible"] == pytest.approx(0.0, abs=0.05)


def test_a_sparse_layer_s_scores_are_those_of_its_block_form() -> None:
    given = {"batch": 1, "n_heads": 8, "attention": "strided", "stride": 0, "c": 0}
    own, before = 128 * 129 // 2 * 96, 128 * 128 * 95
    column = 128 * (95 * 96 // 2)
    assert score_entries(12288, given) == 8 * (own + before + column)
    assert score_entries(12288, {**given, "attention": "sdpa"}) == 8 * 12288**2
