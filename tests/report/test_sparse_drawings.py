"""The third paper's diagrams show what the records' series say."""

from __future__ import annotations

import numpy as np
import pytest

from efftx.report.illustrations import Illustration, illustrate
from efftx.report.items import gather
from efftx.report.sparse_drawings import MOST_TOKENS, Selection, read_selection
from efftx.study.records import RecordStore

from .conftest import make_experiment, make_record

TEXTS = ["of", " the", " people", ",", " by"]
CHOICES = [[t % 4, 1, 3] for t in range(5)]
SELECTED = {
    "choices": [float(unit) for units in CHOICES for unit in units],
    "text": [float(ord(letter)) for letter in "".join(TEXTS)],
    "text_ends": [2.0, 6.0, 13.0, 14.0, 17.0],
    "units_a_block": [4.0],
}
GATE = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=float)
PLACE = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], dtype=float)
PERMUTED = {
    "gate": GATE.flatten().tolist(),
    "projection": PLACE.flatten().tolist(),
    "matrix": np.einsum("si,im->ism", GATE, PLACE).flatten().tolist(),
    "modules": [2.0],
}


def drawn(store: RecordStore, name: str, series: dict[str, list[float]]) -> Illustration | None:
    store.write(make_record("Full", 0, series=series))
    item = gather(store, make_experiment(figure={"draw": name}))
    return illustrate(item, item.measured[0])


def test_a_line_a_token_says_which_unit_each_block_selects(store: RecordStore) -> None:
    found = drawn(store, "sparse_ff", SELECTED)
    assert found is not None
    assert [line.label for line in found.data.lines] == ["1 of", "2 the", "3 people", "4 ,", "5 by"]
    assert [[p.y for p in line.points] for line in found.data.lines] == CHOICES
    assert "“people”" in found.data.caption
    assert "one selected unit of 4" in found.data.caption
    assert "“of the people, by”" in found.data.caption


def test_the_longest_word_is_the_token_that_is_drawn() -> None:
    assert read_selection(SELECTED).shown == 2
    assert Selection(("ab", " cd", "e"), ((0,), (0,), (0,)), 2).shown == 0


def test_a_long_text_is_cut() -> None:
    n = MOST_TOKENS + 3
    series = {
        "choices": [0.0] * n,
        "text": [97.0] * n,
        "text_ends": [t + 1.0 for t in range(n)],
        "units_a_block": [2.0],
    }
    assert read_selection(series).texts == ("a",) * MOST_TOKENS


def test_other_selections_give_another_drawing_and_the_same_ones_the_same(store: RecordStore) -> None:
    found = [drawn(store, "sparse_ff", series) for series in (SELECTED, SELECTED, {**SELECTED, "choices": [0.0] * 15})]
    one, same, other = [drawing.svg for drawing in found if drawing is not None]
    assert one == same != other


def test_the_permutation_lists_the_input_of_each_output(store: RecordStore) -> None:
    found = drawn(store, "permutation", PERMUTED)
    assert found is not None
    (line,) = found.data.lines
    # Input 0 goes to module 0, place 1: output 1; 1 to (1, 0): 2; 2 to (1, 1): 3; 3 to (0, 0): 0.
    assert [(p.x, p.y) for p in line.points] == [(0, 3), (1, 0), (2, 1), (3, 2)]
    assert "2 modules of 2" in found.data.caption
    assert found.svg.count("<svg") == 1


@pytest.mark.parametrize("name", ["sparse_ff", "permutation"])
def test_records_without_the_series_give_no_drawing(store: RecordStore, name: str) -> None:
    assert drawn(store, name, {"choice": [1.0]}) is None
