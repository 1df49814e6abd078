"""How the report writes a number: in the cell's format, its spread beside it, a mark on what was not checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from efftx.study.experiment import Cell as CellFormat
from efftx.study.published import Printed
from efftx.study.significance import LEVEL, MIN_SEEDS, holm, rounding, upper_tail

UNVERIFIED_MARK = "†"
NOT_RUN = "not run"
NOT_REACHED = "not reached"
UNDEFINED = "–"
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: float, form: CellFormat) -> str:
    """`value` as the experiment's cell writes it, such as `92.5`; a power of ten is raised, as in `2.6×10⁵`."""
    return raised(form.write(value))


def raised(text: str) -> str:
    """`text` with `2.6e+05` in it written as `2.6×10⁵`."""
    return re.sub(r"(?<=\d)e([+-]\d+)\b", lambda m: f"×10{str(int(m[1])).translate(_RAISED)}", text)


def mean_and_spread(mean: float, std: float | None, form: CellFormat) -> str:
    """A mean and its sample standard deviation in the same format; no spread where there was one seed.

    A format with a sign gives it to the mean alone.
    """
    return number(mean, form) if std is None else f"{number(mean, form)} ± {number(std, form).removeprefix('+')}"


def published(
    value: float, source: str | None, form: CellFormat, spread: float | None = None, factor: float = 1.0
) -> str:
    """A paper's value, times `factor` (a power of ten), and the spread printed beside it, with the paper's own digits.

    One that nobody read in the paper carries a dagger.
    """
    text = _as_printed(value, form, factor)
    text = text if spread is None else f"{text} ± {_as_printed(spread, form, factor).removeprefix('+')}"
    return text if source == "verified" else f"{text} {UNVERIFIED_MARK}"


def _as_printed(value: float, form: CellFormat, factor: float) -> str:
    """The digits that a file gives, their point moved; of a plain number those of the cell's format.

    A digit too many is then rounded as people do, 0.85 to 0.9, where the nearest binary number lies below the half.
    """
    digits = value.digits if isinstance(value, Printed) else None
    if digits is None or form.format.endswith("e}"):
        return number(value * factor * (1.0 + 1e-12), form)
    moved = digits.scaleb(round(math.log10(factor)))
    return f"{moved:,f}" if "," in form.format else f"{moved:f}"


def clearly_best(ours: Mapping[int, float], rivals: Sequence[Mapping[int, float]], better: str) -> bool:
    """Whether one cell beats every rival, by one-sided paired t tests at 5 %, Holm over the rivals.

    `better` is higher, lower or none. False where a pair has fewer than three seeds in common.
    """
    if better == "none" or not rivals:
        return False
    ps = []
    for theirs in rivals:
        seeds = sorted(set(ours) & set(theirs))
        if len(seeds) < MIN_SEEDS:
            return False
        a, b = (np.array([values[seed] for seed in seeds]) for values in (ours, theirs))
        ps.append(upper_tail(a - b if better == "higher" else b - a, resolution=rounding(a, b)))
    return max(holm(ps)) <= LEVEL


def decimals(half_width: float) -> int | None:
    """Decimals that show an interval's half width to two digits; None for an exact value (half width 0)."""
    return max(0, 1 - math.floor(math.log10(half_width))) if half_width > 0 else None


def with_decimals(value: float, digits: int | None) -> str:
    """`value` to so many decimals (None: to three digits); as `9.3×10⁻⁶` where that takes more than six of them."""
    if digits is None:
        small = 0 < abs(value) < 1e-4
        return number(value, CellFormat("", format="{:.2e}")) if small else three_digits(value)
    if digits <= 6:
        return f"{value:z,.{digits}f}"
    exponent = math.floor(math.log10(abs(value))) if value else -digits
    return f"{value / 10**exponent:.{max(0, digits + exponent)}f}×10{str(exponent).translate(_RAISED)}"


def three_digits(value: float) -> str:
    """`value` to three significant digits without an exponent: `1,960`."""
    return f"{float(f'{value:.3g}'):z,.12g}"


def four_digits(value: float) -> str:
    """`value` to four significant digits: `8,825`, `0.04021`; a small one as `1.2×10⁻⁵`."""
    return _significant(value, 4)


def two_digits(value: float) -> str:
    """`value` to two significant digits."""
    return _significant(value, 2)


def _significant(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return raised(text) if 0 < abs(value) < 1e-4 else f"{float(text):z,.12g}"


def sentence(text: str) -> str:
    """`text` in one line, with a full stop behind it where it has no end of its own."""
    stripped = " ".join(text.split())
    return stripped if stripped.endswith((".", "?", "!")) else f"{stripped}."
