"""How the report writes a number: in the cell's format, its spread beside it, a mark on what was not checked."""

from __future__ import annotations

import math
import re
from statistics import fmean, stdev

from efftx.reproduce.experiment import Cell as CellFormat

UNVERIFIED_MARK = "†"
NOT_RUN = "not run"
NOT_REACHED = "not reached"
UNDEFINED = "–"
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: float, form: CellFormat) -> str:
    """`value` as the experiment's cell writes it, such as `92.5`; a power of ten is raised, as in `2.6×10⁵`."""
    return re.sub(r"e([+-]\d+)$", lambda m: f"×10{str(int(m[1])).translate(_RAISED)}", form.format.format(value))


def mean_and_spread(mean: float, std: float | None, form: CellFormat) -> str:
    """A mean and its sample standard deviation in the same format; no spread where there was one seed."""
    return number(mean, form) if std is None else f"{number(mean, form)} ± {number(std, form)}"


def published(value: float, source: str | None, form: CellFormat) -> str:
    """A paper's value; one that nobody read in the paper itself carries a dagger."""
    return number(value, form) if source == "verified" else f"{number(value, form)} {UNVERIFIED_MARK}"


def paired_noise(differences: list[float]) -> float | None:
    """Two standard errors of a paired difference over seeds, 2 std / sqrt(n); None below three seeds."""
    if len(differences) < 3:
        return None
    return 2.0 * stdev(differences) / math.sqrt(len(differences))


def clearly_better(ours: dict[int, float], theirs: dict[int, float], better: str) -> bool:
    """Whether one cell beats another by more than noise, seed paired with seed (`better`: higher, lower, none)."""
    seeds = sorted(set(ours) & set(theirs))
    sign = {"higher": 1.0, "lower": -1.0, "none": 0.0}[better]
    differences = [sign * (ours[seed] - theirs[seed]) for seed in seeds]
    noise = paired_noise(differences)
    return noise is not None and fmean(differences) > noise


def three_digits(value: float) -> str:
    """`value` to three significant digits without an exponent: `1,960`."""
    return f"{float(f'{value:.3g}'):,.12g}"


def duration(seconds: float) -> str:
    """A wall time in the largest unit that leaves a number above one: `4.2 s`, `12.5 min`, `3.1 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def words(name: str) -> str:
    """A metric's name as people write it: `bits_per_dim` is `bits per dim`."""
    return name.replace("_", " ")


def with_unit(name: str, unit: str) -> str:
    """A quantity and its unit, as an axis or a column is labelled: `accuracy (%)`."""
    return f"{words(name)} ({unit})" if unit and unit not in (name, words(name)) else words(name)
