"""Cross-attention is PyTorch's where queries are dense, and reads the encoder's real tokens alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from efftx.layers.cross_attention import CrossAttention
from efftx.layers.initialize import materialize
from efftx.layers.projections import DenseQuery
from efftx.layers.settings import SparseQKVConfig
from efftx.layers.sparse_qkv import SparseQuery
from tests.tolerances import ROUNDING, assert_all_close, assert_close, values_and_gradients

D_MODEL, N_HEADS, LENGTH = 12, 3, 5


def cross_attention(kind: str = "dense", *, bias: bool = True, attention_dropout: float = 0.0) -> CrossAttention:
    d_head = D_MODEL // N_HEADS
    with torch.device("meta"):
        query: DenseQuery | SparseQuery = (
            DenseQuery(D_MODEL, N_HEADS, d_head, bias=bias)
            if kind == "dense"
            else SparseQuery(SparseQKVConfig(S=4), D_MODEL, N_HEADS)
        )
        layer = CrossAttention(query, D_MODEL, d_head=d_head, bias=bias, attention_dropout=attention_dropout)
    materialize(layer, torch.device("cpu"), seed=0)
    return layer.double()


def streams(n_encoder_tokens: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder's stream, the encoder's output, and its mask: the second row ends in padding."""
    generator = torch.Generator().manual_seed(n_encoder_tokens)
    x, memory = (
        torch.randn(2, n, D_MODEL, dtype=torch.float64, generator=generator) for n in (LENGTH, n_encoder_tokens)
    )
    mask = torch.arange(n_encoder_tokens) < torch.tensor([[n_encoder_tokens], [max(1, n_encoder_tokens - 3)]])
    return x, memory, mask


def one_head_at_a_time(layer: CrossAttention, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    query, key, value = layer.query(x), layer.k(memory), layer.v(memory)
    d_head = D_MODEL // N_HEADS
    rows = []
    for b in range(x.shape[0]):
        n_real = int(mask[b].sum())
        heads = []
        for h in range(N_HEADS):
            columns = slice(h * d_head, (h + 1) * d_head)
            scores = query[b, h] @ key[b, :n_real, columns].T / math.sqrt(d_head)
            heads.append(scores.softmax(-1) @ value[b, :n_real, columns])
        rows.append(torch.cat(heads, -1))
    out = torch.stack(rows)
    return layer.query.o(out) if isinstance(layer.query, DenseQuery) else out


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("n_encoder_tokens", [1, 2, 7])
def test_it_is_attention_of_each_head_over_the_real_tokens(kind: str, n_encoder_tokens: int) -> None:
    layer = cross_attention(kind)
    x, memory, mask = streams(n_encoder_tokens)
    actual = values_and_gradients(lambda x, memory: layer(x, memory, mask), x, memory)
    expected = values_and_gradients(lambda x, memory: one_head_at_a_time(layer, x, memory, mask), x, memory)
    assert_all_close(actual, expected, ROUNDING, "values grad_x grad_memory")
    everything = torch.ones_like(mask)
    assert_close(layer(x, memory), one_head_at_a_time(layer, x, memory, everything), ROUNDING)


@pytest.mark.parametrize("bias", [False, True])
def test_with_dense_queries_it_is_pytorchs(bias: bool) -> None:
    own = cross_attention(bias=bias)
    assert isinstance(own.query, DenseQuery)
    other = nn.MultiheadAttention(D_MODEL, N_HEADS, bias=bias, batch_first=True).double()
    parts = (own.query.q, own.k, own.v)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        other.out_proj.weight.copy_(own.query.o.weight)
        if bias:
            for part in (*parts, own.query.o):
                nn.init.normal_(part.bias)
            other.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            other.out_proj.bias.copy_(own.query.o.bias)
    x, memory, mask = streams()
    actual = values_and_gradients(lambda x, memory: own(x, memory, mask), x, memory)
    expected = values_and_gradients(
        lambda x, memory: other(x, memory, memory, key_padding_mask=~mask, need_weights=False)[0], x, memory
    )
    assert_all_close(actual, expected, ROUNDING, "values grad_x grad_memory")


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_row_of_padding_alone_reads_zeros(kind: str) -> None:
    layer = cross_attention(kind, bias=False)
    x, memory, mask = streams()
    mask[1] = False
    x.requires_grad_()
    y = layer(x, memory, mask)
    assert not y[1].any()
    assert y[0].all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.isfinite().all()


def test_a_sparse_query_has_no_output_projection() -> None:
    layer = cross_attention("sparse")
    names = {name for name, _ in layer.named_parameters()}
    assert {name.split(".")[0] for name in names} == {"query", "k", "v"}
    assert {name.split(".")[1] for name in names if name.startswith("query")} == {"multiplicative", "convolution"}


def test_dropout_is_for_training_only() -> None:
    layer = cross_attention(attention_dropout=0.5)
    x, memory, mask = streams()
    torch.manual_seed(0)
    assert not torch.equal(layer(x, memory, mask), layer(x, memory, mask))
    layer.eval()
    assert torch.equal(layer(x, memory, mask), layer(x, memory, mask))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_it_runs_on_the_meta_device(kind: str) -> None:
    layer = cross_attention(kind).to("meta")
    x, memory, mask = (tensor.to("meta") for tensor in streams())
    assert layer(x, memory, mask).shape == x.shape
