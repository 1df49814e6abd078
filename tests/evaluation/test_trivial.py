from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch

from efftx.data.dataset import Batch, Dataset, check_split
from efftx.data.glue import as_text, fields_of
from efftx.errors import UserError
from efftx.evaluation.compressed import png_bits, xz_bits
from efftx.evaluation.ngram import NGram, marked
from efftx.evaluation.rouge import rouge
from efftx.evaluation.trivial import DRAWN, Question, trivial_answer


@dataclass
class Rows:
    """Rows of `splits` as targets, the first token of each without weight; the training split has no end."""

    splits: dict[str, np.ndarray]
    vocab_size: int = 4
    unit: str = "nats/token"
    name: str = "rows"
    variant: str = "rows[1]"
    drawn: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.splits["test"].shape[1]

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        check_split(split)
        rows = self.splits[split]
        numbers = np.arange(step * batch_size, (step + 1) * batch_size)
        numbers = numbers % len(rows) if split == "train" else numbers[numbers < len(rows)]
        weights = np.ones((len(numbers), self.length), np.float32)
        weights[:, 0] = 0
        return Batch(torch.from_numpy(rows[numbers]), torch.from_numpy(weights))

    def n_batches(self, split: str, batch_size: int) -> int | None:
        return None if split == "train" else -(-len(self.splits[split]) // batch_size)


class CountedRows(Rows):
    def n_rows(self, split: str) -> int:
        return len(self.splits[split])


class Text(CountedRows):
    def stream(self, split: str) -> np.ndarray:
        return self.splits[split].reshape(-1)


class PictureRows(Rows):
    picture_shape = (4, 4, 3)


def random_splits(length: int = 6, below: int = 4) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    sizes = {"train": 90, "valid": 70, "test": 66}
    # Each token is the one before or the next, and 0 begins most rows: there is something to count at every order.
    steps = {split: generator.integers(0, 2, (n, length)) for split, n in sizes.items()}
    return {split: np.cumsum(step, axis=1) % below for split, step in steps.items()}


def answer(dataset: Any, kind: str, **asked: Any) -> dict[str, float]:
    return trivial_answer(cast(Dataset, dataset), Question(kind, **asked))


@pytest.mark.parametrize("rows", [None, 5])
def test_a_texts_table_counts_the_whole_training_split_and_is_judged_on_what_counts(rows: int | None) -> None:
    splits = random_splits()
    found = answer(Text(splits), "ngram", order=2, rows=rows)
    test = splits["test"][:rows]
    model = NGram(splits["train"].reshape(-1), marked(splits["valid"], 4, 2), 4, 2)
    counts = np.tile(np.arange(6) > 0, len(test))
    assert found["loss"] == found["log_perplexity"] == model.nats(marked(test, 4, 2), counts)
    assert found["training_tokens"] == 540
    assert (found["discount_1"], found["discount_2"]) == tuple(model.discounts)


def test_where_rows_are_no_windows_of_a_text_they_are_counted_one_by_one() -> None:
    splits = random_splits()
    found = answer(CountedRows(splits), "ngram", order=2)
    model = NGram(marked(splits["train"], 4, 2), marked(splits["valid"], 4, 2), 4, 2)
    assert found["loss"] == model.nats(marked(splits["test"], 4, 2), np.tile(np.arange(6) > 0, 66))
    assert found["training_tokens"] == 540


def test_of_a_training_split_without_end_a_stated_number_of_tokens_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efftx.evaluation.trivial.DRAWN", 1200)
    assert DRAWN > 1200
    assert 1200 <= answer(Rows(random_splits()), "ngram", order=1)["training_tokens"] <= 1200 + 6


@pytest.mark.parametrize("kind", [Text, CountedRows])
def test_of_a_long_split_the_first_tokens_are_counted(kind: type[Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    splits = random_splits()
    # Rows are taken whole: as many as hold the tokens, and one more.
    monkeypatch.setattr("efftx.evaluation.trivial.MOST_TRAINING", 120)
    monkeypatch.setattr("efftx.evaluation.trivial.MOST_VALIDATION", 60)
    found = answer(kind(splits), "ngram", order=2)
    monkeypatch.undo()
    n_train, n_valid = 20 if kind is Text else 21, 11

    def of(train: np.ndarray, valid: np.ndarray) -> dict[str, float]:
        return answer(kind(splits | {"train": train, "valid": valid}), "ngram", order=2)

    train, valid = splits["train"], splits["valid"]
    assert found == of(train[:n_train], valid[:n_valid])
    assert found["training_tokens"] == 6 * n_train
    assert found != of(train[-n_train:], valid[:n_valid])
    assert found != of(train[:n_train], valid[-n_valid:])


def test_pictures_alone_are_compressed_as_pictures() -> None:
    rows = Rows(random_splits(48, 256), 256, "bits/dim")
    with pytest.raises(UserError, match="Its rows are no pictures"):
        answer(rows, "compressed", codec="png")


def test_bits_of_bytes_are_compressed_in_the_unit_of_the_models() -> None:
    splits = random_splits(48, 256)
    data = splits["test"][:, 1:].astype(np.uint8).tobytes()
    rows = Rows(splits, 256, "bits/dim")
    assert answer(rows, "compressed")["bits_per_dim"] == pytest.approx(xz_bits(data))
    assert answer(rows, "compressed")["loss"] == pytest.approx(xz_bits(data) * math.log(2))
    pictures = splits["test"].astype(np.uint8).reshape(-1, 4, 4, 3)
    found = answer(PictureRows(splits, 256, "bits/dim"), "compressed", codec="png")
    assert found["bits_per_dim"] == pytest.approx(png_bits(pictures))


@dataclass
class Pairs:
    """Documents split -> (source, answer); label words are their own tokens."""

    documents: dict[str, list[tuple[str, str]]]
    labels: Sequence[str] = ()
    metrics: tuple[str, ...] = ("accuracy", "f1")
    variant: str = "pairs[1]"

    @property
    def label_targets(self) -> list[list[int]]:
        return [[i] for i in range(len(self.labels))]

    def decode(self, ids: Sequence[int]) -> str:
        return self.labels[ids[0]]

    def n_documents(self, split: str) -> int:
        return len(self.documents[split])

    def source(self, split: str, i: int) -> str:
        return self.documents[split][i][0]

    def references(self, split: str, i: int) -> list[str]:
        return [self.documents[split][i][1]]


LABELLED = Pairs(
    {
        "train": [("a good film", "yes"), ("good good", "yes"), ("a bad film", "no"), ("bad", "no")],
        "valid": [("good", "yes")],
        "test": [("good film", "yes"), ("bad film", "no"), ("bad good good", "no"), ("bad, bad", "no")],
    },
    labels=("no", "yes"),
)


def test_the_most_frequent_label_is_that_of_the_rows_that_are_judged() -> None:
    assert answer(LABELLED, "majority") == {"accuracy": 75.0}
    assert answer(LABELLED, "majority", rows=2) == {"accuracy": 50.0}


def test_naive_bayes_gives_the_data_sets_own_metrics() -> None:
    # "bad good good" is called yes: 3 of 4 right; yes is found once and called once too often.
    assert answer(LABELLED, "naive_bayes") == pytest.approx({"accuracy": 75.0, "f1": 100 * 2 / 3})


def test_words_in_common_are_those_of_the_two_sentences() -> None:
    def source(first: str, second: str) -> str:
        row = {"#1 String": first, "#2 String": second, "Quality": "1"}
        return as_text("mrpc", row).source

    assert fields_of("mrpc", source("A sentence2 here", "B: c")) == ("A sentence2 here", "B: c")
    assert fields_of("sst2", "sst2 sentence: all of it") == ("all of it",)
    alike, different = (source("a b c", "a b c"), "equivalent"), (source("a b c", "d e f"), "not_equivalent")
    pairs = Pairs(
        {"train": [alike, different], "valid": [alike], "test": [alike, different, (alike[0], "not_equivalent")]},
        labels=("not_equivalent", "equivalent"),
    )
    found = answer(pairs, "jaccard", fields=lambda source: fields_of("mrpc", source))
    assert found == pytest.approx({"accuracy": 100 * 2 / 3, "f1": 100 * 2 / 3, "threshold": 1.0})


def test_summaries_are_the_first_sentences_or_words_as_many_as_is_usual() -> None:
    pairs = Pairs(
        {
            "valid": [("", "One two. Three four."), ("", "One. Two three.")],
            "test": [("Here it is. There it goes. Gone.", "Here it is.")],
        },
        metrics=("rouge",),
    )
    assert answer(pairs, "lead") == rouge(["Here it is.\nThere it goes."], [["Here it is."]])
    assert answer(pairs, "copy") == rouge(["Here it is. There"], [["Here it is."]])


@pytest.mark.parametrize("kind", ["majority", "naive_bayes", "jaccard", "lead", "copy", "compressed"])
def test_a_data_set_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=rf"rows\[1\] has no trivial answer of kind {kind}"):
        answer(Rows(random_splits()), kind)


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no trivial answer 'ngrams'") as caught:
        answer(Rows(random_splits()), "ngrams")
    assert "ngram" in caught.value.hint
