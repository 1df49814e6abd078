"""Sources and targets as rows: what is cut, what counts, and the order that only the seed decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efftx.data.pairs import Corpus, Document, TextPairs, counted, prepare_pairs
from efftx.data.prepared import SPLITS, damage
from efftx.data.tokenizer import TextConfig
from efftx.errors import UserError
from efftx.evaluation.trivial import Question, trivial_answer

FIVE = [Document(f"source {i}", [f"target {i}{letter}" for letter in "abc"[: 1 + i % 3]]) for i in range(5)]


def open_documents(
    tmp_path: Path,
    splits: dict[str, list[Document | None]] | None = None,
    *,
    length: int = 12,
    target_length: int = 12,
    labels: tuple[str, ...] = (),
    leaves_out_long: bool = False,
    **config: Any,
) -> TextPairs:
    given_splits = splits or {"train": list(FIVE), "valid": list(FIVE[:3]), "test": list(FIVE[1:])}
    sums = [hashlib.sha256(repr(given_splits).encode()).hexdigest()]

    def read(split: str) -> Iterable[Document | None]:
        return iter(given_splits[split])

    corpus = Corpus(sums, "", read, lambda counts: f"made {counted(counts)}", "none", "made")
    given_config = TextConfig("made", length, None, target_length, tokenizer="bytes", **config)
    prepared, vocabulary = prepare_pairs(given_config, corpus)
    return TextPairs(
        prepared,
        vocabulary,
        given_config,
        target_length=target_length,
        metrics=(),
        labels=labels,
        leaves_out_long=leaves_out_long,
    )


def ids(text: str) -> list[int]:
    return [3 + byte for byte in text.encode()]


def train_rows(dataset: TextPairs, seed: int, n_rows: int, batch_size: int = 1) -> list[tuple[str, str]]:
    batches = [dataset.batch("train", seed, step, batch_size) for step in range(-(-n_rows // batch_size))]
    rows: list[tuple[list[int], list[int]]] = []
    for batch in batches:
        assert batch.inputs_BE is not None
        rows += zip(batch.inputs_BE.tolist(), batch.tokens_BL.tolist(), strict=True)
    return [(dataset.decode(source), dataset.decode(target)) for source, target in rows[:n_rows]]


def test_source_and_target_end_with_the_end_of_sequence_and_zeros(tmp_path: Path) -> None:
    dataset = open_documents(tmp_path, length=14, target_length=13)
    batch = dataset.batch("valid", 0, 0, 2)
    assert batch.inputs_BE is not None
    assert batch.inputs_BE.tolist() == [[*ids("source 0"), 1, *[0] * 5], [*ids("source 1"), 1, *[0] * 5]]
    assert batch.tokens_BL.tolist() == [[*ids("target 0a"), 1, *[0] * 3], [*ids("target 1a"), 1, *[0] * 3]]
    assert batch.weights_BL.tolist() == [[1.0] * 10 + [0.0] * 3] * 2
    assert (batch.inputs_BE.dtype, batch.tokens_BL.dtype, batch.weights_BL.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
    )
    assert (dataset.input_length, dataset.length, dataset.vocab_size, dataset.unit) == (14, 13, 359, "nats/token")


def test_what_is_too_long_is_cut_so_that_its_end_has_room(tmp_path: Path) -> None:
    batch = open_documents(tmp_path, length=4, target_length=7).batch("valid", 0, 0, 1)
    assert batch.inputs_BE is not None
    assert batch.inputs_BE.tolist() == [[*ids("sou"), 1]]
    assert batch.tokens_BL.tolist() == [[*ids("target"), 1]]
    assert batch.weights_BL.tolist() == [[1.0] * 7]


@pytest.mark.parametrize(("length", "expected"), [(9, [*ids("source 0"), 1]), (8, [*ids("source "), 1]), (1, [1])])
def test_a_text_that_just_fits_is_whole(tmp_path: Path, length: int, expected: list[int]) -> None:
    batch = open_documents(tmp_path, length=length, target_length=1).batch("valid", 0, 0, 1)
    assert batch.inputs_BE is not None
    assert batch.inputs_BE.tolist() == [expected]
    assert batch.tokens_BL.tolist() == [[1]]


def test_every_epoch_has_every_document_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    splits: dict[str, list[Document | None]] = {split: [Document(str(i), ["t"]) for i in range(40)] for split in SPLITS}
    dataset = open_documents(tmp_path, splits)
    sources = [int(source) for source, _ in train_rows(dataset, 3, 120, 7)]
    epochs = [sources[:40], sources[40:80], sources[80:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 3
    other_seed = [int(source) for source, _ in train_rows(dataset, 4, 40)]
    assert len({tuple(order) for order in [*epochs, other_seed, range(40)]}) == 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(batch_size=st.integers(1, 13), seed=st.integers(0, 2**40))
def test_the_batch_size_changes_nothing_in_the_order(tmp_path: Path, batch_size: int, seed: int) -> None:
    dataset = open_documents(tmp_path)
    assert train_rows(dataset, seed, 17, batch_size) == train_rows(dataset, seed, 17)


def test_a_batch_is_a_function_of_its_arguments_alone(tmp_path: Path) -> None:
    one, other = open_documents(tmp_path), open_documents(tmp_path)
    for step in (5, 0, 3):  # not in the order of the steps
        other.batch("train", 1, step + 1, 4)
        assert torch.equal(one.batch("train", 1, step, 4).tokens_BL, other.batch("train", 1, step, 4).tokens_BL)


def test_training_draws_one_of_several_targets_and_each_in_its_turn(tmp_path: Path) -> None:
    rows = train_rows(open_documents(tmp_path), 0, 5 * 40)
    targets = {source: {target for s, target in rows if s == source} for source, _ in rows}
    assert targets == {document.source: set(document.targets) for document in FIVE}


def test_evaluation_takes_the_first_target_in_order_whatever_the_seed(tmp_path: Path) -> None:
    dataset = open_documents(tmp_path)
    first, last = dataset.batch("test", 0, 0, 3), dataset.batch("test", 9, 1, 3)
    said = [dataset.decode(row) for batch in (first, last) for row in batch.tokens_BL.tolist()]
    assert said == [document.targets[0] for document in FIVE[1:]]
    assert last.tokens_BL.shape == (1, 12)
    assert [dataset.n_batches(split, 3) for split in SPLITS] == [None, 1, 2]
    for step in (2, -1):
        with pytest.raises(IndexError, match="no batch"):
            dataset.batch("test", 0, step, 3)


def test_references_are_all_targets_as_they_were_written(tmp_path: Path) -> None:
    odd = Document("s", ["one\ntwo \u2028 \x85 three", "\u00fc\U0001f600"])
    dataset = open_documents(tmp_path, {"train": [odd], "valid": [odd], "test": [FIVE[2], odd]})
    assert dataset.references("test", 0) == ["target 2a", "target 2b", "target 2c"]
    assert dataset.references("test", 1) == list(odd.targets)
    assert dataset.source("test", 0) == "source 2"


def test_a_source_is_given_back_whole_though_its_row_is_cut(tmp_path: Path) -> None:
    assert open_documents(tmp_path, length=3).source("valid", 1) == "source 1"


def test_decoding_stops_at_the_first_end(tmp_path: Path) -> None:
    dataset = open_documents(tmp_path)
    assert dataset.decode([*ids("ab"), 1, *ids("c"), 1]) == "ab"
    assert dataset.decode([*ids("ab"), 0]) == "ab"


def test_rows_that_are_no_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    splits: dict[str, list[Document | None]] = {"train": [None, FIVE[0], None], "valid": [FIVE[1]], "test": [FIVE[2]]}
    dataset = open_documents(tmp_path, splits)
    assert dataset.variant == "made[made 1+1+1 (2 left out),bytes]"
    assert train_rows(dataset, 0, 1)[0][0] == "source 0"


def test_only_so_many_training_documents_are_taken_as_are_asked_for(tmp_path: Path) -> None:
    dataset = open_documents(tmp_path, n_documents=2)
    assert dataset.variant == "made[made 2+3+4,bytes]"
    assert {source for source, _ in train_rows(dataset, 0, 20)} == {"source 0", "source 1"}
    assert dataset.checksum != open_documents(tmp_path).checksum


def test_labels_are_targets_with_their_end_and_chance_is_the_usual_one_of_the_test_split(tmp_path: Path) -> None:
    def some(*words: str) -> list[Document | None]:
        return [Document("s", [word]) for word in words]

    splits = {"train": some("yes", "yes"), "valid": some("no"), "test": some("no", "no", "yes")}
    dataset = open_documents(tmp_path, splits, labels=("no", "yes"))
    assert dataset.label_targets == [[*ids("no"), 1], [*ids("yes"), 1]]
    assert dataset.chance_accuracy == pytest.approx(200 / 3)
    assert open_documents(tmp_path, splits, labels=("no", "yes"), target_length=4).length == 4
    with pytest.raises(UserError, match="no room for the labels") as raised:
        open_documents(tmp_path, splits, labels=("no", "yes"), target_length=3)
    assert "at least 4" in raised.value.hint
    assert open_documents(tmp_path).chance_accuracy is None


@pytest.mark.parametrize("leaves_out_long", [False, True])
def test_an_n_gram_table_counts_an_epoch_of_the_training_pairs(tmp_path: Path, leaves_out_long: bool) -> None:
    some: list[Document | None] = [Document("s", ["ab" * n]) for n in range(1, 6)]
    splits = {"train": some, "valid": some[:2], "test": some[:2]}
    dataset = open_documents(tmp_path, splits, target_length=9, leaves_out_long=leaves_out_long)
    assert [dataset.n_rows(split) for split in SPLITS] == [4 if leaves_out_long else 5, 2, 2]
    found = trivial_answer(dataset, Question("ngram", order=2))
    # Targets of 2, 4, 6 and 8 tokens with their ends, and one of 10 that is left out, or cut to 8.
    assert found["training_tokens"] == (24 if leaves_out_long else 33)


def test_the_checksum_is_over_tokens_and_borders(tmp_path: Path) -> None:
    def checksum(*documents: Document) -> str:
        return open_documents(tmp_path, {split: list(documents) for split in SPLITS}).checksum

    assert checksum(Document("ab", ["c"])) == checksum(Document("ab", ["c"]))
    ways = [
        (Document("ab", ["c"]),),
        (Document("a", ["bc"]),),
        (Document("a", ["b", "c"]),),
        (Document("ab", ["d"]),),
    ]
    assert len({checksum(*way) for way in ways}) == 4


def test_what_is_prepared_is_read_again_and_mended_if_damaged(tmp_path: Path, root: Path) -> None:
    first = open_documents(tmp_path).batch("train", 0, 0, 5)
    (folder,) = (root / "prepared").glob("made-*")
    assert damage(folder) is None
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["documents"] == {"train": 5, "valid": 3, "test": 4}
    assert meta["bytes"] == sum((folder / f"{split}.tokens.bin").stat().st_size for split in SPLITS)
    (folder / "train.tokens.bin").write_bytes(b"")
    assert torch.equal(open_documents(tmp_path).batch("train", 0, 0, 5).tokens_BL, first.tokens_BL)


def test_a_large_vocabulary_needs_wider_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efftx.data.vocabulary import ByteVocabulary

    class Wide(ByteVocabulary):
        n_pieces = 70_000

        def encode(self, text: str) -> list[int]:
            return [69_999 for _ in text]

    monkeypatch.setattr("efftx.data.pairs.open_vocabulary", lambda *_: Wide())
    batch = open_documents(tmp_path).batch("valid", 0, 0, 1)
    assert batch.tokens_BL[0, :9].unique().tolist() == [69_999]


def test_empty_texts_give_rows_with_an_end_alone(tmp_path: Path) -> None:
    empty = Document("", [""])
    batch = open_documents(tmp_path, {split: [empty] for split in SPLITS}).batch("train", 0, 0, 1)
    assert batch.inputs_BE is not None
    assert np.count_nonzero(batch.inputs_BE) == np.count_nonzero(batch.tokens_BL) == 1


def test_an_empty_split_and_a_negative_number_are_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match="no documents for valid and test"):
        open_documents(tmp_path, {"train": [FIVE[0]], "valid": [], "test": [None]})
    assert list((root / "prepared").glob("made-*")) == []
    with pytest.raises(UserError, match=r"data\.n_documents=-1"):
        open_documents(tmp_path, n_documents=-1)
