"""The third paper's diagrams are drawn from what the product's own layers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efftx.config.compose import compose
from efftx.config.schema import to_dict
from efftx.layers.sparse_ff import SparseFF, SparseFFConfig
from efftx.ops.sparse_ff import sparse_ff_masked
from efftx.reproduce.measures import measure_named, sparse_ff, training
from efftx.reproduce.measures.multiplicative import multiplicative_layer
from efftx.reproduce.measures.sparse_ff import selected_units
from efftx.reproduce.measures.trained import Trained
from efftx.reproduce.measures.training import shallowest_memory, training_memory
from efftx.study.experiments import load_experiments

EXPERIMENTS = load_experiments()
FIGURE_2, FIGURE_4 = EXPERIMENTS["scaling/figure2"], EXPERIMENTS["scaling/figure4"]
MEMORY = EXPERIMENTS["scaling/terraformer_memory"]
CONVOLUTION = "multiplicative + convolution for QKV, d_model 1024, S 16, F 3"


def test_figure_2_is_drawn_at_smoke_from_a_run_that_another_item_trains() -> None:
    own, other = FIGURE_2.parameters["smoke"]["overrides"], EXPERIMENTS["scaling/figure1"]
    assert to_dict(compose(own)) == to_dict(compose(other.row_overrides("+ Sparse FF", "smoke")))


@pytest.mark.parametrize("e", [FIGURE_2, FIGURE_4, MEMORY], ids=lambda e: e.id)
def test_all_three_can_be_replayed(e: Any) -> None:
    assert measure_named(str(e.measure)).replay is not None


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> SparseFF:
    """3 blocks of 4 units that read six tokens: unit 1 everywhere, but in block 0 the token's number % 4."""
    layer = SparseFF(SparseFFConfig(N=4), d_model=6, d_ff=12).eval()
    torch.manual_seed(0)
    layer.reset_parameters()
    with torch.no_grad():
        layer.c1.zero_().fill_diagonal_(1.0)
        layer.c2.zero_()
        layer.c_bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0]))
        for unit in range(3):
            layer.c2[unit, unit] = 9.0
        layer.c_bias[3] = 1.0
    x_TD = torch.zeros(6, 6)
    for t in range(6):
        if t % 4 < 3:
            x_TD[t, t % 4] = 1.0
    x_TD[:, 3:] = torch.randn(6, 3)
    texts = ["of", " the", " people", ",", " by", " the"]
    monkeypatch.setattr(sparse_ff, "_layer_and_inputs", lambda *_: (layer, x_TD, texts))
    monkeypatch.setattr(sparse_ff, "configured", lambda *_: None)
    monkeypatch.setattr(sparse_ff, "trained_model", lambda _: Trained(None, None, {"loss": 1.5}))  # type: ignore[arg-type]
    return layer


def test_selections_are_counted_token_by_token(by_hand: SparseFF) -> None:
    given = {"overrides": [], "sentence": "of the people, by the", "columns": {"": {}}}
    found = selected_units(given, 0, "row", {"layer": 0})
    choices = np.array(found["series"]["choices"]).reshape(6, 3)
    assert choices.tolist() == [[t % 4, 1, 1] for t in range(6)]
    metrics = found["metrics"][""]
    assert metrics["loss"] == 1.5, "the model's own beside what its layer selects"
    assert metrics["rows_read"] == 25.0
    assert (metrics["tokens"], metrics["distinct_selections"], metrics["changed_outputs"]) == (6, 4, 0)
    assert metrics["kept_choices"] == pytest.approx(100 * 2 / 3), "of every three blocks the first changes"
    # rank 12 / 4 = 3: c1 3 x 6, c2 12 x 3, c_bias 12, b2 6 are read whole; of W1 and W2 3 rows of 12.
    whole = 18 + 36 + 12 + 6
    assert metrics["weights_read"] == pytest.approx(100 * (2 * 3 * 6 + whole) / (2 * 12 * 6 + whole))
    assert "".join(chr(int(letter)) for letter in found["series"]["text"]) == "of the people, by the"
    assert found["series"]["text_ends"] == [2.0, 6.0, 13.0, 14.0, 17.0, 21.0]


def test_a_layer_that_reads_every_row_is_found_out(by_hand: SparseFF, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_ff, "sparse_ff_selected", sparse_ff_masked)
    given = {"overrides": [], "sentence": "", "columns": {"": {}}}
    assert selected_units(given, 0, "row", {"layer": 0})["metrics"][""]["changed_outputs"] == 6


@pytest.mark.parametrize(("d_model", "S"), [(16, 4), (24, 3), (64, 64), (8, 1)])
def test_the_multiplicative_layer_is_any_permutation(d_model: int, S: int) -> None:
    given, own = {"draws": 3, "columns": {"": {}}}, {"d_model": d_model, "S": S}
    metrics = multiplicative_layer(given, 0, "row", own)["metrics"][""]
    assert metrics["deviation"] == 0.0
    assert metrics["weights"] == d_model * (S + d_model // S)
    assert metrics["inside_blocks"] == (100.0 if S == 1 else pytest.approx(100 / S, abs=20))


def test_the_drawn_gate_times_projection_is_the_drawn_permutation() -> None:
    given, own = {"draws": 1, "columns": {"": {}}}, {"d_model": 12, "S": 3, "draw": True}
    series = multiplicative_layer(given, 1, "row", own)["series"]
    gate, place = np.array(series["gate"]).reshape(3, 12), np.array(series["projection"]).reshape(12, 4)
    matrix = np.array(series["matrix"]).reshape(12, 12)
    assert np.array_equal(np.einsum("si,im->ism", gate, place).reshape(12, 12), matrix)
    assert matrix.sum(0).tolist() == matrix.sum(1).tolist() == [1.0] * 12
    assert set(matrix.flatten()) == {0.0, 1.0}


def test_multiplicative_and_convolution_cost_what_the_paper_s_sizes_say() -> None:
    metrics = multiplicative_layer({"columns": {"": {}}}, 0, "row", FIGURE_4.rows[CONVOLUTION].parameters)["metrics"][
        ""
    ]
    assert metrics == {"weights": 168_128, "weights_and_bias": 169_152, "dense_weights": 4_194_304}


def test_the_same_seed_gives_the_same_numbers_again() -> None:
    own = {"d_model": 16, "S": 4}
    again = measure_named("multiplicative_layer").replay
    assert again is not None
    assert again({"draws": 2}, 3, "row", own) == again({"draws": 2}, 3, "row", own)


def test_memory_is_read_at_every_depth_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(parameters: Any, own: Any, seed: int, depth: int, length: int) -> tuple[float, float]:
        return (1e6 if own["reversible"] else 1e6 * depth) * (length / 10) ** 1.5, 1e5 * depth

    monkeypatch.setattr(training, "_peak", peak)
    columns = {"deep": {"depth": 4}, "long": {"length": 20}, "all": {}}
    small = ["model=transformer", "data=duplicate", "size=smoke", "training.batch_size=2", "d_model=32"]
    given = {
        "depths": [1, 4],
        "at_length": 10,
        "lengths": [10, 20],
        "at_depth": 2,
        "columns": columns,
        "overrides": small,
    }
    flat, grows = (training_memory(given, 0, "row", {"reversible": kind}) for kind in (True, False))
    assert flat["metrics"]["all"]["tensors_a_layer"] == 0.0
    assert grows["metrics"]["all"]["tensors_a_layer"] == pytest.approx(1e6 / (4 * 2 * 10 * 32))
    assert flat["metrics"]["all"]["depth_ratio"] == 1.0
    assert grows["metrics"]["all"]["depth_ratio"] == 4.0
    assert grows["metrics"]["deep"]["megabytes"] == pytest.approx(4.0)
    assert grows["metrics"]["long"]["megabytes"] == pytest.approx(2 * 2**1.5)
    assert grows["metrics"]["long"]["length_exponent"] == pytest.approx(1.5)
    assert flat["metrics"]["all"]["replay_share"] == pytest.approx(40.0)
    series = {name: pytest.approx(values) for name, values in grows["series"].items()}
    assert series == {
        "depth": [1.0, 4.0],
        "megabytes": [1.0, 4.0],
        "replay_megabytes": [0.1, 0.4],
        "length": [10.0, 20.0],
        "megabytes_by_length": [2.0, 2 * 2**1.5],
    }


def test_a_terraformer_of_twice_the_depth_is_measured() -> None:
    parameters, rows = {**MEMORY.parameters["smoke"], "columns": {"": {}}}, MEMORY.rows
    found = {row: training_memory(parameters, 0, row, rows[row].parameters) for row in rows}
    ratio = {row: found[row]["metrics"][""]["depth_ratio"] for row in rows}
    assert ratio["reversible"] < ratio["ordinary"]
    first = found["reversible"]["series"]
    again = shallowest_memory(parameters, 0, "reversible", rows["reversible"].parameters)
    assert [number / 1e6 for number in again] == [first["megabytes"][0], first["replay_megabytes"][0]]


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["encoder_decoder", "decoder"])
def test_figure_2_from_training_to_series_at_smoke(stack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFTX_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EFFTX_DATA", str(tmp_path / "data"))
    smoke = FIGURE_2.parameters["smoke"]
    given = {**smoke, "overrides": [*smoke["overrides"], f"stack={stack}"], "columns": {"": {}}}
    found = selected_units(given, 0, "row", {"layer": 0})
    assert found["metrics"][""]["rows_read"] == 25.0
    assert found["metrics"][""]["changed_outputs"] == 0
    text = "".join(chr(int(letter)) for letter in found["series"]["text"])
    assert smoke["sentence"].startswith(text)
    assert len(text) == found["metrics"][""]["tokens"] == (64 if stack == "encoder_decoder" else 63)
    # A token's selection is its own: cut one token earlier, the others' of a causal first layer are the same.
    if stack == "decoder":
        shorter = selected_units({**given, "sentence": text[:-1]}, 0, "row", {"layer": 0})["series"]["choices"]
        assert shorter == found["series"]["choices"][: len(shorter)]
        other = selected_units({**given, "sentence": text[:-1] + "#"}, 0, "row", {"layer": 0})["series"]["choices"]
        assert other[: len(shorter)] == shorter
        assert other[len(shorter) :] != found["series"]["choices"][len(shorter) :]
