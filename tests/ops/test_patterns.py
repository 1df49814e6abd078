"""Local attention: chunk by chunk and naive are one function; and it is the authors'."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops.attention import full_attention
from efftx.ops.patterns import local_attention, local_attention_naive
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, values_and_gradients

SCALE = 0.7


def queries_keys_values(length: int, heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, heads, length, w, dtype=torch.float64, generator=generator) for w in (5, 5, 4)]


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("chunk_len", [1, 4, 8, 50])
@pytest.mark.parametrize("length", [1, 3, 8, 9, 20, 31])
def test_it_gives_the_naive_values_and_gradients(length: int, chunk_len: int, exclude_self: bool) -> None:
    options = {"scale": SCALE, "chunk_len": chunk_len, "exclude_self": exclude_self}
    leaves = queries_keys_values(length)
    actual = values_and_gradients(lambda q, k, v: local_attention(q, k, v, **options), *leaves)
    expected = values_and_gradients(lambda q, k, v: local_attention_naive(q, k, v, **options), *leaves)
    assert_all_close(actual, expected, ROUNDING, "values grad_q grad_k grad_v")


@given(length=st.integers(1, 40), chunk_len=st.integers(1, 12), place=st.integers(0, 39))
@settings(max_examples=40, deadline=None)
def test_a_key_is_seen_from_its_own_chunk_and_the_next_and_never_from_before(
    length: int, chunk_len: int, place: int
) -> None:
    place %= length
    q, k, v = queries_keys_values(length, heads=1)
    other = v.clone()
    other[:, :, place] += 1.0
    options = {"scale": SCALE, "chunk_len": chunk_len}
    changed = (local_attention(q, k, other, **options) != local_attention(q, k, v, **options)).any(-1)[0, 0]
    end = (place // chunk_len + 2) * chunk_len
    assert changed.tolist() == [place <= query < end for query in range(length)]


def test_one_chunk_is_full_causal_attention() -> None:
    q, k, v = queries_keys_values(13)
    actual = local_attention(q, k, v, scale=SCALE, chunk_len=13)
    assert_close(actual, full_attention(q, k, v, scale=SCALE), ROUNDING)


def test_inputs_may_be_views_with_any_strides() -> None:
    contiguous = queries_keys_values(9)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in contiguous]
    assert not views[0].is_contiguous()
    actual = local_attention(*views, scale=SCALE, chunk_len=4)
    assert_close(actual, local_attention_naive(*contiguous, scale=SCALE, chunk_len=4), ROUNDING)


def test_dropout_takes_whole_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q = k = torch.zeros(1, 1, 64, 2)
    v = torch.ones(1, 1, 64, 1)
    drawn = torch.stack([local_attention(q, k, v, scale=1.0, chunk_len=16, dropout=0.5) for _ in range(50)])
    assert drawn[:, ..., 0, 0].unique().tolist() == [0.0, 2.0]
    assert abs(float(drawn.mean()) - 1.0) < 0.05


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one position"):
        local_attention(*queries_keys_values(3), scale=1.0, chunk_len=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_gives_the_authors_outputs_and_gradients(golden, dtype: torch.dtype) -> None:
    arrays = golden("self_attention_causal_chunked", dtype)
    leaves = {name: arrays[name].requires_grad_() for name in ("x", "w.w_q", "w.w_k", "w.w_v", "w.w_o")}
    q, k, v = (torch.einsum("blD,hDd->bhld", leaves["x"], leaves[f"w.w_{n}"]) for n in "qkv")
    out = local_attention(q, k, v, scale=1.0 / math.sqrt(q.shape[-1]), chunk_len=16)
    y = torch.einsum("bhlv,hvD->blD", out, leaves["w.w_o"])
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    for name, leaf in leaves.items():
        assert_close(leaf.grad, arrays[f"grad_{name}"], GOLDEN, f"grad_{name}")
