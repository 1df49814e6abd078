"""What a table of the report is, before anyone has decided how it is written; a wide one as several that fit a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate

MOST_COLUMNS = 7
"""Of a table that fits a page; the column of the rows' names counts as one."""
EMPTY = ("", "–")


class Kind(Enum):
    """Where a value comes from; each keeps its mark wherever it goes."""

    MEASURED = "measured"
    VERIFIED = "published"
    UNVERIFIED = "published-unverified"
    BASELINE = "baseline"
    MISSING = "missing"
    WORDS = "words"

    @classmethod
    def of_source(cls, source: str | None) -> Kind:
        """The kind of a published value whose source is `verified` or not."""
        return cls.VERIFIED if source == "verified" else cls.UNVERIFIED


@dataclass(frozen=True)
class Cell:
    """One value: the text people read, and the numbers behind it.

    `std` is None below two seeds; `size` is empty for what a paper prints.
    """

    text: str
    kind: Kind
    row: str = ""
    column: str = ""
    size: str = ""
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """A heading and its cells, one for each of the table's columns."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """Rows that belong together under one heading (empty: none is shown)."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Span:
    """A heading over `width` neighbouring columns."""

    heading: str
    width: int


@dataclass(frozen=True)
class Table:
    """A caption, a heading for the rows' names (`stub`), columns (grouped by spans, if any), blocks of rows, notes.

    `subject` is what the item is about, `caption` what these cells are; where a table stands alone it needs both.
    """

    subject: str
    caption: str
    stub: str
    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    spans: tuple[Span, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The rows of all blocks."""
        return [row for block in self.blocks for row in block.rows]


def parts(table: Table) -> list[Table]:
    """`table` where it is narrow; else its columns of words, then its numbers in even parts, without empty blocks.

    Each part has the subject and caption of the whole, the first the notes.
    """
    if len(table.columns) < MOST_COLUMNS:
        return [table]
    words = words_columns(table)
    numbers = [i for i, is_words in enumerate(words) if not is_words]
    groups = [[i for i, is_words in enumerate(words) if is_words], *_even(numbers, MOST_COLUMNS - 1)]
    tables = [_columns(table, group) for group in groups if group]
    return [tables[0], *(replace(part, notes=()) for part in tables[1:])]


def words_columns(table: Table) -> list[bool]:
    """Which columns hold words and not numbers."""
    return [all(row.cells[i].kind is Kind.WORDS for row in table.rows) for i in range(len(table.columns))]


def _even(columns: Sequence[int], most: int) -> list[list[int]]:
    n_parts = math.ceil(len(columns) / most)
    size = math.ceil(len(columns) / n_parts) if n_parts else 0
    return [list(columns[i * size : (i + 1) * size]) for i in range(n_parts)]


def _columns(table: Table, kept: Sequence[int]) -> Table:
    """The table of these columns alone; a row that says nothing in them is left out, and words stand there once."""
    blocks, seen = [], set()
    only_words = all(words_columns(table)[i] for i in kept)
    for block in table.blocks:
        rows = [Row(row.label, tuple(row.cells[i] for i in kept)) for row in block.rows]
        filled = [row for row in rows if any(cell.text not in EMPTY for cell in row.cells)]
        if only_words:
            filled = [row for row in filled if row.label not in seen]
            seen |= {row.label for row in filled}
        if filled:
            blocks.append(Block("" if only_words else block.heading, tuple(filled)))
    starts = [0, *accumulate(span.width for span in table.spans)]
    spans = [
        Span(span.heading, sum(start <= i < start + span.width for i in kept))
        for span, start in zip(table.spans, starts, strict=False)
    ]
    columns = tuple(table.columns[i] for i in kept)
    return replace(table, columns=columns, blocks=tuple(blocks), spans=tuple(span for span in spans if span.width))
