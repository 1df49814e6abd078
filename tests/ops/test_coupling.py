"""Coupled positions: a token's place since the last separator, by definition."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efftx.ops.coupling import coupled_positions, is_separator


def naive(row: list[int], separators: tuple[int, ...]) -> list[int]:
    """The definition, token by token."""
    found, place = [], 0
    for token in row:
        place = 0 if token in separators else place + 1
        found.append(place)
    return found


@settings(max_examples=60)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    separators=st.sampled_from([(0,), (0, 5), (3,), (6, 2, 0)]),
)
def test_a_position_is_the_place_since_the_last_separator(rows: list[list[int]], separators: tuple[int, ...]) -> None:
    found = coupled_positions(torch.tensor(rows), separators)
    assert found.dtype == torch.int64
    assert found.tolist() == [naive(row, separators) for row in rows]


def test_digits_of_one_significance_share_a_position() -> None:
    """653 + 49 = 702 with the least significant digit first, 9 the plus and 0 the equals sign."""
    assert coupled_positions(torch.tensor([[3, 5, 6, 9, 9 - 1, 4]]), (0, 9)).tolist() == [[1, 2, 3, 0, 1, 2]]
    assert coupled_positions(torch.tensor([[0, 2, 1, 7]]), (0, 9)).tolist() == [[0, 1, 2, 3]]


def test_rows_that_do_not_lie_in_one_piece_are_read_as_they_are() -> None:
    tokens = torch.tensor([[1, 0], [2, 0], [3, 4]]).T
    assert not tokens.is_contiguous()
    assert coupled_positions(tokens, (0,)).tolist() == [[1, 2, 3], [0, 0, 1]]
    assert is_separator(tokens, (0, 3)).tolist() == [[False, False, True], [True, True, False]]
