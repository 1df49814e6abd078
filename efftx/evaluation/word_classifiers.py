"""Classifiers that know words and no order: naive Bayes, and a threshold on what two sentences share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Words = Sequence[str]

SMOOTHING = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""What naive Bayes adds to every count is chosen from these."""

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Runs of letters and digits, and single other signs, in lower case."""
    return _WORD.findall(text.lower())


class NaiveBayes:
    """Multinomial naive Bayes: a label's log-prior and the log-probabilities of a text's words, summed.

    P(word | label) = (count + a) / (words of the label + a V) over the V words of training; a word that was never seen
    says nothing. `smoothing` is a.
    """

    def __init__(self, texts: Sequence[Words], labels: Sequence[str], smoothing: float) -> None:
        self.labels = sorted(set(labels))
        vocabulary = sorted({word for text in texts for word in text})
        self._place = {word: i for i, word in enumerate(vocabulary)}
        counts = np.zeros((len(self.labels), len(vocabulary)))
        for text, label in zip(texts, labels, strict=True):
            row = self.labels.index(label)
            for word in text:
                counts[row, self._place[word]] += 1
        self._prior = np.log([labels.count(label) / len(labels) for label in self.labels])
        smoothed = counts + smoothing
        self._log = np.log(smoothed) - np.log(smoothed.sum(axis=1, keepdims=True))

    def score(self, text: Words) -> np.ndarray:
        """The log of prior times likelihood, a number a label in the order of `labels`."""
        known = [self._place[word] for word in text if word in self._place]
        return np.asarray(self._prior + self._log[:, known].sum(axis=1))

    def predict(self, texts: Sequence[Words]) -> list[str]:
        """The likeliest label of each text, the first of equals."""
        return [self.labels[int(np.argmax(self.score(text)))] for text in texts]


def fit_naive_bayes(
    texts: Sequence[Words], labels: Sequence[str], valid_texts: Sequence[Words], valid_labels: Sequence[str]
) -> NaiveBayes:
    """Naive Bayes with the smoothing that is right most often in validation, the smallest of equals."""
    models = [NaiveBayes(texts, labels, smoothing) for smoothing in SMOOTHING]
    return max(models, key=lambda model: _hits(model.predict(valid_texts), valid_labels))


@dataclass(frozen=True)
class JaccardThreshold:
    """Pairs that share at least `threshold` of their words get the label `alike`, all others `different`."""

    threshold: float
    alike: str
    different: str

    def predict(self, pairs: Sequence[tuple[Words, Words]]) -> list[str]:
        """The label of each pair."""
        return [self.alike if jaccard(*pair) >= self.threshold else self.different for pair in pairs]


def jaccard(first: Words, second: Words) -> float:
    """Words that both have over words that either has; 1 where neither has any."""
    a, b = set(first), set(second)
    return len(a & b) / len(a | b) if a | b else 1.0


def fit_jaccard(pairs: Sequence[tuple[Words, Words]], labels: Sequence[str]) -> JaccardThreshold:
    """The threshold and the labels on its two sides that are right most often in training, the lowest of equals.

    Of more than two labels the two most frequent are told apart.
    """
    shared = np.array([jaccard(*pair) for pair in pairs])
    frequent = [label for label, _ in Counter(sorted(labels)).most_common(2)]
    candidates = [
        JaccardThreshold(float(threshold), alike, different)
        for threshold in np.unique(np.append(shared, 0.0))
        for alike in frequent
        for different in frequent
    ]
    actual = np.array(labels)

    def hits(rule: JaccardThreshold) -> int:
        return int(np.where(shared >= rule.threshold, actual == rule.alike, actual == rule.different).sum())

    return max(candidates, key=hits)


def _hits(predicted: Sequence[str], actual: Sequence[str]) -> int:
    return sum(p == a for p, a in zip(predicted, actual, strict=True))
