"""Names are ordered by the numbers in them, whatever else looks like one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from efftx.core.numbered import by_number


def test_numbers_within_names_are_read_as_numbers() -> None:
    names = ["a10", "a2", "b1", "10", "9", "a2b10", "a2b9"]
    assert sorted(names, key=by_number) == ["9", "10", "a2", "a2b9", "a2b10", "a10", "b1"]


@given(st.lists(st.text(st.sampled_from("a0\u0663\u00b2\u2460\u4e00"))))
def test_every_text_has_a_place(names: list[str]) -> None:
    assert sorted(sorted(names, key=by_number)) == sorted(names)


def test_a_number_of_more_digits_than_python_reads_has_one_too() -> None:
    assert sorted(["9" * 9000, "a", "8" * 9000], key=by_number) == ["8" * 9000, "9" * 9000, "a"]
