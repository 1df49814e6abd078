"""One table as Markdown, CSV, HTML and for the terminal (`latex` has LaTeX); nothing here knows what it is about."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from html import escape as escape_html

from rich.console import Console
from rich.style import Style
from rich.text import Text

from efftx.core.grid import Column, Grid, print_text
from efftx.report.model import Cell, Kind, Table
from efftx.report.parts import parts, words_columns

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
SHORT = 24
"""Characters of a row's name that a page does not break."""
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


def to_markdown(table: Table) -> str:
    """The table as GitHub Markdown, a wide one in parts; it has one header row, so a group's name goes before each."""
    lines = [f"**{escape_markdown(table.subject)}** {escape_markdown(table.caption)}"]
    for part in parts(table):
        lines += ["", *_markdown_rows(part)]
    for note in table.notes:
        lines += ["", escape_markdown(note)]
    return "\n".join(lines) + "\n"


def _markdown_rows(table: Table) -> list[str]:
    def bold(cell: Cell) -> str:
        text = escape_markdown(cell.text)
        return f"**{text}**" if cell.bold else text

    headings = _flat_headings(table)
    lines = [_pipe_row([escape_markdown(heading) for heading in [table.stub, *headings]])]
    lines.append(_pipe_row([":---", *[":---" if words else "---:" for words in words_columns(table)]]))
    for block in table.blocks:
        if block.heading:
            lines.append(_pipe_row([f"*{escape_markdown(block.heading)}*", *[""] * len(headings)]))
        for row in block.rows:
            lines.append(_pipe_row([escape_markdown(row.label), *[bold(cell) for cell in row.cells]]))
    return lines


def to_csv(tables: list[Table]) -> str:
    """The tables' cells, one a line and unrounded; a missing cell has no mean, a published value no size."""
    lines: dict[tuple[str, ...], None] = {}  # several sizes repeat the same published values: each is written once
    for table in tables:
        for block in table.blocks:
            for row in block.rows:
                for cell in row.cells:
                    numbers = [_exact(cell.mean), _exact(cell.std), "" if cell.n is None else str(cell.n)]
                    if cell.row:
                        lines[(cell.row, cell.column, cell.kind.value, cell.size, *numbers)] = None
    return rows_to_csv(CSV_HEADER, [list(line) for line in lines])


def rows_to_csv(header: list[str], rows: list[list[str]]) -> str:
    """Lines of comma-separated values with Unix line ends; no cell of them is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([escape_csv(cell) for cell in header])
    writer.writerows([escape_csv(cell) for cell in row] for row in rows)
    return out.getvalue()


def to_html(table: Table, link: Callable[[Cell], str] = lambda cell: "") -> str:
    """The table as accessible HTML, of a wide one the parts after the first numbers folded; then the notes.

    `link` gives the anchor that a cell leads to, "" for none. Every table has a caption, every heading a scope.
    """
    lines = []
    shown = False
    for part in parts(table):
        if shown:
            columns = ", ".join(part.columns)
            lines.append(f"<details><summary>More columns: {escape_html(columns)}</summary>")
        lines += _html_table(part, link)
        if shown:
            lines.append("</details>")
        shown = shown or not all(words_columns(part))
    lines += [f'<p class="note">{escape_html(note)}</p>' for note in table.notes]
    return "\n".join(lines) + "\n"


def _html_table(table: Table, link: Callable[[Cell], str]) -> list[str]:
    stub_height = 2 if table.spans else 1
    label = escape_html(table.caption)
    lines = [f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">', "<table>"]
    lines += [f"<caption><span>{label}</span></caption>", "<thead>"]
    lines.append(f'<tr><th scope="col" rowspan="{stub_height}">{escape_html(table.stub)}</th>')
    headings = "".join(
        f'<th scope="col"{" class=words" if words else ""}>{escape_html(heading)}</th>'
        for heading, words in zip(table.columns, words_columns(table), strict=True)
    )
    if table.spans:
        for span in table.spans:
            scope = f'th scope="colgroup" colspan="{span.width}"' if span.heading else f'td colspan="{span.width}"'
            lines.append(f"<{scope}>{escape_html(span.heading)}</{scope[:2]}>")
        lines += ["</tr>", f"<tr>{headings}</tr>"]
    else:
        lines.append(f"{headings}</tr>")
    lines.append("</thead>")
    for block in table.blocks:
        lines.append("<tbody>")
        if block.heading:
            width = len(table.columns) + 1
            heading = escape_html(block.heading)
            lines.append(f'<tr class="block"><th scope="rowgroup" colspan="{width}">{heading}</th></tr>')
        for row in block.rows:
            cells = "".join(_html_cell(cell, link) for cell in row.cells)
            short = " class=short" if len(row.label) <= SHORT else ""
            lines.append(f'<tr><th scope="row"{short}>{escape_html(row.label)}</th>{cells}</tr>')
        lines.append("</tbody>")
    return [*lines, "</table>", "</div>"]


def to_terminal(table: Table, console: Console) -> None:
    """Prints the table, as wide as the console: caption, numbers, then what stands in words (too wide), notes."""
    shown = [i for i, words in enumerate(words_columns(table)) if not words]
    headings = _flat_headings(table)
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
    console.print()
    for line in _words_below(table):
        print_text(console, line)
    for note in table.notes:
        print_text(console, note, style="dim")


def _words_below(table: Table) -> list[str]:
    columns = [i for i, words in enumerate(words_columns(table)) if words]
    rows = {row.label: row for block in table.blocks for row in block.rows if any(row.cells[i].text for i in columns)}
    lines = []
    for label, row in rows.items():
        said = "; ".join(f"{table.columns[i]}: {row.cells[i].text}" for i in columns if row.cells[i].text)
        lines.append(f"{label} – {said}")
    return lines


def one_line(text: str) -> str:
    """`text` without line breaks of any kind."""
    return re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", text)


def _flat_headings(table: Table) -> list[str]:
    groups = [span.heading for span in table.spans for _ in range(span.width)] or [""] * len(table.columns)
    return [f"{group}: {heading}" if group else heading for group, heading in zip(groups, table.columns, strict=True)]


def _pipe_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _exact(number: float | None) -> str:
    return "" if number is None else repr(float(number))


def _html_cell(cell: Cell, link: Callable[[Cell], str]) -> str:
    text = escape_html(cell.text)
    text = f"<strong>{text}</strong>" if cell.bold else text
    if anchor := link(cell):
        text = f'<a href="#{escape_html(anchor)}">{text}</a>'
    return f'<td class="{cell.kind.value}">{text}</td>'
