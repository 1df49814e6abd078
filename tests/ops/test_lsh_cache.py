"""Hash attention a token at a time equals its naive twin, and differs from the sorted pass only as it says."""

from __future__ import annotations

import math
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.bench.memory_tracker import MemoryTracker
from efftx.ops import lsh_cache
from efftx.ops.attention import full_attention, unit_key
from efftx.ops.lsh import lsh_attention
from efftx.ops.lsh_cache import EMPTY, BucketTable, candidates, empty_table, fill, insert, lsh_attention_step
from efftx.ops.lsh_hashing import auto_buckets, hash_vectors, make_rotations
from efftx.ops.lsh_oracle import beyond_the_windows, lsh_attention_by_recency, lsh_attention_by_union
from tests.tolerances import ROUNDING, assert_close

# length, rounds, buckets, capacity
SHAPES = {
    "length_one": (1, 2, 2, 4),
    "one_round": (20, 1, 4, 8),
    "four_rounds": (40, 4, 6, 8),
    "rings_that_wrap": (40, 3, 2, 5),
    "one_place": (17, 2, 3, 1),
    "one_bucket": (24, 2, 1, 7),
    "more_buckets_than_tokens": (9, 2, 50, 4),
}


def inputs(
    length: int, n_hashes: int, n_buckets: int, batch: int = 2, n_heads: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q_BHLd = torch.randn(batch, n_heads, length, 5, dtype=torch.float64, generator=generator) * 2
    v_BHLv = torch.randn(batch, n_heads, length, 3, dtype=torch.float64, generator=generator)
    bucket_BHRL = torch.randint(0, n_buckets, (batch, n_heads, n_hashes, length), generator=generator)
    return q_BHLd, v_BHLv, bucket_BHRL


def table_for(bucket_BHRL: Tensor, n_buckets: int, capacity: int) -> BucketTable:
    return empty_table(*bucket_BHRL.shape[:3], n_buckets, capacity, device=bucket_BHRL.device)


def decoded(
    q: Tensor, v: Tensor, bucket: Tensor, n_buckets: int, capacity: int, *, prompt: int = 0, **options: Any
) -> Tensor:
    """Outputs from the token after the prompt to the last, each from the tokens before it, (B, H, L - prompt, v)."""
    k, table, outputs = unit_key(q), table_for(bucket, n_buckets, capacity), []
    if prompt:
        fill(table, bucket[..., :prompt])
    for i in range(prompt, q.shape[2]):
        found = candidates(table, bucket[..., i])
        outputs.append(lsh_attention_step(q[:, :, i], k, v, found, i, **options))
        insert(table, bucket[..., i], i)
    return torch.stack(outputs, 2)


@pytest.mark.parametrize("allow_duplicates", [False, True])
def test_the_step_of_other_devices_gives_what_that_of_a_cpu_gives(
    allow_duplicates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, v, bucket = inputs(14, 3, 4)
    k, table = unit_key(q), table_for(bucket, 4, 8)
    fill(table, bucket[..., :6])  # half empty, and buckets of several sizes
    narrow = candidates(table, bucket[..., 6])
    expected = lsh_attention_step(q[:, :, 6], k, v, narrow, 6, allow_duplicates=allow_duplicates)
    monkeypatch.setattr(lsh_cache, "_waits_for_nothing", lambda x: False)
    found = candidates(table, bucket[..., 6])
    assert found.shape[-1] == 3 * 8 > narrow.shape[-1]
    actual = lsh_attention_step(q[:, :, 6], k, v, found, 6, allow_duplicates=allow_duplicates)
    assert_close(actual, expected, ROUNDING)


def members(table: BucketTable, *index: int) -> list[int]:
    return sorted(p for p in table.position_BHRNC[index].tolist() if p != EMPTY)


@pytest.mark.parametrize("allow_duplicates", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_token_gets_what_its_naive_twin_gives(shape: str, batch: int, allow_duplicates: bool) -> None:
    length, n_hashes, n_buckets, capacity = SHAPES[shape]
    q, v, bucket = inputs(length, n_hashes, n_buckets, batch)
    actual = decoded(q, v, bucket, n_buckets, capacity, allow_duplicates=allow_duplicates)
    expected = lsh_attention_by_recency(q, v, bucket, capacity=capacity, allow_duplicates=allow_duplicates)
    assert_close(actual, expected, ROUNDING)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 30),
    n_hashes=st.integers(1, 4),
    n_buckets=st.integers(1, 7),
    capacity=st.integers(1, 9),
    prompt=st.integers(0, 29),
    allow_duplicates=st.booleans(),
)
def test_any_prompt_and_any_capacity_give_what_the_naive_twin_gives(
    seed: int, length: int, n_hashes: int, n_buckets: int, capacity: int, prompt: int, allow_duplicates: bool
) -> None:
    q, v, bucket = inputs(length, n_hashes, n_buckets, 1, 2, seed)
    prompt = min(prompt, length - 1)
    actual = decoded(q, v, bucket, n_buckets, capacity, prompt=prompt, allow_duplicates=allow_duplicates)
    expected = lsh_attention_by_recency(q, v, bucket, capacity=capacity, allow_duplicates=allow_duplicates)
    assert_close(actual, expected[:, :, prompt:], ROUNDING)


@pytest.mark.parametrize("n_hashes", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_one_bucket_for_all_is_full_attention(length: int, n_hashes: int) -> None:
    q, v, bucket = inputs(length, n_hashes, 1)
    expected = full_attention(q, unit_key(q), v, scale=1.0, exclude_self=True)
    assert_close(decoded(q, v, bucket, 1, length), expected, ROUNDING)


def test_rings_that_hold_every_bucket_give_the_papers_union() -> None:
    q, v, bucket = inputs(50, 3, 6)
    assert_close(decoded(q, v, bucket, 6, 50), lsh_attention_by_union(q, v, bucket), ROUNDING)


@pytest.mark.parametrize("capacity", [1, 4, 100])
def test_a_prompt_leaves_the_same_table_as_its_tokens_one_by_one(capacity: int) -> None:
    _, _, bucket = inputs(33, 3, 4)
    one_by_one = table_for(bucket, 4, capacity)
    for i in range(33):
        insert(one_by_one, bucket[..., i], i)
        at_once = table_for(bucket, 4, capacity)
        fill(at_once, bucket[..., : i + 1])
        assert torch.equal(at_once.position_BHRNC, one_by_one.position_BHRNC)
        assert torch.equal(at_once.count_BHRN, one_by_one.count_BHRN)


def test_a_full_bucket_forgets_its_oldest() -> None:
    table = empty_table(1, 1, 1, 2, 3, device=None)
    in_bucket_1 = []
    for position in range(9):
        if position in (0, 4):
            insert(table, torch.tensor([[[0]]]), position)
        else:
            insert(table, torch.tensor([[[1]]]), position)
            in_bucket_1.append(position)
        assert members(table, 0, 0, 0, 1) == in_bucket_1[-3:]
    assert members(table, 0, 0, 0, 0) == [0, 4]
    assert table.count_BHRN.tolist() == [[[[2, 7]]]]


def test_rows_of_several_lengths_go_on_as_they_would_alone() -> None:
    lengths = torch.tensor([12, 0, 5, 1])
    q, v, bucket = inputs(20, 3, 3, batch=4)
    k = unit_key(q)
    table = table_for(bucket, 3, 4)
    fill(table, bucket[..., :12], lengths)
    row, own = torch.arange(4), lengths.clone()
    outputs = []
    for _ in range(8):
        now = bucket[row, :, :, own]
        outputs.append(lsh_attention_step(q[row, :, own], k, v, candidates(table, now), own))
        insert(table, now, own)
        own += 1
    expected = lsh_attention_by_recency(q, v, bucket, capacity=4)
    for b, length in enumerate(lengths.tolist()):
        assert_close(torch.stack(outputs, 2)[b], expected[b, :, length : length + 8], ROUNDING)


def test_a_new_prompt_forgets_the_one_before() -> None:
    _, _, bucket = inputs(30, 2, 4)
    used, fresh = table_for(bucket, 4, 3), table_for(bucket, 4, 3)
    fill(used, bucket)
    fill(used, bucket[..., :2])
    fill(fresh, bucket[..., :2])
    assert torch.equal(used.position_BHRNC, fresh.position_BHRNC)
    assert torch.equal(used.count_BHRN, fresh.count_BHRN)


@pytest.mark.parametrize("allow_duplicates", [False, True])
def test_a_position_found_in_two_rounds_counts_once_or_twice_as_asked(allow_duplicates: bool) -> None:
    k = torch.tensor([[[[1.0], [-1.0], [1.0]]]], dtype=torch.float64)
    v = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]]], dtype=torch.float64)
    q = torch.tensor([[[0.3]]], dtype=torch.float64)
    # Both rounds find position 0, one of them position 1.
    found = torch.tensor([[[0, 1, EMPTY, 0]]])
    out = lsh_attention_step(q, k, v, found, 2, allow_duplicates=allow_duplicates)
    weights = torch.tensor([math.exp(0.3) * (2 if allow_duplicates else 1), math.exp(-0.3)], dtype=torch.float64)
    assert_close(out, (weights / weights.sum()).view(1, 1, 2), ROUNDING)


@pytest.mark.parametrize("allow_duplicates", [False, True])
def test_a_token_attends_to_itself_only_for_want_of_others(allow_duplicates: bool) -> None:
    q, v, _ = inputs(6, 1, 1, batch=3, n_heads=1)
    # Nobody; nobody but the token itself; somebody beside the token itself.
    found = torch.tensor([[EMPTY, EMPTY, EMPTY], [5, EMPTY, 5], [5, 2, EMPTY]])[:, None]
    out = lsh_attention_step(q[:, :, 5], unit_key(q), v, found, 5, allow_duplicates=allow_duplicates)
    assert torch.equal(out, torch.stack([v[0, :, 5], v[1, :, 5], v[2, :, 2]]))


def test_what_stands_elsewhere_in_the_caches_changes_nothing() -> None:
    q, v, _ = inputs(10, 1, 1)
    found = torch.tensor([3, EMPTY, 6]).expand(2, 3, 3)
    out = lsh_attention_step(q[:, :, 7], unit_key(q), v, found, 7)
    k, v = unit_key(q), v.clone()
    for other in (0, 1, 2, 4, 5, 8, 9):
        k[:, :, other], v[:, :, other] = torch.nan, torch.nan
    assert torch.equal(lsh_attention_step(q[:, :, 7], k, v, found, 7), out)


def test_a_step_needs_no_more_memory_when_more_is_cached() -> None:
    peaks = []
    for n_positions in (300, 30_000):
        k, v = torch.randn(1, 2, n_positions, 8), torch.randn(1, 2, n_positions, 8)
        bucket = torch.randint(0, 4, (1, 2, 2, n_positions))
        table = table_for(bucket, 4, 16)
        fill(table, bucket[..., :-1])
        with MemoryTracker() as live:
            found = candidates(table, bucket[..., -1])
            lsh_attention_step(k[:, :, -1], k, v, found, n_positions - 1)
            insert(table, bucket[..., -1], n_positions - 1)
        assert found.shape == (1, 2, 32)
        peaks.append(live.peak_bytes())
    assert peaks[0] == peaks[1]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 50),
    chunk_len=st.integers(1, 9),
    n_hashes=st.integers(1, 3),
    n_buckets=st.integers(1, 8),
)
def test_two_chunks_of_places_miss_no_pair_that_training_sees(
    seed: int, length: int, chunk_len: int, n_hashes: int, n_buckets: int
) -> None:
    _, _, bucket = inputs(length, n_hashes, n_buckets, 1, 2, seed)
    share, n_missed = beyond_the_windows(bucket, chunk_len, 2 * chunk_len)
    assert n_missed == 0
    if int(torch.nn.functional.one_hot(bucket).sum(3).max()) <= chunk_len + 1:
        assert share == 0


def test_two_chunks_less_one_of_places_are_the_fewest_that_miss_nothing() -> None:
    bucket = torch.zeros(1, 1, 1, 8, dtype=torch.long)
    # The last of 8 tokens stands last in the second chunk of 4 and sees 7; the first chunk's tokens see less.
    assert beyond_the_windows(bucket, 4, 7) == (0.0, 0)
    assert beyond_the_windows(bucket, 4, 6) == (0.0, 1)
    # With chunks of 2 the tokens see 0, 1, 2, 3, 2, 3, 2, 3 of the 0, 1, 2, 3, 4, 4, 4, 4 latest.
    assert beyond_the_windows(bucket, 2, 4) == (6 / 22, 0)


def test_buckets_of_at_most_a_chunk_decode_to_what_training_computes() -> None:
    q, v, bucket = inputs(60, 3, 10)
    assert beyond_the_windows(bucket, 16, 32) == (0.0, 0)
    for allow_duplicates in (False, True):
        trained = lsh_attention(q, v, bucket, n_buckets_total=10, chunk_len=16, allow_duplicates=allow_duplicates)
        assert_close(decoded(q, v, bucket, 10, 32, allow_duplicates=allow_duplicates), trained, ROUNDING)


@pytest.mark.parametrize(("offset", "least", "most"), [(0.0, 0.0, 0.001), (0.5, 0.04, 0.08), (1.0, 0.12, 0.15)])
def test_the_share_of_candidates_that_no_window_of_training_holds_is_the_documented_one(
    offset: float, least: float, most: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 1024, 64, generator=generator) + offset * torch.randn(1, 4, 1, 64, generator=generator)
    factors = auto_buckets(1024, 64)
    rotations = make_rotations((1, 4, 64), 4, factors, device=None, dtype=q.dtype, generator=generator)
    bucket = hash_vectors(q, rotations, factors)
    assert int(bucket.max()) < prod(factors)
    share, n_missed = beyond_the_windows(bucket, 64, 128)
    assert n_missed == 0
    assert least <= share <= most


def test_half_precision_is_computed_in_single() -> None:
    q, v, bucket = inputs(30, 2, 3)
    q, k, v = q.bfloat16(), unit_key(q).bfloat16(), v.bfloat16()
    table = table_for(bucket, 3, 8)
    fill(table, bucket[..., :29])
    found = candidates(table, bucket[..., 29])
    out = lsh_attention_step(q[:, :, 29], k, v, found, 29)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, lsh_attention_step(q[:, :, 29].float(), k.float(), v.float(), found, 29).bfloat16())


def test_it_runs_on_the_meta_device() -> None:
    bucket = torch.empty(2, 3, 4, 20, dtype=torch.long, device="meta")
    cache, own = torch.empty(2, 3, 20, 8, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    table = table_for(bucket, 6, 16)
    fill(table, bucket, own)
    found = candidates(table, bucket[..., 0])
    assert found.shape == (2, 3, 64)
    assert lsh_attention_step(cache[:, :, 0], cache, cache, found, own).shape == (2, 3, 8)
    insert(table, bucket[..., 0], own)


@pytest.mark.parametrize("number", range(5))
def test_a_table_of_nothing_is_refused(number: int) -> None:
    shape = [2, 2, 2, 2, 2]
    shape[number] = 0
    with pytest.raises(ValueError, match="needs at least one row, head, round, bucket and place"):
        empty_table(*shape, device=None)


@pytest.mark.parametrize(
    ("shape", "n_B", "says"),
    [
        ((2, 3, 4), None, "prompt's buckets must have the shape"),
        ((2, 3, 3, 9), None, "prompt's buckets must have the shape"),
        ((2, 3, 4, 0), None, "prompt's buckets must have the shape"),
        ((2, 3, 4, 9), torch.tensor([1, 2, 3]), "one length for each of the 2 rows"),
    ],
)
def test_a_prompt_that_does_not_fit_the_table_is_refused(shape: tuple[int, ...], n_B: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fill(empty_table(2, 3, 4, 6, 8, device=None), torch.zeros(shape, dtype=torch.long), n_B)


def test_a_token_that_does_not_fit_the_table_is_refused() -> None:
    table, bucket = empty_table(2, 3, 4, 6, 8, device=None), torch.zeros(2, 3, 4, dtype=torch.long)
    for wrong in (bucket[:1], bucket[:, :, :3], bucket[..., None]):
        with pytest.raises(ValueError, match="token's buckets must have the shape"):
            candidates(table, wrong)
        with pytest.raises(ValueError, match="token's buckets must have the shape"):
            insert(table, wrong, 0)
    with pytest.raises(ValueError, match="Positions count from 0, but this token's is -1"):
        insert(table, bucket, -1)
    with pytest.raises(ValueError, match="one position for each of the 2 rows"):
        insert(table, bucket, torch.tensor([3]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"q_BHd": torch.zeros(2, 3, 4)}, "query must have the shape"),
        ({"q_BHd": torch.zeros(2, 3, 1, 5)}, "query must have the shape"),
        ({"v_BHTv": torch.zeros(2, 3, 9, 5)}, "query must have the shape"),
        ({"position_BHE": torch.zeros(2, 1, 4, dtype=torch.long)}, "candidates must have the shape"),
        ({"position_BHE": torch.zeros(2, 3, 0, dtype=torch.long)}, "candidates must have the shape"),
        ({"k_BHTd": torch.zeros(2, 3, 20, 5)[:, :, :10]}, "must be contiguous"),
        ({"v_BHTv": torch.zeros(2, 10, 3, 5).transpose(1, 2)}, "must be contiguous"),
        ({"own": 10}, "position 10 lies beyond the 10 positions"),
        ({"own": torch.tensor([1, 2, 3])}, "one position for each of the 2 rows"),
    ],
)
def test_a_step_whose_shapes_do_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    cache = torch.zeros(2, 3, 10, 5)
    found = torch.zeros(2, 3, 4, dtype=torch.long)
    arguments = {"q_BHd": cache[:, :, 0], "k_BHTd": cache, "v_BHTv": cache, "position_BHE": found, "own": 3}
    with pytest.raises(ValueError, match=says):
        lsh_attention_step(**(arguments | changes))
