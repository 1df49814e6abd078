from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from efftx.data.prepared import SPLITS, Prepared
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.data.token_corpus import left_out_note, open_tokens, prepare_tokens
from efftx.data.vocabulary import EOS, ByteVocabulary, Vocabulary
from efftx.errors import UserError

TEXTS = {"train": ["abc", "\u00fc", "defg"] * 9, "valid": ["hij" * 9], "test": ["klm" * 9, "nop"]}


class Words(Vocabulary):
    """Letters far apart, so that they need more than 16 bits."""

    name, checksum = "words", "cd" * 32
    n_pieces = 200_000

    def encode(self, text: str) -> list[int]:
        return [1000 * (ord(letter) - 90) for letter in text]

    def _decode_pieces(self, ids: list[int]) -> str:
        return "".join(chr(90 + token // 1000) for token in ids)


def prepare(
    vocabulary: Vocabulary | None = None,
    identity: str = "ab" * 32,
    read: Callable[[str], list[str]] = TEXTS.__getitem__,
) -> Prepared:
    named = vocabulary or ByteVocabulary()
    return prepare_tokens(
        "text", identity, named, read, lambda counts: f"text[{counts['train']},{named.name}]", {"licence": "none"}
    )


def array(prepared: Prepared, split: str) -> list[int]:
    return np.fromfile(prepared.path(split), prepared.meta["dtype"]).tolist()


def test_documents_follow_one_another_each_with_its_end() -> None:
    vocabulary = ByteVocabulary()
    prepared = prepare(vocabulary)
    for split in SPLITS:
        expected = [token for text in TEXTS[split] for token in [*vocabulary.encode(text), EOS]]
        assert array(prepared, split) == expected


def test_the_meta_data_says_what_was_read() -> None:
    meta = prepare().meta
    assert meta["variant"] == "text[27,bytes]"
    assert meta["documents"] == {"train": 27, "valid": 1, "test": 2}
    assert meta["bytes"] == sum(len(text.encode()) for texts in TEXTS.values() for text in texts)
    assert (meta["licence"], meta["vocabulary"], meta["dtype"]) == ("none", "bytes", "<u2")


def test_a_token_takes_as_many_bytes_as_the_vocabulary_needs() -> None:
    prepared = prepare(Words())
    assert prepared.meta["dtype"] == "<u4"
    assert array(prepared, "valid")[:3] == [14000, 15000, 16000]
    batch = open_tokens(prepared, Words(), SpanCorruptionConfig("text", 4), "lm").batch("valid", 0, 0, 1)
    assert batch.tokens_BL.tolist() == [[14000, 15000, 16000, 14000]]


def test_the_text_is_read_once_for_each_text_and_vocabulary() -> None:
    first = prepare()

    def never(split: str) -> list[str]:
        raise AssertionError("read again")

    assert prepare(read=never) == first
    assert prepare(identity="cd" * 32).folder != first.folder
    assert prepare(Words()).folder != first.folder


def test_the_checksum_is_of_the_tokens() -> None:
    def checksum(prepared: Prepared) -> str:
        return open_tokens(prepared, ByteVocabulary(), SpanCorruptionConfig("text", 4), "lm").checksum

    def moved(split: str) -> list[str]:  # the same tokens in a row, another border between two splits
        return {"train": TEXTS["train"], "valid": [*TEXTS["valid"], TEXTS["test"][0]], "test": TEXTS["test"][1:]}[split]

    assert checksum(prepare()) == checksum(prepare(identity="cd" * 32))
    assert checksum(prepare()) != checksum(prepare(identity="ef" * 32, read=moved))


def test_lm_rows_are_packed_and_nothing_is_padded() -> None:
    dataset = open_tokens(prepare(), ByteVocabulary(), SpanCorruptionConfig("text", 7), "lm")
    assert (dataset.vocab_size, dataset.unit, dataset.input_length, dataset.length) == (359, "nats/token", 0, 7)
    counted: list[int] = []
    for step in range(dataset.n_batches("test", 2) or 0):
        batch = dataset.batch("test", 0, step, 2)
        assert batch.inputs_BE is None
        counted += batch.tokens_BL[batch.weights_BL > 0].tolist()
    assert counted == array(prepare(), "test")


def test_span_corruption_reads_the_same_array() -> None:
    dataset = open_tokens(prepare(), ByteVocabulary(), SpanCorruptionConfig("text", 12), "span_corruption")
    assert (dataset.vocab_size, dataset.unit, dataset.input_length) == (359, "nats/token", 12)
    assert dataset.variant == "text[27,bytes]"
    batch = dataset.batch("valid", 0, 0, 1)
    assert batch.inputs_BE is not None
    pieces = torch.cat([batch.inputs_BE[0, :-1], batch.tokens_BL[0, :-1]])
    raw = array(prepare(), "valid")[: int((pieces < 259).sum())]
    assert sorted(pieces[pieces < 259].tolist()) == sorted(raw)


def test_a_split_without_documents_is_refused_and_nothing_stays() -> None:
    with pytest.raises(UserError, match="There are no documents for valid in text"):
        prepare(read=lambda split: [] if split == "valid" else TEXTS[split])
    assert prepare().meta["documents"]["valid"] == 1


def test_one_line_left_out_is_one_line() -> None:
    assert left_out_note(1) == "Left out: 1 line or row that is blank or lacks a text or a label."
    assert left_out_note(1200) == "Left out: 1,200 lines or rows that are blank or lack a text or a label."
