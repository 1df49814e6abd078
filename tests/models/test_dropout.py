"""Dropout: in every place the config's rate, what is kept scaled up so that the mean stays, and in training alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.feedforward import FeedForward
from efftx.layers.settings import SparseLossConfig
from efftx.models.block import TOKENS, Branch
from efftx.models.embedding import TokenEmbedding, embed
from efftx.models.lm_head import LMHead

RATE = 0.3
N = 40_000
"""Numbers that are dropped or not: four standard deviations of their share are below 0.01."""


class Same(nn.Module):
    def forward(self, x_BLD: Tensor, state: object = None) -> Tensor:
        return torch.ones_like(x_BLD)


def check(dropped: Tensor) -> None:
    """What was 1 everywhere is 0 at the rate, and 1 / (1 - rate) elsewhere."""
    assert dropped.numel() == N
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - RATE)])
    assert float((dropped == 0).double().mean()) == pytest.approx(RATE, abs=0.01)
    assert float(dropped.double().mean()) == pytest.approx(1.0, abs=0.015)


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What `module` reads while `run` runs."""
    seen: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach())):
        run()
    return seen[0]


def test_a_residual_branch_drops_what_it_adds() -> None:
    branch = Branch(100, Same(), RATE, reads=TOKENS)
    x = torch.randn(4, 100, 100)
    check(branch(x).detach())
    assert torch.equal(branch.eval()(x), torch.ones_like(x))


def test_embeddings_are_dropped() -> None:
    embedding = TokenEmbedding(7, 100, tied=False)
    with torch.no_grad():
        embedding.weight.fill_(1.0)
    tokens = torch.zeros(4, 100, dtype=torch.int64)
    check(embed(tokens, embedding, None, RATE).detach())
    assert torch.equal(embed(tokens, embedding, None, 0.0), torch.ones(4, 100, 100))


def test_the_head_drops_what_it_reads() -> None:
    head = LMHead(100, 7, RATE, sparse_loss=SparseLossConfig())
    with torch.no_grad():
        head.norm.weight.zero_()
        head.norm.bias.fill_(1.0)
    x = torch.randn(4, 100, 100)
    check(input_of(head.linear, lambda: head(x)))
    assert torch.equal(input_of(head.linear, lambda: head.eval()(x)), torch.ones_like(x))


def test_the_feed_forward_layer_drops_hidden_units() -> None:
    layer = FeedForward(8, 100, activation="relu", dropout=RATE)
    with torch.no_grad():
        layer.layers.w1.weight.zero_()
        layer.layers.w1.bias.fill_(1.0)
    x = torch.randn(4, 100, 8)
    check(input_of(layer.layers.w2, lambda: layer(x)))
    assert torch.equal(input_of(layer.layers.w2, lambda: layer.eval()(x)), torch.ones(4, 100, 100))


FAMILIES = {
    # The embedding, for each of the two layers two branches and the hidden units between, and the head.
    "transformer": (("model=transformer", "attention=[local]"), 1 + 2 * 3 + 1),
    "reversible": (("model=reformer", "attention=[local]"), 1 + 2 * 3 + 1),
    "sparse": (("model=scaling", "stack=decoder", "attention=[local]"), 1 + 2 * 3 + 1),
    "hashed": (("model=reformer", "attention=[lsh]"), 1 + 2 * 3 + 1),
    # Two embeddings; the decoder's layers have cross-attention besides.
    "encoder-decoder": (
        ("model=transformer", "stack=encoder_decoder", "positions.kind=learned", "data=c4"),
        2 + 2 * 3 + 2 * 4 + 1,
    ),
    "Terraformer": (
        ("model=terraformer", "attention=[local]", "data=c4", "attention_per_block=2", "n_encoder_layers=2"),
        2 + 2 * 3 + 2 * 4 + 1,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_drops_at_the_configs_rate_without_other_dropout(
    build: Callable[..., Any], family: str
) -> None:
    words, _ = FAMILIES[family]
    model = build(*words, "n_layers=2", "dropout=0", "attention_dropout=0.5")
    rates = [m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")]
    # Of the encoder two; of the decoder's two layers two each, cross-attention or a second self-attention among them.
    assert rates == [0.5] * (6 if family in ("encoder-decoder", "Terraformer") else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_place_of_a_model_drops_at_the_configs_rate(
    build: Callable[..., Any], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, places = FAMILIES[family]
    model = build(*words, "n_layers=2", "chunking.ff=0", "dropout=0.3", "attention_dropout=0.2")
    rates: Counter[float] = Counter()
    honest = F.dropout

    def look(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        rates[p] += bool(training and p)
        return honest(x, p, training, inplace)

    monkeypatch.setattr(F, "dropout", look)
    monkeypatch.setattr(torch, "dropout", lambda *given: pytest.fail("dropout that is not counted"))
    tokens = torch.randint(1, 23, (2, 14))
    inputs = (torch.randint(1, 23, (2, 32)),) if "data=c4" in words else ()
    with torch.no_grad():
        model(tokens, *inputs, losses=True)
        hashed = {0.2: 2} if family == "hashed" else {}  # other attention drops inside PyTorch's kernels
        assert rates == Counter({0.3: places} | hashed), "no other rate"
        rates.clear()
        model.eval()(tokens, *inputs, losses=True)
        assert not +rates
