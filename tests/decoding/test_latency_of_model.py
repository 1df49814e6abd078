"""What a training is told of its model's decoding, and what the measurement leaves as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path

import pytest
import torch

from efftx.decoding import latency
from efftx.decoding.latency import decoding_latency
from efftx.runs.checkpoint import weights_sha256
from tests.decoding.models import DECODERS, INPUTS, PAIRS, full_pass, model_of

KEYS = {"decode_ms", "decode_spread", "decode_tokens_per_second", "decode_bandwidth_share"}
ROW = torch.arange(1, 21)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bytes to read, and a folder of the test's own for what is kept of it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(latency, "READ_BYTES", 2**16)


@pytest.mark.parametrize("overrides", [DECODERS["everything"], ("model=reformer", "attention=[lsh]")], ids=str)
def test_randomness_threads_and_weights_are_left_as_they_were(overrides: tuple[str, ...]) -> None:
    model = model_of(overrides, "stdlib")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    weights, random = weights_sha256(dict(model.named_parameters())), torch.get_rng_state()
    assert decoding_latency(model, ROW, None).keys() == KEYS
    assert torch.equal(torch.get_rng_state(), random)
    assert weights_sha256(dict(model.named_parameters())) == weights
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, deterministic)


def test_the_model_says_the_same_afterwards() -> None:
    model = model_of(DECODERS["transformer"], "stdlib")
    before = full_pass(model, (4,), 5)
    decoding_latency(model, ROW, None)
    assert torch.equal(full_pass(model, (4,), 5), before)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_row_without_room_for_three_tokens_has_no_latency(length: int) -> None:
    assert decoding_latency(model_of(DECODERS["transformer"], "stdlib"), ROW[:length], None) == {}


@pytest.mark.parametrize("length", [4, 5, 6, 7, 8, 20, 64])
def test_a_short_row_has_one_wherever_three_tokens_fit(length: int) -> None:
    found = decoding_latency(
        model_of(("model=transformer", f"data.length={length}"), "stdlib"), ROW[:1].repeat(length), None
    )
    assert set(found) in ({*KEYS}, set())
    assert bool(found) == (length - length // 2 - 1 > 2)


def test_an_encoders_model_starts_without_a_prompt() -> None:
    model = model_of((*PAIRS["cross-attention"], "positions.max_len=64"), "stdlib")
    assert decoding_latency(model, ROW[:4], INPUTS[:1]).keys() == KEYS


def _clock_of(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> None:
    """Every second look at the clock is so many seconds after the one before it; the others cost nothing."""
    moments = accumulate(chain.from_iterable((0.0, s) for s in seconds))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(moments))


def test_the_latency_is_the_median_of_the_counted_tokens_and_its_share_what_they_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(DECODERS["transformer"], "stdlib")
    row_L = torch.arange(1, 21).repeat(2)
    n_tokens = latency.TOKENS - 1  # 40 tokens, of which 16 are the prompt
    uncounted, counted = [64.0] * latency.IGNORED, [*[0.25, 2.0] * 10, 0.5]
    assert len(uncounted) + len(counted) == n_tokens
    _clock_of(monkeypatch, [*uncounted, *counted])
    monkeypatch.setattr(latency, "read_rate", lambda: 1e6)

    found = decoding_latency(model, row_L, None)

    d, d_ff, n_blocks, vocabulary, float64 = 32, 128, 2, 23, 8
    block = 4 * d * d + (d + 1) * d_ff + (d_ff + 1) * d + 2 * 2 * d
    weights = n_blocks * block + vocabulary * (d + 1) + 2 * d + d + d  # logits, the last norm, a row of each embedding
    assert found["decode_ms"] == 500.0
    assert found["decode_tokens_per_second"] == 2.0
    assert found["decode_spread"] == 8.0
    assert found["decode_bandwidth_share"] == float64 * weights / 0.5 / 1e6


def test_the_read_rate_is_of_the_fastest_read_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _clock_of(monkeypatch, [0.125, 4.0, 0.5, 2.0])
    assert latency.read_rate() == latency.READ_BYTES / 0.5
