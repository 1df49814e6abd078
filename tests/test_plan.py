"""The FLOPs and bytes that a plan counts are those that PyTorch counts while the built model runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from efftx.bench.stacks import model_and_batch, peak_of_step
from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.data import dataset as data_sets
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.attention_settings import FullConfig, LocalConfig, LSHConfig
from efftx.layers.cost import Rows
from efftx.layers.cross_attention import CrossAttention
from efftx.layers.lsh import LSHAttention
from efftx.layers.patterns import make_pattern
from efftx.layers.projections import DenseQKV, DenseQuery
from efftx.models.build import build_model
from efftx.optim.optimizers import make_optimizer
from efftx.plan import plan
from efftx.plan.flops import flops_by_component, training_flops_by_component
from efftx.plan.memory import activation_bytes, optimizer_bytes, replay_bytes

CPU = torch.device("cpu")
FLOP_TOLERANCE = {
    "transformer": 1e-9,
    "sparse_transformer": 1e-9,
    "reformer": 0.01,
    "scaling": 1e-9,
    "terraformer": 0.01,
}
"""The same products; hash attention also computes one window of chunks between two sequences that share a run, and
shared queries and keys in the fused kernel one query less."""
MEMORY_TOLERANCE = 0.1
"""The estimate leaves out statistics of norms, integers and other things small beside activations."""
DROPPED = "attention_dropout=0.1"
"""With which a CPU computes the scores by plain products."""
ENCODER_DECODERS = ("model=scaling", "model=terraformer")


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
        ["model=sparse_transformer", "dropout=0.1"],
        ["model=sparse_transformer", "d_qk=4", "attention=[fixed,full]", "fixed.c=1"],
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
        ["model=transformer", DROPPED],
        ["model=transformer", DROPPED, "share_qk=true"],
        ["model=transformer", DROPPED, "full.query_block=16"],
        ["model=transformer", DROPPED, "attention=[local]", "local.chunk_len=16"],
        ["model=transformer", DROPPED, "attention=[local]", "local.window=16"],
        ["model=transformer", DROPPED, "attention=[strided,fixed]", "data.length=60", "fixed.c=3"],
        ["model=transformer", DROPPED, "attention=[strided]", "reversible.enabled=true"],
        ["model=transformer", DROPPED, "attention=[local,full]", "recompute.enabled=true"],
        ["model=reformer", DROPPED, "lsh.full_below=1024"],
        ["model=reformer", DROPPED],
        ["model=scaling", DROPPED],
        ["model=scaling", DROPPED, "attention=[local,strided]", "local.chunk_len=16", "share_qk=true"],
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
    def softmax(kind: str, config: Any, *, causal: bool = True) -> float:
        projections = DenseQKV(64, 4, 16, share_qk=False, bias=False)
        pattern = make_pattern(kind, config, 128)
        return SoftmaxAttention(pattern, projections, d_head=16, attention_dropout=0.0, causal=causal).keys(128)

    def lsh(config: LSHConfig, *, causal: bool = True) -> float:
        projections = DenseQKV(64, 4, 16, share_qk=True, bias=False)
        return LSHAttention(config, projections, attention_dropout=0.0, causal=causal).keys(128)

    assert softmax("full", FullConfig()) == 64.5
    assert softmax("full", FullConfig(128)) == 128
    assert softmax("full", FullConfig(32)) == (32 + 64 + 96 + 128) / 4
    assert softmax("full", FullConfig(96)) == (96 * 96 + 32 * 128) / 128
    assert softmax("local", LocalConfig(16)) == 32
    assert lsh(LSHConfig(chunk_len=16, n_hashes=4)) == 4 * 32
    assert lsh(LSHConfig(chunk_len=128, n_hashes=1)) == 128
    assert lsh(LSHConfig(chunk_len=16, n_hashes=4, full_below=128)) == 64.5
    assert softmax("full", FullConfig(), causal=False) == softmax("full", FullConfig(32), causal=False) == 128
    assert softmax("local", LocalConfig(16), causal=False) == 48
    assert lsh(LSHConfig(chunk_len=16, n_hashes=4), causal=False) == 4 * 48
    assert lsh(LSHConfig(chunk_len=64, n_hashes=1), causal=False) == 128
    assert make_pattern("local", LocalConfig(64), 100).keys(100) == 128 * 1.28
    query = DenseQuery(64, 4, 16, bias=False)
    cross = CrossAttention(query, 64, d_head=16, bias=False, attention_dropout=0.0)
    assert cross.cost(Rows(1, 128, memory_length=40)).work["attention_scores"].forward == 128 * 4 * 64 * 40


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
        ["model=transformer", "n_layers=3", "dropout=0.1", "dropout_at=residual", "activation=gelu_sigmoid"],
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
        ["model=transformer", "sparse_ff.N=8", "sparse_ff.controller=frozen", "dropout=0", "n_layers=3"],
        ["model=transformer", "sparse_ff.N=8", "sparse_ff.multiply_by_controller=true", "reversible.enabled=true"],
        [
            "model=transformer",
            "sparse_ff.N=8",
            "sparse_ff.form=paper",
            "sparse_ff.multiply_by_controller=true",
            "dropout=0",
            "n_layers=3",
        ],
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
        ["model=transformer", DROPPED],
        ["model=transformer", DROPPED, "share_qk=true", "n_layers=4"],
        ["model=transformer", DROPPED, "reversible.enabled=true"],
        ["model=transformer", DROPPED, "full.query_block=64"],
        ["model=transformer", DROPPED, "attention=[local]", "local.chunk_len=32", "d_ff=64"],
        ["model=transformer", DROPPED, "attention=[local]", "local.window=32", "d_ff=64"],
        ["model=transformer", DROPPED, "attention=[strided]", "d_ff=64"],
        ["model=transformer", DROPPED, "attention=[strided]", "strided.mode=merged", "share_qk=true", "n_layers=4"],
        ["model=transformer", DROPPED, "attention=[strided]", "recompute.enabled=true", "d_ff=64"],
        ["model=transformer", DROPPED, "attention=[fixed]", "n_layers=4", "d_ff=64"],
        ["model=transformer", DROPPED, "attention=[fixed]", "reversible.enabled=true", "d_ff=64"],
        ["model=reformer", DROPPED],
        ["model=reformer", DROPPED, "lsh.full_below=1024"],
        ["model=scaling", DROPPED],
        ["model=scaling", DROPPED, "attention=[local,strided]", "local.chunk_len=16", "share_qk=true", "d_ff=64"],
        ["model=scaling", DROPPED, "attention=[fixed]", "d_ff=64"],
        ["model=terraformer", DROPPED],
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


@pytest.mark.parametrize("chunk_len", [16, 64, 0])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["tie_embeddings=true"],
        ["reversible.enabled=true", "reversible.merge=mean"],
        ["reversible.enabled=true", "reversible.merge=concat"],
    ],
    ids=" ".join,
)
def test_planned_activations_hold_the_gradients_of_a_large_vocabulary(overrides: list[str], chunk_len: int) -> None:
    words = ["data.length=128", "d_model=64", "d_ff=64", "positions.kind=learned", f"chunking.loss={chunk_len}"]
    config = compose(["model=transformer", "data=enwik8", "size=smoke", "dropout=0", *words, *overrides])
    peak, _ = peak_of_step(config, CPU, 16_000)
    assert activation_bytes(config, 16_000) == pytest.approx(peak, rel=MEMORY_TOLERANCE)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=transformer", "data=enwik8"],
        ["model=reformer", "data=imagenet64"],
        ["model=sparse_transformer", "data=imagenet64"],
        ["model=scaling", "data=enwik8"],
        ["model=terraformer", "data=enwik8"],
        ["model=terraformer", "data=enwik8", "reversible.enabled=false"],
    ],
    ids=" ".join,
)
def test_planned_activations_are_near_the_measured_peak_at_size_cpu(overrides: list[str]) -> None:
    config = compose(["size=cpu", "threads=1", *overrides])
    vocab_size = _vocab_size(config)
    assert activation_bytes(config, vocab_size) == pytest.approx(
        peak_of_step(config, CPU, vocab_size)[0], rel=MEMORY_TOLERANCE
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor"])
def test_the_planned_optimiser_state_is_what_the_optimiser_holds_after_a_step(name: str, dtype: torch.dtype) -> None:
    config = _smoke("model=transformer", f"optimizer.name={name}", *_own_keys(name))
    model = build_model(config, 256, CPU, dtype)
    optimizer = make_optimizer(config.optimizer, model.named_parameters())
    model(_tokens(config), losses=True)[0].mean().backward()
    optimizer.step()

    held = sum(
        t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)
    )

    assert optimizer_bytes(name, model.parameters(), dtype) == held
    config.dtype = str(dtype).partition(".")[2]
    assert plan(config, device="cpu-1-core")["memory_bytes"]["optimizer_state"] == held


def _own_keys(name: str) -> list[str]:
    return (
        []
        if name == "adam"
        else ["optimizer.weight_decay=0.01"]
        + (["optimizer.betas=[0.9,0.98]", "optimizer.eps=1e-9"] if name == "adamw" else [])
    )


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
