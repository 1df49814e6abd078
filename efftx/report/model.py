"""What a table of the report is, before anyone has decided how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Where a value comes from; each keeps its mark wherever it goes."""

    MEASURED = "measured"
    VERIFIED = "published"
    UNVERIFIED = "published-unverified"
    BASELINE = "baseline"
    MISSING = "missing"
    WORDS = "words"


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
