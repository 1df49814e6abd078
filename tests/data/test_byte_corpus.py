from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efftx.data.byte_corpus import bytes_vocab_size, open_bytes, prepare_corpus, split_90_5_5
from efftx.data.dataset import Dataset
from efftx.data.prepared import SPLITS, Prepared
from efftx.data.span_corruption import SpanCorruption, SpanCorruptionConfig
from efftx.data.windows import LanguageModelRows
from efftx.errors import UserError

# Every position of the text has a value of its own modulo 251, and each split a range of its own is known by its place.
TEXT = bytes(i % 251 for i in range(2000))
SIZES = (1800, 100, 100)


@pytest.fixture
def prepared() -> Prepared:
    return prepare_corpus("text", "text[x]", "ab" * 32, SIZES, lambda: TEXT, {"licence": "none"})


def rows(prepared: Prepared, length: int) -> Dataset:
    return open_bytes(prepared, SpanCorruptionConfig("text", length))


@pytest.fixture
def corpus(prepared: Prepared) -> Dataset:
    return rows(prepared, 16)


def test_a_training_row_is_a_window_of_the_train_split(corpus: Dataset) -> None:
    batch = corpus.batch("train", 0, 0, 32)
    assert batch.tokens_BL.dtype == torch.int64
    assert batch.tokens_BL.shape == (32, 16)
    assert (batch.weights_BL == 1).all()
    for row in batch.tokens_BL.tolist():
        assert bytes(row) in TEXT[:1800]


def test_training_windows_reach_both_ends_of_the_split_and_not_beyond(prepared: Prepared) -> None:
    almost_all = rows(prepared_with(prepared, (100, 100, 100)), 99)
    starts = {row[0] for row in almost_all.batch("train", 0, 0, 64).tokens_BL.tolist()}
    assert starts == {0, 1}


def prepared_with(prepared: Prepared, sizes: tuple[int, int, int]) -> Prepared:
    return prepare_corpus("text", "text[y]", "cd" * 32, sizes, lambda: TEXT[: sum(sizes)], {})


def test_a_batch_is_a_function_of_its_arguments_alone(prepared: Prepared, corpus: Dataset) -> None:
    again = rows(prepared, 16).batch("train", 4, 9, 8).tokens_BL
    assert torch.equal(corpus.batch("train", 4, 9, 8).tokens_BL, again)
    assert torch.equal(corpus.batch("train", 4, 9, 3).tokens_BL, again[:3])
    assert not torch.equal(corpus.batch("train", 5, 9, 8).tokens_BL, again)
    assert not torch.equal(corpus.batch("train", 4, 8, 8).tokens_BL, again)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_counts_every_byte_of_its_split_once_and_no_other(corpus: Dataset, split: str) -> None:
    counted: list[int] = []
    for step in range(corpus.n_batches(split, 3) or 0):
        batch = corpus.batch(split, step, step, 3)  # the seed is of no account
        counted += batch.tokens_BL[batch.weights_BL > 0].tolist()
    start = 1800 if split == "valid" else 1900
    assert bytes(counted) == TEXT[start : start + 100]


def test_the_last_window_has_context_instead_of_padding(corpus: Dataset) -> None:
    last = corpus.batch("valid", 0, 2, 3)  # 7 windows of 16 cover 100 bytes
    assert last.tokens_BL.shape == (1, 16)
    assert bytes(last.tokens_BL[0].tolist()) == TEXT[1884:1900]
    assert last.weights_BL[0].tolist() == [0.0] * 12 + [1.0] * 4


def test_evaluation_has_an_end(corpus: Dataset) -> None:
    assert corpus.n_batches("valid", 3) == 3
    assert corpus.n_batches("test", 100) == 1
    assert corpus.n_batches("train", 3) is None
    with pytest.raises(IndexError):
        corpus.batch("valid", 0, 3, 3)


def test_a_length_that_divides_the_split_leaves_no_tail(prepared: Prepared) -> None:
    corpus = rows(prepared, 50)
    assert corpus.n_batches("valid", 1) == 2
    assert all((corpus.batch("valid", 0, step, 1).weights_BL == 1).all() for step in range(2))


def test_a_row_may_be_as_long_as_the_shortest_split_and_no_longer(prepared: Prepared) -> None:
    assert rows(prepared, 100).batch("valid", 0, 0, 1).tokens_BL.shape == (1, 100)
    with pytest.raises(UserError, match=r"data\.length=101 is longer than the valid split") as raised:
        rows(prepared, 101)
    assert raised.value.hint == (
        "A row can have at most 100 bytes: set a smaller data.length, or give a text at least 2 times as long."
    )


def test_a_batch_does_not_read_the_file_into_memory(corpus: Dataset) -> None:
    assert isinstance(corpus, LanguageModelRows)
    assert all(isinstance(corpus._windows.corpus.arrays[split], np.memmap) for split in SPLITS)


def test_the_prepared_arrays_are_the_text(prepared: Prepared) -> None:
    assert b"".join(prepared.path(split).read_bytes() for split in SPLITS) == TEXT


def test_the_text_is_read_only_when_it_must_be_written(prepared: Prepared) -> None:
    def never() -> bytes:
        raise AssertionError("read again")

    assert prepare_corpus("text", "text[x]", "ab" * 32, SIZES, never, {}).folder == prepared.folder


def test_another_split_of_the_same_text_has_a_folder_of_its_own(prepared: Prepared) -> None:
    other = prepare_corpus("text", "text[x]", "ab" * 32, (1000, 500, 500), lambda: TEXT, {})
    assert other.folder != prepared.folder
    assert other.size("valid") == 500


@given(st.integers(0, 10**9))
def test_a_split_loses_no_byte(n_bytes: int) -> None:
    train, valid, test = split_90_5_5(n_bytes)
    assert train + valid + test == n_bytes
    assert abs(valid - test) <= 1


def test_enwik8_splits_into_90_5_and_5_million() -> None:
    assert split_90_5_5(100_000_000) == (90_000_000, 5_000_000, 5_000_000)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 7))
def test_evaluation_covers_any_split_at_any_length(length: int, extra: int, batch_size: int) -> None:
    size = length + extra
    text = bytes(range(100)) * 3
    key = f"{size:064d}"[::-1]
    prepared = prepare_corpus("any", "any", key, (size, size, size), lambda: text[: 3 * size], {})
    corpus = rows(prepared, length)
    batches = [corpus.batch("valid", 0, step, batch_size) for step in range(corpus.n_batches("valid", batch_size) or 0)]
    counted = [token for batch in batches for token in batch.tokens_BL[batch.weights_BL > 0].tolist()]
    assert bytes(counted) == text[size : 2 * size]


def test_meta_data_says_what_the_arrays_are(prepared: Prepared) -> None:
    assert prepared.meta["variant"] == "text[x]"
    assert prepared.meta["bytes"] == 2000
    assert prepared.meta["licence"] == "none"
    assert isinstance(prepared.folder, Path)


def test_a_byte_is_its_own_token_under_lm_and_3_more_under_span_corruption(prepared: Prepared) -> None:
    config = SpanCorruptionConfig("text", 20, noise=0.3)
    language = open_bytes(prepared, config)
    corrupted = open_bytes(prepared, config, "span_corruption")
    assert (language.vocab_size, language.unit, language.input_length) == (256, "bits/dim", 0)
    assert (corrupted.vocab_size, corrupted.unit, corrupted.input_length) == (359, "nats/token", 20)
    assert [bytes_vocab_size(config, objective) for objective in ("lm", "span_corruption")] == [256, 359]
    assert (corrupted.variant, corrupted.checksum) == (language.variant, language.checksum)
    assert isinstance(corrupted, SpanCorruption)
    batch = corrupted.batch("valid", 0, 0, 1)
    assert batch.inputs_BE is not None
    first = batch.inputs_BE[0, 0].item()  # a row begins with a byte that is left in place
    assert first == 3 + TEXT[1800]


def test_lm_batches_are_those_of_the_committed_records(prepared: Prepared) -> None:
    assert rows(prepared, 4).batch("train", 1, 2, 2).tokens_BL.tolist() == [[114, 115, 116, 117], [144, 145, 146, 147]]
