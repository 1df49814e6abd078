"""The metrics of GLUE (Wang et al., 2018): accuracy, F1 of the positive class, Matthews correlation, each in %."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from efftx.evaluation.metrics import accuracy

Labels = Sequence[int]


def label_accuracy(predicted: Labels, actual: Labels) -> float:
    """The share of right labels in %."""
    return accuracy(sum(p == a for p, a in zip(predicted, actual, strict=True)), len(actual))


def f1(predicted: Labels, actual: Labels) -> float:
    """The harmonic mean of precision and recall of label 1 in %; 0 where nothing is rightly called 1 (MRPC, QQP)."""
    hits, false_alarms, misses, _ = _confusion(predicted, actual)
    return 100.0 * 2 * hits / (2 * hits + false_alarms + misses) if hits else 0.0


def matthews(predicted: Labels, actual: Labels) -> float:
    """The correlation of predicted and actual labels 0 and 1 in %; 0 where either never varies (CoLA)."""
    hits, false_alarms, misses, rejections = _confusion(predicted, actual)
    square = (hits + false_alarms) * (hits + misses) * (rejections + false_alarms) * (rejections + misses)
    return 100.0 * (hits * rejections - false_alarms * misses) / sqrt(square) if square else 0.0


METRICS = {"accuracy": label_accuracy, "f1": f1, "matthews": matthews}


def _confusion(predicted: Labels, actual: Labels) -> tuple[int, int, int, int]:
    """Counts of (1, 1), (1, 0), (0, 1) and (0, 0) as (predicted, actual)."""
    pairs = list(zip(predicted, actual, strict=True))
    if not {label for pair in pairs for label in pair} <= {0, 1}:
        raise ValueError("F1 and Matthews correlation are of two classes, 0 and 1, but there are other labels.")
    return pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1)), pairs.count((0, 0))
