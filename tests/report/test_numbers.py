from __future__ import annotations

from decimal import Decimal

import pytest

from efftx.report import numbers
from efftx.study.experiment import Cell
from efftx.study.published import Printed

PERCENT = Cell("accuracy", "%", "higher", "{:.1f}")


def test_a_papers_digit_too_many_is_rounded_as_people_do() -> None:
    assert numbers.published(92.6, "verified", PERCENT, 0.85) == "92.6 ± 0.9"
    assert numbers.published(0.25, "verified", PERCENT, 0.72) == "0.3 ± 0.7"
    assert numbers.published(-0.85, "verified", PERCENT) == "-0.9"


def printed(digits: str) -> Printed:
    return Printed(float(digits), Decimal(digits))


def test_a_printed_value_has_the_papers_digits_whatever_the_cells_format() -> None:
    assert numbers.published(printed("17.86"), "verified", PERCENT) == "17.86"
    assert numbers.published(printed("92.6"), "verified", PERCENT, printed("0.85")) == "92.6 ± 0.85"
    milliseconds = Cell("time", "ms", format="{:,.3f}")
    assert numbers.published(printed("581"), "verified", milliseconds) == "581"
    assert numbers.published(printed("3.690"), "verified", milliseconds, factor=1000.0) == "3,690"
    assert numbers.published(printed("0.160"), "verified", Cell("time", "s", format="{:.4f}")) == "0.160"
    assert numbers.published(printed("1.5e-05"), "verified", Cell("time", "s", format="{:.3g}")) == "0.000015"
    assert numbers.published(printed("2e20"), "verified", Cell("scores", format="{:.2e}")) == "2.00×10²⁰"


def test_a_spread_has_no_sign() -> None:
    assert numbers.mean_and_spread(-21.8, 10.6, Cell("error", "%", format="{:+.1f}")) == "-21.8 ± 10.6"


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


def test_best_means_beyond_a_one_sided_paired_t_test_in_the_direction_of_the_cell() -> None:
    ours, theirs = {0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 1.0}  # mean 2, t = 2 sqrt(3), p 0.037
    assert numbers.clearly_best(ours, [theirs], "higher")
    assert not numbers.clearly_best(ours, [theirs], "lower")
    assert not numbers.clearly_best(ours, [theirs], "none")
    assert numbers.clearly_best(theirs, [ours], "lower")
    assert not numbers.clearly_best(ours, [theirs, theirs], "higher"), "Holm asks for 0.025 of two"
    assert not numbers.clearly_best(ours, [], "higher")
    assert not numbers.clearly_best(ours, [theirs, {}], "higher"), "a rival that is not run yet"


def test_a_rounding_error_makes_nothing_best() -> None:
    ours, theirs = dict.fromkeys(range(3), 0.1 + 0.2), dict.fromkeys(range(3), 0.3)
    assert ours[0] > theirs[0]
    assert not numbers.clearly_best(ours, [theirs], "higher")


def test_two_standard_errors_of_three_seeds_are_not_enough() -> None:
    ours, theirs = {0: 0.9, 1: 2.1, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0}  # mean 2, t = 3.286: p 0.041
    assert numbers.clearly_best(ours, [theirs], "higher")
    ours = {0: 0.55, 1: 1.5, 2: 2.45}  # t = 2.735 is beyond two standard errors, p 0.056 is not below 5 %
    assert not numbers.clearly_best(ours, [theirs], "higher")


def test_seeds_are_paired_by_their_number() -> None:
    assert not numbers.clearly_best({0: 9.0, 1: 9.0, 2: 9.0}, [{3: 1.0, 4: 1.0, 5: 1.0}], "higher")


@pytest.mark.parametrize(
    ("half_width", "value", "written"),
    [
        (1.8, 15.04, "15.0"),
        (27.0, 20.6, "21"),
        (2200.0, 12345.6, "12,346"),
        (0.0098, 0.1152, "0.1152"),
        (2.6e-9, 9.33561e-6, "9.3356×10⁻⁶"),
        (0.0, 3.461, "3.46"),
        (0.0, 0.01000001, "0.01"),
        (0.0, 1.5e-7, "1.50×10⁻⁷"),
        (0.0, 0.0, "0"),
    ],
)
def test_a_difference_is_as_exact_as_its_interval(half_width: float, value: float, written: str) -> None:
    assert numbers.with_decimals(value, numbers.decimals(half_width)) == written


def test_three_digits_never_need_an_exponent() -> None:
    assert [numbers.three_digits(x) for x in (1963.0, 0.012345, 32768.0)] == ["1,960", "0.0123", "32,800"]
