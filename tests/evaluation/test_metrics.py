"""Nats and hits in the papers' units, against numbers computed by hand."""

from __future__ import annotations

import math

import pytest

from efftx.evaluation.metrics import (
    accuracy,
    bits_per_dim,
    heading,
    in_unit,
)


def test_one_fair_coin_a_byte_is_one_bit() -> None:
    assert bits_per_dim(math.log(2)) == 1.0


def test_a_uniform_guess_over_bytes_is_eight_bits() -> None:
    assert bits_per_dim(math.log(256)) == pytest.approx(8.0, rel=1e-15)
    assert bits_per_dim(0.728) == pytest.approx(1.05028199, abs=1e-8)


def test_accuracy_is_in_per_cent() -> None:
    assert accuracy(3, 4) == 75.0
    assert accuracy(0, 5) == 0.0


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("bits/dim", {"bits_per_dim": 2.0}),
        ("nats/token", {"log_perplexity": 2 * math.log(2)}),
    ],
)
def test_each_unit_has_its_name(unit: str, expected: dict[str, float]) -> None:
    assert in_unit(2 * math.log(2), unit) == expected


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="'bits/word'"):
        in_unit(1.0, "bits/word")


@pytest.mark.parametrize(
    ("metric", "unit", "told"),
    [
        ("bits_per_dim", None, "bits/dim"),
        ("bits_per_dim", "bits/dim", "bits/dim"),
        ("log_perplexity", None, "log-perplexity (nats/token)"),
        ("log_perplexity", "nats/token", "log-perplexity (nats/token)"),
        ("log_perplexity", "", "log-perplexity"),
        ("unit_agreement", None, "agreement (%)"),
        ("unit_agreement", "%", "agreement (%)"),
        ("dead_units", None, "dead units (%)"),
        ("seconds", "seconds", "seconds"),
        ("seconds", "s", "seconds (s)"),
        ("unheard_of", None, "unheard of"),
        ("bits_per_dim", "bits/byte", "bits/byte"),
    ],
)
def test_a_metric_has_one_name_and_one_unit(metric: str, unit: str | None, told: str) -> None:
    assert heading(metric, unit) == told
