"""The Sparse Transformer's model: sizes, block, first loss, positions; each switch in any family."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.config.compose import compose
from efftx.data.dataset import Batch
from efftx.errors import UserError
from efftx.layers.feedforward import ACTIVATIONS
from efftx.layers.positions import FactorizedPositions, ShiftedPositions
from efftx.layers.projections import DenseQKV
from efftx.models.build import build_model, build_on_meta
from efftx.plan import plan
from efftx.training.step import loss_of
from tests.tolerances import ROUNDING, assert_close

CPU = torch.device("cpu")
SMALL = ("model=sparse_transformer", "data=stdlib", "size=smoke", "dropout=0")
PAPER = {
    "cifar10_59m": ("cifar10", 58.7e6, 59e6),
    "enwik8_95m": ("enwik8", 94.4e6, 95e6),
    "imagenet64_152m": ("imagenet64", 151.0e6, 152e6),
}


@pytest.mark.parametrize("preset", PAPER)
def test_the_papers_models_have_the_papers_sizes(preset: str) -> None:
    data, matrices, printed = PAPER[preset]
    config = compose(["model=sparse_transformer", f"data={data}", "size=paper", f"preset=sparse_transformer/{preset}"])
    assert config.recompute.enabled
    model = build_on_meta(config, 256)
    blocks = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2]
    assert sum(p.numel() for p in blocks) == pytest.approx(matrices, abs=0.05e6)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(printed, rel=0.015)
    assert plan(config)["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("data", ["photos", "stdlib"])
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(data: str) -> None:
    config = compose(["model=sparse_transformer", f"data={data}", "size=smoke"])
    model = build_model(config, 256, CPU)
    tokens = torch.randint(256, (2, config.data.length))
    nll, _ = model(tokens, losses=True)
    bits = nll / math.log(2)
    assert_close(bits.double(), torch.full_like(bits, 8.0, dtype=torch.float64), {torch.float64: 1e-6})


def test_the_block_is_the_papers() -> None:
    """a = attention(LN(H)); b = ff(LN(H + a)); H + a + b, with GELU as x sigmoid(1.702 x)."""
    model = build_model(compose([*SMALL]), 256, CPU, torch.float64).eval()
    block = model.blocks[0]
    h = torch.randn(2, 64, 32, dtype=torch.float64)
    (found,) = block((h,))
    attention, two = block.attention, block.feedforward.core.layers
    a = attention.core(attention.norm(h))
    inner = two.w1(block.feedforward.norm(h + a))
    b = two.w2(inner * torch.sigmoid(1.702 * inner))
    assert_close(found, h + a + b, ROUNDING)
    x = torch.linspace(-4, 4, 50)
    assert (ACTIVATIONS["gelu_sigmoid"](x) - F.gelu(x)).abs().max() < 0.021


def test_weights_start_at_the_papers_variance() -> None:
    config = compose([*SMALL, "d_model=256", "d_ff=1024", "n_layers=8", "n_heads=4"])
    model = build_model(config, 256, CPU)
    block = model.blocks[0]
    stds = {
        "q": (block.attention.core.project.q.weight, math.sqrt(0.125 / 256)),
        "w1": (block.feedforward.core.layers.w1.weight, math.sqrt(0.125 / 256)),
        "o": (block.attention.core.project.o.weight, math.sqrt(0.125 / 256 / 16)),
        "w2": (block.feedforward.core.layers.w2.weight, math.sqrt(0.125 / 1024 / 16)),
    }
    for name, (weight, expected) in stds.items():
        assert weight.std().item() == pytest.approx(expected, rel=0.02), name
    assert model.embedding.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.head.linear.weight.any()
    again = build_model(config, 256, CPU)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("variant", ["low_rank", "multiplicative_convolution"])
def test_sparse_queries_keys_and_values_keep_the_start_of_their_authors(variant: str) -> None:
    words = [*SMALL, "d_model=32", "n_heads=2", "d_head=null", "sparse_qkv.S=4", f"sparse_qkv.variant={variant}"]
    config = compose(words)
    assert config.init.weights == 0.125
    glorot = replace(config, init=replace(config.init, weights=0.0))
    drawn, kept = (build_model(each, 256, CPU) for each in (config, glorot))
    for (name, weight), other in zip(drawn.named_parameters(), kept.parameters(), strict=True):
        if ".project." in name:
            assert torch.equal(weight, other), name
    assert not torch.equal(
        drawn.blocks[0].feedforward.core.layers.w1.weight, kept.blocks[0].feedforward.core.layers.w1.weight
    )


@pytest.mark.parametrize("stack", ["decoder", "encoder_decoder"])
def test_no_two_matrices_start_from_the_same_numbers(stack: str) -> None:
    words = [f"stack={stack}", "positions.kind=learned"] if stack != "decoder" else []
    model = build_model(compose([*SMALL, *words, "d_model=32", "n_heads=2", "init.weights_apart=true"]), 256, CPU)
    starts = [p.flatten()[:256] for name, p in model.named_parameters() if p.dim() == 2 and p.any()]
    drawn = torch.stack([start for start in starts if len(start) == 256]).double()
    alike = torch.corrcoef(drawn).abs().fill_diagonal_(0)
    assert len(drawn) > 8
    assert alike.max().item() < 0.35  # of 256 independent numbers, five standard errors


def test_the_residual_stream_at_the_start_does_not_grow_with_the_depth() -> None:
    spreads = []
    for depth in (2, 32):
        model = build_model(compose([*SMALL, f"n_layers={depth}", "init.embedding_std=1"]), 256, CPU).eval()
        tokens = torch.randint(256, (4, 64))
        with torch.no_grad():
            spreads.append(model.hidden(tokens).var().item())
    assert spreads[1] == pytest.approx(spreads[0], rel=0.1)


def test_dropout_is_at_the_residual_joins_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    drop = F.dropout

    def look(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        rates.append(p if training else 0.0)
        return drop(x, p, training)

    monkeypatch.setattr(F, "dropout", look)
    for at, more in (("residual", 0), ("everywhere", 4)):  # embeddings, two layers' hidden units, the head's input
        model = build_model(compose([*SMALL, "dropout=0.25", f"dropout_at={at}"]), 256, CPU)
        rates.clear()
        model(torch.randint(256, (2, 64)))
        assert sum(rate > 0 for rate in rates) == 2 * 2 + more


def test_positions_are_summed_tables_of_rows_columns_and_channels() -> None:
    positions = FactorizedPositions([2, 2, 3], 4)
    positions.reset_parameters()
    row, column, channel = positions.tables
    found = positions(12)
    for i in range(12):
        expected = row[i // 6] + column[i // 3 % 2] + channel[i % 3]
        assert torch.equal(found[i], expected)
    drawn = FactorizedPositions([300, 300, 300], 64, 0.03)
    drawn.reset_parameters()
    assert drawn.tables[0].std().item() == pytest.approx(0.03 / math.sqrt(3), rel=0.02)


def test_the_grid_follows_pictures_and_strides() -> None:
    grids = {
        words: compose(["model=sparse_transformer", "size=paper", *words.split()]).grid(length)
        for words, length in (
            ("data=cifar10", 3072),
            ("data=imagenet64", 12_288),
            ("data=enwik8", 12_288),
            ("data=enwik8 attention=[fixed] fixed.stride=96", 12_288),
        )
    }
    assert list(grids.values()) == [[32, 32, 3], [64, 64, 3], [96, 128], [128, 96]]


def test_a_place_has_the_position_of_the_token_it_reads() -> None:
    inner = FactorizedPositions([3, 4], 5)
    shifted = ShiftedPositions(inner, 5, 1.0)
    inner.reset_parameters()
    shifted.reset_parameters()
    assert torch.equal(shifted(12)[1:], inner(11))
    assert torch.equal(shifted(12)[0], shifted.start)
    assert shifted(1).shape == (1, 5)


@pytest.mark.parametrize("words", ["positions.kind=digits", "positions.kind=learned", "positions.kind=factorized"])
def test_any_positions_may_be_added_before_the_shift(words: str) -> None:
    config = compose(["model=transformer", "data=stdlib", "size=smoke", words, "positions.before_shift=true"])
    model = build_model(config, 256, CPU)
    tokens = torch.randint(256, (2, 64))
    loss_of(model, Batch(tokens, torch.ones(tokens.shape))).backward()
    assert model.positions.start.grad.any()


def test_narrow_queries_are_the_same_as_wide_ones_with_zeros() -> None:
    torch.manual_seed(0)
    narrow = DenseQKV(16, 2, 8, share_qk=False, bias=True, d_qk=4).double()
    wide = DenseQKV(16, 2, 8, share_qk=False, bias=True).double()
    with torch.no_grad():
        for mine, its in ((narrow.q, wide.q), (narrow.k, wide.k)):
            its.weight.zero_().view(2, 8, 16)[:, :4] = mine.weight.view(2, 4, 16)
            its.bias.zero_().view(2, 8)[:, :4] = mine.bias.view(2, 4)
        wide.v.load_state_dict(narrow.v.state_dict())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    for found, expected in zip(narrow(x), wide(x), strict=True):
        assert_close(found, expected, ROUNDING)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("d_qk=64", "wider than a head"),
        ("d_qk=4 share_qk=true", "of their own each"),
        ("d_qk=4 sparse_qkv.S=4", "of their own each"),
        ("positions.axial_shape=[4,4]", "16 positions"),
        ("dropout_at=nowhere dropout=0.1", "dropout_at"),
        ("activation=gelu_sigmoyd", "gelu_sigmoid"),
        ("positions.kind=none positions.before_shift=true", "positions.kind is none"),
        ("init.zero_logits=true tie_embeddings=true", "logits' own"),
    ],
)
def test_what_cannot_be_is_refused(words: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([*SMALL, *words.split()])
    assert says in caught.value.message + (caught.value.hint or "")
