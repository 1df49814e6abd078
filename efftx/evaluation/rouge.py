"""ROUGE (Lin, 2004) of summaries, through the `rouge-score` package, and the summary that costs nothing.

`rouge-score` drops every letter outside a-z, so that identical Russian texts score 0. Its own tokenizer is kept for
references in ASCII, English above all, whose scores are those of the literature; others are cut into Unicode words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from statistics import median
from typing import Any

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TOKENIZER = "rouge-score; unicode-1 under 90% ASCII letters"
"""What a record calls the rule by which texts become words: `unicode_words` is the second part."""

_ASCII_SHARE = 0.9

# After a full stop, or at a line's end: tokenizers make a space of a newline, so that summaries seldom have any.
# Chinese and Japanese have no space after a full stop, and may close a quotation behind it.
_SENTENCE_END = re.compile(
    r"(?<=[.!?\u0964\u06d4])\s+|(?<=[\u3002\uff01\uff1f])(?![\u300d\u300f\uff09\u201d])\s*|\s*\n\s*"
)

# Scripts without blanks between words: Thai, Lao, Myanmar, Khmer, kana, Han with its extensions.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F-measures in %: ROUGE-1, -2, -L (the papers' R-LSent) and -Lsum (R-LSum, sentence by sentence).

    Words are stemmed, as in the evaluation of PEGASUS that the third paper's table 5 compares with. Of several
    references to a prediction the one with the best F-measure counts, for each metric by itself. Where fewer than 90 %
    of the letters of its references are ASCII, a prediction and its references are cut by `unicode_words`.
    """
    if not predictions or not all(references):
        raise ValueError("ROUGE needs at least one prediction, and a reference for each.")
    totals = dict.fromkeys(METRICS, 0.0)
    for prediction, its_references in zip(predictions, references, strict=True):
        scorer = _scorer(_mostly_ascii(its_references))
        scores = scorer.score_multi([_by_line(text) for text in its_references], _by_line(prediction))
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


def unicode_words(text: str, stem: Callable[[str], str] = str) -> list[str]:
    """The words of a text in any script: runs of letters, marks and digits, in lower case, under NFKC.

    Of a script without blanks (Chinese, Japanese kana, Thai, Lao, Khmer, Burmese) every character is a word, with the
    marks that belong to it. Words of ASCII alone are those of `rouge-score`: of more than 3 letters `stem` is taken.
    """
    words: list[str] = []
    goes_on = False  # whether the next letter belongs to the last word
    for character in unicodedata.normalize("NFKC", text.lower()):
        kind = unicodedata.category(character)[0]
        stands_alone = bool(_WITHOUT_SPACES.match(character))
        if kind not in "LMN":
            goes_on = False
        elif words and (kind == "M" or (goes_on and not stands_alone)):
            words[-1] += character
        else:
            words.append(character)
            goes_on = not stands_alone
    return [stem(word) if len(word) > 3 and word.isascii() else word for word in words]


def _mostly_ascii(texts: Sequence[str]) -> bool:
    """Whether at least 90 % of the letters are ASCII; also where there are none."""
    letters = [c for text in texts for c in text if c.isalnum() and not (c.isascii() and c.isdigit())]
    return sum(map(str.isascii, letters)) >= _ASCII_SHARE * len(letters)


@cache
def _scorer(ascii_only: bool) -> Any:
    # Imported on use: nltk, which the package needs for its stemmer alone, takes longer to load than efftx.
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

    class UnicodeTokenizer(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return unicode_words(text, stem)

    stem = PorterStemmer().stem
    tokenizer = DefaultTokenizer(use_stemmer=True) if ascii_only else UnicodeTokenizer()
    return RougeScorer(list(METRICS), tokenizer=tokenizer)
