"""The LSH-attention layer is the authors', hashes anew at every call, and keeps its buckets where it is replayed."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from efftx.errors import UserError
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.attention_settings import MOST_CODES, FullConfig, LSHConfig
from efftx.layers.cache import Position
from efftx.layers.lsh import LSHAttention, LSHCache, rotations_shared
from efftx.layers.patterns import Full
from efftx.layers.projections import DenseQKV
from efftx.models.author_weights import heads_from_linear, heads_to_linear
from efftx.ops.lsh_hashing import auto_buckets
from efftx.ops.lsh_runs import most_codes
from efftx.ops.recompute_state import RecomputeState
from tests.tolerances import GOLDEN, ROUNDING, assert_close

LAYERS = {
    "h1": LSHConfig(1, [8], 16, True, True),
    "h2": LSHConfig(2, [8], 16, True, True),
    "h2_masked_encoder": LSHConfig(2, [8], 16, True, True),
    "h4": LSHConfig(4, [4], 8, True, True),
}
# The file of factored buckets has values wider than queries, which this layer has not; the op is tested on it.
LAYOUTS = {"qk": heads_to_linear, "v": heads_to_linear, "o": heads_from_linear}


def test_more_buckets_or_places_than_are_told_apart_are_refused() -> None:
    assert most_codes(torch.float32) == MOST_CODES
    rows = MOST_CODES
    with pytest.raises(UserError, match="2 rounds of 16777216 buckets") as told:
        LSHConfig(chunk_len=1).check("lsh", 4, rows)
    assert "larger lsh.chunk_len" in told.value.hint
    with pytest.raises(UserError, match=r"a row has 8388672 in chunks of lsh\.chunk_len=64"):
        LSHConfig(attend_across_buckets=True).check("lsh", 4, rows + 1)
    LSHConfig(attend_across_buckets=True).check("lsh", 4, rows)
    LSHConfig(chunk_len=1, full_below=rows).check("lsh", 4, rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_it_gives_the_authors_outputs_and_gradients(golden, name: str, dtype: torch.dtype) -> None:
    arrays, config = golden(f"lsh_attention_{name}", dtype), LAYERS[name]
    heads, d_model, d_head = arrays["w.w_qk"].shape
    projections = DenseQKV(d_model, heads, d_head, share_qk=True, bias=False)
    layer = LSHAttention(config, projections, attention_dropout=0.0, causal="encoder" not in name).to(dtype)
    with torch.no_grad():
        for part, layout in LAYOUTS.items():
            layer.project.get_submodule(part).weight.copy_(layout(arrays[f"w.w_{part}"]))
    # Masked tokens have a bucket of their own in every round, which the authors' ids count and this layer's do not.
    n_ids = torch.tensor(config.n_buckets).prod() + ("mask" in arrays)
    offset = n_ids * torch.arange(config.n_hashes)[:, None]
    x = arrays["x"].requires_grad_()
    y = layer(x, RecomputeState({"buckets": arrays["buckets"].long() - offset}), arrays.get("mask"))
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    for part, layout in LAYOUTS.items():
        grad = layer.project.get_submodule(part).weight.grad
        assert_close(grad, layout(arrays[f"grad_w.w_{part}"]), GOLDEN, part)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_gives_the_authors_outputs_over_dense_projections_with_biases(golden, dtype: torch.dtype) -> None:
    arrays = golden("pure_lsh_attention_model2", dtype)
    projections = DenseQKV(32, 4, 8, share_qk=True, bias=True)
    layer = LSHAttention(LSHConfig(2, [8], 16, True, True), projections, attention_dropout=0.0).to(dtype)
    # A matrix of the authors has its inputs first.
    layouts = {"kernel": ("weight", torch.t), "bias": ("bias", torch.clone)}
    with torch.no_grad():
        for part, (author, (own, layout)) in product(("qk", "v", "o"), layouts.items()):
            layer.project.get_submodule(part).get_parameter(own).copy_(layout(arrays[f"w.{part}.{author}"]))
    x = arrays["x"].requires_grad_()
    y = layer(x, RecomputeState({"buckets": arrays["buckets"].long() - 8 * torch.arange(2)[:, None]}))
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    for part, (author, (own, layout)) in product(("qk", "v", "o"), layouts.items()):
        grad = layer.project.get_submodule(part).get_parameter(own).grad
        assert_close(grad, layout(arrays[f"grad_w.{part}.{author}"]), GOLDEN, f"{part}.{author}")


def lsh_layer(
    attention_dropout: float = 0.0,
    *,
    n_buckets: list[int] | None = None,
    full_below: int = 0,
    causal: bool = True,
    hashing: str = "angular",
) -> LSHAttention:
    torch.manual_seed(0)
    config = LSHConfig(n_hashes=2, n_buckets=n_buckets or [], chunk_len=4, full_below=full_below, hashing=hashing)
    projections = DenseQKV(12, 2, 8, share_qk=True, bias=False)
    return LSHAttention(config, projections, attention_dropout=attention_dropout, causal=causal).double()


def test_every_call_hashes_anew_and_a_replayed_one_does_not() -> None:
    layer = lsh_layer()
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    state = RecomputeState()
    first = layer(x, state)
    assert torch.equal(layer(x, state), first)
    assert state.choices["buckets"].shape == (2, 2, 2, 30)


def test_every_head_and_every_example_has_rotations_of_its_own() -> None:
    layer = lsh_layer(n_buckets=[8])
    with torch.no_grad():
        layer.project.qk.weight[8:] = layer.project.qk.weight[:8]
    x = torch.randn(1, 40, 12, dtype=torch.float64).expand(2, -1, -1)
    state = RecomputeState()
    layer(x, state)
    alike = state.choices["buckets"].flatten(0, 2)
    assert len({tuple(row.tolist()) for row in alike}) == len(alike)


@pytest.mark.parametrize("length", [3, 4, 30, 64])
def test_buckets_that_are_not_given_follow_the_authors_rule(length: int) -> None:
    layer = lsh_layer()
    state = RecomputeState()
    layer(torch.randn(1, length, 12, dtype=torch.float64), state)
    (n_buckets,) = auto_buckets(length, 4)
    assert int(state.choices["buckets"].min()) >= 0
    assert int(state.choices["buckets"].max()) < n_buckets


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("full_below", [0, 30])
def test_padding_changes_no_real_token_and_no_row_is_lost(full_below: int, causal: bool) -> None:
    layer = lsh_layer(n_buckets=[8], full_below=full_below, causal=causal)
    x = torch.randn(2, 30, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(30) < torch.tensor([[21], [0]])
    state = RecomputeState()
    y = layer(x, state, mask)
    other = torch.where(mask[..., None], x, x + 3.0)
    assert torch.equal(layer(other, state, mask)[0, :21], y[0, :21])
    assert y.isfinite().all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
def test_short_sequences_attend_in_full_and_hash_nothing(causal: bool) -> None:
    layer = lsh_layer(full_below=20, causal=causal)
    full = SoftmaxAttention(Full(FullConfig()), layer.project, d_head=8, attention_dropout=0.0, causal=causal)
    short, long = (torch.randn(2, length, 12, dtype=torch.float64) for length in (20, 21))
    mask = torch.arange(20) < torch.tensor([[20], [7]])
    state = RecomputeState()
    assert_close(layer(short, state), full(short), ROUNDING)
    assert_close(layer(short, state, mask), full(short, key_mask_BL=mask), ROUNDING)
    assert not state.choices
    assert not torch.equal(layer(long, state), full(long))
    assert "buckets" in state.choices


@pytest.mark.parametrize("full_below", [0, 30])
@pytest.mark.parametrize("causal", [True, False])
def test_dropout_is_for_training_only_at_its_rate_and_keeps_the_mean(causal: bool, full_below: int) -> None:
    layer = lsh_layer(attention_dropout=0.25, full_below=full_below, causal=causal)
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    state = RecomputeState()
    layer.eval()
    expected = layer(x, state)
    assert torch.equal(layer(x, state), expected)
    layer.train()
    assert not torch.equal(layer(x, state), layer(x, state))
    draws = torch.stack([layer(x, state).detach() for _ in range(600)])
    # The mean of 600 draws lies within a twentieth of one draw's deviation of what nothing is dropped from.
    assert ((draws.mean(0) - expected).norm() / draws.std(0).norm()).item() < 0.08


@pytest.mark.parametrize(("causal", "n_window"), [(True, 2), (False, 3)])
def test_the_mask_of_dropped_weights_has_the_rate_and_the_mean_one(causal: bool, n_window: int) -> None:
    layer = lsh_layer(attention_dropout=0.25, causal=causal)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        in_single = layer._dropout_mask(torch.zeros(1, dtype=dtype))
        assert in_single.dtype == torch.float32
        assert in_single.unique().tolist() == torch.tensor([0.0, 4 / 3]).tolist()
    mask = layer._dropout_mask(torch.zeros(1, dtype=torch.float64))
    assert mask is not None
    assert mask.shape == (4, n_window * 4)
    many = torch.stack([layer._dropout_mask(mask) for _ in range(2000)])
    assert many.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(many.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((many == 0).double().mean()) == pytest.approx(0.25, abs=0.01)


def test_projections_with_keys_of_their_own_are_refused() -> None:
    projections = DenseQKV(12, 2, 8, share_qk=False, bias=False)
    with pytest.raises(ValueError, match="share queries and keys"):
        LSHAttention(LSHConfig(), projections, attention_dropout=0.0)


def test_a_cache_filled_at_random_holds_unit_keys_each_in_the_buckets_that_it_hashes_to() -> None:
    torch.manual_seed(0)
    layer = lsh_layer()
    cache = layer.new_cache(2, 40, torch.zeros(1, dtype=torch.float64), Position())
    assert isinstance(cache, LSHCache)
    cache.fill_at_random(30)
    k_BHLd = cache.kv.k_BHTd[:, :, :30]
    assert_close(k_BHLd.norm(dim=-1), torch.ones(2, 2, 30, dtype=torch.float64), {torch.float64: 1e-5}, "length")
    assert not cache.kv.k_BHTd[:, :, 30:].any()
    assert cache.kv.v_BHTv[:, :, :30].all()
    bucket_BHRL = cache.hash_vectors(k_BHLd)
    assert int(bucket_BHRL.max()) < auto_buckets(40, 4)[0]
    capacity = cache.table.position_BHRNC.shape[-1]
    for b, h, r in product(range(2), range(2), range(2)):
        own = bucket_BHRL[b, h, r].tolist()
        for bucket, held in enumerate(cache.table.position_BHRNC[b, h, r].tolist()):
            expected = [n for n in range(30) if own[n] == bucket]
            assert sorted(n for n in held if n >= 0) == expected[-capacity:]
            assert int(cache.table.count_BHRN[b, h, r, bucket]) == len(expected)


def test_hashing_part_by_part_is_hashing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = lsh_layer().new_cache(2, 40, torch.zeros(1, dtype=torch.float64), Position())
    assert isinstance(cache, LSHCache)
    cache.fill_at_random(40)
    whole = cache.buckets_of(cache.kv.k_BHTd)
    monkeypatch.setattr("efftx.layers.lsh._HASHED_AT_ONCE", 7)
    assert torch.equal(cache.buckets_of(cache.kv.k_BHTd), whole)


def test_random_buckets_do_not_look_at_the_vectors_and_are_equally_full() -> None:
    layer = lsh_layer(n_buckets=[8], hashing="random")
    state = RecomputeState()
    layer(torch.ones(4, 4000, 12, dtype=torch.float64), state)
    bucket_BHRL = state.choices["buckets"]
    assert bucket_BHRL.shape == (4, 2, 2, 4000)
    assert len({tuple(row.tolist()) for row in bucket_BHRL.flatten(0, 2)}) == 16
    # 64,000 draws into 8 buckets: 8,000 each, with a standard deviation of 84.
    assert bool((bucket_BHRL.flatten().bincount(minlength=9)[:8] - 8000).abs().max() < 420)
    assert int(bucket_BHRL.max()) == 7
    angular, state = lsh_layer(n_buckets=[8]), RecomputeState()
    angular(torch.ones(1, 40, 12, dtype=torch.float64), state)
    assert bool((state.choices["buckets"] == state.choices["buckets"][..., :1]).all())


def test_attention_in_random_buckets_is_the_operation_on_them() -> None:
    layer = lsh_layer(n_buckets=[4], hashing="random")
    x, state = torch.randn(2, 30, 12, dtype=torch.float64), RecomputeState()
    y = layer(x, state)
    qk, _, v = layer.project(x)
    heads = layer.attend_in_buckets(qk, v, state.choices["buckets"], [4])
    assert torch.equal(y, layer.project.output(heads))
    assert torch.equal(layer(x, state), y)
    with rotations_shared(layer):
        alike = layer(x[:1].expand(3, -1, -1))
    assert_close(alike[0], alike[2], ROUNDING)


def test_a_decoded_token_joins_a_random_bucket() -> None:
    layer = lsh_layer(n_buckets=[4], hashing="random").eval()
    position = Position()
    cache = layer.new_cache(2, 20, torch.zeros(1, dtype=torch.float64), position)
    assert isinstance(cache, LSHCache)
    x = torch.randn(2, 12, 12, dtype=torch.float64)
    layer(x[:, :11], cache=cache)
    position.end_prompt(torch.tensor([11, 11]))
    y = layer(x[:, 11:], cache=cache)
    assert y.shape == (2, 1, 12)
    assert bool(y.isfinite().all())
    assert cache.table.count_BHRN.sum(-1).unique().tolist() == [12]
