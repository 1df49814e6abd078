"""The scorer of the `rouge-score` package, with its own words or those of any script; loading it loads nltk."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

# Scripts without blanks between words: Thai, Lao, Myanmar, Khmer, kana, Han with its extensions.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)


@cache
def scorer(metrics: Sequence[str], *, ascii_only: bool) -> Any:
    """A `RougeScorer` of these metrics, with stems, of the package's own words or of Unicode's."""
    tokenizer = DefaultTokenizer(use_stemmer=True) if ascii_only else _UnicodeTokenizer()
    return RougeScorer(list(metrics), tokenizer=tokenizer)


class _UnicodeTokenizer(Tokenizer):
    def __init__(self) -> None:
        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text, self._stem)


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
