"""Texts become the tokens that a data set would give, and what it cannot write is told."""

from __future__ import annotations

import pytest

from efftx.data.copy_add import CopyAddConfig, Digits, open_copy_add
from efftx.data.dataset import find_source, names, open_dataset
from efftx.data.duplicate import DuplicateConfig
from efftx.data.rendering import Numbers, Pieces, RawBytes, Rendering
from efftx.data.sentencepiece_model import SentencePieceVocabulary, train_sentencepiece
from efftx.data.tokenizer import TextConfig, text_rendering
from efftx.data.vocabulary import ByteVocabulary
from efftx.errors import UserError
from tests.data.shipped_config import shipped_config


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (RawBytes(), "grün\n"),
        (Pieces(ByteVocabulary()), "a <extra_id_0> sat <extra_id_12>"),
        (Numbers(128), "0 5 127 0"),
        (Digits(10), "321+90"),
    ],
)
def test_a_text_comes_back_from_its_tokens_and_needs_no_file(how: Rendering, text: str) -> None:
    assert how.decode(how.encode(text)) == text
    assert how.kind == "text"
    assert how.files([how.encode(text)]) == []


def test_sentinels_are_those_of_span_corruption() -> None:
    vocabulary = ByteVocabulary()
    assert Pieces(vocabulary).encode("a<extra_id_0>b<extra_id_1>") == [100, 358, 101, 357]


def test_the_data_sets_own_rows_read_as_texts_that_give_them_again() -> None:
    config = CopyAddConfig("copy_add", 9, task="add", max_digits=5, eval_min_digits=6, eval_max_digits=8)
    inputs = open_copy_add(config).batch("test", 0, 0, 1).inputs_BE
    assert inputs is not None
    row = [token for token in inputs[0].tolist() if token]
    how = find_source("copy_add").rendering(config)
    assert how.encode(how.decode(row)) == row
    assert "+" in how.decode(row)
    tokens = open_dataset(DuplicateConfig("duplicate", 16)).batch("test", 0, 0, 1).tokens_BL[0].tolist()
    how = find_source("duplicate").rendering(DuplicateConfig("duplicate", 16))
    assert how.encode(how.decode(tokens)) == tokens


@pytest.mark.parametrize(
    ("how", "text", "says"),
    [
        (RawBytes(), "a\udcff", "not UTF-8"),
        (Pieces(ByteVocabulary()), "a\udcff", "not UTF-8"),
        (Pieces(ByteVocabulary()), "<extra_id_100>", "extra_id_100"),
        (Pieces(ByteVocabulary()), "<extra_id_007>", "<extra_id_007> is no token"),
        (Pieces(ByteVocabulary()), "<extra_id_\u0663>", "<extra_id_\u0663> is no token"),
        (Pieces(ByteVocabulary()), f"<extra_id_{'9' * 5000}>", r"<extra_id_9{20}\.\.\.> is no token"),
        (Numbers(128), "9" * 5000, r"'9{20}\.\.\.' is no token"),
        (Numbers(128), "\u0663", "'\u0663' is no token"),
        (Digits(10), "\u0663", "'\u0663' is no token"),
        (Numbers(128), "0 128", "'128' is no token"),
        (Numbers(128), "0 -1", "'-1' is no token"),
        (Numbers(128), "0 a", "'a' is no token"),
        (Digits(4), "123454", "'4' is no token"),
        (Digits(10), "12 3", "' ' is no token"),
    ],
)
def test_what_the_vocabulary_cannot_write_is_named(how: Rendering, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        how.encode(text)
    assert told.value.hint


def test_characters_that_no_piece_has_are_named() -> None:
    how = Pieces(
        SentencePieceVocabulary(train_sentencepiece(15, ["the cat sat on the mat"] * 3), "unigram", "a test's")
    )
    with pytest.raises(UserError, match=r"for: é ü Write"):
        how.encode("the cét the süt é")


def test_every_data_set_says_how_its_tokens_are_written() -> None:
    for name in names():
        config = shipped_config(name)
        if isinstance(config, TextConfig):
            config.tokenizer = "bytes"
        for objective in find_source(name).objectives:
            assert find_source(name).rendering(config, objective).form


def test_the_vocabulary_that_a_run_kept_is_needed_and_must_be_its_own() -> None:
    config = TextConfig("c4", 16, tokenizer="unigram", vocab_size=16)
    with pytest.raises(UserError, match="not there"):
        text_rendering(config)
    model = train_sentencepiece(15, ["the cat sat on the mat"] * 3)
    with pytest.raises(UserError, match="15 pieces, not 16"):
        text_rendering(config, "lm", model)
