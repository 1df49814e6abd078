"""ROUGE against overlaps counted by hand; F-measures in %."""

from __future__ import annotations

import subprocess
import sys

import pytest

from efftx.evaluation.rouge import METRICS, lead, rouge, sentences


def one(prediction: str, *references: str) -> dict[str, float]:
    return rouge([prediction], [references])


def test_unigrams_and_bigrams_by_hand() -> None:
    # Words: the cat sat (3) against the cat was here (4): 2 in common, F = 2 * 2 / (3 + 4).
    # Pairs: the-cat cat-sat (2) against the-cat cat-was was-here (3): 1 in common, F = 2 * 1 / (2 + 3).
    found = one("The cat sat.", "the cat was here")
    assert found["rouge1"] == pytest.approx(100 * 4 / 7)
    assert found["rouge2"] == pytest.approx(100 * 2 / 5)


def test_a_word_counts_as_often_as_both_have_it() -> None:
    # The other repetitions of `the` find no partner: 1 in common, F = 2 / (4 + 2).
    assert one("the the the the", "the dog")["rouge1"] == pytest.approx(100 * 2 / 6)


def test_a_common_subsequence_may_have_gaps_but_not_another_order() -> None:
    # Subsequence a c d of a b c d and a c x d: F = 2 * 3 / (4 + 4). Turned round only one word is left.
    assert one("a b c d", "a c x d")["rougeL"] == pytest.approx(75.0)
    assert one("d c b a", "a b c d")["rougeL"] == pytest.approx(25.0)


def test_lsum_joins_what_each_sentence_of_the_prediction_finds() -> None:
    # Lin's example: w1 w2 w6 w7 w8 finds w1 w2, w1 w3 w8 w9 w5 finds w1 w3 w5; together 4 of the reference's 5 words,
    # the prediction has 10: F = 2 * 4 / (5 + 10). As one sentence the longest common subsequence is w1 w2 w3 w5.
    found = one("w1 w2 w6 w7 w8.\nw1 w3 w8 w9 w5.", "w1 w2 w3 w4 w5.")
    assert found["rougeLsum"] == pytest.approx(100 * 8 / 15)
    # In another order of the sentences only Lsum finds both.
    turned = one("b1 b2 b3. a1 a2 a3.", "a1 a2 a3. b1 b2 b3.")
    assert turned["rougeLsum"] == pytest.approx(100.0)
    assert turned["rougeL"] == pytest.approx(50.0)


def test_sentences_on_one_line_are_told_apart() -> None:
    assert one("b1 b2. a1 a2.", "a1 a2. b1 b2.") == one("b1 b2.\na1 a2.", "a1 a2.\nb1 b2.")


def test_words_are_stemmed_and_case_and_punctuation_do_not_count() -> None:
    assert one("Networks, trained!", "the network trains")["rouge1"] == pytest.approx(100 * 4 / 5)


def test_of_several_references_the_best_one_counts_for_each_metric_by_itself() -> None:
    # The first has more of the words (F = 2*3/(3+3)) and none of the pairs, the second a pair (F = 2*1/(2+2)).
    found = one("x y z", "z y x", "x y q")
    assert found["rouge1"] == pytest.approx(100.0)
    assert found["rouge2"] == pytest.approx(50.0)


def test_the_score_of_a_corpus_is_the_mean_over_its_documents() -> None:
    assert rouge(["a", "b"], [["a"], ["c"]])["rouge1"] == pytest.approx(50.0)


def test_an_empty_prediction_scores_nothing() -> None:
    assert one("", "a b") == dict.fromkeys(METRICS, 0.0)


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], [[]]), (["a"], []), (["a", "b"], [["a"]])])
def test_missing_texts_are_refused(predictions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError):
        rouge(predictions, references)


def test_sentences_end_at_full_stops_and_newlines() -> None:
    assert sentences(" One. Two! Is it 3.5?\nfour\n\n five . six ") == [
        "One.",
        "Two!",
        "Is it 3.5?",
        "four",
        "five .",
        "six",
    ]
    assert sentences(" \n ") == []


def test_the_lead_is_the_first_sentences() -> None:
    assert lead("One. Two. Three.", 2) == "One.\nTwo."
    assert lead("One.", 3) == "One."


def test_importing_it_loads_no_scorer() -> None:
    code = "import sys, efftx.evaluation.rouge; sys.exit('nltk' in sys.modules or 'rouge_score' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
