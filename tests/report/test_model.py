from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from efftx.report.model import MOST_COLUMNS, Block, Cell, Kind, Row, Span, Table, parts


def make_table(n_words: int, n_numbers: int) -> Table:
    """Two blocks of one row, the published one with a value in the first column of numbers alone."""
    words = tuple(Cell(f"w{i}", Kind.WORDS) for i in range(n_words))
    measured = tuple(Cell(str(i), Kind.MEASURED, "a", str(i)) for i in range(n_numbers))
    first = Cell("9", Kind.VERIFIED, "a", "0")
    published = (first, *(Cell("–", Kind.MISSING) for _ in range(n_numbers - 1)))[:n_numbers]
    blocks = (Block("Published", (Row("a", words + published),)), Block("Measured", (Row("a", words + measured),)))
    columns = tuple(f"w{i}" for i in range(n_words)) + tuple(str(i) for i in range(n_numbers))
    return Table("s", "c", "row", columns, blocks, notes=("a note",))


@given(st.integers(0, 4), st.integers(1, 30))
def test_no_part_is_wider_than_seven_columns_and_no_cell_is_lost(n_words: int, n_numbers: int) -> None:
    whole = make_table(n_words, n_numbers)
    found = parts(whole)
    assert all(len(part.columns) < MOST_COLUMNS for part in found)
    assert [column for part in found for column in part.columns] == list(whole.columns)
    measured = [c.text for p in found for b in p.blocks for r in b.rows for c in r.cells if c.kind is Kind.MEASURED]
    assert measured == [str(i) for i in range(n_numbers)]
    assert [part.notes for part in found] == [("a note",), *[()] * (len(found) - 1)]


def test_a_narrow_table_is_its_only_part() -> None:
    whole = make_table(2, 4)
    assert parts(whole) == [whole]


def test_parts_are_even_and_leave_out_rows_that_say_nothing() -> None:
    first, second = parts(make_table(0, 7))
    assert (first.columns, second.columns) == (tuple("0123"), tuple("456"))
    assert [block.heading for block in first.blocks] == ["Published", "Measured"]
    assert [block.heading for block in second.blocks] == ["Measured"]


def test_words_come_first_and_each_row_of_them_once() -> None:
    words, *_ = parts(make_table(2, 7))
    assert words.columns == ("w0", "w1")
    assert [(block.heading, [row.label for row in block.rows]) for block in words.blocks] == [("", ["a"])]


def test_spans_are_cut_with_their_columns() -> None:
    cells = tuple(Cell(str(i), Kind.MEASURED) for i in range(8))
    spans = (Span("Published", 3), Span("Measured", 5))
    whole = Table("s", "c", "row", tuple("abcdefgh"), (Block("", (Row("a", cells),)),), spans)
    assert [part.spans for part in parts(whole)] == [
        (Span("Published", 3), Span("Measured", 1)),
        (Span("Measured", 4),),
    ]
