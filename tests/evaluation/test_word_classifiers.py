from __future__ import annotations

import math

import pytest

from efftx.evaluation.word_classifiers import NaiveBayes, fit_jaccard, fit_naive_bayes, jaccard, words

TEXTS = [words(text) for text in ("a good film", "good good", "a bad film")]
LABELS = ["positive", "positive", "negative"]


def test_words_are_runs_of_letters_and_single_signs_in_lower_case() -> None:
    assert words("It's GOOD, über-good!") == ["it", "'", "s", "good", ",", "über", "-", "good", "!"]


def test_naive_bayes_by_hand() -> None:
    # Positive: a 1, bad 0, film 1, good 3, of 5 words; negative: a 1, bad 1, film 1, good 0.
    model = NaiveBayes(TEXTS, LABELS, 1.0)
    negative, positive = model.score(words("good film unseen"))
    assert negative == pytest.approx(math.log(1 / 3 * (1 / 7) * (2 / 7)))
    assert positive == pytest.approx(math.log(2 / 3 * (4 / 9) * (2 / 9)))
    assert model.predict([words("good film"), words("bad"), []]) == ["positive", "negative", "positive"]


def test_smoothing_is_the_one_that_is_right_most_often_in_validation() -> None:
    texts = [["x"] * 40 + ["y"], ["y"], ["y"], ["y"]]
    labels = ["one", "two", "two", "two"]
    best = fit_naive_bayes(texts, labels, [["x", "x", "y"]], ["two"])
    assert best.predict([["x", "x", "y"]]) == ["two"]
    assert NaiveBayes(texts, labels, 0.05).predict([["x", "x", "y"]]) == ["one"]


def test_jaccard_is_the_share_of_words_in_common() -> None:
    assert jaccard(["a", "b", "b"], ["b", "c"]) == pytest.approx(1 / 3)
    assert (jaccard([], []), jaccard(["a"], [])) == (1.0, 0.0)


def test_a_threshold_tells_pairs_apart_in_either_direction() -> None:
    near, far = (["a", "b"], ["a", "b"]), (["a", "b"], ["c", "d"])
    middle = (["a", "b"], ["a", "c"])
    rule = fit_jaccard([near, middle, far], ["same", "same", "other"])
    assert rule.threshold == pytest.approx(1 / 3)
    assert rule.predict([near, middle, far]) == ["same", "same", "other"]
    turned = fit_jaccard([near, middle, far], ["no", "yes", "yes"])
    assert turned.predict([near, middle, far]) == ["no", "yes", "yes"]
