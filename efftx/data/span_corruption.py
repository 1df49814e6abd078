"""Span corruption, T5's objective (Raffel et al. 2020, section 3.1.4): a sentinel for each span of text taken out.

The inputs are a text in which every span is one sentinel; the targets name each sentinel and the span it stands for.
Both end with the end of sequence. Rules of rounding and order are those of T5's published preprocessors.

Shape suffixes: B rows of a batch, R raw tokens of a row, E input tokens, L target tokens.
"""

from dataclasses import dataclass

import numpy as np

from efftx.data.dataset import Batch, DataConfig, draw
from efftx.data.vocabulary import EOS, N_SENTINELS, PAD, Vocabulary
from efftx.data.windows import Corpus, Windows
from efftx.errors import UserError


@dataclass
class SpanCorruptionConfig(DataConfig):
    """`noise`: the share of tokens taken out; `mean_span`: the mean length of a span in tokens. Values of T5."""

    noise: float = 0.15
    mean_span: float = 3.0

    def n_targets(self) -> int:
        """Target tokens in a row: `target_length`, or as many as there are; UserError where it is too small."""
        least = spans_for(self.length, self.noise, self.mean_span).n_targets
        if 0 < self.target_length < least:
            raise UserError(
                "bad_value",
                f"data.target_length={self.target_length} is too small: data.length={self.length} inputs give "
                f"{least} targets.",
                f"Set data.target_length={least} or more, or 0 for just as many.",
            )
        return self.target_length or least


@dataclass(frozen=True)
class Spans:
    """How many of `raw` tokens are noise, and in how many spans: the same for every row."""

    raw: int
    n_noise: int
    n_spans: int

    @property
    def n_inputs(self) -> int:
        """What is left, the sentinels and the end of sequence."""
        return self.raw - self.n_noise + self.n_spans + 1

    @property
    def n_targets(self) -> int:
        """What was taken out, the sentinels and the end of sequence."""
        return self.n_noise + self.n_spans + 1

    @property
    def n_keys(self) -> int:
        """Random numbers that a row's mask takes."""
        return self.raw - 2


def spans_of(raw: int, noise: float, mean_span: float) -> Spans:
    """T5's rounding: round(raw noise) noise tokens, 1 to raw - 1; round(noise tokens / mean_span) spans, at least 1."""
    n_noise = min(max(round(raw * noise), 1), raw - 1)
    return Spans(raw, n_noise, max(round(n_noise / mean_span), 1))


def spans_for(input_length: int, noise: float, mean_span: float) -> Spans:
    """The spans of the longest raw text that `input_length` inputs can hold, T5's rule; the inputs are just as many.

    512 inputs at noise 0.15 and mean span 3 take 568 raw tokens and give 114 targets. `UserError` where no text fits,
    the spans would touch each other, or there are more of them than sentinels.
    """
    if not 0 < noise < 1:
        raise UserError("bad_value", f"data.noise={noise} must be above 0 and below 1.")
    if not mean_span >= 1:
        raise UserError("bad_value", f"data.mean_span={mean_span} must be at least 1.")
    spans = spans_of(2, noise, mean_span)
    if spans.n_inputs > input_length:
        raise UserError(
            "bad_value",
            f"data.length={input_length} is too short for span corruption.",
            f"The shortest inputs are a token, a sentinel and the end of sequence: {spans.n_inputs}.",
        )
    # One raw token more adds one input or none, no length is skipped, and none comes back: the last that fits is found
    # between two that do and do not, however long the inputs are.
    raw, beyond = 2, 4
    while spans_of(beyond, noise, mean_span).n_inputs <= input_length:
        raw, beyond = beyond, 2 * beyond
    while beyond - raw > 1:
        middle = (raw + beyond) // 2
        fits = spans_of(middle, noise, mean_span).n_inputs <= input_length
        raw, beyond = (middle, beyond) if fits else (raw, middle)
    spans = spans_of(raw, noise, mean_span)
    if spans.n_spans > N_SENTINELS:
        raise UserError(
            "bad_value",
            f"data.length={input_length} has more spans than the {N_SENTINELS} sentinels can mark "
            f"(data.noise={noise}, data.mean_span={mean_span}).",
            "Set a smaller data.length or data.noise, or a larger data.mean_span.",
        )
    if spans.n_spans > spans.raw - spans.n_noise:
        raise UserError(
            "bad_value",
            f"data.noise={noise} leaves fewer tokens than there are spans of data.mean_span={mean_span} tokens.",
            "Set a smaller data.noise or a larger data.mean_span.",
        )
    return spans


def noise_mask(keys_BK: np.ndarray, spans: Spans) -> np.ndarray:
    """Which tokens are noise, bool [B, R]: noise and other tokens each fall into as many random segments as spans.

    The segments alternate, other tokens first; every way to cut is equally likely. `keys_BK`: `spans.n_keys` random
    numbers a row, of which only the order counts.
    """
    first = spans.raw - spans.n_noise - 1
    kept_BS = _segment_lengths(keys_BK[:, :first], spans.n_spans)
    noise_BS = _segment_lengths(keys_BK[:, first:], spans.n_spans)
    lengths_BS2 = np.stack([kept_BS, noise_BS], axis=2).reshape(len(keys_BK), -1)
    is_noise_S2 = np.arange(2 * spans.n_spans) % 2 == 1
    return np.stack([np.repeat(is_noise_S2, lengths) for lengths in lengths_BS2])


def _segment_lengths(keys_BK: np.ndarray, n_segments: int) -> np.ndarray:
    """Lengths [B, n_segments], each at least 1, of a random cut of K + 1 items: the smallest keys are its borders."""
    order_BK = np.argsort(keys_BK, axis=1, kind="stable")
    borders_BS = np.sort(order_BK[:, : n_segments - 1], axis=1) + 1
    ends = ((0, 0), (1, 1))
    bounded = np.pad(borders_BS, ends, constant_values=((0, 0), (0, keys_BK.shape[1] + 1)))
    return np.diff(bounded, axis=1)


def corrupt(raw_BR: np.ndarray, noise_BR: np.ndarray, first_sentinel: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [B, E] and targets [B, L]: each row's spans of noise, and of all else, become one sentinel each.

    Sentinel i is `first_sentinel` - i; a row begins with a token that is no noise and has as many spans as the others.
    """
    return _collapse(raw_BR, noise_BR, first_sentinel), _collapse(raw_BR, ~noise_BR, first_sentinel)


def _collapse(raw_BR: np.ndarray, away_BR: np.ndarray, first_sentinel: int) -> np.ndarray:
    """The rows with one sentinel for each run of `away`, and the end of sequence."""
    before_BR = np.pad(away_BR[:, :-1], ((0, 0), (1, 0)))
    starts_BR = away_BR & ~before_BR
    marked_BR = np.where(starts_BR, first_sentinel + 1 - np.cumsum(starts_BR, axis=1), raw_BR)
    rows = marked_BR[~away_BR | starts_BR].reshape(len(raw_BR), -1)
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=EOS)


class SpanCorruption:
    """Windows of a text under span corruption: rows of `length` inputs, targets padded to `target_length`.

    A row of training depends on (seed, step, row), a row of valid and test on its window alone, whatever the batch
    size. `offset` is added to the text's symbols to make them ids of the vocabulary. Padding has weight 0.
    `UserError` for a target length that is too small, and what `spans_for` and `Windows` refuse.
    """

    unit = "nats/token"
    chance_accuracy = None

    def __init__(
        self, corpus: Corpus, config: SpanCorruptionConfig, vocabulary: Vocabulary, *, offset: int = 0
    ) -> None:
        self.name, self.variant, self.checksum = corpus.name, corpus.variant, corpus.checksum
        self.notes = corpus.notes
        self.vocabulary = vocabulary
        self.vocab_size = vocabulary.size
        self.input_length = config.length
        self.spans = spans_for(config.length, config.noise, config.mean_span)
        self.length = config.n_targets()
        raw = self.spans.raw
        length_is = f"data.length={config.length} (made of {raw} {corpus.symbols})"
        self._windows = Windows(corpus, raw, length_is)
        self._offset = offset

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch `step`, a pure function of its arguments; valid and test ignore `seed`.

        Shapes [batch_size, length] and [batch_size, input_length]; the last batch of valid and test has the rows that
        are left, its last window some tokens of the one before. `IndexError` past it.
        """
        raw_BR, _ = self._windows.rows(split, seed, step, batch_size)
        mask_BR = noise_mask(self._keys(split, seed, step, batch_size), self.spans)
        inputs_BE, targets_BL = corrupt(raw_BR + self._offset, mask_BR, self.vocabulary.sentinel(0))
        padding = ((0, 0), (0, self.length - self.spans.n_targets))
        counts_BL = np.ones(targets_BL.shape, np.float32)
        return Batch.of(np.pad(targets_BL, padding, constant_values=PAD), np.pad(counts_BL, padding), inputs_BE)

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """Batches that cover valid or test once; None for train, which is drawn without end."""
        return self._windows.n_batches(split, batch_size)

    def n_rows(self, split: str) -> int:
        """Rows whose windows lie side by side in a split: they cover valid and test.

        Those of train are drawn anywhere, so that as many of them miss about a third of its text.
        """
        return self._windows.n_rows(split)

    def _keys(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        stream, n, below = f"{self.variant} spans", self.spans.n_keys, 1 << 63
        if split == "train":
            return draw(stream, split, seed, step, batch_size * n, below).reshape(batch_size, n)
        numbers = self._windows.numbers(split, step, batch_size)
        return np.stack([draw(stream, split, seed, int(number), n, below) for number in numbers])
