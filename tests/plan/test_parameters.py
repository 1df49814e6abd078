"""The parameters that a plan counts are those of the built model and of the papers' shapes, part by part."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.data import dataset as data_sets
from efftx.layers.settings import CONTROLLERS
from efftx.models.build import ATTENTION, build_model, build_on_meta
from efftx.plan import parameters_by_component, plan
from efftx.plan.stacks import stacks
from efftx.plan.table import print_plan

CPU = torch.device("cpu")


def _smoke(*overrides: str) -> Config:
    return compose(["data=stdlib", "size=smoke", *overrides])


def _vocab_size(config: Config) -> int:
    return data_sets.find_source(config.data.name).vocab_size(config.data, config.objective)


def test_components_add_up_to_the_parameters_of_the_model() -> None:
    for overrides in (
        ["model=reformer"],
        ["model=transformer", "tie_embeddings=true"],
        ["model=scaling", "sparse_loss.S=4"],
        ["model=terraformer", "reversible.encoder=merged", "positions.kind=digits"],
    ):
        config = _smoke(*overrides)
        planned = plan(config)
        model = build_model(config, _vocab_size(config), CPU)
        assert planned["parameters"] == sum(p.numel() for p in model.parameters())
        assert planned["parameters"] == sum(planned["parameters_by_component"].values())


def test_the_papers_size_has_the_parameters_of_its_shapes_and_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, roots: Any
) -> None:
    def refuse(config: Any) -> None:
        raise AssertionError("a plan opened the data")

    monkeypatch.setattr(data_sets, "open_dataset", refuse)

    planned = plan(compose(["model=reformer", "data=enwik8", "size=paper"]), device="v100")

    d, f, width, vocab = 1024, 4096, 8 * 64, 256
    assert planned["parameters_by_component"] == {
        "embedding": vocab * d,
        "positions": 128 * 256 + 512 * 768,
        "attention": 3 * 3 * d * width,
        "feedforward": 3 * (2 * d * f + f + d),
        "norms": 3 * 2 * 2 * d + 2 * 2 * d,
        "head": 2 * d * vocab + vocab,
    }
    assert planned["tokens"] == 60_000 * 8 * 65_536
    memory = planned["memory_bytes"]
    assert memory["activations"] == memory["activations_with_reversible"] < memory["activations_without_reversible"]
    assert memory["replay_state"] > 3 * 8 * 8 * 2 * 65_536 * 8
    assert list(roots.iterdir()) == []


PAPER_SCALING = ["model=scaling", "data=stdlib", "size=paper"]
SPARSE_QKV = 16 * 1024 + 1024 * 64 + 2 * 9 * 64 * 64 + 3 * 64 * 64 + 1024 + 3 * 64
"""The shared multiplicative layer, two kernels 3 x 3 and one 3 x 1 of 64 x 64, and their biases."""


def _controller(d_ff: int) -> int:
    """Two factors of rank d_ff / 64 and a bias, at d_model 1024."""
    rank = d_ff // 64
    return 1024 * rank + rank * d_ff + d_ff


def test_the_parts_of_an_encoder_decoder_are_told_apart() -> None:
    config = compose(PAPER_SCALING)
    planned = plan(config, device="v100")
    d, f, vocab = 1024, 6144, _vocab_size(config)
    assert planned["parameters_by_component"] == {
        "embedding": vocab * d,
        "encoder_positions": 512 * d,
        "positions": 256 * d,
        "norms": 2 * d * (24 * 2 + 1 + 24 * 3 + 1),
        "encoder_attention": 24 * SPARSE_QKV,
        "encoder_feedforward": 24 * (2 * d * f + d),
        "encoder_feedforward_controller": 24 * _controller(f),
        "attention": 24 * SPARSE_QKV,
        "cross_attention": 24 * (4 * d * d + 4 * d),
        "feedforward": 24 * (2 * d * f + d),
        "feedforward_controller": 24 * _controller(f),
        "head": d * vocab + vocab,
    }
    assert planned["tokens"] == 524_288 * 32 * (512 + 256)
    assert planned["flops_per_token_by_component"]["head"] == pytest.approx(256 / 768 * 2 * d * vocab)


def test_the_dense_800m_model_has_the_papers_weights() -> None:
    config = compose(["model=scaling", "data=c4", "size=paper", "sparse_ff.N=0", "sparse_qkv.S=0"])
    model = build_on_meta(config, 32_000)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and "positions" not in n)
    assert weights == 770_179_072
    assert plan(config)["parameters_dense"] is None


def test_the_authors_sparse_models_are_larger_than_the_dense_one() -> None:
    d, f, wide, n_blocks = 1024, 4096, 6144, 2 * 24
    saved_by_qkv = n_blocks * (4 * d * d + 4 * d - SPARSE_QKV)
    bought = n_blocks * 2 * d * (wide - f)
    dense = plan(compose([*PAPER_SCALING, "sparse_ff.N=0", "sparse_qkv.S=0"]))["parameters"]

    def larger_by(*overrides: str) -> int:
        planned = plan(compose([*PAPER_SCALING, *overrides]))
        assert planned["parameters_dense"] == dense
        return int(planned["parameters"] - dense)

    assert larger_by("sparse_ff.N=0") == bought - saved_by_qkv + n_blocks * (wide - f)
    assert larger_by("sparse_qkv.S=0") == n_blocks * (_controller(f) - f)
    assert larger_by() == bought - saved_by_qkv + n_blocks * (_controller(wide) - f)


def test_the_dense_model_beside_a_sparse_one_is_another_model_and_stands_below_the_fraction() -> None:
    planned = plan(compose([*PAPER_SCALING, "sparse_ff.N=0"]), device="v100")
    dense, own = planned["parameters_dense"], planned["parameters"]
    assert (own, dense) == (714_976_615, 706_955_623)
    out = io.StringIO()
    print_plan(planned, Console(file=out, width=120))
    assert f"{own:,} parameters, +1.1% beside the dense model's {dense:,}" in out.getvalue()
    assert plan(compose([*PAPER_SCALING, "sparse_ff.N=0", "sparse_qkv.S=0"]))["parameters"] == dense


def test_a_controller_that_is_not_trained_is_counted_apart_and_one_that_is_not_there_not_at_all() -> None:
    words = [*PAPER_SCALING, "stack=decoder", "objective=lm", "data=stdlib"]
    plans = {kind: plan(compose([*words, f"sparse_ff.controller={kind}"])) for kind in CONTROLLERS}
    controller = 24 * _controller(6144)
    trained, apart = "feedforward_controller", "feedforward_controller_frozen"
    for kind, planned in plans.items():
        parts = planned["parameters_by_component"]
        assert parts.get(trained, 0) == (controller if kind == "learned" else 0), kind
        assert parts.get(apart, 0) == (controller if kind == "frozen" else 0), kind
        by_part = planned["flops_per_token_by_component"]
        assert ("feedforward_controller" in by_part) == (kind in ("learned", "frozen"))
        held = planned["memory_bytes"]
        frozen = 4 * controller if kind == "frozen" else 0
        assert held["parameters"] - held["gradients"] == frozen
    without = plans["learned"]["parameters"] - controller
    assert plans["oracle"]["parameters"] == plans["token"]["parameters"] == without
    paper = plan(compose([*words, "sparse_ff.form=paper"]))
    assert paper["parameters"] - plans["learned"]["parameters"] == 24 * 6144


def test_terraformers_attention_runs_over_inputs_and_targets_joined() -> None:
    config = compose(["model=terraformer", "data=stdlib", "size=paper"])
    vocab_size = data_sets.find_source("stdlib").vocab_size(config.data, config.objective)
    encoder, decoder = stacks(build_on_meta(config, vocab_size), config)
    assert (encoder.rows.length, decoder.rows.length) == (512, 512 + 256)
    assert [len(block) for block in decoder.blocks] == [3] * 24  # two of attention, and the feed-forward
    assert not any("hashing" in cost.work for stack in (encoder, decoder) for block in stack.blocks for cost in block)
    longer = compose(["model=terraformer", "data=stdlib", "size=paper", "data.length=1024"])
    hashed = ["hashing" in stack.blocks[0][0].work for stack in stacks(build_on_meta(longer, vocab_size), longer)]
    assert hashed == [False, True]
    parts = plan(config)["parameters_by_component"]
    assert {"sru", "encoder_sru", "attention_2", "feedforward_controller"} < set(parts)
    assert parts["sru"] == 24 * (2 * 1024 * 32 + 32 + 1024 + 3 * 32 * 32 + 3 * 32)


@pytest.mark.parametrize("name", ["duplicate", "stdlib"])
def test_a_source_knows_its_vocabulary_without_being_opened(name: str) -> None:
    config = compose([f"data={name}", "model=transformer", "size=smoke"]).data
    assert data_sets.find_source(name).vocab_size(config) == data_sets.open_dataset(config).vocab_size


def test_a_new_kind_of_attention_has_its_weights_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mean(nn.Module):
        def __init__(self, d_model: int) -> None:
            super().__init__()
            self.mix = nn.Linear(d_model, d_model, bias=False)

    monkeypatch.setitem(ATTENTION, "local", lambda config, causal, index: Mean(config.d_model))
    config = _smoke("model=transformer", "attention=[full,local]", "n_layers=4")
    found = parameters_by_component(build_on_meta(config, 23))
    assert found["local"] == 2 * config.d_model**2
    assert found["attention"] == 2 * 4 * config.d_model**2
    assert sum(found.values()) == sum(p.numel() for p in build_on_meta(config, 23).parameters())
