"""ROUGE (Lin, 2004) of summaries, through the `rouge-score` package, and the summary that costs nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# After a full stop, or at a line's end: tokenizers make a space of a newline, so that summaries seldom have any.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F-measures in %: ROUGE-1, -2, -L (the papers' R-LSent) and -Lsum (R-LSum, sentence by sentence).

    Words are stemmed, as in the evaluation of PEGASUS that the third paper's table 5 compares with. Of several
    references to a prediction the one with the best F-measure counts, for each metric by itself.
    """
    if not predictions or not all(references):
        raise ValueError("ROUGE needs at least one prediction, and a reference for each.")
    totals = dict.fromkeys(METRICS, 0.0)
    for prediction, its_references in zip(predictions, references, strict=True):
        scores = _scorer().score_multi([_by_line(text) for text in its_references], _by_line(prediction))
        for metric in METRICS:
            totals[metric] += scores[metric].fmeasure
    return {metric: 100.0 * total / len(predictions) for metric, total in totals.items()}


def sentences(text: str) -> list[str]:
    """The sentences of a text: cut after `.`, `!` or `?` before white space, and at every newline."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def lead(source: str, n_sentences: int) -> str:
    """The first sentences of a source, one a line: the baseline that a summary has to beat."""
    return "\n".join(sentences(source)[:n_sentences])


def _by_line(text: str) -> str:
    return "\n".join(sentences(text))


@cache
def _scorer() -> Any:
    # Imported on use: nltk, which the package needs for its stemmer alone, takes longer to load than efftx.
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    return RougeScorer(list(METRICS), tokenizer=DefaultTokenizer(use_stemmer=True))
