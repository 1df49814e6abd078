from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from efftx.evaluation.ngram import NGram, marked


def naive(
    train: list[int], context: list[int], token: int, vocab_size: int, discounts: Sequence[float | None]
) -> float:
    """The definition, term by term: counted anew for every question."""
    p = 1.0 / vocab_size
    for k, discount in enumerate(discounts, 1):
        if discount is None:
            continue
        h = tuple(context[len(context) - (k - 1) :])
        grams = Counter(tuple(train[i - k + 1 : i + 1]) for i in range(k - 1, len(train)) if train[i] != vocab_size)
        total = sum(n for gram, n in grams.items() if gram[:-1] == h)
        if len(h) == k - 1 and total:
            followers = sum(gram[:-1] == h for gram in grams)
            p = (max(grams[(*h, token)] - discount, 0.0) + discount * followers * p) / total
    return p


def test_a_unigram_by_hand() -> None:
    # 0 three times, 1 once, 2 never: with D = 1/2 the 2 * 1/2 that were taken away go to a third each.
    model = NGram(np.array([0, 0, 0, 1]), np.array([0, 1, 2]), 3, 1)
    model.discounts = [0.5]
    assert model.probabilities(np.array([0, 1, 2])) == pytest.approx(
        [2.5 / 4 + 1 / 12, 0.5 / 4 + 1 / 12, 1 / 12], abs=1e-15
    )


def test_a_bigram_by_hand() -> None:
    # 0 1 0 1 0 0: after 0 come 1, 1, 0; after 1 come 0, 0.
    model = NGram(np.array([0, 1, 0, 1, 0, 0]), np.array([0, 1]), 2, 2)
    model.discounts = [0.5, 0.5]
    p0 = 3.5 / 6 + 1 / 6 / 2
    expected = [p0, 1.5 / 3 + 1 / 3 * (1 - p0), 1.5 / 2 + 0.25 * p0]
    assert model.probabilities(np.array([0, 1, 0])) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_probability_is_the_definitions_and_they_sum_to_one(order: int) -> None:
    generator = np.random.default_rng(order)
    vocab_size = 5
    train, valid = generator.integers(0, 4, 60), generator.integers(0, vocab_size, 20)
    model = NGram(train, valid, vocab_size, order)
    for context in ([], [1], [3, 0], [4, 4], [2, 4]):
        context = context[-(order - 1) :] if order > 1 else []
        rows = marked([[*context, token] for token in range(vocab_size)], vocab_size, order)
        found = model.probabilities(rows).reshape(vocab_size, -1)[:, -1]
        assert found.sum() == pytest.approx(1.0, abs=1e-12)
        expected = [naive(train.tolist(), context, token, vocab_size, model.discounts) for token in range(vocab_size)]
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_loss_is_that_of_a_loop_over_rows(order: int) -> None:
    generator = np.random.default_rng(7)
    train = generator.integers(0, 6, 300)
    rows = generator.integers(0, 6, (7, 9))
    model = NGram(train, generator.integers(0, 6, 50), 6, order)
    losses = []
    for row in rows.tolist():
        for i, token in enumerate(row):
            context = row[max(0, i - order + 1) : i]
            losses.append(-math.log(naive(train.tolist(), context, token, 6, model.discounts)))
    flat = marked(rows, 6, order)
    assert model.nats(flat) == pytest.approx(np.mean(losses), abs=1e-12)
    counts = np.arange(63) % 3 == 0
    assert model.nats(flat, counts) == pytest.approx(np.mean(np.array(losses)[counts]), abs=1e-12)


def test_rows_teach_what_stands_at_their_beginning_and_nothing_across_their_borders() -> None:
    model = NGram(marked([[0, 1], [0, 1], [0, 1]], 3, 2), np.array([3, 0, 1]), 3, 2)
    model.discounts = [0.5, 0.1]
    first, second = model.probabilities(marked([[0, 1]], 3, 2))
    assert first > 0.95
    assert second > 0.95
    assert model.probabilities(np.array([1, 0]))[1] == pytest.approx(2.5 / 6 + 1 / 6 / 3)  # 1 has no follower


def test_the_discounts_are_the_best_of_validation() -> None:
    generator = np.random.default_rng(3)
    train, valid = generator.integers(0, 9, 200), generator.integers(0, 9, 200)
    model = NGram(train, valid, 9, 2)
    chosen = model.nats(valid)
    for discount in (0.05, 0.5, 0.95):
        model.discounts[1] = discount
        assert model.nats(valid) >= chosen - 1e-12


def test_an_order_that_does_not_help_on_validation_is_left_out() -> None:
    generator = np.random.default_rng(5)
    train, valid, test = (generator.integers(0, 200, n) for n in (1500, 400, 400))
    unigram, trigram = (NGram(train, valid, 200, order) for order in (1, 3))
    assert trigram.discounts[1:] == [None, None]
    assert trigram.nats(test) == unigram.nats(test)


def test_a_higher_order_knows_more_of_a_text_with_memory() -> None:
    text = np.tile([0, 1, 2, 0, 2, 1], 50)
    losses = [NGram(text[:200], text[200:250], 3, order).nats(text[250:]) for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]
