"""How long something takes, in words."""

from __future__ import annotations

MINUTE, HOUR, DAY, YEAR = 60.0, 3600.0, 86400.0, 365.25 * 86400.0

SPREAD = 2.0
"""The authors warn where the slowest of the counted tokens takes more than twice the fastest."""


def duration(seconds: float) -> str:
    """A time in a unit that people count it in: `4.2 s`, `12.5 min`, `3.1 h` to 100 h, `12.3 days`, `1.6 years`."""
    for unit, size, below in (("s", 1.0, MINUTE), ("min", MINUTE, HOUR), ("h", HOUR, 100 * HOUR), ("days", DAY, YEAR)):
        if seconds < below:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / YEAR:,.1f} years"
