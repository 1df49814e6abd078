"""A table for the terminal and as CSV, and what Markdown must escape (`render` writes tables in its templates)."""

from __future__ import annotations

import csv
import io
import re

from rich.console import Console
from rich.style import Style
from rich.text import Text

from efftx.core.grid import Column, Grid, print_text
from efftx.report.model import Kind, Table, words_columns

# What GitHub's Markdown would read as markup where it stands; the rest stays, for people read the source too.
MARKDOWN_SPECIALS = re.compile(
    r"""[`|*~$]                            # code, a cell's end, emphasis, deletion, a formula
    | \\(?=[!-/:-@\[-`{-~]|$)           # a backslash that would escape what follows
    | (?<![^\W_])_ | _(?![^\W_])         # emphasis, but within a word
    | \](?=[(\[:]) | \[(?=\^|[ xX]?\])  # a link, a footnote, a box to tick
    | !(?=\[)
    | <(?=[A-Za-z/!?]|$) | &(?=\#|\w+;)  # a tag, an entity
    | ^(?:\#|>|[-+](?=[\s-]|$)|=)       # a heading, a quotation, a list, a rule
    """,
    re.VERBOSE,
)
MARKDOWN_NUMBER = re.compile(r"^(\d+)([.)])(?=\s)")
CSV_FORMULA = tuple("=+-@＝＋－＠")
TERMINAL_STYLES = {
    Kind.MEASURED: Style(),
    Kind.VERIFIED: Style(color="cyan"),
    Kind.UNVERIFIED: Style(color="yellow", italic=True),
    Kind.BASELINE: Style(dim=True),
    Kind.MISSING: Style(dim=True, italic=True),
    Kind.WORDS: Style(),
}
CSV_HEADER = ["row", "column", "kind", "size", "mean", "std", "n"]


def escape_markdown(text: str) -> str:
    """`text` in one line, with every character that Markdown would read as markup or as a cell's end made harmless."""
    return MARKDOWN_NUMBER.sub(r"\1\\\2", MARKDOWN_SPECIALS.sub(r"\\\g<0>", one_line(text)))


def escape_csv(text: str) -> str:
    """`text` in one line, after an apostrophe where a spreadsheet would read it as a formula; a number stays one."""
    text = one_line(text)
    if not text.lstrip(" \t").startswith(CSV_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def to_csv(tables: list[Table]) -> str:
    """The tables' cells, one a line and unrounded; a missing cell has no mean, a published value no size."""
    lines: dict[tuple[str, ...], None] = {}  # several sizes repeat the same published values: each is written once
    for cell in (cell for table in tables for row in table.rows for cell in row.cells if cell.row):
        numbers = [_exact(cell.mean), _exact(cell.std), "" if cell.n is None else str(cell.n)]
        lines[(cell.row, cell.column, cell.kind.value, cell.size, *numbers)] = None
    return rows_to_csv(CSV_HEADER, [list(line) for line in lines])


def rows_to_csv(header: list[str], rows: list[list[str]]) -> str:
    """Lines of comma-separated values with Unix line ends; no cell of them is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([escape_csv(cell) for cell in header])
    writer.writerows([escape_csv(cell) for cell in row] for row in rows)
    return out.getvalue()


def to_terminal(table: Table, console: Console) -> None:
    """Prints the table, as wide as the console: caption, numbers, then what stands in words (too wide), notes."""
    shown = [i for i, words in enumerate(words_columns(table)) if not words]
    headings = flat_headings(table)
    grid = Grid([Column(table.stub), *(Column(headings[i], numbers=True) for i in shown)])
    for block in table.blocks:
        if block.heading:
            grid.section(block.heading)
        for row in block.rows:
            cells = [row.cells[column] for column in shown]
            texts = [Text(c.text, style=TERMINAL_STYLES[c.kind] + Style(bold=c.bold or None)) for c in cells]
            grid.row(row.label, *texts)
    print_text(console, f"{table.subject} {table.caption}", style="bold")
    grid.print(console)
    below = _words_below(table)
    if below or table.notes:
        console.print()
    for line in below:
        print_text(console, line)
    for note in table.notes:
        print_text(console, note, style="dim")


def _words_below(table: Table) -> list[str]:
    columns = [i for i, words in enumerate(words_columns(table)) if words]
    rows = {row.label: row for row in table.rows if any(row.cells[i].text for i in columns)}
    lines = []
    for label, row in rows.items():
        cells = "; ".join(f"{table.columns[i]}: {row.cells[i].text}" for i in columns if row.cells[i].text)
        lines.append(f"{label} – {cells}")
    return lines


def one_line(text: str) -> str:
    """`text` without line breaks of any kind."""
    return re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", text)


def flat_headings(table: Table) -> list[str]:
    """The columns' headings, a group's name before each."""
    groups = [span.heading for span in table.spans for _ in range(span.width)] or [""] * len(table.columns)
    return [f"{group}: {heading}" if group else heading for group, heading in zip(groups, table.columns, strict=True)]


def _exact(number: float | None) -> str:
    return "" if number is None else repr(float(number))
