"""Full attention: fused, by query block and naive are one function; and it is the authors'."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from efftx.bench.memory_tracker import MemoryTracker
from efftx.ops import attention
from efftx.ops.attention import full_attention, full_attention_naive, unit_key
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, relative_error, values_and_gradients

SCALE = 0.7


def queries_keys_values(length: int, batch: int = 2, heads: int = 3, d: int = 5, v: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    widths = (d, d, v)
    return [torch.randn(batch, heads, length, w, dtype=torch.float64, generator=generator) for w in widths]


def padding(length: int) -> Tensor:
    """The second sequence ends in padding; its first key is always real."""
    return torch.arange(length) < torch.tensor([[length], [max(1, length - 3)]])


@pytest.mark.parametrize("query_block", [0, 1, 4, 16, 100])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 17])
def test_every_form_gives_the_naive_values_and_gradients(length: int, query_block: int) -> None:
    leaves = queries_keys_values(length)
    for causal, exclude_self, masked in itertools.product([True, False], repeat=3):
        options = {"causal": causal, "exclude_self": exclude_self, "key_mask_BL": padding(length) if masked else None}
        actual = values_and_gradients(
            lambda q, k, v, o=options: full_attention(q, k, v, scale=SCALE, query_block=query_block, **o), *leaves
        )
        expected = values_and_gradients(
            lambda q, k, v, o=options: full_attention_naive(q, k, v, scale=SCALE, **o), *leaves
        )
        assert_all_close(actual, expected, ROUNDING, "values grad_q grad_k grad_v")


@pytest.mark.parametrize("query_block", [0, 3])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 5), (5, 1), (4, 9), (9, 4)])
def test_queries_and_keys_may_be_of_two_sequences(n_queries: int, n_keys: int, query_block: int) -> None:
    leaves = [queries_keys_values(n_queries)[0], *queries_keys_values(n_keys)[1:]]
    for mask in (None, padding(n_keys)):
        options = {"scale": SCALE, "causal": False, "key_mask_BL": mask}
        actual = values_and_gradients(
            lambda q, k, v, o=options: full_attention(q, k, v, query_block=query_block, **o), *leaves
        )
        expected = values_and_gradients(lambda q, k, v, o=options: full_attention_naive(q, k, v, **o), *leaves)
        assert_all_close(actual, expected, ROUNDING, "values grad_q grad_k grad_v")


@pytest.mark.parametrize("query_block", [0, 4])
def test_inputs_may_be_views_with_any_strides(query_block: int) -> None:
    contiguous = queries_keys_values(9)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in contiguous]
    assert not views[0].is_contiguous()
    for view, x in zip(views, contiguous, strict=True):
        assert torch.equal(view, x)
    actual = full_attention(*views, scale=SCALE, query_block=query_block)
    assert_close(actual, full_attention_naive(*contiguous, scale=SCALE), ROUNDING)


@pytest.mark.parametrize("query_block", [0, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_nothing_attends_to_padding(query_block: int, causal: bool) -> None:
    q, k, v = queries_keys_values(10)
    mask = padding(10)
    other_k, other_v = k.clone(), v.clone()
    other_k[~mask[:, None].expand(-1, 3, -1)] = 50.0
    other_v[~mask[:, None].expand(-1, 3, -1)] = 50.0
    options = {"scale": SCALE, "causal": causal, "key_mask_BL": mask, "query_block": query_block}
    assert torch.equal(full_attention(q, k, v, **options), full_attention(q, other_k, other_v, **options))


@pytest.mark.parametrize("query_block", [0, 4])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_query_without_any_key_gets_zeros_and_gives_no_gradient(
    causal: bool, exclude_self: bool, query_block: int, dtype: torch.dtype
) -> None:
    leaves = [x.to(dtype).requires_grad_() for x in queries_keys_values(6)]
    nothing, second_only = torch.zeros(6, dtype=torch.bool), torch.arange(6) == 1
    options = {"causal": causal, "exclude_self": exclude_self, "query_block": query_block}
    out = full_attention(*leaves, scale=SCALE, key_mask_BL=torch.stack([nothing, second_only]), **options)
    assert not out[0].any()
    assert torch.equal(out[1, :, 1:], leaves[2][1, :, 1:2].expand(-1, 5, -1))
    assert bool(out[1, :, 0].any()) != causal
    for grad in torch.autograd.grad(out.sum(), leaves):
        assert grad.isfinite().all()
        assert not grad[0].any()


@pytest.mark.parametrize("query_block", [0, 4])
def test_a_token_attends_to_itself_only_for_want_of_others(query_block: int) -> None:
    q, _, v = queries_keys_values(8)
    out = full_attention(q, unit_key(q), v, scale=1.0, exclude_self=True, query_block=query_block)
    assert torch.equal(out[:, :, 0], v[:, :, 0])
    other = v.clone()
    other[:, :, 5] += 1.0
    changed = full_attention(q, unit_key(q), other, scale=1.0, exclude_self=True, query_block=query_block) != out
    assert changed.any(-1).all(1).all(0).tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize("query_block", [1, 3])
def test_dropout_of_a_block_is_the_same_in_the_backward_pass(query_block: int) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        out = full_attention(q, k, v, scale=SCALE, query_block=query_block, dropout=0.4)
        torch.rand(11)
        return out

    leaves = [x.requires_grad_() for x in queries_keys_values(5, batch=1, heads=2, d=3, v=2)]
    assert torch.autograd.gradcheck(attention, leaves)
    without = full_attention(*leaves, scale=SCALE, query_block=query_block)
    assert not torch.allclose(attention(*leaves), without)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("query_block", [0, 4])
def test_masks_work_in_half_precision(query_block: int, dtype: torch.dtype) -> None:
    q, _, v = (x.to(dtype) for x in queries_keys_values(9))
    options = {"scale": 1.0, "exclude_self": True, "key_mask_BL": padding(9)}
    actual = full_attention(q, unit_key(q), v, query_block=query_block, **options)
    expected = full_attention_naive(q.double(), unit_key(q).double(), v.double(), **options)
    assert actual.dtype == dtype
    assert relative_error(actual.double(), expected) < 4 * torch.finfo(dtype).eps


def test_where_nothing_is_hidden_nothing_is_added_to_the_scores() -> None:
    q, k, v = (x.float() for x in queries_keys_values(9))
    assert attention._Visible(causal=False, exclude_self=False, key_mask=None).bias(0, 4, 9, q) is None
    by_hand = (q @ k.transpose(-1, -2) * SCALE + torch.zeros(9, 9)).softmax(-1) @ v
    assert torch.equal(full_attention(q, k, v, scale=SCALE, causal=False, query_block=9), by_hand)


def test_a_negative_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        full_attention(*queries_keys_values(3), scale=1.0, query_block=-1)


def test_the_shared_key_has_unit_length_and_a_zero_query_a_zero_key() -> None:
    q = queries_keys_values(6)[0]
    lengths = unit_key(q, eps=0.0).norm(dim=-1)
    assert_close(lengths, torch.ones_like(lengths), ROUNDING)
    assert torch.equal(unit_key(torch.zeros(2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("query_block", [0, 5])
@pytest.mark.parametrize("name", ["causal", "causal_shared_qk", "masked_encoder"])
def test_it_gives_the_authors_outputs_and_gradients(golden, name: str, query_block: int, dtype: torch.dtype) -> None:
    arrays = golden(f"self_attention_{name}", dtype)
    shared = "w.w_qk" in arrays
    names = ["x", "w.w_qk" if shared else "w.w_q", "w.w_qk" if shared else "w.w_k", "w.w_v", "w.w_o"]
    names = list(dict.fromkeys(names))
    leaves = {n: arrays[n].requires_grad_() for n in names}
    q, v = (torch.einsum("blD,hDd->bhld", leaves["x"], leaves[n]) for n in (names[1], "w.w_v"))
    k = unit_key(q) if shared else torch.einsum("blD,hDd->bhld", leaves["x"], leaves["w.w_k"])
    out = full_attention(
        q,
        k,
        v,
        scale=1.0 if shared else 1.0 / math.sqrt(q.shape[-1]),
        causal="causal" in name,
        exclude_self=shared,
        key_mask_BL=arrays.get("mask"),
        query_block=query_block,
    )
    y = torch.einsum("bhlv,hvD->blD", out, leaves["w.w_o"])
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    for n, leaf in leaves.items():
        assert_close(leaf.grad, arrays[f"grad_{n}"], GOLDEN, f"grad_{n}")


def test_keys_later_than_a_block_of_queries_are_skipped_not_masked() -> None:
    q, k, v = queries_keys_values(16, d=4, v=4)
    with FlopCounterMode(display=False) as counter:
        full_attention(q, k, v, scale=SCALE, query_block=4)
    pairs = 2 * 3 * 4 * (4 + 8 + 12 + 16)
    assert counter.get_total_flops() == pairs * (2 * 4 + 2 * 4)


def test_training_by_query_block_keeps_no_scores_and_no_masks() -> None:
    def kept_bytes(length: int) -> int:
        q, k, v = (torch.zeros(1, 1, length, 4, requires_grad=True) for _ in range(3))
        with MemoryTracker() as live:
            out = full_attention(q, k, v, scale=1.0, exclude_self=True, query_block=16)
        assert out.shape == v.shape
        return live.bytes_now()

    assert 0 < kept_bytes(512) <= 2.1 * kept_bytes(256)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_query_without_a_key_has_finite_gradients_by_block_in_every_dtype(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(2, 2, 12, 8, generator=generator).add(1).to(dtype)
    v = torch.randn(2, 2, 12, 8, generator=generator).to(dtype)
    mask = torch.arange(12) >= torch.tensor([[5], [0]])

    def by_block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return full_attention(q, k, v, scale=3.0, causal=True, key_mask_BL=mask, query_block=4)

    found = values_and_gradients(
        by_block, q, -q, v
    )  # every score is below 0: a hidden one may pass the end of the range
    assert all(bool(x.isfinite().all()) for x in found)
    assert bool((found[0][0, :, :5] == 0).all())
