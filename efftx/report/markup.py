"""One table, written five ways: Markdown, LaTeX, CSV, HTML, terminal. Nothing here knows what a table is about."""

from __future__ import annotations

import csv
import io
import re
from html import escape as escape_html

from rich.console import Console
from rich.style import Style
from rich.text import Text

from efftx.report.grid import Column, Grid, print_text
from efftx.report.model import Cell, Kind, Table

LATEX_SPECIALS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': "''",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "²": r"$^2$",
    "√": r"$\surd$",
    **{raised: rf"$^{{{plain}}}$" for raised, plain in zip("⁰¹³⁴⁵⁶⁷⁸⁹⁻", "013456789-", strict=True)},
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
}
MARKDOWN_SPECIALS = re.compile(r"[\\`*_\[\]<>|#~&$]|^[-+](?=\s)")
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
WIDEST_UNSCALED = 6
CSV_HEADER = ["row", "column", "kind", "size", "mean", "std", "n"]


def escape_latex(text: str) -> str:
    """`text` in one line, with every character that LaTeX would read as a command made harmless."""
    return "".join(LATEX_SPECIALS.get(character, character) for character in _one_line(text))


def escape_markdown(text: str) -> str:
    """`text` in one line, with every character that Markdown would read as markup or as a cell's end made harmless."""
    return MARKDOWN_NUMBER.sub(r"\1\\\2", MARKDOWN_SPECIALS.sub(r"\\\g<0>", _one_line(text)))


def escape_csv(text: str) -> str:
    """`text` in one line, after an apostrophe where a spreadsheet would read it as a formula; a number stays one."""
    text = _one_line(text)
    if not text.lstrip(" \t").startswith(CSV_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def to_markdown(table: Table) -> str:
    """The table as GitHub Markdown; it has one header row, so a group's name goes before its columns' names."""

    def bold(cell: Cell) -> str:
        text = escape_markdown(cell.text)
        return f"**{text}**" if cell.bold else text

    headings = _flat_headings(table)
    lines = [f"**{escape_markdown(table.subject)}** {escape_markdown(table.caption)}", ""]
    lines.append(_pipe_row([escape_markdown(heading) for heading in [table.stub, *headings]]))
    lines.append(_pipe_row([":---", *[":---" if words else "---:" for words in _word_columns(table)]]))
    for block in table.blocks:
        if block.heading:
            lines.append(_pipe_row([f"*{escape_markdown(block.heading)}*", *[""] * len(headings)]))
        for row in block.rows:
            lines.append(_pipe_row([escape_markdown(row.label), *[bold(cell) for cell in row.cells]]))
    for note in table.notes:
        lines += ["", escape_markdown(note)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table, label: str) -> str:
    """The table as a LaTeX float in the booktabs style; `label` is what `\\ref` finds it by, after `tab:`."""

    def bold(cell: Cell) -> str:
        text = escape_latex(cell.text)
        return rf"\textbf{{{text}}}" if cell.bold else text

    n_columns = len(table.columns)
    narrow = n_columns <= WIDEST_UNSCALED
    lines = [
        "% needs \\usepackage{booktabs}" + ("" if narrow else " and \\usepackage{graphicx}"),
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{escape_latex(f'{table.subject} {table.caption}')}}}",
        rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9:-]', '-', label)}}}",
        *([] if narrow else [r"  \resizebox{\linewidth}{!}{%"]),
        rf"  \begin{{tabular}}{{l{''.join('l' if words else 'r' for words in _word_columns(table))}}}",
        r"    \toprule",
    ]
    if table.spans:
        spans, rules, start = [], [], 2
        for span in table.spans:
            spans.append(rf"\multicolumn{{{span.width}}}{{c}}{{{escape_latex(span.heading)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + span.width - 1}}}")
            start += span.width
        lines += [rf"    & {' & '.join(spans)} \\", f"    {' '.join(rules)}"]
    headings = [_first_of_line(table.stub), *(escape_latex(heading) for heading in table.columns)]
    lines.append(rf"    {' & '.join(headings)} \\")
    for block in table.blocks:
        lines.append(r"    \midrule")
        if block.heading:
            heading = escape_latex(block.heading)
            lines.append(rf"    \multicolumn{{{n_columns + 1}}}{{l}}{{\textit{{{heading}}}}} \\")
        for row in block.rows:
            lines.append(rf"    {' & '.join([_first_of_line(row.label), *[bold(cell) for cell in row.cells]])} \\")
    lines += [r"    \bottomrule", r"  \end{tabular}" + ("" if narrow else "}")]
    for note in table.notes:
        lines += ["", rf"  {{\footnotesize {escape_latex(note)}}}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


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


def to_html(table: Table) -> str:
    """The table as accessible HTML: a caption, and a scope on every heading."""
    stub_height = 2 if table.spans else 1
    lines = ['<div class="scroll">', "<table>", f"<caption>{escape_html(table.caption)}</caption>", "<thead>"]
    lines.append(f'<tr><th scope="col" rowspan="{stub_height}">{escape_html(table.stub)}</th>')
    headings = "".join(
        f'<th scope="col"{" class=words" if words else ""}>{escape_html(heading)}</th>'
        for heading, words in zip(table.columns, _word_columns(table), strict=True)
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
            cells = "".join(_html_cell(cell) for cell in row.cells)
            lines.append(f'<tr><th scope="row">{escape_html(row.label)}</th>{cells}</tr>')
        lines.append("</tbody>")
    lines += ["</table>", "</div>"]
    lines += [f'<p class="note">{escape_html(note)}</p>' for note in table.notes]
    return "\n".join(lines) + "\n"


def to_terminal(table: Table, console: Console) -> None:
    """Prints the table, as wide as the console: caption, numbers, then what stands in words (too wide), notes."""
    shown = [i for i, words in enumerate(_word_columns(table)) if not words]
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
    columns = [i for i, words in enumerate(_word_columns(table)) if words]
    rows = {row.label: row for block in table.blocks for row in block.rows if any(row.cells[i].text for i in columns)}
    lines = []
    for label, row in rows.items():
        said = "; ".join(f"{table.columns[i]}: {row.cells[i].text}" for i in columns if row.cells[i].text)
        lines.append(f"{label} – {said}")
    return lines


def _first_of_line(text: str) -> str:
    """`text` as the first cell of a line: a bracket or a star there would belong to the command that ends the last."""
    return ("{}" if text.lstrip().startswith(("[", "*")) else "") + escape_latex(text)


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", text)


def _flat_headings(table: Table) -> list[str]:
    groups = [span.heading for span in table.spans for _ in range(span.width)] or [""] * len(table.columns)
    return [f"{group}: {heading}" if group else heading for group, heading in zip(groups, table.columns, strict=True)]


def _word_columns(table: Table) -> list[bool]:
    """Which columns hold words and not numbers, and are set to the left."""
    rows = [row for block in table.blocks for row in block.rows]
    return [all(row.cells[i].kind is Kind.WORDS for row in rows) for i in range(len(table.columns))]


def _pipe_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _exact(number: float | None) -> str:
    return "" if number is None else repr(float(number))


def _html_cell(cell: Cell) -> str:
    text = escape_html(cell.text)
    return f'<td class="{cell.kind.value}">{f"<strong>{text}</strong>" if cell.bold else text}</td>'
