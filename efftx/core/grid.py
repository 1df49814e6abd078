"""A table in a terminal of any width: no word and no number is ever broken.

What does not fit beside each other is set in blocks of columns, each with the names of the rows again; where not even
one column fits beside those names, every row becomes a record of lines `heading  value`. A word that is wider than all
that is left, a path say, is written whole, past the edge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from efftx.core.visible import visible

GAP = 2
READABLE = 24
"""A column of words is not made narrower than this, unless it is by itself."""
EMPTY = ("", "–")
"""A row of these alone is left out of a block of columns."""
_TOGETHER = re.compile(r"(?<=\d) (?=%)|(?<=\d) (?=±)|(?<=±) (?=\d)|(?<=\bp) (?=[=<])|(?<=[=<]) (?=\d)")


@dataclass(frozen=True)
class Column:
    """A heading, and whether the cells are `numbers`: set to the right, never over two lines."""

    heading: str
    numbers: bool = False


@dataclass
class Grid:
    """A table: columns, of which the first `n_names` name a row and come again in every block, rows and headings."""

    columns: Sequence[Column]
    n_names: int = 1
    header: bool = True
    _lines: list[tuple[Text, ...] | Text] = field(default_factory=list)

    def row(self, *cells: str | Text) -> None:
        """One row, a cell for each column; text is shown as it is, brackets and all."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self._lines.append(tuple(_shown(cell) for cell in cells))

    def section(self, heading: str) -> None:
        """A heading of the rows that follow."""
        self._lines.append(_shown(Text(heading, style="italic")))

    def print(self, console: Console) -> None:
        """The table, as wide as the console."""
        for line in self.lines(console.width):
            console.print(line, soft_wrap=True, highlight=False)

    def lines(self, width: int) -> Iterator[Text]:
        """The lines of the table at most `width` wide, but for single words that are wider."""
        blocks = self._blocks(width)
        if blocks is None:
            yield from self._records()
            return
        for i, block in enumerate(blocks):
            if i:
                yield Text()
            yield from self._block(block, self._widths(block, width))

    @property
    def _rows(self) -> list[tuple[Text, ...]]:
        return [line for line in self._lines if isinstance(line, tuple)]

    def _natural(self, column: int) -> int:
        cells = [cell_len(line) for row in self._rows for line in row[column].plain.split("\n")]
        return max([self._heading_width(column), *cells], default=0)

    def _heading_width(self, column: int) -> int:
        return cell_len(self.columns[column].heading.replace("\n", " ")) if self.header else 0

    def _unbroken(self, column: int) -> int:
        """The widest word or number of the column."""
        words = wrapped(self.columns[column].heading, 0) if self.header else []
        cells = [row[column].plain for row in self._rows]
        whole = cells if self.columns[column].numbers else [word for cell in cells for word in wrapped(cell, 0)]
        return max((cell_len(text) for text in [*words, *whole]), default=0)

    def _least(self, column: int, comfortable: int) -> int:
        """As narrow as the column can be: no word broken, and words, where there are more, `comfortable` to read."""
        least = self._unbroken(column)
        return least if self.columns[column].numbers else max(least, min(self._natural(column), comfortable))

    def _blocks(self, width: int) -> list[list[int]] | None:
        """Which columns stand beside each other; None where a name and a column do not."""
        least, left = self._least_widths(width)
        others = range(self.n_names, len(self.columns))
        if any(left < (least[i] if self.columns[i].numbers else min(least[i], READABLE // 2)) for i in others):
            return None
        blocks = _fill(others, least, left)
        even = _fill(others, least, left, at_most=math.ceil(len(others) / len(blocks)))
        return [[*range(self.n_names), *block] for block in (even if len(even) == len(blocks) else blocks)]

    def _least_widths(self, width: int) -> tuple[list[int], int]:
        """How narrow each column can be, the names in at most a third of `width`, and what they leave to the others."""
        names = [self._least(column, max(width // 3, 1)) for column in range(self.n_names)]
        left = width - sum(name + GAP for name in names)
        others = range(self.n_names, len(self.columns))
        return [*names, *(self._least(column, min(READABLE, left)) for column in others)], left

    def _widths(self, block: Sequence[int], width: int) -> list[int]:
        """The width of each column of a block: what it needs, and what is left to those that want more."""
        least, _ = self._least_widths(width)
        widths = [least[column] for column in block]
        wanted = [self._natural(column) for column in block]
        left = width - sum(widths) - GAP * (len(block) - 1)
        while left > 0 and any(w < n for w, n in zip(widths, wanted, strict=True)):
            neediest = max(range(len(block)), key=lambda i: wanted[i] - widths[i])
            widths[neediest] += 1
            left -= 1
        return widths

    def _block(self, block: Sequence[int], widths: Sequence[int]) -> Iterator[Text]:
        if self.header:
            headings = [Text(self.columns[i].heading.replace("\n", " "), style="bold") for i in block]
            yield from self._row(headings, block, widths)
            yield Text("─" * (sum(widths) + GAP * (len(widths) - 1)), style="dim")
        heading: Text | None = None
        first = True
        for line in self._lines:
            if not isinstance(line, tuple):
                heading = line
                continue
            if len(block) < len(self.columns) and all(line[column].plain in EMPTY for column in block[self.n_names :]):
                continue
            if heading is not None:
                if not first:
                    yield Text()
                for words in wrapped(heading.plain, sum(widths) + GAP * (len(widths) - 1)):
                    yield Text(words, style=heading.style)
                heading = None
            first = False
            yield from self._row([line[column] for column in block], block, widths)

    def _row(self, cells: Sequence[Text], block: Sequence[int], widths: Sequence[int]) -> Iterator[Text]:
        parts = [
            [cell.plain] if self.columns[column].numbers and column_fits else wrapped(cell.plain, width)
            for cell, column, width, column_fits in zip(
                cells, block, widths, [cell_len(c.plain) <= w for c, w in zip(cells, widths, strict=True)], strict=True
            )
        ]
        for i in range(max(map(len, parts))):
            line = Text()
            for cell, column, width, lines in zip(cells, block, widths, parts, strict=True):
                text = lines[i] if i < len(lines) else ""
                padding = " " * max(0, width - cell_len(text))
                line.append(padding if self.columns[column].numbers else "")
                line.append(text, style=cell.style or Style())
                line.append(("" if self.columns[column].numbers else padding) + " " * GAP)
            line.rstrip()
            yield line

    def _records(self) -> Iterator[Text]:
        others = range(self.n_names, len(self.columns))
        for i, line in enumerate(self._lines):
            if i:
                yield Text()
            if not isinstance(line, tuple):
                yield line
                continue
            yield Text(", ".join(cell.plain for cell in line[: self.n_names] if cell.plain), style="bold")
            for column in others:
                if line[column].plain:
                    heading = " ".join(self.columns[column].heading.split())
                    yield Text.assemble(f"  {heading}  " if self.header else "  ", line[column])


def _shown(cell: str | Text) -> Text:
    return Text(visible(cell)) if isinstance(cell, str) else Text(visible(cell.plain), style=cell.style)


def _fill(columns: Sequence[int], least: Sequence[int], width: int, at_most: int | None = None) -> list[list[int]]:
    """Columns in blocks as wide as `width` allows, `at_most` so many in each."""
    blocks: list[list[int]] = [[]]
    free = width
    for i in columns:
        if blocks[-1] and (least[i] > free or len(blocks[-1]) == at_most):
            blocks.append([])
            free = width
        blocks[-1].append(i)
        free -= least[i] + GAP
    return blocks


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width`, broken at spaces alone and not within `95 %`, `3.0 ± 0.1` or `p = 0.01`."""
    lines = []
    for paragraph in _TOGETHER.sub("\u00a0", text).split("\n"):
        line = ""
        for word in re.split("[ \t]+", paragraph.strip(" \t")):
            longer = f"{line} {word}" if line else word
            if line and cell_len(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return [line.replace("\u00a0", " ") for line in lines]


def print_text(console: Console, text: str, style: str = "", indent: int = 0, hanging: int = 0) -> None:
    """A paragraph, broken at spaces alone, `indent` from the left, its lines from the second on `hanging` more."""
    text = visible(text)
    lines = wrapped(text, console.width - indent - hanging)
    if hanging and lines[1:]:
        first = wrapped(text, console.width - indent)[0]
        rest = text[len(first) :].strip()
        lines = [first, *(wrapped(rest, console.width - indent - hanging) if rest else [])]
    for i, line in enumerate(lines):
        console.print(Text(" " * (indent + (hanging if i else 0)) + line, style=style), soft_wrap=True, highlight=False)
