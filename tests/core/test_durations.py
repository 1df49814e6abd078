from __future__ import annotations

import pytest

from efftx.core.durations import duration


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (4.25, "4.2 s"),
        (750.0, "12.5 min"),
        (11160.0, "3.1 h"),
        (3600 * 99.9, "99.9 h"),
        (3600 * 240.0, "10.0 days"),
        (86400 * 365.25 * 1234.5, "1,234.5 years"),
    ],
)
def test_a_duration_is_in_a_unit_that_people_count_it_in(seconds: float, written: str) -> None:
    assert duration(seconds) == written
