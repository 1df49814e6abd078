"""Names with numbers in them, in the order of the numbers."""

from __future__ import annotations

import re

# Python reads no integer of more than 4,300 digits: a longer one is several.
_NUMBER = re.compile(r"(\d{1,4000})")


def by_number(name: str) -> list[int | str]:
    """A key that sorts the numbers within names as numbers: batch 2 before batch 10.

    Only what `int` reads is a number; a raised or an encircled digit is a sign like any other.
    """
    return [int(part) if part.isdecimal() else part for part in _NUMBER.split(name)]
