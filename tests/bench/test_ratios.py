"""Every ratio, rate and bound of a bench, against values worked out by hand from times and shapes that are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from efftx import bench
from efftx.bench import attention, decode, decode_cases, decode_peers, stacks
from efftx.bench.attention import BOTH, FORWARD, Case
from efftx.bench.decode_cases import MEMORY_TOKENS
from efftx.machine import timing
from efftx.machine.timing import Timing
from tests.bench.runs import decoded

CPU = torch.device("cpu")
WIDTH = 16
RATE = 2 * WIDTH**3 / 0.5
"""FLOPs a second of the matrix product that `given_times` says takes half a second."""


@pytest.fixture
def given_times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds by the name of a row; the matrix product beside them takes half a second."""
    seconds: dict[str, float] = {}

    def interleaved(calls: Mapping[str, object], **_: object) -> dict[str, Timing]:
        return {name: Timing(seconds.get(name, 0.5), 0.0) for name in calls}

    monkeypatch.setattr(timing, "MATMUL_WIDTH", WIDTH)
    monkeypatch.setattr(attention, "interleaved", interleaved)
    monkeypatch.setattr(stacks, "interleaved", interleaved)
    return seconds


@pytest.mark.parametrize("which", [FORWARD, BOTH])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_against_its_flops_and_against_dense_scores(
    which: str, batch: int, given_times: dict[str, float]
) -> None:
    length, d, n_heads, d_head = 64, 16, 2, 8
    shape = {"length": length, "batch": batch, "d_model": d, "n_heads": n_heads, "d_head": d_head}
    given_times.update(full=3.0, lsh=5.0)
    cases = {"full": Case("full", **shape), "lsh": Case("lsh", **shape, chunk_len=8, n_hashes=1)}
    full, lsh = attention.measure(cases, which, repeats=1, device=CPU)

    width = n_heads * d_head
    projections = 2 * d * width * 3  # shared queries and keys, values, output
    hashing = n_heads * 2 * d_head * 8  # twice as many buckets as chunks, 16: a rotation gives half of them
    scores = {"full": 4 * width * length, "lsh": 4 * width * 2 * 8}  # a whole row of keys; two chunks of eight
    factors = (1.0, 1.0) if which == FORWARD else (3.0, 3.5)
    for row, more in ((full, 0.0), (lsh, hashing)):
        flops = batch * length * (factors[0] * projections + factors[1] * scores[row["name"]] + more)
        assert row["flops"] == flops
        assert row["matmul_flops_per_second"] == RATE
        assert row["bound_seconds"] == flops / RATE
        assert row["ratio_to_bound"] == given_times[row["name"]] * RATE / flops
    assert full["share_of_dense"] == 64 / 32.5
    assert lsh["share_of_dense"] == 16 / 32.5


@pytest.mark.parametrize("batch", [1, 3])
def test_a_training_step_against_its_flops_and_against_the_first_row(batch: int, given_times: dict[str, float]) -> None:
    length, d, d_ff = 64, 256, 1024
    given_times.update({"transformer": 2.0, "chunked-reversible": 3.0, "scaling": 8.0})
    words = ["depths=1", f"lengths={length}", f"batch={batch}", "repeats=1", f"names={','.join(given_times)}"]
    rows = bench.run("train", words)["rows"]
    assert [row["ratio_to_first"] for row in rows] == [1.0, 1.5, 4.0]
    # An encoder's row is its 64 inputs and half as many targets.
    tokens = [batch * length, batch * length, batch * (length + length // 2)]
    assert [row["tokens_per_second"] for row in rows] == [tokens[0] / 2, tokens[1] / 3, tokens[2] / 8]

    projections, scores = 2 * d * d * 3, 4 * d * (length + 1) / 2
    feedforward, head = 4 * d * d_ff, 2 * d * stacks.VOCAB_SIZE
    plain = 3 * projections + 3.5 * scores + 3 * feedforward + 3 * head
    # Layers once more for reversibility, the sliced feed-forward and loss once more for their slices.
    again = 4 * projections + 4.5 * scores + 5 * feedforward + 4 * head
    for row, a_token in zip(rows, (plain, again), strict=False):
        assert row["flops"] == pytest.approx(batch * length * a_token, rel=1e-12)
    for row in rows:
        assert row["bound_seconds"] == row["flops"] / RATE
        assert row["ratio_to_bound"] == pytest.approx(row["seconds"] * RATE / row["flops"], rel=1e-12)


def test_depths_are_compared_with_the_shallowest_and_flatness_is_largest_over_smallest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = {2: 100, 4: 80, 8: 250}
    monkeypatch.setattr(stacks, "peak_of_step", lambda config, device: (peaks[config.n_layers], 7))
    result = bench.run("memory", ["names=transformer,reversible", "depths=8,2,4", "lengths=64", "batch=1"])
    assert [row["ratio_to_shallowest"] for row in result["rows"]] == [2.5, 1.0, 0.8] * 2
    assert result["flatness"] == {"reversible at 64": 250 / 80}


def test_a_timing_has_no_warm_up_in_its_median(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([50.0, 40.0, 1.0, 2.0, 9.0])
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += next(seconds)

    timed = timing.interleaved({"a": call}, repeats=3, device=CPU, warm_up=2)
    assert timed["a"] == Timing(2.0, (9.0 - 1.0) / 2.0)


def test_a_decoded_token_is_so_many_times_faster_than_the_first_of_its_batch_context_and_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = {"dense": 12.0, "sparse": 3.0, "s4": 1.0}
    block = {"dense": 6.0, "sparse": 0.5, "s4": None}

    def rows(name: str, asked: decode.Asked, reference: Any) -> list[dict[str, Any]]:
        reference.turn()
        width, kind = name.split("-")[1:]
        return [
            {"name": name, "batch": b, "length": c, "width": int(width)}
            | {"seconds": token[kind] * b * c * int(width), "block_seconds": block[kind]}
            for b in asked.batches
            for c in asked.contexts
        ]

    def ratios(key: str, *words: str) -> list[float | None]:
        return [row[key] for row in decoded("context=1,2", "batch=1,4", *words)["rows"]]

    monkeypatch.setattr(decode, "decode_rows", rows)
    names = "names=width-128-dense,width-128-sparse,logits-128-s4"
    assert ratios("ratio_to_first", names) == [1.0] * 4 + [4.0] * 4 + [12.0] * 4
    assert ratios("block_ratio_to_first", names) == [1.0] * 4 + [12.0] * 4 + [None] * 4
    assert ratios("ratio_to_first", "widths=128,256") == ([1.0] * 4 + [4.0] * 4) * 2


SMALL = ("model=scaling", "d_model=128", "n_heads=2", "sparse_ff.N=0", "sparse_qkv.S=0", "d_ff=256")


@pytest.mark.parametrize(
    ("overrides", "n_self", "n_memory"),
    [
        (SMALL, 1, MEMORY_TOKENS),
        ((*SMALL, "attention_per_block=2"), 2, MEMORY_TOKENS),
        ((*SMALL, "stack=decoder", "objective=lm"), 1, 0),
    ],
)
def test_a_token_reads_keys_and_values_of_its_context_and_of_the_encoders_output(
    overrides: tuple[str, ...], n_self: int, n_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(decode_cases.CASES, "small", decode_cases.Case("small", overrides, 3, vocab_size=64))  # type: ignore[index]
    rows = decoded("names=small", "context=5,40", "batch=1,2")["rows"]
    keys_and_values, n_blocks, width, float_bytes = 2, 3, 128, 4
    middle = (4 + 3 + 1) // 2  # of the tokens to warm up, in all, and by part
    assert [row["components"]["attention"]["bytes"] for row in rows] == [
        batch * n_blocks * keys_and_values * (n_self * (context + middle) + n_memory) * width * float_bytes
        for batch in (1, 2)
        for context in (5, 40)
    ]


def test_a_peers_token_reads_its_weights_a_row_of_the_embedding_and_its_cache() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.ModuleDict({"q": nn.Linear(8, 8, bias=False), "unread": nn.Linear(8, 8, bias=False)})
            self.head = nn.Linear(8, 10, bias=False)

    shape = decode_peers.Shape(8, 16, 2, 3, 10)
    peer = replace(
        decode_peers.PEERS["transformers-t5"],
        blocks=lambda whole: whole.block,
        ends=lambda whole: [whole.head],
        unread=("unread.weight",),
    )
    reads = peer.reads(Whole(), shape, context=5)
    weights = 8 * 8 + 8 * 10 + 8
    assert (reads["everything else"].weights, reads["everything else"].bytes) == (weights, 4 * weights)
    assert (reads["attention"].weights, reads["attention"].bytes) == (0, 4 * 2 * 3 * 8 * (5 + MEMORY_TOKENS))
    without = replace(peer, has_cross_attention=False).reads(Whole(), shape, context=5)
    assert without["attention"].bytes == 4 * 2 * 3 * 8 * 5
