"""GLUE's metrics against confusion matrices worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.evaluation.glue import f1, label_accuracy, matthews


def labels(hits: int, false_alarms: int, misses: int, rejections: int) -> tuple[list[int], list[int]]:
    predicted = [1] * hits + [1] * false_alarms + [0] * misses + [0] * rejections
    actual = [1] * hits + [0] * false_alarms + [1] * misses + [0] * rejections
    return predicted, actual


def test_a_confusion_matrix_by_hand() -> None:
    # Precision 6/8, recall 6/10: F1 = 2 * 0.75 * 0.6 / 1.35. Matthews (6*8 - 2*4) / sqrt(8 * 10 * 10 * 12).
    predicted, actual = labels(6, 2, 4, 8)
    assert label_accuracy(predicted, actual) == pytest.approx(70.0)
    assert f1(predicted, actual) == pytest.approx(100 * 2 / 3)
    assert matthews(predicted, actual) == pytest.approx(40.8248, abs=1e-4)


def test_all_right_is_100_and_all_wrong_is_minus_100_or_0() -> None:
    right, wrong = labels(3, 0, 0, 2), labels(0, 2, 3, 0)
    assert [metric(*right) for metric in (label_accuracy, f1, matthews)] == [100.0, 100.0, 100.0]
    assert [metric(*wrong) for metric in (label_accuracy, f1, matthews)] == [0.0, 0.0, -100.0]


def test_calling_everything_the_majority_has_accuracy_but_no_correlation() -> None:
    predicted, actual = labels(7, 3, 0, 0)
    assert label_accuracy(predicted, actual) == pytest.approx(70.0)
    assert f1(predicted, actual) == pytest.approx(100 * 14 / 17)
    assert matthews(predicted, actual) == 0.0
    assert f1(*labels(0, 0, 3, 7)) == 0.0


def test_accuracy_takes_three_classes_and_the_others_refuse_them() -> None:
    assert label_accuracy([0, 1, 2], [0, 2, 2]) == pytest.approx(200 / 3)
    for metric in (f1, matthews):
        with pytest.raises(ValueError, match="two classes"):
            metric([0, 1, 2], [0, 1, 1])


def test_lists_of_different_length_are_refused() -> None:
    for metric in (label_accuracy, f1, matthews):
        with pytest.raises(ValueError):
            metric([1, 0], [1])


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2))
def test_matthews_is_pearsons_correlation(pairs: list[tuple[int, int]]) -> None:
    predicted, actual = [p for p, _ in pairs], [a for _, a in pairs]
    n = len(pairs)
    covariance = sum(p * a for p, a in pairs) / n - sum(predicted) * sum(actual) / n**2
    deviations = [(sum(x) / n * (1 - sum(x) / n)) ** 0.5 for x in (predicted, actual)]
    expected = 100 * covariance / (deviations[0] * deviations[1]) if all(deviations) else 0.0
    assert matthews(predicted, actual) == pytest.approx(expected, abs=1e-6)
