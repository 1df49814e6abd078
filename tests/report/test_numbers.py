from __future__ import annotations

import pytest

from efftx.report import numbers
from efftx.reproduce.experiment import Cell

PERCENT = Cell("accuracy", "%", "higher", "{:.1f}")


def test_a_mean_and_its_spread_are_written_in_the_cells_format() -> None:
    assert numbers.mean_and_spread(92.46, 0.25, PERCENT) == "92.5 ± 0.2"


def test_one_seed_has_no_spread() -> None:
    assert numbers.mean_and_spread(92.46, None, PERCENT) == "92.5"


def test_an_unverified_value_carries_a_dagger_and_a_verified_one_does_not() -> None:
    assert numbers.published(27.3, "verified", PERCENT) == "27.3"
    assert numbers.published(27.3, "unverified", PERCENT) == "27.3 †"


@pytest.mark.parametrize(
    ("value", "form", "written"),
    [
        (262144.0, "{:.3g}", "2.62×10⁵"),
        (0.0000125, "{:.2e}", "1.25×10⁻⁵"),
        (1.5, "{:.3g}", "1.5"),
        (1234.5, "{:,.0f}", "1,234"),
        (0.0, "{:.3g}", "0"),
    ],
)
def test_a_power_of_ten_is_raised(value: float, form: str, written: str) -> None:
    assert numbers.number(value, Cell("m", format=form)) == written


def test_noise_is_two_standard_errors_of_the_paired_difference() -> None:
    # differences 1, 2, 3: sample deviation 1, two standard errors 2 / sqrt(3)
    assert numbers.paired_noise([1.0, 2.0, 3.0]) == pytest.approx(2 / 3**0.5)
    assert numbers.paired_noise([1.0, 2.0]) is None


def test_better_means_beyond_noise_in_the_direction_of_the_cell() -> None:
    ours, theirs = {0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 1.0}  # mean 2 against noise 2 / sqrt(3) = 1.15
    assert numbers.clearly_better(ours, theirs, "higher")
    assert not numbers.clearly_better(ours, theirs, "lower")
    assert not numbers.clearly_better(ours, theirs, "none")
    assert numbers.clearly_better(theirs, ours, "lower")


def test_a_gap_as_large_as_the_noise_is_not_clear() -> None:
    ours, theirs = {0: 0.0, 1: 1.0, 2: 2.0}, {0: 0.0, 1: 0.0, 2: 0.0}  # mean 1 against noise 1.15
    assert not numbers.clearly_better(ours, theirs, "higher")


def test_seeds_are_paired_by_their_number() -> None:
    assert not numbers.clearly_better({0: 9.0, 1: 9.0, 2: 9.0}, {3: 1.0, 4: 1.0, 5: 1.0}, "higher")


@pytest.mark.parametrize(("seconds", "written"), [(4.25, "4.2 s"), (750.0, "12.5 min"), (11160.0, "3.1 h")])
def test_a_duration_is_in_the_largest_unit_above_one(seconds: float, written: str) -> None:
    assert numbers.duration(seconds) == written


def test_three_digits_never_need_an_exponent() -> None:
    assert [numbers.three_digits(x) for x in (1963.0, 0.012345, 32768.0)] == ["1,960", "0.0123", "32,800"]


def test_a_unit_is_not_said_twice() -> None:
    assert numbers.with_unit("bits_per_dim", "bits/dim") == "bits per dim (bits/dim)"
    assert numbers.with_unit("seconds", "seconds") == "seconds"
