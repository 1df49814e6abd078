"""Index sets of the Sparse Transformer's patterns, their block forms, and what they reach."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops import key_sets
from efftx.ops.attention import full_attention_naive
from efftx.ops.fixed import FixedUnion, OwnBlock, Summaries
from efftx.ops.patterns import attention_naive, index_set, unreachable
from efftx.ops.strided import Column, StridedUnion, Window
from tests.tolerances import ROUNDING, assert_all_close, assert_close, values_and_gradients

SCALE = 0.7
SETS = {
    "window": Window(4),
    "window of one": Window(1),
    "column": Column(4),
    "strided": StridedUnion(4),
    "strided, stride 1": StridedUnion(1),
    "own block": OwnBlock(4),
    "summaries": Summaries(4, 3, 1),
    "summaries, two": Summaries(6, 4, 2),
    "summaries, inner": Summaries(6, 2, 2),
    "fixed": FixedUnion(4, 3, 1),
    "fixed, wide": FixedUnion(6, 4, 2),
    "fixed, inner": FixedUnion(6, 2, 2),
    "fixed, uneven": FixedUnion(7, 4, 3),
    "fixed, all of a block": FixedUnion(3, 0, 3),
}


def queries_keys_values(length: int, heads: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, heads, length, 5, dtype=dtype, generator=generator) for _ in range(3)]


def padding(length: int) -> Tensor:
    """The first sequence is all padding, or nearly; the second ends in some."""
    return torch.arange(length) < torch.tensor([[length // 8], [length - length // 3]])


def holes(length: int) -> Tensor:
    """Hidden keys anywhere: in the first sequence every third from the first, in the second from the last but one."""
    place = torch.arange(length)
    return torch.stack([place % 3 > 0, (place - length) % 3 != 1])


def both_forms(pattern: Any, length: int, causal: bool, exclude_self: bool, mask: Tensor | None, **more: Any):
    """The block form and the oracle, as functions of queries, keys and values."""
    layout = pattern.layout(length, causal=causal, exclude_self=exclude_self)
    seen = index_set(partial(pattern.sees, causal=causal), length)[None]
    fast: Callable[..., Tensor] = lambda q, k, v: key_sets.attend(  # noqa: E731
        q, k, v, layout, scale=SCALE, causal=causal, key_mask_BL=mask, **more
    )
    slow: Callable[..., Tensor] = lambda q, k, v: attention_naive(  # noqa: E731
        q, k, v, seen_HLL=seen, scale=SCALE, exclude_self=exclude_self, key_mask_BL=mask
    )
    return fast, slow


@pytest.mark.parametrize("length", [1, 3, 4, 6, 8, 13, 31])
@pytest.mark.parametrize("name", SETS)
def test_the_block_form_gives_the_index_sets_values_and_gradients(name: str, length: int) -> None:
    for causal, exclude_self in itertools.product([True, False], [False, True]):
        for mask in (None, padding(length), holes(length)):
            leaves = queries_keys_values(length)
            fast, slow = both_forms(SETS[name], length, causal, exclude_self, mask)
            assert_all_close(
                values_and_gradients(fast, *leaves),
                values_and_gradients(slow, *leaves),
                ROUNDING,
                f"values,{causal},{exclude_self} grad_q grad_k grad_v",
            )


@pytest.mark.parametrize("name", ["strided", "fixed", "window"])
@pytest.mark.parametrize("columns", ["q", "k", "v", "out", "q k v out"])
def test_tensors_whose_columns_lie_side_by_side_give_the_same(name: str, columns: str) -> None:
    length = 8  # two whole blocks: nothing is filled up, which would copy
    fast, slow = both_forms(SETS[name], length, True, False, None)

    def laid_out(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*leaves: Tensor) -> Tensor:
            q, k, v = (_by_columns(x) if what in columns.split() else x for what, x in zip("qkv", leaves, strict=True))
            out = function(q, k, v)
            return _GradientByColumns.apply(out) if "out" in columns.split() else out

        return call

    leaves = queries_keys_values(length)
    assert_all_close(
        values_and_gradients(laid_out(fast), *leaves),
        values_and_gradients(slow, *leaves),
        ROUNDING,
        "values grad_q grad_k grad_v",
    )


def _by_columns(x: Tensor) -> Tensor:
    """The same numbers, a column behind the other in memory."""
    return x.mT.contiguous().mT


class _GradientByColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _by_columns(grad)


def plain_form(pattern: Any, length: int, causal: bool, exclude_self: bool, mask: Tensor | None) -> Any:
    """`key_sets._plain`, as a function of queries, keys and values."""
    layout = pattern.layout(length, causal=causal, exclude_self=exclude_self)
    valid = None if mask is None else layout.blocks(mask[:, None, :, None].expand(-1, 2, -1, 1))
    return lambda q, k, v: key_sets._plain(q, k, v, layout, SCALE, key_sets._Seen(valid, True), 0.0)


@pytest.mark.parametrize("name", SETS)
def test_plain_products_give_the_same(name: str) -> None:
    for causal, exclude_self, length in itertools.product([True, False], [False, True], [1, 13]):
        for mask in [None] * causal + [padding(length), holes(length)]:
            leaves = queries_keys_values(length)
            plain = values_and_gradients(plain_form(SETS[name], length, causal, exclude_self, mask), *leaves)
            _, slow = both_forms(SETS[name], length, causal, exclude_self, mask)
            assert_all_close(plain, values_and_gradients(slow, *leaves), ROUNDING, "values grad_q grad_k grad_v")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SETS)
def test_plain_products_give_the_same_in_other_floats(name: str, dtype: torch.dtype) -> None:
    for causal, exclude_self, length in itertools.product([True, False], [False, True], [1, 13]):
        mask = None if causal else padding(length)
        leaves = queries_keys_values(length, dtype=dtype)
        found = values_and_gradients(plain_form(SETS[name], length, causal, exclude_self, mask), *leaves)
        _, slow = both_forms(SETS[name], length, causal, exclude_self, mask)
        exact = values_and_gradients(slow, *(x.double() for x in leaves))
        assert all(x.dtype == dtype and x.isfinite().all() for x in found)
        assert_close(found[0].double(), exact[0], {torch.float64: 2 * torch.finfo(dtype).eps + 5e-6})


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SETS)
def test_the_weights_of_plain_products_sum_to_one_in_half_precision(
    name: str, dtype: torch.dtype, autocast: bool
) -> None:
    q, k, v = queries_keys_values(31, dtype=dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        sums = plain_form(SETS[name], 31, True, False, None)(6 * q, k, torch.ones_like(v))
    assert sums.dtype == dtype
    assert_close(sums.double(), torch.ones_like(sums).double(), {torch.float64: 2 * torch.finfo(dtype).eps})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["fused", "plain"])
def test_a_layout_without_parts_gives_every_query_its_own_value(form: str, dtype: torch.dtype) -> None:
    layout = Column(9).layout(9, exclude_self=True)
    assert not layout.parts
    leaves = queries_keys_values(9, dtype=dtype)
    attends = plain_form(Column(9), 9, True, True, None)
    if form == "fused":
        attends = both_forms(Column(9), 9, True, True, None)[0]
    found = values_and_gradients(attends, *leaves)
    assert torch.equal(found[0], leaves[2])
    assert not found[1].any()
    assert not found[2].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_a_batch_of_none_gives_none(name: str, causal: bool) -> None:
    empty = [x[:0] for x in queries_keys_values(13)]
    for mask in (None, padding(13)[:0]):
        fast, _ = both_forms(SETS[name], 13, causal, False, mask)
        for attends in (fast, plain_form(SETS[name], 13, causal, False, mask)):
            found = values_and_gradients(attends, *empty)
            assert [x.shape for x in found] == [(0, 2, 13, 5)] * 4


def test_an_index_set_of_everything_is_full_attention() -> None:
    q, k, v = queries_keys_values(9)
    everything = torch.ones(9, 9, dtype=torch.bool).tril()[None]
    for exclude_self in (False, True):
        found = attention_naive(q, k, v, seen_HLL=everything, scale=SCALE, exclude_self=exclude_self)
        assert_close(found, full_attention_naive(q, k, v, scale=SCALE, exclude_self=exclude_self), ROUNDING)


@given(length=st.integers(1, 60), stride=st.integers(1, 20), place=st.integers(0, 59))
@settings(max_examples=100)
def test_strided_sets_are_the_papers(length: int, stride: int, place: int) -> None:
    i = place % length
    window, column, union = (
        set(index_set(p(stride).sees, length)[i].nonzero()[:, 0].tolist()) for p in (Window, Column, StridedUnion)
    )
    assert window == set(range(max(0, i - stride + 1), i + 1))
    assert column == {j for j in range(i + 1) if (i - j) % stride == 0}
    assert union == window | column
    assert len(union) <= stride + -(-length // stride) - 1


@given(length=st.integers(1, 60), stride=st.integers(1, 20), part=st.integers(1, 20), place=st.integers(0, 59))
@settings(max_examples=100)
def test_fixed_sets_are_the_papers(length: int, stride: int, part: int, place: int) -> None:
    i, c = place % length, 1 + part % stride
    sets = (OwnBlock(stride), Summaries(stride, stride - c, c), FixedUnion(stride, stride - c, c))
    own, summaries, union = (set(index_set(p.sees, length)[i].nonzero()[:, 0].tolist()) for p in sets)
    assert own == {j for j in range(i + 1) if j // stride == i // stride}
    assert summaries == {j for j in range(i + 1) if j % stride in range(stride - c, stride)}
    assert union == own | summaries
    assert len(union) <= stride + c * (-(-length // stride) - 1)


def reached(*patterns: Any) -> bool:
    return not unreachable([index_set(p.sees, 64) for p in patterns]).any()


def test_two_layers_of_strided_reach_every_earlier_position_in_either_order() -> None:
    assert reached(Window(8), Column(8))
    assert reached(Column(8), Window(8))
    assert not reached(Window(8), Window(8))


def test_two_layers_of_fixed_reach_every_earlier_position_with_the_own_block_first() -> None:
    assert reached(OwnBlock(8), Summaries(8, 6, 2))
    lost = unreachable([index_set(p.sees, 64) for p in (Summaries(8, 6, 2), OwnBlock(8))])
    assert lost.sum() > 64 * 65 // 4


def test_two_merged_layers_reach_every_earlier_position() -> None:
    assert reached(StridedUnion(8), StridedUnion(8))
    assert reached(FixedUnion(8, 6, 2), FixedUnion(8, 6, 2))


def test_a_query_without_any_summary_sees_itself() -> None:
    q, k, v = queries_keys_values(9)
    out = key_sets.attend(q, k, v, Summaries(4, 3, 1).layout(9), scale=SCALE, causal=True)
    assert_close(out[:, :, :3], v[:, :, :3], ROUNDING)


def test_work_is_skipped() -> None:
    """Scores computed, over those of a causal head: the count of keys, and the masked halves of the small parts."""
    length, stride, c = 12_288, 128, 32
    dense = length * (length + 1) / 2
    assert dense / StridedUnion(stride).layout(length).scores > 25
    assert dense / Window(stride).layout(length).scores > 30
    assert dense / Column(stride).layout(length).scores > 120
    # The paper's keys, l + c (n / l - 1), would be 3.9 times fewer.
    assert dense / FixedUnion(stride, stride - c, c).layout(length).scores > 3.6


@pytest.mark.parametrize("pattern", [StridedUnion(4), FixedUnion(6, 4, 2)], ids=str)
def test_inputs_may_be_views_with_any_strides(pattern: Any) -> None:
    leaves = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in queries_keys_values(13)]
    assert not leaves[0].is_contiguous()
    fast, slow = both_forms(pattern, 13, True, False, None)
    assert_all_close(
        values_and_gradients(fast, *leaves),
        values_and_gradients(slow, *leaves),
        ROUNDING,
        "values grad_q grad_k grad_v",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", [StridedUnion(4), FixedUnion(6, 4, 2), Summaries(4, 3, 1)], ids=str)
def test_other_floats(pattern: Any, dtype: torch.dtype) -> None:
    leaves = queries_keys_values(13, dtype=dtype)
    fast, _ = both_forms(pattern, 13, True, True, None)
    _, slow = both_forms(pattern, 13, True, True, None)
    found = values_and_gradients(fast, *leaves)
    exact = values_and_gradients(slow, *(x.double() for x in leaves))
    allowed = {torch.float64: 8 * torch.finfo(dtype).eps + 5e-6}
    assert all(x.dtype == dtype for x in found)
    # The cotangent is rounded to the dtype too.
    assert_close(found[0].double(), exact[0], allowed)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("pattern", [StridedUnion(4), FixedUnion(6, 4, 2)], ids=str)
def test_dropout_takes_whole_weights_and_keeps_the_mean(pattern: Any) -> None:
    torch.manual_seed(0)
    q = k = torch.zeros(1, 1, 64, 2)
    v = torch.ones(1, 1, 64, 2)
    layout = pattern.layout(64)
    drawn = torch.stack([key_sets.attend(q, k, v, layout, scale=1.0, causal=True, dropout=0.5) for _ in range(50)])
    assert drawn[:, ..., 0, 0].unique().tolist() == [0.0, 2.0]
    assert abs(float(drawn.mean()) - 1.0) < 0.05


@pytest.mark.parametrize("pattern", [StridedUnion(4), FixedUnion(6, 4, 2), Summaries(4, 3, 1)], ids=str)
def test_it_runs_on_the_meta_device(pattern: Any) -> None:
    q, k, v = (x.to("meta").requires_grad_() for x in queries_keys_values(22))
    mask = torch.empty(2, 22, dtype=torch.bool, device="meta")
    for causal, exclude_self in itertools.product([True, False], [False, True]):
        layout = pattern.layout(22, causal=causal, exclude_self=exclude_self)
        for dropout in (0.0, 0.5):
            out = key_sets.attend(q, k, v, layout, scale=SCALE, causal=causal, key_mask_BL=mask, dropout=dropout)
            out.sum().backward()
            assert out.shape == v.shape


def saved_bytes(pattern: Any, length: int) -> int:
    leaves = [x.float().requires_grad_() for x in queries_keys_values(length)]
    seen: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        key_sets.attend(*leaves, pattern.layout(length), scale=SCALE, causal=True)
    return sum(seen.values())


@pytest.mark.parametrize("pattern", [StridedUnion(16), FixedUnion(16, 12, 4)], ids=str)
def test_what_is_saved_grows_with_the_length_alone(pattern: Any) -> None:
    short, long = (saved_bytes(pattern, length) for length in (256, 1024))
    assert long == 4 * short


def test_parts_share_no_key() -> None:
    """Each query meets each key of its set in exactly one part, and no other key in any."""
    length = 26
    for pattern, causal, exclude_self in itertools.product(SETS.values(), [True, False], [False, True]):
        layout = pattern.layout(length, causal=causal, exclude_self=exclude_self)
        place = layout.blocks(torch.arange(length).view(1, 1, -1, 1).double())
        counts = torch.zeros(length, length)
        real = layout.blocks(torch.ones(1, 1, length, 1, dtype=torch.bool))
        for part in layout.parts:
            _count(counts, part, place, real)
        expected = index_set(partial(pattern.sees, causal=causal), length)
        if exclude_self:
            expected = expected & ~torch.eye(length, dtype=torch.bool)
        assert torch.equal(counts, expected.float()), (pattern, causal, exclude_self)


def _count(counts: Tensor, part: key_sets.Part, place: Tensor, real: Tensor) -> None:
    queries, keys = part.queries.pack(place)[0, ..., 0], part.keys.pack(place)[0, ..., 0]
    query_is_real, key_is_real = part.queries.pack(real)[0, ..., 0], part.keys.pack(real)[0, ..., 0]
    own: Sequence[int] = range(queries.shape[1])
    for p in range(queries.shape[0]):
        k = p if keys.shape[0] > 1 else 0
        for i, j in itertools.product(own, range(keys.shape[1])):
            seen = part.sees is None or bool(part.sees(torch.tensor(i), torch.tensor(j)))
            if seen and (j <= i or not part.causal) and query_is_real[p, i] and key_is_real[k, j]:
                counts[int(queries[p, i]), int(keys[k, j])] += 1


def test_the_private_kernel_takes_a_merged_result_back() -> None:
    """PyTorch's fused kernel for the CPU: two parts against their merged output give the whole's gradients."""
    q, k, v = queries_keys_values(16)
    assert len(StridedUnion(4).layout(16).parts) > 1
    fast, slow = both_forms(StridedUnion(4), 16, True, False, None)
    assert_all_close(values_and_gradients(fast, q, k, v), values_and_gradients(slow, q, k, v), ROUNDING, "values q k v")
