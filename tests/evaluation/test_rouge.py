"""ROUGE against overlaps counted by hand; F-measures in %."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from efftx.evaluation.rouge import METRICS, lead, rouge, sentences
from efftx.evaluation.rouge_scorer import unicode_words


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


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Модель обучена за 12 дней.", "Погода была плохой 12 раз."),
        ("模型在12天内训练完成。", "その本は12ページある。"),
        ("このモデルは速い。", "猫が庭で寝ていた。"),
        ("모델은 12일 만에 학습되었다.", "날씨가 12번 나빴다."),
        ("मॉडल तेज़ है।", "बिल्ली सो रही थी।"),
        ("แบบจำลองเร็ว", "ฝนตก"),
        ("النموذج سريع", "القطة نائمة"),
        ("٣", "٤"),
    ],
)
def test_a_text_in_any_script_is_like_itself_and_unlike_another(text: str, other: str) -> None:
    assert one(text, text)["rouge1"] == pytest.approx(100.0)
    assert one(text, text)["rougeL"] == pytest.approx(100.0)
    assert one(text, other)["rouge1"] < 50


def test_unicode_words_by_hand() -> None:
    # 2 of the 4 Russian words: F = 2 * 2 / (4 + 4). Of 5 characters each the Japanese texts share 3.
    assert one("модель обучена за день", "Модель, забыта за Ночь!")["rouge1"] == pytest.approx(50.0)
    assert one("猫が好きだ", "犬が好きか")["rouge1"] == pytest.approx(60.0)


def test_a_mark_belongs_to_its_letter_and_a_script_without_blanks_is_cut_by_character() -> None:
    assert unicode_words("Ёлка, ёлка-2 snake_case") == ["ёлка", "ёлка", "2", "snake", "case"]
    assert unicode_words("東京tower は２つ") == ["東", "京", "tower", "は", "2", "つ"]
    assert unicode_words("กำ हिन्दी") == ["ก\u0e4d", "\u0e32", "हिन्दी"]
    assert unicode_words("e\u0301te\u0301") == ["été"]


@given(st.text(st.characters(codec="ascii")))
def test_words_of_ascii_are_those_of_rouge_score(text: str) -> None:
    stem = PorterStemmer().stem
    assert unicode_words(text, stem) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@given(st.lists(st.sampled_from(["networks", "naïve", "trained.", "it’s", "12", "β-VAE", "a", "Model\n"]), min_size=1))
def test_english_scores_are_those_of_rouge_score_to_the_digit(words: list[str]) -> None:
    prediction, reference = "The network was trained quickly on much data, and it works " * 2, " ".join(words)
    reference = f"The networks train on data with all of this English text around: {reference} and more of it behind."
    scorer = RougeScorer(list(METRICS), use_stemmer=True)
    letters = [c for c in reference if c.isalpha()]
    assume(sum(map(str.isascii, letters)) >= 0.9 * len(letters))
    by_line = ["\n".join(sentences(text)) for text in (reference, prediction)]
    oracle = {name: 100 * score.fmeasure for name, score in scorer.score(*by_line).items()}
    assert one(prediction, reference) == oracle


def test_sentences_of_chinese_and_japanese_end_without_a_blank() -> None:
    assert sentences("今日は晴れ。「散歩だ！」と言う。") == ["今日は晴れ。", "「散歩だ！」と言う。"]
    assert sentences("यह है। वह था।") == ["यह है।", "वह था।"]


def test_importing_it_loads_no_scorer() -> None:
    code = "import sys, efftx.evaluation.rouge; sys.exit('nltk' in sys.modules or 'rouge_score' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
