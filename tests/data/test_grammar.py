"""Sentences of the grammar: correct German by hand, the same for everyone, none of the evaluation in training."""

from __future__ import annotations

import pytest
import torch

from efftx.config.compose import compose
from efftx.data.dataset import open_dataset
from efftx.data.grammar import (
    NOUNS,
    VERBS,
    Grammar,
    GrammarConfig,
    Words,
    decode,
    encode,
    noun_phrase,
    open_grammar,
    sentence,
)
from efftx.errors import UserError
from efftx.evaluation.bleu import bleu
from efftx.evaluation.trivial import Question, trivial_answer
from efftx.training.loop import train

DOG, CAT, BOOK = (next(noun for noun in NOUNS if noun.en == word) for word in ("dog", "cat", "book"))
THE, A, SEVERAL, THREE = range(4)
RED = 1 + 2 * 4
"""Drawn for an adjective: the fifth."""


@pytest.fixture
def data() -> Grammar:
    return open_grammar(GrammarConfig("grammar"))


@pytest.mark.parametrize(
    ("noun", "case", "form", "german"),
    [
        (DOG, "nom", THE, "der rote Hund"),
        (DOG, "acc", THE, "den roten Hund"),
        (DOG, "dat", THE, "dem roten Hund"),
        (CAT, "acc", THE, "die rote Katze"),
        (CAT, "dat", THE, "der roten Katze"),
        (BOOK, "acc", THE, "das rote Buch"),
        (DOG, "nom", A, "ein roter Hund"),
        (DOG, "acc", A, "einen roten Hund"),
        (CAT, "nom", A, "eine rote Katze"),
        (BOOK, "nom", A, "ein rotes Buch"),
        (BOOK, "dat", A, "einem roten Buch"),
        (DOG, "acc", SEVERAL, "die roten Hunde"),
        (DOG, "dat", SEVERAL, "den roten Hunden"),
        (CAT, "dat", SEVERAL, "den roten Katzen"),
        (BOOK, "acc", THREE, "drei rote Bücher"),
        (BOOK, "dat", THREE, "drei roten Büchern"),
    ],
)
def test_articles_endings_and_plurals_are_those_of_german(noun, case: str, form: int, german: str) -> None:
    assert " ".join(noun_phrase(noun, case, (form, 1, RED)).de) == german


def test_a_stands_before_consonants_and_an_before_vowels() -> None:
    old = 1 + 2 * 2
    assert noun_phrase(DOG, "nom", (A, 0, 0)).en == ["a", "dog"]
    assert noun_phrase(DOG, "nom", (A, 0, old)).en == ["an", "old", "dog"]


def drawn(form: int, *, plural: bool = False, negated: bool = False, where: bool = False) -> list[int]:
    """Dog, see (the object follows from them), all with their articles."""
    article = SEVERAL if plural else THE
    return [form, 0, 0, 0, 0 if where else 1, 4, article, 0, 0, THE, 0, 0, 0, 0, 0, 0 if negated else 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("words", "english", "german"),
    [
        (drawn(0), "the dog sees the horse .", "der Hund sieht das Pferd ."),
        (drawn(0, plural=True), "the dogs see the horse .", "die Hunde sehen das Pferd ."),
        (drawn(0, negated=True), "the dog does not see the horse .", "der Hund sieht das Pferd nicht ."),
        (drawn(1), "today the dog sees the horse .", "heute sieht der Hund das Pferd ."),
        (drawn(2), "the dog has seen the horse .", "der Hund hat das Pferd gesehen ."),
        (
            drawn(2, negated=True, where=True),
            "the dog has not seen the horse in the garden .",
            "der Hund hat das Pferd nicht in dem Garten gesehen .",
        ),
        (drawn(3, plural=True), "the dogs will see the horse .", "die Hunde werden das Pferd sehen ."),
        (drawn(4), "we know that the dog has seen the horse .", "wir wissen , dass der Hund das Pferd gesehen hat ."),
        (drawn(5), "does the dog see the horse ?", "sieht der Hund das Pferd ?"),
        (drawn(5, plural=True, negated=True), "do the dogs not see the horse ?", "sehen die Hunde das Pferd nicht ?"),
    ],
)
def test_every_kind_of_sentence_is_translated_as_german_has_it(words: list[int], english: str, german: str) -> None:
    assert [" ".join(side) for side in sentence(words, held_out=False)] == [english, german]


def test_no_subject_verb_and_object_of_the_evaluation_stand_together_in_training(data: Grammar) -> None:
    trained = set()
    for row in data.batch("train", 0, 0, 5000).inputs_BE.tolist():  # type: ignore[union-attr]
        trained.add(data.decode(row))
    evaluated = {data.source(split, i) for split in ("valid", "test") for i in range(500)}
    assert len(trained) > 4900
    assert not trained & evaluated
    for subject in range(len(NOUNS)):
        for verb in range(len(VERBS)):
            made = {
                held: {
                    " ".join(sentence([0, subject, verb, third, 1, fourth, *[0] * 9, 1, *[0] * 4], held_out=held)[0])
                    for third in range(3)
                    for fourth in range(9)
                }
                for held in (False, True)
            }
            assert not made[False] & made[True]
            assert len(made[False] | made[True]) == len(NOUNS)


def test_batches_are_a_function_of_seed_and_step_and_evaluation_has_an_end(data: Grammar) -> None:
    first, again, other = data.batch("train", 1, 2, 8), data.batch("train", 1, 2, 8), data.batch("train", 2, 2, 8)
    assert torch.equal(first.tokens_BL, again.tokens_BL)
    assert not torch.equal(first.tokens_BL, other.tokens_BL)
    assert torch.equal(data.batch("test", 1, 0, 8).tokens_BL, data.batch("test", 2, 0, 8).tokens_BL)
    assert data.n_batches("test", 64) == 8
    assert len(data.batch("test", 0, 7, 64).tokens_BL) == 500 - 7 * 64
    with pytest.raises(IndexError):
        data.batch("test", 0, 8, 64)


def test_words_become_tokens_and_come_back(data: Grammar) -> None:
    assert decode(encode(["der", "rote", "Hund", "sieht", "das", "Haus", "."])) == "der rote Hund sieht das Haus ."
    assert Words().decode([*Words().encode("the dog"), 1, 5]) == "the dog"
    with pytest.raises(UserError, match="'elephant'"):
        Words().encode("the elephant")
    batch = data.batch("test", 0, 0, 1)
    assert batch.inputs_BE is not None
    assert data.decode(batch.inputs_BE[0].tolist()) == data.source("test", 0)
    assert data.decode(batch.tokens_BL[0].tolist()) == data.references("test", 0)[0]


def test_a_row_too_short_for_a_sentence_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.length=8"):
        open_dataset(compose(["model=scaling", "data=grammar", "size=smoke", "data.length=8"]).data, "seq2seq")


def test_a_source_as_it_stands_is_the_answer_that_a_model_must_beat(data: Grammar) -> None:
    found = trivial_answer(data, Question("copy"))
    assert found == bleu([data.source("test", i) for i in range(500)], [data.references("test", i) for i in range(500)])
    assert 0 < found["bleu"] < 10
    with pytest.raises(ValueError, match="no end"):
        data.n_documents("train")


def test_a_training_is_scored_by_bleu() -> None:
    result = train(compose(["model=scaling", "data=grammar", "size=smoke"]), silent=True)
    assert 0 <= result.metrics["bleu"] < 50
    assert result.data["variant"] == "grammar[en-de]"
