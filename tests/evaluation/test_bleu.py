"""BLEU is sacrebleu's, over the whole corpus, with its signature."""

from __future__ import annotations

import pytest
import sacrebleu

from efftx.evaluation.bleu import bleu, signatures

REFERENCES = [["Das ist ein kleiner Satz."], ["Der Hund schläft unter dem Tisch, und die Katze nicht."]]


def test_the_reference_itself_scores_100_and_nothing_scores_0() -> None:
    assert bleu([its[0] for its in REFERENCES], REFERENCES)["bleu"] == pytest.approx(100)
    assert bleu(["", ""], REFERENCES) == {"bleu": 0.0, "bleu_uncased": 0.0}


def test_case_counts_in_the_one_and_not_in_the_other() -> None:
    found = bleu([its[0].lower() for its in REFERENCES], REFERENCES)
    assert found["bleu_uncased"] == pytest.approx(100)
    assert found["bleu"] < 70


def test_it_is_the_score_of_sacrebleu_under_the_papers_tokenisation() -> None:
    said = ["Das ist ein Satz.", "Der Hund schläft unter einem Tisch, die Katze aber nicht."]
    streams = [[its[0] for its in REFERENCES]]
    assert bleu(said, REFERENCES)["bleu"] == sacrebleu.corpus_bleu(said, streams, tokenize="intl").score
    assert (
        bleu(said, REFERENCES)["bleu_uncased"]
        == sacrebleu.corpus_bleu(said, streams, tokenize="intl", lowercase=True).score
    )


def test_several_references_count_where_a_text_has_them() -> None:
    several = [[*REFERENCES[0], "Dies ist ein kurzer Satz."], REFERENCES[1]]
    said = ["Dies ist ein kurzer Satz.", REFERENCES[1][0]]
    assert bleu(said, several)["bleu"] == pytest.approx(100)
    assert bleu(said, REFERENCES)["bleu"] < 100


@pytest.mark.parametrize(("said", "references"), [([], []), (["a"], [[]])])
def test_no_prediction_and_no_reference_are_refused(said: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="at least one prediction"):
        bleu(said, references)


def test_the_signatures_name_case_tokenisation_smoothing_and_version() -> None:
    assert signatures() == {
        "bleu_signature": f"nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|version:{sacrebleu.__version__}",
        "bleu_uncased_signature": f"nrefs:1|case:lc|eff:no|tok:intl|smooth:exp|version:{sacrebleu.__version__}",
    }


def test_sentences_with_a_blank_before_the_stop_are_scored_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    said = [f"der Hund schläft {i} ." for i in range(120)]
    with caplog.at_level("WARNING"):
        assert bleu(said, [[text] for text in said])["bleu"] == pytest.approx(100)
    assert not caplog.records
