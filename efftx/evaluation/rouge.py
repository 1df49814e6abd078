"""ROUGE (Lin, 2004) of summaries, through the `rouge-score` package, and the summary that costs nothing.

`rouge-score` drops every letter outside a-z, so that identical Russian texts score 0. Its own tokenizer is kept for
references in ASCII, English above all, whose scores are those of the literature; others are cut into Unicode words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import median

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TOKENIZER = "rouge-score; unicode-1 under 90% ASCII letters"
"""What a record calls the rule by which texts become words: `rouge_scorer.unicode_words` is the second part."""

_ASCII_SHARE = 0.9

# After a full stop, or at a line's end: tokenizers make a space of a newline, so that summaries seldom have any.
# Chinese and Japanese have no space after a full stop, and may close a quotation behind it.
_SENTENCE_END = re.compile(
    r"(?<=[.!?\u0964\u06d4])\s+|(?<=[\u3002\uff01\uff1f])(?![\u300d\u300f\uff09\u201d])\s*|\s*\n\s*"
)


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F-measures in %: ROUGE-1, -2, -L (the papers' R-LSent) and -Lsum (R-LSum, sentence by sentence).

    Words are stemmed, as in the evaluation of PEGASUS that the third paper's table 5 compares with. Of several
    references to a prediction the one with the best F-measure counts, for each metric by itself. Where fewer than 90 %
    of the letters of its references are ASCII, a prediction and its references are cut by
    `rouge_scorer.unicode_words`.
    """
    if not predictions or not all(references):
        raise ValueError("ROUGE needs at least one prediction, and a reference for each.")
    from efftx.evaluation.rouge_scorer import scorer  # nltk takes longer to load than all of efftx

    totals = dict.fromkeys(METRICS, 0.0)
    for prediction, its_references in zip(predictions, references, strict=True):
        its_scorer = scorer(METRICS, ascii_only=_mostly_ascii(its_references))
        scores = its_scorer.score_multi([_by_line(text) for text in its_references], _by_line(prediction))
        for metric in METRICS:
            totals[metric] += scores[metric].fmeasure
    return {metric: 100.0 * total / len(predictions) for metric, total in totals.items()}


def sentences(text: str) -> list[str]:
    """The sentences of a text: cut after `.`, `!` or `?` before white space, and at every newline."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def lead(source: str, n_sentences: int) -> str:
    """The first sentences of a source, one a line: the baseline that a summary has to beat."""
    return "\n".join(sentences(source)[:n_sentences])


def usual_sentences(references: Iterable[str]) -> int:
    """How many sentences a reference has in the median, at least one."""
    return max(1, round(median(len(sentences(reference)) for reference in references)))


def _by_line(text: str) -> str:
    return "\n".join(sentences(text))


def _mostly_ascii(texts: Sequence[str]) -> bool:
    """Whether at least 90 % of the letters are ASCII; also where there are none."""
    letters = [c for text in texts for c in text if c.isalnum() and not (c.isascii() and c.isdigit())]
    return sum(map(str.isascii, letters)) >= _ASCII_SHARE * len(letters)
