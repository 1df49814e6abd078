"""Softmax attention over patterns: local, strided, fixed."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch

from efftx.errors import UserError
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.attention_settings import MODES, FixedConfig, FullConfig, LocalConfig, StridedConfig
from efftx.layers.cost import Heads, Rows
from efftx.layers.patterns import Full, Local, Softmax, make_pattern
from efftx.layers.projections import DenseQKV
from efftx.ops.fixed import FixedUnion
from efftx.ops.patterns import attention_naive, index_set
from efftx.ops.strided import Column, Window
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


PATTERNS = {
    "full": FullConfig(),
    "local": LocalConfig(chunk_len=4),
    "local window": LocalConfig(window=5),
    **{f"strided, {mode}": StridedConfig(stride=5, mode=mode) for mode in MODES},
    **{f"fixed, {mode}": FixedConfig(stride=6, c=2, mode=mode) for mode in MODES},
    "fixed, own sub-blocks": FixedConfig(stride=6, c=2, sub_blocks=2),
    "fixed, own sub-blocks by head": FixedConfig(stride=7, c=1, sub_blocks=2, mode="heads"),
}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_head_attends_to_its_index_set(name: str, index: int) -> None:
    pattern = make_pattern(name.split()[0].strip(","), PATTERNS[name], 20, index)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 20, 5, dtype=torch.float64, generator=generator) for _ in range(3))
    for causal, exclude_self in itertools.product([True, False], [False, True]):
        seen = torch.stack([index_set(partial(pattern.sees, head, causal=causal), 20) for head in range(4)])
        place = torch.arange(20)
        for mask in (None, place < torch.tensor([[20], [7]]), place % 3 < torch.tensor([[1], [2]])):
            how = {"scale": 0.7, "exclude_self": exclude_self, "key_mask_BL": mask}
            found = pattern.attend(q, k, v, Softmax(causal=causal, **how))
            assert_close(found, attention_naive(q, k, v, seen_HLL=seen, **how), ROUNDING, f"{causal} {exclude_self}")
        assert pattern.keys(20, causal=causal, exclude_self=exclude_self) > 0


@pytest.mark.parametrize(
    ("kind", "config", "says", "hint"),
    [
        ("lsh", FullConfig(), "No softmax attention is called 'lsh'", "full"),
        ("fulll", FullConfig(), "called 'fulll'", "'full'"),
        ("strided", StridedConfig(mode="intrleaved"), "strided.mode=intrleaved is not known", "'interleaved'"),
        ("strided", StridedConfig(stride=65), "strided.stride=65 is longer than a row of 64", "strided.stride=8"),
        ("fixed", FixedConfig(stride=8, c=9), "fixed.c=9 positions do not fit", "smaller fixed.c"),
        ("fixed", FixedConfig(stride=8, c=4, sub_blocks=3), "fixed.sub_blocks=3 summaries of", "smaller fixed.c"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused_by_its_key(kind: str, config: Any, says: str, hint: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        make_pattern(kind, config, 64)
    assert hint in told.value.hint


@pytest.mark.parametrize(
    ("kind", "config"), [("strided", StridedConfig(mode="heads")), ("fixed", FixedConfig(stride=8, c=2, sub_blocks=2))]
)
def test_heads_that_cannot_take_their_sets_in_turn_are_refused(kind: str, config: Any) -> None:
    pattern = make_pattern(kind, config, 64)
    with pytest.raises(UserError, match="n_heads=3 is not divisible by 2"):
        SoftmaxAttention(pattern, DenseQKV(12, 3, 4, share_qk=False, bias=False), d_head=4)
    layer = SoftmaxAttention(pattern, DenseQKV(12, 4, 3, share_qk=False, bias=False), d_head=3)
    assert layer(torch.randn(1, 64, 12)).shape == (1, 64, 12)


@pytest.mark.parametrize("causal", [True, False])
def test_a_row_shorter_than_a_local_chunk_costs_no_more_than_itself(causal: bool) -> None:
    short, whole = Local(LocalConfig(chunk_len=128)), Local(LocalConfig(chunk_len=10))
    assert short.keys(10, causal=causal) == whole.keys(10, causal=causal) == 10
    rows, heads = Rows(batch=2, length=10), Heads(n=2, d_head=4, d_model=8, causal=causal, share_qk=True)
    assert short.held(rows, heads) == whole.held(rows, heads)
    assert short.keys(129, causal=causal) == 128 * (2 if causal else 3) * 256 / 129


def test_interleaved_layers_take_the_factors_in_turn() -> None:
    layers = [make_pattern("strided", StridedConfig(stride=4), 16, index) for index in range(3)]
    assert [layer.sets for layer in layers] == [(Window(4),), (Column(4),), (Window(4),)]


def test_sub_blocks_are_counted_from_the_end_of_the_block() -> None:
    pattern = make_pattern("fixed", FixedConfig(stride=8, c=2, sub_blocks=3), 64)
    assert pattern.sets == (FixedUnion(8, 6, 2), FixedUnion(8, 4, 2), FixedUnion(8, 2, 2))


def test_the_stride_of_its_own_is_near_the_square_root_and_the_summaries_a_quarter() -> None:
    strides = {length: StridedConfig().stride_of(length) for length in (1, 2, 64, 1024, 3072, 12_288)}
    assert strides == {1: 1, 2: 1, 64: 8, 1024: 32, 3072: 64, 12_288: 128}
    assert [FixedConfig().c_of(length) for length in (1, 64, 12_288)] == [1, 2, 32]
    assert FixedConfig(stride=96, c=5).stride_of(64) == 96


@pytest.mark.parametrize("name", [n for n in PATTERNS if n not in ("full", "local")])
def test_a_new_token_looks_at_its_own_keys_alone(name: str) -> None:
    """As many cached keys as its index set holds, and those keys."""
    pattern = make_pattern(name.split()[0].strip(","), PATTERNS[name], 40)
    place = torch.arange(40, dtype=torch.float64)
    for head, keys in enumerate(pattern.sets):
        areas = keys.cached(40)
        kept = [torch.full((area.size,), -1.0, dtype=torch.float64) for area in areas]
        for n in range(40):
            seen = []
            for area, slots in zip(areas, kept, strict=True):
                for slot in area.put(n):
                    slots[slot] = place[n]
                first, end = area.seen(n)
                seen += slots[first:end].int().tolist()
                own = area.own(n)
                assert own is None or slots[own] == n
            assert sorted(seen) == index_set(partial(pattern.sees, head), 40)[n].nonzero()[:, 0].tolist()
