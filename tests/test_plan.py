"""What a plan says is what the built model has, computes and holds."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from efftx.bench.stacks import model_and_batch, peak_of_step
from efftx.config import Config, compose
from efftx.data import dataset as data_sets
from efftx.errors import UserError
from efftx.layers.patterns import make_pattern
from efftx.layers.settings import CONTROLLERS, FullConfig, LocalConfig, rank_of
from efftx.models.build import ATTENTION, build_model, build_on_meta
from efftx.plan import costs, parameters_by_component, plan, price
from efftx.plan.attention import AttentionShape
from efftx.plan.flops import flops_by_component, training_flops_by_component
from efftx.plan.hardware import DEVICES
from efftx.plan.memory import activation_bytes, optimizer_bytes, replay_bytes
from efftx.plan.stacks import stacks
from efftx.plan.table import print_plan
from efftx.training.optimizers import make_optimizer

CPU = torch.device("cpu")
FLOP_TOLERANCE = {"transformer": 1e-9, "reformer": 0.01, "scaling": 1e-9, "terraformer": 0.01}
"""The same products; hash attention also computes one window of chunks between two sequences that share a run, and
shared queries and keys in the fused kernel one query less."""
MEMORY_TOLERANCE = 0.2
"""The estimate leaves out statistics of norms, integers and other things small beside activations."""
ENCODER_DECODERS = ("model=scaling", "model=terraformer")
KEYS = {"parameters", "parameters_by_component", "flops_per_token", "memory_bytes", "tokens", "hours"}


def _fused(q: Tensor, k: Tensor, v: Tensor, dropout: float, causal: bool) -> float:
    """The fused kernel on a CPU, which PyTorch's table leaves out; a causal one skips what lies later."""
    length = q.shape[2]
    return sdpa_flop_count(q.shape, k.shape, v.shape) * ((length + 1) / (2 * length) if causal else 1.0)


def _fused_forward(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, **_: Any) -> float:
    return _fused(q, k, v, dropout, causal)


def _fused_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dropout: float, causal: bool, **_: Any
) -> float:
    return 2.5 * _fused(q, k, v, dropout, causal)


FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
}


class _CountedFlops(TorchDispatchMode):
    """The FLOPs that PyTorch's own formulas give for every operator that runs, in custom functions too."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        formula = FORMULAS.get(torch.ops.aten.baddbmm if packet is torch.ops.aten.baddbmm_ else packet)
        if formula is not None:
            given = {k: v for k, v in (kwargs or {}).items() if k != "out"}
            self.total += formula(*args, **given, out_val=out)
        return out


def _smoke(*overrides: str) -> Config:
    return compose(["data=stdlib", "size=smoke", *overrides])


def _vocab_size(config: Config) -> int:
    return data_sets.find_source(config.data.name).vocab_size(config.data, config.objective)


def _tokens(config: Config, vocab_size: int = 256) -> Tensor:
    return torch.randint(vocab_size, (config.training.batch_size, config.data.length))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=transformer", "full.query_block=16"],
        ["model=transformer", "full.query_block=24", "share_qk=true", "attention_bias=true"],
        ["model=transformer", "full.query_block=16", "reversible.enabled=true"],
        ["model=transformer", "full.query_block=16", "chunking.ff=16", "chunking.loss=16"],
        ["model=transformer", "full.query_block=16", "reversible.enabled=true", "chunking.ff=16", "chunking.loss=16"],
        ["model=reformer", "reversible.enabled=false", "chunking.ff=0", "chunking.loss=0"],
        ["model=reformer", "lsh.n_hashes=3", "lsh.n_buckets=[4,4]"],
        ["model=reformer", "lsh.n_hashes=1", "data.length=60"],
        ["model=transformer", "full.query_block=16", "recompute.enabled=true"],
        ["model=transformer", "full.query_block=16", "recompute.enabled=true", "chunking.ff=16", "dropout=0.1"],
        ["model=reformer", "reversible.enabled=false", "recompute.enabled=true", "dropout=0.1"],
        ["model=transformer", "attention=[local,full]", "local.chunk_len=16"],
        ["model=transformer", "attention=[local]", "local.window=16"],
        ["model=transformer", "attention=[strided]", "data.length=60", "strided.stride=8"],
        ["model=transformer", "attention=[strided]", "strided.stride=8", "strided.mode=merged", "share_qk=true"],
        ["model=reformer", "attention=[strided,fixed]", "fixed.c=3", "strided.mode=heads"],
        ["model=transformer", "attention=[fixed]", "data.length=60", "fixed.stride=16", "fixed.c=4"],
        ["model=transformer", "attention=[fixed]", "fixed.mode=interleaved", "share_qk=true"],
        ["model=transformer", "attention=[fixed]", "fixed.mode=heads", "fixed.stride=8", "fixed.c=3"],
        ["model=scaling", "attention=[strided]", "strided.mode=merged"],
        ["model=scaling", "attention=[fixed]", "share_qk=true"],
        ["model=transformer", "sparse_qkv.S=4"],
        ["model=transformer", "sparse_qkv.S=4", "sparse_qkv.kernel=paper", "sparse_qkv.output=convolution"],
        ["model=transformer", "sparse_qkv.S=4", "sparse_qkv.concat_input=true", "sparse_qkv.output=dense"],
        [
            "model=transformer",
            "sparse_qkv.S=4",
            "sparse_qkv.variant=multiplicative",
            "sparse_qkv.output=multiplicative",
        ],
        [
            "model=transformer",
            "sparse_qkv.S=4",
            "sparse_qkv.variant=convolution",
            "sparse_qkv.output=multiplicative_convolution",
        ],
        ["model=transformer", "sparse_qkv.S=4", "sparse_qkv.variant=modular"],
        ["model=transformer", "sparse_qkv.S=4", "sparse_qkv.variant=low_rank", "sparse_qkv.rank=3"],
        ["model=reformer", "sparse_qkv.S=4", "sparse_qkv.average_qk=true"],
        ["model=transformer", "sparse_ff.N=4", "sparse_ff.rank=paper", "chunking.ff=16"],
        ["model=transformer", "sparse_ff.N=4", "reversible.enabled=true", "sru.n_layers=2", "sru.d=8"],
        ["model=transformer", "sparse_ff.N=4", "sparse_ff.form=paper"],
        ["model=transformer", "sparse_ff.N=4", "sparse_ff.controller=frozen", "chunking.ff=16"],
        [
            "model=transformer",
            "sparse_ff.N=4",
            "sparse_ff.controller=frozen",
            "sparse_ff.multiply_by_controller=true",
            "reversible.enabled=true",
            "chunking.ff=16",
        ],
        ["model=transformer", "sparse_ff.N=4", "sparse_ff.controller=oracle", "reversible.enabled=true"],
        ["model=transformer", "sparse_ff.N=4", "sparse_ff.controller=token", "chunking.ff=16"],
        ["model=transformer", "sparse_loss.S=4", "chunking.loss=16"],
        ["model=transformer", "sparse_qkv.S=4", "d_ff_rule=equal"],
        ["model=scaling"],
        ["model=scaling", "data.target_length=40", "n_encoder_layers=2", "sparse_qkv.encoder=false"],
        ["model=scaling", "sparse_qkv.cross=query", "reversible.enabled=true", "attention_per_block=2"],
        ["model=scaling", "attention=[local]", "local.chunk_len=16", "share_qk=true"],
        ["model=scaling", "full.query_block=16", "sparse_ff.N=0", "sparse_qkv.S=0"],
        ["model=terraformer", "data.target_length=40"],
        ["model=terraformer", "lsh.full_below=64", "reversible.encoder=merged", "lsh.n_hashes=1"],
        ["model=terraformer", "lsh.full_below=1024", "reversible.enabled=false", "chunking.loss=8"],
    ],
    ids=" ".join,
)
def test_the_planned_flops_are_those_that_pytorch_counts_while_the_model_runs(overrides: list[str]) -> None:
    config = _smoke(*overrides)
    vocab_size = _vocab_size(config)
    model, batch = model_and_batch(config, CPU, vocab_size)
    with torch.no_grad(), _CountedFlops() as forward:
        model(*batch, losses=True)
    with _CountedFlops() as training:
        model(*batch, losses=True)[0].mean().backward()
    n_tokens = sum(tokens.numel() for tokens in batch)

    planned = sum(flops_by_component(config, vocab_size).values()) * n_tokens
    planned_training = sum(training_flops_by_component(config, vocab_size).values()) * n_tokens

    assert planned == pytest.approx(forward.total, rel=FLOP_TOLERANCE[config.model])
    assert planned_training == pytest.approx(training.total, rel=FLOP_TOLERANCE[config.model])


def test_scores_are_counted_as_they_are_computed() -> None:
    def shape(kind: str, **given: Any) -> AttentionShape:
        return AttentionShape(kind, length=128, d_model=64, n_heads=4, d_head=16, **given)

    full = {"pattern": make_pattern("full", FullConfig(), 128)}
    local = {"pattern": make_pattern("local", LocalConfig(16), 128)}

    def blocks(query_block: int) -> dict[str, Any]:
        return {"pattern": make_pattern("full", FullConfig(query_block), 128)}

    assert shape("full", **full).keys == 64.5
    assert shape("full", **blocks(128)).keys == 128
    assert shape("full", **blocks(32)).keys == (32 + 64 + 96 + 128) / 4
    assert shape("full", **blocks(96)).keys == (96 * 96 + 32 * 128) / 128
    assert shape("local", **local).keys == 32
    assert shape("lsh", chunk_len=16, n_hashes=4).keys == 4 * 32
    assert shape("lsh", chunk_len=128, n_hashes=1).keys == 128
    assert shape("full", causal=False, **full).keys == shape("full", causal=False, **blocks(32)).keys == 128
    assert shape("local", causal=False, **local).keys == 48
    assert shape("lsh", chunk_len=16, n_hashes=4, causal=False).keys == 4 * 48
    assert shape("lsh", chunk_len=64, n_hashes=1, causal=False).keys == 128
    assert shape("cross", causal=False, memory_length=40).keys == 40
    assert make_pattern("local", LocalConfig(64), 100).keys(100) == 128 * 1.28


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
    encoder, decoder = stacks(config)
    assert (encoder.length, decoder.length) == (512, 512 + 256)
    assert [len(block) for block in decoder.blocks] == [2] * 24
    assert {shape.kind for stack in (encoder, decoder) for block in stack.blocks for shape in block} == {"full"}
    longer = compose(["model=terraformer", "data=stdlib", "size=paper", "data.length=1024"])
    assert [stack.blocks[0][0].kind for stack in stacks(longer)] == ["full", "lsh"]
    parts = plan(config)["parameters_by_component"]
    assert {"sru", "encoder_sru", "attention_2", "feedforward_controller"} < set(parts)
    assert parts["sru"] == 24 * (2 * 1024 * 32 + 32 + 1024 + 3 * 32 * 32 + 3 * 32)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=transformer"],
        ["model=transformer", "n_layers=5", "dropout=0"],
        ["model=transformer", "share_qk=true", "activation=gelu"],
        ["model=transformer", "full.query_block=64"],
        ["model=transformer", "attention=[local,full]", "local.chunk_len=16", "d_ff=64"],
        ["model=transformer", "reversible.enabled=true"],
        ["model=transformer", "reversible.enabled=true", "reversible.merge=mean", "chunking.ff=32", "chunking.loss=32"],
        ["model=transformer", "chunking.ff=32", "chunking.loss=32", "dropout=0"],
        ["model=reformer", "n_layers=3", "chunking.ff=32"],
        ["model=reformer", "reversible.enabled=false", "lsh.n_hashes=4"],
        ["model=reformer", "attention=[local,lsh]", "lsh.n_hashes=1", "local.chunk_len=32"],
        ["model=transformer", "n_layers=4", "d_ff=64", "sparse_qkv.S=4", "sparse_qkv.concat_input=true"],
        ["model=transformer", "n_layers=4", "d_ff=64", "sparse_qkv.S=4", "sparse_qkv.variant=low_rank"],
        ["model=transformer", "n_layers=4", "d_ff=64", "sparse_qkv.S=4", "sparse_qkv.variant=modular"],
        [
            "model=transformer",
            "n_layers=4",
            "d_ff=64",
            "sparse_qkv.S=4",
            "sparse_qkv.variant=multiplicative",
            "sparse_qkv.output=multiplicative_convolution",
        ],
        ["model=transformer", "n_layers=4", "d_ff=64", "attention=[strided]"],
        ["model=transformer", "n_layers=4", "d_ff=64", "attention=[strided]", "strided.mode=merged", "share_qk=true"],
        ["model=transformer", "n_layers=4", "d_ff=64", "attention=[fixed]"],
        ["model=transformer", "n_layers=4", "d_ff=64", "attention=[fixed]", "fixed.sub_blocks=2"],
        ["model=transformer", "attention=[fixed]", "reversible.enabled=true", "d_ff=64"],
        ["model=scaling", "attention=[strided]", "strided.mode=merged", "n_layers=3", "d_ff=64"],
        ["model=scaling", "attention=[fixed]", "n_layers=3", "d_ff=64"],
        ["model=transformer", "sparse_ff.N=8", "dropout=0", "sparse_ff.multiply_by_controller=true"],
        ["model=transformer", "sparse_ff.N=8", "sparse_ff.form=paper"],
        ["model=transformer", "sparse_ff.N=8", "sparse_ff.controller=frozen"],
        ["model=transformer", "sparse_ff.N=8", "sparse_ff.controller=oracle", "reversible.enabled=true"],
        ["model=transformer", "sparse_ff.N=8", "sparse_ff.controller=token", "reversible.enabled=true"],
        ["model=transformer", "sparse_ff.N=8", "sru.n_layers=2", "sru.d=32", "n_layers=3"],
        ["model=transformer", "sparse_ff.N=8", "chunking.ff=32", "sparse_loss.S=4", "chunking.loss=32"],
        ["model=transformer", "sparse_ff.N=8", "reversible.enabled=true", "d_ff_rule=equal"],
        ["model=scaling", "n_layers=3"],
        ["model=scaling", "n_encoder_layers=3", "sparse_qkv.cross=query", "dropout=0"],
        ["model=scaling", "reversible.enabled=true", "sparse_ff.N=0"],
        ["model=scaling", "attention=[local]", "local.chunk_len=16", "share_qk=true", "n_layers=2"],
        ["model=scaling", "full.query_block=32", "share_qk=true", "d_ff=64"],
        ["model=terraformer"],
        ["model=terraformer", "reversible.enabled=false", "n_layers=2"],
        ["model=terraformer", "lsh.full_below=1024", "chunking.ff=0"],
        ["model=terraformer", "reversible.encoder=merged", "n_layers=3", "chunking.loss=32", "sparse_ff.N=2"],
    ],
    ids=" ".join,
)
def test_planned_activations_are_near_the_measured_peak_of_live_bytes(overrides: list[str]) -> None:
    config = _smoke(
        "data.length=256",
        "d_model=64",
        "d_ff=256",
        "n_heads=2",
        "d_head=32",
        *(
            []
            if overrides[0] in ENCODER_DECODERS
            else ["positions.axial_shape=[16,16]", "positions.axial_dims=[16,48]"]
        ),
        *(["data.target_length=128"] if overrides[0] in ENCODER_DECODERS else []),
        *overrides,
    )

    vocab_size = _vocab_size(config)
    peak, replay = peak_of_step(config, CPU, vocab_size)

    assert activation_bytes(config, vocab_size) == pytest.approx(peak, rel=MEMORY_TOLERANCE)
    assert replay_bytes(config, vocab_size) == replay


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor"])
def test_the_planned_optimiser_state_is_what_the_optimiser_holds_after_a_step(name: str) -> None:
    config = _smoke("model=transformer", f"optimizer.name={name}", *_own_keys(name))
    model = build_model(config, 256, CPU)
    optimizer = make_optimizer(config.optimizer, model.named_parameters())
    model(_tokens(config), losses=True)[0].mean().backward()
    optimizer.step()

    held = sum(
        t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)
    )

    assert optimizer_bytes(name, model.parameters()) == held


def _own_keys(name: str) -> list[str]:
    return (
        []
        if name == "adam"
        else ["optimizer.weight_decay=0.01"]
        + (["optimizer.betas=[0.9,0.98]", "optimizer.eps=1e-9"] if name == "adamw" else [])
    )


@pytest.mark.parametrize("name", ["duplicate", "stdlib"])
def test_a_source_knows_its_vocabulary_without_being_opened(name: str) -> None:
    config = compose([f"data={name}", "model=transformer", "size=smoke"]).data
    assert data_sets.find_source(name).vocab_size(config) == data_sets.open_dataset(config).vocab_size


def test_hours_are_flops_over_the_devices_rate_at_the_stated_utilisation() -> None:
    config = _smoke("model=transformer", "training.accumulation=3")
    planned = plan(config, device="a100", utilisation=0.5)
    assert planned["training_flops"] == planned["tokens"] * planned["training_flops_per_token"]
    assert planned["tokens"] == 6 * 3 * 2 * 64, "steps, micro-batches, rows, tokens of a row"
    assert planned["hours"] == pytest.approx(planned["training_flops"] / (19.5e12 * 0.5) / 3600)
    assert planned["hours"] == planned["hours_by_device"]["a100"]
    assert set(planned) >= KEYS


def test_the_price_is_that_of_the_device_that_the_config_asks_for() -> None:
    config = _smoke("model=transformer", "device=cpu", "threads=4")
    assert price(config)["device"] == "cpu-4-core"
    assert price(config)["hours"] == plan(config, device="cpu-4-core")["hours"]
    assert price(config)["hours"] == pytest.approx(plan(config, device="cpu-2-core")["hours"] / 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"device": "a10"}, "a100"),
        ({"device": "cpu-0-core"}, "cpu-2-core"),
        ({"utilisation": 0.0}, ""),
        ({"utilisation": 1.5}, ""),
    ],
)
def test_a_wrong_device_or_utilisation_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        plan(_smoke("model=transformer"), **given)
    assert told in error.value.hint


def test_a_device_without_a_rate_for_the_dtype_is_refused_and_not_listed() -> None:
    config = _smoke("model=transformer", "dtype=bfloat16")
    with pytest.raises(UserError, match="dtype=bfloat16"):
        plan(config, device="v100")
    assert "v100" not in plan(config, device="h100")["hours_by_device"]


@pytest.mark.parametrize("model", ["reformer", "scaling", "terraformer"])
def test_a_plan_is_json_and_prints_every_component_and_device(model: str) -> None:
    planned = plan(_smoke(f"model={model}"), device="v100")
    json.dumps(planned)
    out = io.StringIO()
    print_plan(planned, Console(file=out, width=120))
    for word in (*planned["parameters_by_component"], *planned["hours_by_device"], f"{planned['parameters']:,}"):
        assert word in out.getvalue()


def test_a_gpus_larger_tiles_of_hash_attention_are_in_its_memory_and_in_what_fits() -> None:
    words = ["model=reformer", "data=enwik8", "size=paper", "data.length=65536", "training.batch_size=1"]
    config = compose(words)
    on_cpu, on_gpu = (plan(config, device=name)["memory_bytes"] for name in ("cpu-2-core", "h100"))
    assert round(on_cpu["activations"] / 1e9, 2) == 3.89
    assert round(on_gpu["activations"] / 1e9, 2) == 4.55
    assert {key for key in on_gpu if on_gpu[key] != on_cpu[key]} == {
        "activations",
        "activations_with_reversible",
        "total",
    }
    full = compose([*words, "attention=[full]"])
    assert plan(full, device="h100")["memory_bytes"] == plan(full, device="cpu-2-core")["memory_bytes"]


def test_the_plan_and_the_operation_take_the_size_of_a_tile_from_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["model=reformer", "data=enwik8", "size=paper", "data.length=65536", "training.batch_size=1"])
    before = plan(config, device="cpu-2-core")["memory_bytes"]["activations"]
    monkeypatch.setattr("efftx.ops.lsh_runs.TILE_SCORES", 2**25)
    assert plan(config, device="cpu-2-core")["memory_bytes"]["activations"] > 1.1 * before


def test_what_fits_goes_by_each_devices_own_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["model=reformer", "data=enwik8", "size=paper", "data.length=65536", "training.batch_size=1"])
    between = (plan(config, device="cpu-2-core")["memory_bytes"]["total"] + 1) / 1e9
    small = {name: replace(DEVICES["h100"], name=name, memory_bytes=between * 1e9) for name in ("h100", "cpu-9-core")}
    monkeypatch.setattr("efftx.plan.DEVICES", small)
    assert plan(config, device="cpu-2-core")["fits"] == {"h100": False, "cpu-9-core": True}


def test_a_new_kind_of_attention_has_its_weights_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mean(nn.Module):
        def __init__(self, d_model: int) -> None:
            super().__init__()
            self.mix = nn.Linear(d_model, d_model, bias=False)

    monkeypatch.setitem(ATTENTION, "local", lambda config, causal: Mean(config.d_model))
    config = _smoke("model=transformer", "attention=[full,local]", "n_layers=4")
    found = parameters_by_component(build_on_meta(config, 23))
    assert found["local"] == 2 * config.d_model**2
    assert found["attention"] == 2 * 4 * config.d_model**2
    assert sum(found.values()) == sum(p.numel() for p in build_on_meta(config, 23).parameters())


def test_memory_is_weights_gradients_optimiser_activations_and_replay_and_fits_where_a_device_has_as_much() -> None:
    small, large = (_smoke("model=reformer", f"training.batch_size={rows}") for rows in (2, 2**20))
    for config, fits in ((small, True), (large, False)):
        planned = plan(config)
        memory = planned["memory_bytes"]
        assert memory["parameters"] == memory["gradients"] == 4 * planned["parameters"]
        assert memory["replay_state"] > 0
        held = ("parameters", "gradients", "optimizer_state", "activations", "replay_state")
        assert memory["total"] == sum(memory[kind] for kind in held)
        assert set(planned["fits"].values()) == {fits}


def test_what_a_token_reads_of_a_dense_model_is_all_but_the_tables_other_rows() -> None:
    config = compose(["model=transformer", "data=stdlib", "size=smoke", "positions.kind=learned"])
    found = costs(config)
    d, rows = config.d_model, config.data.length
    assert found["active_parameters"] == found["parameters"] - (256 - 1) * d - (rows - 1) * d
    assert found["controller_share"] == 0.0
    assert found["parameters"] == plan(config)["parameters"]
    assert found["flops_per_token"] == plan(config)["flops_per_token"]


def test_a_tied_embedding_is_read_whole_by_the_head() -> None:
    words = ["model=transformer", "data=stdlib", "size=smoke", "tie_embeddings=true", "positions.kind=sinusoidal"]
    found = costs(compose(words))
    assert found["active_parameters"] == found["parameters"]


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_a_token_reads_one_unit_a_block_and_what_chooses_it(kind: str) -> None:
    words = ["model=transformer", "data=stdlib", "size=smoke", "sparse_ff.N=4", f"sparse_ff.controller={kind}"]
    config = compose([*words, *(["sparse_ff.form=paper"] if kind == "learned" else [])])
    found, d, f = costs(config), config.d_model, config.d_ff
    rank = rank_of(config.sparse_ff, d, f)
    has_b1 = config.sparse_ff.first_bias
    unread = (f - f // 4) * (d if kind == "oracle" else d + d + has_b1)  # rows of W1, W2 and b1; the oracle reads W1
    tables = (256 - 1) * d + _position_rows(config)
    assert found["parameters"] - found["active_parameters"] == config.n_layers * unread + tables
    controller = config.n_layers * (rank * d + f * rank + f) if kind in ("learned", "frozen") else 0
    assert found["controller_share"] == pytest.approx(100.0 * controller / found["parameters"])


def _position_rows(config: Config) -> int:
    """Parameters of the positions that one token does not read."""
    if config.positions.kind == "learned":
        return (config.data.length - 1) * config.d_model
    if config.positions.kind == "axial":
        return sum((n - 1) * d for n, d in zip(config.positions.axial_shape, config.positions.axial_dims, strict=True))
    return 0


def test_of_axial_positions_one_row_of_each_table_is_read() -> None:
    config = compose(["model=reformer", "data=stdlib", "size=smoke", "positions.kind=axial"])
    found = costs(config)
    assert found["parameters"] - found["active_parameters"] == (256 - 1) * config.d_model + _position_rows(config)
    assert _position_rows(config) > 0
