"""Hash attention equals its naive twin, output and every gradient, and has the properties that the paper claims."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops import lsh
from efftx.ops.lsh import lsh_attention
from efftx.ops.lsh_oracle import lost_pairs, lsh_attention_by_rank, lsh_attention_by_union
from efftx.ops.lsh_runs import most_codes

# float64 on both sides: what is left is the order of the sums.
TOLERANCE = 1e-10

# length, chunk, rounds, buckets
SHAPES = {
    "length_one": (1, 4, 1, 2),
    "length_one_two_rounds": (1, 4, 2, 2),
    "one_chunk": (4, 4, 1, 2),
    "less_than_a_chunk": (3, 4, 2, 2),
    "two_chunks": (8, 4, 1, 2),
    "two_chunks_two_rounds": (8, 4, 2, 4),
    "ragged_three_rounds": (33, 8, 3, 6),
    "overfull_buckets": (40, 8, 4, 2),
    "four_rounds": (64, 8, 4, 8),
    "ragged_two_rounds": (30, 4, 2, 4),
    "chunks_of_one": (17, 1, 2, 4),
    "one_bucket": (24, 8, 1, 1),
}
FORMS = {
    "paper": {},
    "across": {"attend_across_buckets": True},
    "duplicates": {"allow_duplicates": True},
    "later": {"attend_across_buckets": True, "allow_duplicates": True},
}


def inputs(
    length: int, n_rounds: int, n_buckets: int, batch: int = 2, n_heads: int = 2, seed: int = 0
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q_BHLd = torch.randn(batch, n_heads, length, 5, dtype=torch.float64, generator=generator) * 2
    v_BHLv = torch.randn(batch, n_heads, length, 3, dtype=torch.float64, generator=generator)
    bucket_BHRL = torch.randint(0, n_buckets, (batch, n_heads, n_rounds, length), generator=generator)
    return q_BHLd.requires_grad_(), v_BHLv.requires_grad_(), bucket_BHRL


def output_and_gradients(attention: Any, q: Tensor, v: Tensor, bucket: Tensor, **options: Any) -> tuple[Tensor, ...]:
    out = attention(q, v, bucket, **options)
    cotangent = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(7))
    grads = torch.autograd.grad(out, (q, v), cotangent, materialize_grads=True)
    return out.detach(), *grads


def full_shared_qk_attention(q: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Shared-QK attention over all tokens, with the authors' finite penalty of 1e5 on the token itself."""
    length = q.shape[-2]
    keys = q / torch.sqrt(q.square().mean(-1, keepdim=True) + 1e-6) / q.shape[-1] ** 0.5
    logits = q @ keys.transpose(-1, -2)
    logits = logits - 1e5 * torch.eye(length, dtype=q.dtype)
    if causal:
        logits = logits.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    return torch.softmax(logits, -1) @ v


def assert_all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_the_rank_oracle(shape: str, form: str, causal: bool) -> None:
    length, chunk_len, n_rounds, n_buckets = SHAPES[shape]
    q, v, bucket = inputs(length, n_rounds, n_buckets)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(2, length, generator=generator) < 0.7
    kept = torch.rand(chunk_len, chunk_len * (2 if causal else 3), generator=generator) < 0.8
    for key_mask, dropout in product((None, mask), (None, kept / 0.8)):
        options = {
            "n_buckets_total": n_buckets,
            "chunk_len": chunk_len,
            "causal": causal,
            "key_mask_BL": key_mask,
            "dropout_mask_mK": None if dropout is None else dropout.double(),
            **FORMS[form],
        }
        assert_all_close(
            output_and_gradients(lsh_attention, q, v, bucket, padding_keeps_places=True, **options),
            output_and_gradients(lsh_attention_by_rank, q, v, bucket, **options),
        )


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    n_padding=st.integers(0, 30),
    chunk_len=st.integers(1, 9),
    n_rounds=st.integers(1, 3),
    n_buckets=st.sampled_from([1, 2, 6]),
    form=st.sampled_from(sorted(FORMS)),
    causal=st.booleans(),
    at_the_end=st.booleans(),
)
def test_padding_changes_no_real_token_and_no_gradient(
    seed: int,
    lengths: list[int],
    n_padding: int,
    chunk_len: int,
    n_rounds: int,
    n_buckets: int,
    form: str,
    causal: bool,
    at_the_end: bool,
) -> None:
    """Rows of several lengths, padded to one, against each row alone."""
    length = max(lengths) + n_padding + 1
    q, v, bucket = inputs(length, n_rounds, n_buckets, batch=len(lengths), seed=seed)
    order = (
        torch.arange(length) if at_the_end else torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    )
    mask = torch.zeros(len(lengths), length, dtype=torch.bool)
    for row, n in enumerate(lengths):
        mask[row, order[:n]] = True
    options = {"n_buckets_total": n_buckets, "chunk_len": chunk_len, "causal": causal, **FORMS[form]}
    out = lsh_attention(q, v, bucket, key_mask_BL=mask, **options)
    assert out.isfinite().all()
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grad_q, grad_v = torch.autograd.grad((out * weight * mask[:, None, :, None]).sum(), (q, v))
    assert not grad_q[~mask[:, None].expand(-1, 2, -1)].any()
    assert not grad_v[~mask[:, None].expand(-1, 2, -1)].any()
    for row, n in enumerate(lengths):
        real = mask[row].nonzero()[:, 0]
        if not n:
            continue
        alone_q, alone_v = (t[row : row + 1, :, real].detach().requires_grad_() for t in (q, v))
        alone = lsh_attention(alone_q, alone_v, bucket[row : row + 1, :, :, real], **options)
        torch.testing.assert_close(out[row, :, real], alone[0], atol=1e-12, rtol=1e-12)
        grads = torch.autograd.grad((alone * weight[row : row + 1, :, real]).sum(), (alone_q, alone_v))
        for grad, expected in zip((grad_q, grad_v), grads, strict=True):
            torch.testing.assert_close(grad[row, :, real], expected[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_one_and_strided_inputs_change_nothing(form: str) -> None:
    q, v, bucket = inputs(20, 2, 4, batch=1, n_heads=3)
    strided = [tensor.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for tensor in (q, v)]
    assert not strided[0].is_contiguous()
    options = {"n_buckets_total": 4, "chunk_len": 8, **FORMS[form]}
    expected = output_and_gradients(lsh_attention_by_rank, q, v, bucket, **options)
    assert_all_close(output_and_gradients(lsh_attention, *strided, bucket, **options), expected)


@pytest.mark.parametrize("tile_scores", [1, 3 * 16 * 8, 2**19])
def test_the_size_of_a_tile_changes_nothing(tile_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efftx.ops.lsh_runs.TILE_SCORES", tile_scores)
    q, v, bucket = inputs(30, 2, 4, batch=3)
    for form, causal in product(FORMS, (True, False)):
        options = {"n_buckets_total": 4, "chunk_len": 4, "causal": causal, **FORMS[form]}
        assert_all_close(
            output_and_gradients(lsh_attention, q, v, bucket, **options),
            output_and_gradients(lsh_attention_by_rank, q, v, bucket, **options),
        )


def test_gradcheck() -> None:
    q, v, bucket = inputs(10, 2, 2, batch=1, n_heads=1)
    assert torch.autograd.gradcheck(lambda q, v: lsh_attention(q, v, bucket, n_buckets_total=2, chunk_len=4), (q, v))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 5, 8, 16])
def test_one_or_two_chunks_without_bucket_mask_are_full_attention(length: int, causal: bool) -> None:
    q, v, bucket = inputs(length, 1, 4)
    options = {"n_buckets_total": 4, "chunk_len": 8, "causal": causal, "attend_across_buckets": True}
    actual = output_and_gradients(lsh_attention, q, v, bucket, **options)
    expected = output_and_gradients(lambda q, v, _: full_shared_qk_attention(q, v, causal), q, v, bucket)
    assert_all_close(actual, expected)


def test_windows_that_hold_every_bucket_give_the_papers_union() -> None:
    q, v, bucket = inputs(40, 3, 10)
    assert lost_pairs(bucket, 16) == 0
    options = {"n_buckets_total": 10, "chunk_len": 16}
    actual = output_and_gradients(lsh_attention, q, v, bucket, **options)
    assert_all_close(actual, output_and_gradients(lsh_attention_by_union, q, v, bucket))


def test_a_bucket_larger_than_its_window_loses_pairs() -> None:
    bucket = torch.zeros(1, 1, 1, 12, dtype=torch.long)
    # Chunks of 4: the last chunk's 4 queries do not see the first chunk's 4 keys.
    assert lost_pairs(bucket, 4) == 16
    assert lost_pairs(bucket, 6) == 0


def test_a_pair_found_in_two_rounds_counts_once() -> None:
    q, v, bucket = inputs(16, 1, 2)
    twice = bucket.repeat(1, 1, 2, 1)
    options = {"n_buckets_total": 2, "chunk_len": 8}
    once = output_and_gradients(lsh_attention, q, v, bucket, **options)
    assert_all_close(output_and_gradients(lsh_attention, q, v, twice, **options), once)


def test_enough_rounds_give_full_attention() -> None:
    q, v, bucket = inputs(16, 40, 2, batch=1)
    actual = output_and_gradients(lsh_attention, q, v, bucket, n_buckets_total=2, chunk_len=8)
    expected = output_and_gradients(lambda q, v, _: full_shared_qk_attention(q, v, True), q, v, bucket)
    assert_all_close(actual, expected)


def test_a_token_alone_in_its_bucket_attends_to_itself() -> None:
    q, v, _ = inputs(8, 1, 8)
    alone = torch.arange(8).expand(2, 2, 1, 8)
    out, grad_q, _ = output_and_gradients(lsh_attention, q, v, alone, n_buckets_total=8, chunk_len=4)
    assert torch.equal(out, v)
    assert not grad_q.any()


def test_no_gradient_reaches_a_later_or_a_masked_token() -> None:
    q, v, bucket = inputs(32, 2, 4, batch=1, n_heads=1)
    mask = torch.ones(1, 32, dtype=torch.bool)
    mask[0, 3] = False
    for form in FORMS.values():
        out = lsh_attention(q, v, bucket, n_buckets_total=4, chunk_len=8, key_mask_BL=mask, **form)
        (grad_v,) = torch.autograd.grad(out[0, 0, 20].sum(), v)
        assert not grad_v[0, 0, 21:].any()
        assert not grad_v[0, 0, 3].any()
        assert grad_v.any()


@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_small_and_large_queries_stay_exact_in_float32(scale: float) -> None:
    q, v, bucket = inputs(48, 2, 6)
    q = (q.detach() * scale).requires_grad_()
    options = {"n_buckets_total": 6, "chunk_len": 8}
    expected = output_and_gradients(lsh_attention_by_rank, q, v, bucket, **options)[0]
    actual = lsh_attention(q.float(), v.float(), bucket, **options)
    # Logits of some thousands carry about 1e-4 of rounding in float32.
    torch.testing.assert_close(actual.double(), expected, atol=5e-3, rtol=0)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 40), chunk_len=st.integers(1, 9), n_rounds=st.integers(2, 4))
def test_the_order_of_the_rounds_does_not_matter(seed: int, length: int, chunk_len: int, n_rounds: int) -> None:
    q, v, bucket = inputs(length, n_rounds, 4, batch=1, seed=seed)
    options = {"n_buckets_total": 4, "chunk_len": chunk_len}
    one = output_and_gradients(lsh_attention, q, v, bucket, **options)
    assert_all_close(output_and_gradients(lsh_attention, q, v, bucket.flip(2), **options), one)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 40),
    chunk_len=st.integers(1, 9),
    form=st.sampled_from(sorted(FORMS)),
    causal=st.booleans(),
)
def test_what_a_padding_token_holds_changes_no_other_output(
    seed: int, length: int, chunk_len: int, form: str, causal: bool
) -> None:
    q, v, bucket = inputs(length, 2, 4, batch=1, seed=seed)
    mask = torch.rand(1, length, generator=torch.Generator().manual_seed(seed)) < 0.6
    options = {"n_buckets_total": 4, "chunk_len": chunk_len, "causal": causal, "key_mask_BL": mask, **FORMS[form]}
    padding = ~mask[:, None, :, None]
    other_bucket = torch.where(mask[:, None, None], bucket, (bucket + 1) % 4)
    one = lsh_attention(q, v, bucket, **options)
    other = lsh_attention(q + 9 * padding, v - 9 * padding, other_bucket, **options)
    assert torch.equal(one.masked_fill(padding, 0), other.masked_fill(padding, 0))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 40), n_rounds=st.integers(1, 4), chunk_len=st.integers(1, 9))
def test_the_first_token_attends_only_to_itself(seed: int, length: int, n_rounds: int, chunk_len: int) -> None:
    q, v, bucket = inputs(length, n_rounds, 4, batch=1, seed=seed)
    for form in FORMS.values():
        out = lsh_attention(q, v, bucket, n_buckets_total=4, chunk_len=chunk_len, **form)
        assert torch.equal(out[:, :, 0], v[:, :, 0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_it_runs_on_the_meta_device(form: str, causal: bool) -> None:
    q = torch.empty(2, 4, 50, 16, device="meta", requires_grad=True)
    v = torch.empty(2, 4, 50, 8, device="meta", requires_grad=True)
    bucket = torch.empty(2, 4, 3, 50, dtype=torch.long, device="meta")
    mask = torch.empty(2, 50, dtype=torch.bool, device="meta")
    out = lsh_attention(q, v, bucket, n_buckets_total=8, chunk_len=16, causal=causal, key_mask_BL=mask, **FORMS[form])
    out.sum().backward()
    assert out.shape == (2, 4, 50, 8)
    assert q.grad is not None
    assert q.grad.shape == q.shape


def test_half_precision_is_computed_in_single() -> None:
    q, v, bucket = inputs(32, 2, 4)
    options = {"n_buckets_total": 4, "chunk_len": 8}
    low_q, low_v = (tensor.detach().bfloat16().requires_grad_() for tensor in (q, v))
    out = lsh_attention(low_q, low_v, bucket, **options)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, lsh_attention(low_q.float(), low_v.float(), bucket, **options).bfloat16())
    out.sum().backward()
    assert low_q.grad is not None
    assert low_q.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"chunk_len": 0}, "chunk length must be at least 1"),
        ({"n_buckets_total": 0}, "number of buckets must be at least 1"),
        ({"bucket_BHRL": torch.zeros(2, 2, 1, 9, dtype=torch.long)}, "buckets must have the shape"),
        ({"bucket_BHRL": torch.zeros(2, 2, 8, dtype=torch.long)}, "buckets must have the shape"),
        ({"v_BHLv": torch.zeros(2, 2, 7, 3)}, "queries and values must have the shapes"),
        ({"n_buckets_total": 2**23 - 1}, "8388608 buckets are told apart, but 1 rounds of 8388607"),
        ({"key_mask_BL": torch.ones(2, 9, dtype=torch.bool)}, "key mask must have the shape"),
        ({"dropout_mask_mK": torch.ones(4, 4)}, "dropout mask must have the shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_a_sentence(changes: dict[str, Any], says: str) -> None:
    q, v, bucket = inputs(8, 1, 2)
    q, v = q.float(), v.float()
    arguments = {"q_BHLd": q, "v_BHLv": v, "bucket_BHRL": bucket, "n_buckets_total": 2, "chunk_len": 4}
    with pytest.raises(ValueError, match=says):
        lsh_attention(**(arguments | changes))


def test_as_many_places_as_float32_has_half_steps_for_are_told_apart_across_buckets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, v, bucket = inputs(9, 1, 2)
    options = {"n_buckets_total": 2, "attend_across_buckets": True}
    monkeypatch.setattr(lsh, "most_codes", lambda dtype: {torch.float32: 8, torch.float64: 100}[dtype])
    lsh_attention(q, v, bucket, chunk_len=4, **options)
    with pytest.raises(ValueError, match="8 places are told apart, but 12 tokens"):
        lsh_attention(q.float(), v.float(), bucket, chunk_len=4, **options)


@pytest.mark.parametrize("causal", [True, False])
def test_the_last_of_as_many_buckets_as_are_told_apart_are_not_merged(causal: bool) -> None:
    """Masked keys stand half a code from their bucket, and the bucket beside it one."""
    q, v, bucket = (x.detach() for x in inputs(24, 2, 2))
    many = most_codes(torch.float32) // 2 - 2
    mask = (torch.arange(24) % 5 > 0).expand(2, -1)
    options: dict[str, Any] = {"chunk_len": 4, "causal": causal, "key_mask_BL": mask}
    few = lsh_attention(q.float(), v.float(), bucket, n_buckets_total=2, **options)
    assert torch.equal(lsh_attention(q.float(), v.float(), bucket + many - 2, n_buckets_total=many, **options), few)
