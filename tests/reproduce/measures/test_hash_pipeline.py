"""What the stages of hash attention compute and keep is counted right, on the product's own buckets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efftx.reproduce.measures.lsh import STAGES, hash_pipeline

PARAMETERS = {
    **{"length": 24, "d_head": 8, "clusters": 4, "spread": 0.4, "n_buckets": 4, "chunk_len": 4},
    "columns": {"weight": {}},
}


def at(stage: str, seed: int = 0) -> tuple[dict[str, float], dict[str, Any]]:
    found = hash_pipeline(PARAMETERS, seed, stage, {"stage": stage})
    return found["metrics"]["weight"], found["series"]


@pytest.mark.parametrize("seed", range(5))
def test_every_stage_is_what_its_buckets_and_chunks_say_pair_by_pair(seed: int) -> None:
    for stage in STAGES[1:]:
        metrics, series = at(stage, seed)
        bucket_q, bucket_k, order_q, order_k = (
            series[f"{what}_{side}"] for what in ("buckets", "order") for side in "qk"
        )
        matrix = np.array(series["matrix"]).reshape(24, 24)
        shared = stage in ("sorted", "chunked")
        for i, q in enumerate(order_q):
            near = [j for j in range(24) if stage != "chunked" or (i // 4 - j // 4) % 6 in (0, 1)]
            same = [j for j in near if bucket_k[order_k[j]] == bucket_q[q]]
            others = [j for j in same if order_k[j] != q] if shared else same
            attended = others or [j for j in same if order_k[j] == q]
            assert [j for j in range(24) if matrix[i, j] == 1] == attended
            computed = near if stage == "chunked" else same
            assert [j for j in range(24) if matrix[i, j] == 2] == [j for j in computed if j not in attended]
        assert metrics["pairs"] == (matrix == 1).sum()
        assert metrics["computed"] == (matrix > 0).sum()
        assert sorted(order_q) == sorted(order_k) == list(range(24))
        assert [bucket_q[q] for q in order_q] == sorted(bucket_q)


def test_full_attention_has_all_pairs_and_all_of_its_weight() -> None:
    metrics, _ = at("full")
    assert (metrics["pairs"], metrics["computed"]) == (24 * 24, 24 * 24)
    assert metrics["mass"] == pytest.approx(100)


def test_chunks_keep_no_more_than_sorting_and_shared_keys_fill_every_bucket_alike() -> None:
    for seed in range(5):
        in_order, chunked = at("sorted", seed)[0], at("chunked", seed)[0]
        assert chunked["pairs"] <= in_order["pairs"]
        assert chunked["mass"] <= in_order["mass"] + 1e-6
        assert in_order["unequal"] == chunked["unequal"] == 0
        assert at("bucketed", seed)[0]["unequal"] > 0
        assert chunked["computed"] == 2 * 6 * 16
