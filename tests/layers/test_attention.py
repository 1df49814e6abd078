"""Softmax attention over the `full` pattern is the authors', with separate and with shared queries and keys."""

from __future__ import annotations

import pytest
import torch

from efftx.layers.attention import SoftmaxAttention
from efftx.layers.attention_settings import FullConfig
from efftx.layers.patterns import Full
from efftx.layers.projections import DenseQKV
from efftx.models.author_weights import heads_from_linear, heads_to_linear
from tests.tolerances import GOLDEN, ROUNDING, assert_close


def full_attention_layer(
    *,
    share_qk: bool,
    n_heads: int = 4,
    causal: bool = True,
    query_block: int = 0,
    attention_dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> SoftmaxAttention:
    d_head = 32 // n_heads
    projections = DenseQKV(32, n_heads, d_head, share_qk=share_qk, bias=False)
    layer = SoftmaxAttention(
        Full(FullConfig(query_block=query_block)),
        projections,
        d_head=d_head,
        attention_dropout=attention_dropout,
        causal=causal,
    )
    return layer.to(dtype)


GOLDEN_LAYERS = {
    "causal": {"share_qk": False},
    "causal_shared_qk": {"share_qk": True},
    "masked_encoder": {"share_qk": False, "n_heads": 2, "causal": False},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("query_block", [0, 5])
@pytest.mark.parametrize("name", GOLDEN_LAYERS)
def test_it_gives_the_authors_outputs_and_gradients(golden, name: str, query_block: int, dtype: torch.dtype) -> None:
    arrays = golden(f"self_attention_{name}", dtype)
    layer = full_attention_layer(**GOLDEN_LAYERS[name], query_block=query_block, dtype=dtype)
    layouts = {
        name: heads_from_linear if name == "o" else heads_to_linear for name, _ in layer.project.named_children()
    }
    with torch.no_grad():
        for name, layout in layouts.items():
            layer.project.get_submodule(name).weight.copy_(layout(arrays[f"w.w_{name}"]))
    x = arrays["x"].requires_grad_()
    y = layer(x, key_mask_BL=arrays.get("mask"))
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    for name, layout in layouts.items():
        expected = layout(arrays[f"grad_w.w_{name}"])
        assert_close(layer.project.get_submodule(name).weight.grad, expected, GOLDEN, name)


@pytest.mark.parametrize("query_block", [0, 4])
@pytest.mark.parametrize("share_qk", [False, True])
def test_dropout_is_for_training_only_at_its_rate_and_keeps_the_mean(query_block: int, share_qk: bool) -> None:
    torch.manual_seed(0)
    layer = full_attention_layer(share_qk=share_qk, query_block=query_block, attention_dropout=0.25)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    layer.eval()
    expected = layer(x)
    assert torch.equal(layer(x), expected)
    layer.train()
    draws = torch.stack([layer(x).detach() for _ in range(600)])
    assert ((draws.mean(0) - expected).norm() / draws.std(0).norm()).item() < 0.08
    # The first token has one weight, of 1: its value is dropped or scaled up (of shared queries and keys it stays).
    layer = full_attention_layer(share_qk=False, query_block=query_block, attention_dropout=0.25)
    q, k, v = (t if t is None else t.detach() for t in layer.project(x))
    weights = torch.stack([layer.attend(q, k, v, None)[:, :, 0] / v[:, :, 0] for _ in range(600)])[..., 0]
    assert weights.round(decimals=9).unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((weights == 0).double().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("share_qk", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_at_the_end_changes_no_real_token(causal: bool, share_qk: bool) -> None:
    torch.manual_seed(0)
    layer = full_attention_layer(share_qk=share_qk, causal=causal)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[6], [0]])
    y = layer(x, key_mask_BL=mask)
    assert_close(y[:1, :6], layer(x[:1, :6]), ROUNDING)
    assert y.isfinite().all()


def test_only_a_layer_that_is_not_causal_sees_later_tokens() -> None:
    torch.manual_seed(0)
    for causal in (False, True):
        layer = full_attention_layer(share_qk=False, causal=causal)
        x = torch.randn(1, 9, 32, dtype=torch.float64)
        other = x.clone()
        other[:, 8] += 1.0
        assert torch.equal(layer(other)[:, :8], layer(x)[:, :8]) == causal


def test_blocks_of_queries_change_nothing() -> None:
    torch.manual_seed(0)
    fused, blocked = (full_attention_layer(share_qk=True, query_block=n) for n in (0, 4))
    blocked.load_state_dict(fused.state_dict())
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    assert_close(blocked(x), fused(x), ROUNDING)
