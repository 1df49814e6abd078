"""Span corruption as in T5: what is taken out, what marks it, and how much of it there is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efftx.data.dataset import Batch
from efftx.data.span_corruption import (
    SpanCorruption,
    SpanCorruptionConfig,
    Spans,
    corrupt,
    noise_mask,
    spans_for,
    spans_of,
)
from efftx.data.vocabulary import EOS, ByteVocabulary
from efftx.data.windows import Corpus
from efftx.errors import UserError

BYTES = ByteVocabulary()
FIRST = BYTES.sentinel(0)


def random_keys(rows: int, spans: Spans) -> np.ndarray:
    return np.random.default_rng(spans.raw).integers(0, 2**63, (rows, spans.n_keys))


def text_of(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 256, length).astype(np.uint8)


def corpus(train: int = 3000, held_out: int = 500) -> Corpus:
    """Valid and test have symbols of their own, so that a row of one cannot be taken for a row of another."""
    arrays = {"train": text_of(train) % 200, "valid": np.full(held_out, 210), "test": np.full(held_out, 220)}
    return Corpus("text", "text[x]", "ab" * 32, arrays, 256, "bytes")


def opened(length: int = 64, target_length: int = 0, text: Corpus | None = None) -> SpanCorruption:
    config = SpanCorruptionConfig("text", length, target_length=target_length)
    return SpanCorruption(text or corpus(), config, BYTES, offset=3)


def filled_in(inputs: list[int], targets: list[int], first: int = FIRST, n_sentinels: int = 100) -> list[int]:
    """The text that inputs and targets came from: the oracle, one token at a time."""
    assert inputs[-1] == targets[-1] == EOS
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if first - n_sentinels < token <= first:
            assert token == first - len(spans), "sentinels count down from the highest id"
            spans[token] = []
            current = spans[token]
        else:
            current.append(token)
    original: list[int] = []
    for token in inputs[:-1]:
        original += spans.pop(token) if token in spans else [token]
    assert not spans, "every span of the targets has its place in the inputs"
    return original


def test_the_papers_512_inputs_are_made_of_568_tokens_and_give_114_targets() -> None:
    spans = spans_for(512, 0.15, 3.0)
    assert (spans.raw, spans.n_noise, spans.n_spans) == (568, 85, 28)
    assert (spans.n_inputs, spans.n_targets) == (512, 114)


@pytest.mark.parametrize(("raw", "n_noise", "n_spans"), [(70, 10, 3), (90, 14, 5), (100, 15, 5), (568, 85, 28)])
def test_counts_are_rounded_to_the_nearest_and_halves_to_even(raw: int, n_noise: int, n_spans: int) -> None:
    assert spans_of(raw, 0.15, 3.0) == Spans(raw, n_noise, n_spans)


@settings(max_examples=40)
@given(st.integers(3, 700), st.floats(0.05, 0.5), st.floats(2.0, 10.0))
def test_the_raw_text_is_the_longest_whose_inputs_fit(length: int, noise: float, mean_span: float) -> None:
    try:
        spans = spans_for(length, noise, mean_span)
    except UserError as error:
        assert "sentinels" in error.message  # noqa: PT017 - the only reason there may be
        return
    fitting = [raw for raw in range(2, 4 * length + 4) if spans_of(raw, noise, mean_span).n_inputs <= length]
    assert spans.raw == max(fitting)
    assert spans.n_inputs == length


@settings(max_examples=50)
@given(st.integers(3, 400), st.floats(0.05, 0.6), st.floats(1.5, 8.0), st.integers(1, 4))
def test_filling_the_spans_in_gives_the_text_again(length: int, noise: float, mean_span: float, rows: int) -> None:
    try:
        spans = spans_for(length, noise, mean_span)
    except UserError:
        return
    raw_BR = np.random.default_rng(length).integers(3, 259, (rows, spans.raw))
    inputs, targets = corrupt(raw_BR, noise_mask(random_keys(rows, spans), spans), FIRST)
    assert inputs.shape == (rows, spans.n_inputs)
    assert targets.shape == (rows, spans.n_targets)
    for given_row, taken, original in zip(inputs.tolist(), targets.tolist(), raw_BR.tolist(), strict=True):
        assert filled_in(given_row, taken) == original


def test_an_example_by_hand() -> None:
    raw = np.array([[10, 11, 12, 13, 14, 15, 16]])
    noise = np.array([[False, True, True, False, False, True, True]])
    inputs, targets = corrupt(raw, noise, FIRST)
    assert inputs.tolist() == [[10, 358, 13, 14, 357, EOS]]
    assert targets.tolist() == [[358, 11, 12, 357, 15, 16, EOS]]


def test_15_percent_is_noise_in_spans_of_3_on_average_and_a_row_begins_without() -> None:
    spans = spans_for(512, 0.15, 3.0)
    mask = noise_mask(random_keys(200, spans), spans)
    assert mask.mean() == pytest.approx(0.15, abs=0.001)
    assert not mask[:, 0].any()
    assert mask[:, -1].all()
    n_spans = (mask[:, 1:] & ~mask[:, :-1]).sum(axis=1)
    assert (n_spans == 28).all()
    assert mask.sum() / n_spans.sum() == pytest.approx(3.0, abs=0.05)


def test_every_cut_into_spans_is_equally_likely() -> None:
    spans = Spans(raw=9, n_noise=4, n_spans=2)  # 3 cuts of the noise x 4 cuts of the rest
    keys = np.random.default_rng(1).integers(0, 2**63, (12_000, spans.n_keys))
    counts = Counter(map(bytes, noise_mask(keys, spans).astype(np.uint8)))
    assert len(counts) == 12
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_squared < 11 + 6 * 22**0.5  # six standard deviations above the mean of 11 degrees of freedom


@pytest.mark.parametrize("raw", [2, 3, 4, 7])
def test_the_shortest_texts_have_one_span(raw: int) -> None:
    spans = spans_of(raw, 0.15, 3.0)
    assert (spans.n_noise, spans.n_spans) == (1, 1)
    mask = noise_mask(random_keys(3, spans), spans)
    assert mask.tolist() == [[False] * (raw - 1) + [True]] * 3


def inputs_of(batch: Batch) -> torch.Tensor:
    assert batch.inputs_BE is not None
    return batch.inputs_BE


def test_targets_are_padded_to_their_length_with_weight_0() -> None:
    dataset = opened(64, target_length=40)
    batch = dataset.batch("train", 0, 0, 5)
    n = dataset.spans.n_targets
    assert batch.tokens_BL.shape == batch.weights_BL.shape == (5, 40)
    assert inputs_of(batch).shape == (5, 64)
    assert batch.tokens_BL.dtype == inputs_of(batch).dtype == torch.int64
    assert batch.weights_BL.dtype == torch.float32
    assert (batch.tokens_BL[:, n - 1] == EOS).all()
    assert (batch.tokens_BL[:, n:] == 0).all()
    assert torch.equal(batch.weights_BL, (torch.arange(40) < n).float().expand(5, 40))


def test_no_target_length_is_just_as_many_as_there_are() -> None:
    dataset = opened(64)
    assert dataset.length == dataset.spans.n_targets
    assert (dataset.batch("train", 0, 0, 2).weights_BL == 1).all()


def test_a_row_is_a_window_of_the_text() -> None:
    text = corpus()
    batch = opened(64, 40, text).batch("train", 0, 0, 8)
    for inputs, targets in zip(inputs_of(batch).tolist(), batch.tokens_BL.tolist(), strict=True):
        ends = [row.index(EOS) + 1 for row in (inputs, targets)]
        original = filled_in(inputs[: ends[0]], targets[: ends[1]])
        assert bytes(token - 3 for token in original) in bytes(text.arrays["train"])


def test_a_batch_is_a_function_of_its_arguments_alone() -> None:
    def both(seed: int, step: int, rows: int) -> torch.Tensor:
        batch = opened().batch("train", seed, step, rows)
        return torch.cat([inputs_of(batch), batch.tokens_BL], 1)

    assert torch.equal(both(4, 9, 8), both(4, 9, 8))
    assert torch.equal(both(4, 9, 3), both(4, 9, 8)[:3])
    assert not torch.equal(both(5, 9, 8), both(4, 9, 8))
    assert not torch.equal(both(4, 8, 8), both(4, 9, 8))
    assert len({tuple(row.tolist()) for row in both(4, 9, 8)}) == 8


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_is_the_same_for_every_seed_and_batch_size(split: str) -> None:
    dataset = opened(64)

    def every(seed: int, rows: int) -> torch.Tensor:
        batches = [dataset.batch(split, seed, step, rows) for step in range(dataset.n_batches(split, rows) or 0)]
        return torch.cat([torch.cat([inputs_of(batch), batch.tokens_BL], 1) for batch in batches])

    assert torch.equal(every(0, 2), every(7, 3))
    assert len({tuple((row >= 259).tolist()) for row in every(0, 2)}) == len(every(0, 2))  # other spans in every row


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_shares_no_text_with_training_and_has_an_end(split: str) -> None:
    dataset = opened(64)
    n_rows = -(-500 // dataset.spans.raw)
    assert dataset.n_batches(split, 1) == n_rows
    batch = dataset.batch(split, 0, 0, n_rows)
    told = torch.cat([inputs_of(batch), batch.tokens_BL], 1)
    assert set(told[(told > 2) & (told < 259)].tolist()) == {213 if split == "valid" else 223}
    with pytest.raises(IndexError):
        dataset.batch(split, 0, n_rows, 1)


def test_train_and_evaluation_have_spans_of_their_own() -> None:
    train = opened().batch("train", 0, 0, 4)
    valid = opened().batch("valid", 0, 0, 4)
    assert not torch.equal(inputs_of(train) >= 259, inputs_of(valid) >= 259)


def test_a_target_length_that_is_too_small_is_refused_with_the_smallest() -> None:
    with pytest.raises(UserError, match="give 114 targets") as raised:
        opened(512, target_length=113)
    assert "data.target_length=114" in raised.value.hint


@pytest.mark.parametrize(
    ("length", "noise", "mean_span", "said"),
    [
        (2, 0.15, 3.0, "too short"),
        (64, 0.0, 3.0, "data.noise=0.0"),
        (64, 1.0, 3.0, "data.noise=1.0"),
        (64, float("nan"), 3.0, "data.noise=nan"),
        (64, 0.15, 0.5, "data.mean_span=0.5"),
        (64, 0.15, float("nan"), "data.mean_span=nan"),
        (64, 0.8, 1.0, "fewer tokens than there are spans"),
        (65536, 0.15, 3.0, "more spans than the 100 sentinels"),
    ],
)
def test_an_impossible_corruption_is_refused(length: int, noise: float, mean_span: float, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        spans_for(length, noise, mean_span)
    assert raised.value.kind == "bad_value"


def test_a_text_shorter_than_a_raw_row_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.length=512 \(made of 568 bytes\) is longer than the valid split"):
        opened(512, text=corpus(held_out=567))


@pytest.mark.parametrize(("noise", "mean_span"), [(0.15, 3.0), (0.5, 1.0), (0.3, 7.5), (0.001, 2.0), (0.9, 20.0)])
def test_the_longest_text_that_fits_is_the_one_that_counting_up_finds(noise: float, mean_span: float) -> None:
    for length in (*range(4, 80), 200):
        spans = [spans_of(raw, noise, mean_span) for raw in range(2, 20 * length)]
        longest = [one for one in spans if one.n_inputs <= length][-1]
        if longest.n_spans > min(100, longest.raw - longest.n_noise):
            with pytest.raises(UserError):
                spans_for(length, noise, mean_span)
        else:
            assert spans_for(length, noise, mean_span) == longest


def test_inputs_of_a_thousand_million_tokens_are_planned_at_once() -> None:
    assert spans_for(10**9, 1e-300, 3.0).raw == 10**9 - 1
