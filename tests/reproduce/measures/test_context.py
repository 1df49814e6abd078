"""A token's time against the context is taken from caches as they would be, and the steps are the layer's own."""

from __future__ import annotations

from itertools import accumulate, chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efftx.errors import UserError
from efftx.layers.attention_settings import LSHConfig
from efftx.layers.cache import Position
from efftx.layers.lsh import LSHAttention, LSHCache
from efftx.layers.projections import DenseQKV
from efftx.ops.lsh_oracle import beyond_the_windows
from efftx.reproduce.measures import measure_named
from efftx.reproduce.measures.context import context_time, distance_from_training, distinct_candidates, first_steps
from efftx.study.experiments import load_experiments
from efftx.study.records import RecordStore
from efftx.study.status import state_of

from ..fakes import FakeTrainer, reproduce

COLUMNS = {"64": {"context": 64}, "128": {"context": 128}, "exponent": {}}
SMALL = {"d_model": 16, "n_heads": 2, "d_head": 8, "warm_up": 2, "tokens": 8, "compared_at": 64, "columns": COLUMNS}
ROWS: dict[str, dict[str, Any]] = {
    "Full": {"attention": "full"},
    "Local": {"attention": "local", "chunk_len": 8},
    "Strided": {"attention": "strided", "stride": 8, "mode": "merged"},
    "Fixed": {"attention": "fixed", "stride": 8, "c": 2},
    "LSH": {"attention": "lsh", "chunk_len": 8, "n_hashes": 2},
}


@pytest.mark.parametrize("row", ROWS)
def test_every_column_says_what_its_context_costs(row: str) -> None:
    found = context_time(SMALL, 0, row, ROWS[row])
    metrics = found["metrics"]
    assert found["series"]["context"] == [64.0, 128.0]
    for name in ("seconds", "p99_seconds", "tokens_per_second", "cache_megabytes", "keys"):
        assert [metrics[c][name] for c in ("64", "128")] == found["series"][name]
    assert min(found["series"]["seconds"]) > 0
    assert metrics["64"]["tokens_per_second"] == 1 / metrics["64"]["seconds"]
    assert metrics["64"]["p99_seconds"] >= metrics["64"]["seconds"]
    assert "seconds" not in metrics["exponent"]
    assert metrics["exponent"]["p99_seconds"] == metrics["128"]["p99_seconds"]
    assert metrics["exponent"]["keys"] == metrics["128"]["keys"]
    assert metrics["exponent"]["time_exponent"] == metrics["64"]["time_exponent"]


def test_keys_and_bytes_are_those_of_the_pattern() -> None:
    at = {row: context_time(SMALL, 0, row, own)["metrics"] for row, own in ROWS.items()}
    assert at["Full"]["128"]["keys"] == 128 + 3.5, "tokens 128 to 135 see all before them"
    assert at["Local"]["128"]["keys"] == at["Local"]["64"]["keys"] == 8 + 3.5, "a chunk, and what its own has so far"
    assert at["Strided"]["128"]["keys"] == 7 + 16, "seven just before, and every eighth of those before"
    assert at["Fixed"]["128"]["keys"] == 3.5 + 2 * 16, "what its own block has so far, and two of every block before"
    assert 1 <= at["LSH"]["128"]["keys"] <= 2 * 2 * 8
    keys_and_values = 2 * 2 * 136 * 8 * 4
    assert at["Full"]["128"]["cache_megabytes"] == at["Local"]["128"]["cache_megabytes"] == keys_and_values / 1e6
    slots = {row: at[row]["128"]["cache_megabytes"] * 1e6 / (keys_and_values / 136) for row in ("Strided", "Fixed")}
    assert slots == pytest.approx({"Strided": 8 + 136, "Fixed": 2 * 17 + 8})
    # 136 // 8 chunks have 34 buckets: rotations of 17 columns, and rings of 16 places with their counts.
    rings, rotations = 2 * 2 * 34 * (16 + 1) * 4, 2 * 8 * 2 * 17 * 4
    assert at["LSH"]["128"]["cache_megabytes"] == (keys_and_values + rings + rotations) / 1e6


def test_a_contexts_seconds_are_the_median_of_the_counted_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {64: [50.0, 60.0, *map(float, range(1, 9))], 128: [50.0, 60.0, *map(float, range(2, 17, 2))]}
    looks = accumulate(chain.from_iterable((0.0, s) for s in [*seconds[64], *seconds[128]]))
    clock = SimpleNamespace(perf_counter=lambda: next(looks))  # of its own: the lock on the machine looks at one too
    monkeypatch.setattr("efftx.reproduce.measures.context.time", clock)
    metrics = context_time(SMALL, 0, "Full", ROWS["Full"])["metrics"]
    assert [metrics[column]["seconds"] for column in ("64", "128")] == [4.5, 9.0]
    assert metrics["exponent"]["time_exponent"] == pytest.approx(1.0)


@pytest.mark.parametrize("row", ["Full", "Local", "Strided", "Fixed"])
def test_without_hashing_steps_are_the_pass_over_the_whole_sequence(row: str) -> None:
    metrics = context_time(SMALL, 0, row, ROWS[row])["metrics"]["exponent"]
    assert metrics["distance_from_training"] < 1e-6
    assert metrics["uneven_distance"] < 1e-6


def layer_and_cache(length: int, n_hashes: int, seed: int = 0) -> tuple[LSHAttention, LSHCache]:
    torch.manual_seed(seed)
    projections = DenseQKV(12, 2, 8, share_qk=True, bias=False)
    layer = LSHAttention(LSHConfig(n_hashes=n_hashes, chunk_len=4), projections, attention_dropout=0.0).double().eval()
    cache = layer.new_cache(2, length, torch.zeros(1, dtype=torch.float64), Position())
    assert isinstance(cache, LSHCache)
    return layer, cache


def test_hashing_is_apart_from_training_exactly_where_a_bucket_outgrows_the_windows() -> None:
    apart = []
    for seed in range(6):
        layer, cache = layer_and_cache(24, 2, seed)
        x_BLD = torch.randn(1, 24, 12, dtype=torch.float64) + torch.randn(12, dtype=torch.float64)
        with torch.no_grad():
            torch.manual_seed(seed)
            cache = layer.new_cache(1, 24, x_BLD, Position())
            assert isinstance(cache, LSHCache)
            share, lost = beyond_the_windows(cache.buckets_of(layer.project(x_BLD)[0]), 4, 8)
            torch.manual_seed(seed)
            distance = distance_from_training(layer, x_BLD)
        assert lost == 0
        assert (distance > 1e-12) == (share > 0)
        apart.append(share > 0)
    assert any(apart)


def test_the_same_position_in_several_rounds_is_one_key() -> None:
    _, cache = layer_and_cache(40, 3)
    cache.fill_at_random(40)
    bucket_BHRL = cache.buckets_of(cache.kv.k_BHTd).tolist()
    counts = []
    for head in (head for row in bucket_BHRL for head in row):
        for n in range(36, 40):
            counts.append(len({j for bucket in head for j in [j for j in range(n) if bucket[j] == bucket[n]][-8:]}))
    assert distinct_candidates(cache, range(36, 40)) == pytest.approx(sum(counts) / len(counts))


@pytest.mark.parametrize("row", ROWS)
def test_a_replay_gives_the_same_numbers_and_those_of_the_seed(row: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = first_steps(SMALL, 0, row, ROWS[row])
    assert len(first) == 3
    assert torch.equal(torch.get_rng_state(), before), "PyTorch's random state is left as it was"
    assert first_steps(SMALL, 0, row, ROWS[row]) == first
    assert first_steps(SMALL, 1, row, ROWS[row]) != first


def test_an_unknown_attention_is_named_with_the_nearest_and_a_context_has_room_for_the_warm_up() -> None:
    with pytest.raises(UserError) as unknown:
        context_time(SMALL, 0, "row", {"attention": "lhs"})
    assert "lsh" in unknown.value.hint
    with pytest.raises(UserError, match="no room"):
        context_time({**SMALL, "warm_up": 64}, 0, "row", ROWS["Full"])


def test_it_is_recorded_and_replayed(tmp_path: Path) -> None:
    store, e = RecordStore(tmp_path), load_experiments()["reformer/decode"]
    (line,) = reproduce([e], "smoke", say=lambda _: None, store=store, trainer=FakeTrainer())
    assert (line["ran"], line["failed"]) == (6, 0)
    assert measure_named(str(e.measure)).replay is not None
    (line,) = reproduce([e], "smoke", verify=True, say=lambda _: None, store=store, trainer=FakeTrainer())
    assert (line["fresh"], line["stale"]) == (6, 0)
    assert state_of(e, store, FakeTrainer(), ["smoke"])["state"] == "recorded"
