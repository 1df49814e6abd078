from __future__ import annotations

import pytest

from efftx.report.numbers import number
from efftx.report.units import scale, time_unit
from efftx.study.experiment import Cell


@pytest.mark.parametrize(
    ("unit", "smallest", "chosen", "factor"),
    [
        ("s", 2.0, "s", 1.0),
        ("s", 0.0326, "ms", 1e3),
        ("s", 5.3e-5, "µs", 1e6),
        ("s", 3e-9, "ns", 1e9),
        ("ms", 1500.0, "s", 1e-3),
        ("ms", 1.5, "ms", 1.0),
        ("ms", 0.2, "µs", 1e3),
        ("s", 0.0, "s", 1.0),
        ("%", 1e-6, "%", 1.0),
        ("", 1e-6, "", 1.0),
    ],
)
def test_a_time_is_written_in_the_unit_of_its_size(unit: str, smallest: float, chosen: str, factor: float) -> None:
    assert time_unit(unit, smallest) == (chosen, pytest.approx(factor))


@pytest.mark.parametrize(
    ("written", "values", "told"),
    [
        ("{:.4f}", [3.651, 0.0326], ["3,651.0", "32.6"]),  # ms, with the digits that 0.0326 s has
        ("{:.2e}", [5.28e-3, 5.32e-5], ["5,280.0", "53.2"]),  # µs, three digits of the smallest
        ("{:.3f}", [0.165, 3.5], ["0.165", "3.500"]),  # s, as it was
        ("{:.2g}", [0.0326, 0.0571], ["33", "57"]),
    ],
)
def test_a_column_has_one_unit_and_the_digits_of_its_format(written: str, values: list[float], told: list[str]) -> None:
    found = scale(Cell("seconds", "s", "lower", written), values)
    assert [number(value * found.factor, found.form) for value in values] == told


def test_what_is_no_time_keeps_its_form() -> None:
    form = Cell("accuracy", "%", "higher", "{:.1f}")
    assert scale(form, [1e-9]).form is form
