"""Softmax attention over the `local` pattern."""

from __future__ import annotations

import pytest
import torch

from efftx.layers.attention import SoftmaxAttention
from efftx.layers.patterns import Full, Local
from efftx.layers.projections import DenseQKV
from efftx.layers.settings import FullConfig, LocalConfig
from tests.tolerances import ROUNDING, assert_close


def local_layer(
    chunk_len: int, *, share_qk: bool, causal: bool = True, attention_dropout: float = 0.0
) -> SoftmaxAttention:
    projections = DenseQKV(12, 2, 8, share_qk=share_qk, bias=True)
    config = LocalConfig(chunk_len=chunk_len)
    layer = SoftmaxAttention(Local(config), projections, d_head=8, attention_dropout=attention_dropout, causal=causal)
    return layer.double()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("share_qk", [False, True])
def test_two_chunks_are_full_attention(share_qk: bool, causal: bool) -> None:
    torch.manual_seed(0)
    local = local_layer(8, share_qk=share_qk, causal=causal)
    full = SoftmaxAttention(Full(FullConfig()), local.project, d_head=8, attention_dropout=0.0, causal=causal)
    x = torch.randn(2, 15, 12, dtype=torch.float64)
    mask = torch.arange(15) < torch.tensor([[15], [3]])
    assert_close(local(x), full(x), ROUNDING)
    assert_close(local(x, key_mask_BL=mask), full(x, key_mask_BL=mask), ROUNDING)


@pytest.mark.parametrize("share_qk", [False, True])
def test_two_chunks_back_is_out_of_sight(share_qk: bool) -> None:
    torch.manual_seed(0)
    layer = local_layer(4, share_qk=share_qk)
    x = torch.randn(1, 12, 12, dtype=torch.float64)
    other = x.clone()
    other[:, :4] += 1.0
    changed = (layer(other) != layer(x)).any(-1)[0]
    assert changed[:8].all()
    assert not changed[8:].any()


@pytest.mark.parametrize("share_qk", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_at_the_end_changes_no_real_token(causal: bool, share_qk: bool) -> None:
    torch.manual_seed(0)
    layer = local_layer(4, share_qk=share_qk, causal=causal)
    x = torch.randn(2, 18, 12, dtype=torch.float64)
    mask = torch.arange(18) < torch.tensor([[6], [0]])
    y = layer(x, key_mask_BL=mask)
    assert_close(y[:1, :6], layer(x[:1, :6]), ROUNDING)
    assert y.isfinite().all()


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    layer = local_layer(4, share_qk=True, attention_dropout=0.5)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
