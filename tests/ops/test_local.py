"""Local attention: chunk by chunk and naive are one function; and it is the authors'."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from efftx.ops.attention import full_attention
from efftx.ops.local import local_attention, local_attention_naive
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, values_and_gradients

SCALE = 0.7


def queries_keys_values(length: int, heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, heads, length, w, dtype=torch.float64, generator=generator) for w in (5, 5, 4)]


def padding(length: int) -> Tensor:
    """The first sequence is all padding, or nearly; the second ends in some."""
    return torch.arange(length) < torch.tensor([[length // 8], [length - length // 3]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_len", [1, 4, 8, 50])
@pytest.mark.parametrize("length", [1, 3, 8, 9, 20, 31])
def test_it_gives_the_naive_values_and_gradients(length: int, chunk_len: int, causal: bool) -> None:
    leaves = queries_keys_values(length)
    for exclude_self, mask in itertools.product([False, True], [None, padding(length)]):
        options = {"scale": SCALE, "chunk_len": chunk_len, "causal": causal, "exclude_self": exclude_self}
        options["key_mask_BL"] = mask
        actual = values_and_gradients(lambda q, k, v, o=options: local_attention(q, k, v, **o), *leaves)
        expected = values_and_gradients(lambda q, k, v, o=options: local_attention_naive(q, k, v, **o), *leaves)
        assert_all_close(actual, expected, ROUNDING, "values grad_q grad_k grad_v")


@pytest.mark.parametrize("causal", [True, False])
@given(length=st.integers(1, 40), chunk_len=st.integers(1, 12), place=st.integers(0, 39))
@settings(max_examples=40)
def test_a_key_is_seen_from_its_own_chunk_and_its_neighbours_and_not_around_the_ends(
    causal: bool, length: int, chunk_len: int, place: int
) -> None:
    place %= length
    q, k, v = queries_keys_values(length, heads=1)
    other = v.clone()
    other[:, :, place] += 1.0
    options = {"scale": SCALE, "chunk_len": chunk_len, "causal": causal}
    changed = (local_attention(q, k, other, **options) != local_attention(q, k, v, **options)).any(-1)[0, 0]
    near = [abs(place // chunk_len - query // chunk_len) <= 1 for query in range(length)]
    assert changed.tolist() == [near[query] and (query >= place or not causal) for query in range(length)]


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_one_chunk_is_full_attention(causal: bool, exclude_self: bool) -> None:
    q, k, v = queries_keys_values(13)
    options = {"scale": SCALE, "causal": causal, "exclude_self": exclude_self, "key_mask_BL": padding(13)}
    actual = local_attention(q, k, v, chunk_len=13, **options)
    assert_close(actual, full_attention(q, k, v, **options), ROUNDING)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_not_seen_and_a_query_without_any_key_gets_zeros(causal: bool, exclude_self: bool) -> None:
    q, k, v = queries_keys_values(22)
    mask = torch.arange(22) < torch.tensor([[0], [6]])
    options = {"scale": SCALE, "chunk_len": 4, "causal": causal, "exclude_self": exclude_self, "key_mask_BL": mask}
    other_k, other_v = (x.masked_fill(~mask[:, None, :, None], 50.0) for x in (k, v))
    out = local_attention(q, k, v, **options)
    assert torch.equal(out, local_attention(q, other_k, other_v, **options))
    assert not out[0].any()
    # Six real tokens lie in two chunks: the third chunk still sees the second, and later ones see nothing.
    assert out[1, :, :12].any(-1).all()
    assert not out[1, :, 12:].any()


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_shorter_than_a_chunk_has_no_more_scores_than_its_own(causal: bool) -> None:
    leaves = queries_keys_values(10)
    with FlopCounterMode(display=False) as counted:
        local_attention(*(x.to("meta") for x in leaves), scale=SCALE, chunk_len=128, causal=causal)
    with FlopCounterMode(display=False) as whole:
        full_attention(*(x.to("meta") for x in leaves), scale=SCALE, causal=causal)
    assert counted.get_total_flops() == whole.get_total_flops() > 0


def test_it_runs_on_the_meta_device() -> None:
    q, k, v = (x.to("meta").requires_grad_() for x in queries_keys_values(22))
    mask = torch.empty(2, 22, dtype=torch.bool, device="meta")
    out = local_attention(q, k, v, scale=SCALE, chunk_len=4, causal=False, exclude_self=True, key_mask_BL=mask)
    out.sum().backward()
    assert out.shape == v.shape


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
