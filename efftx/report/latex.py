"""Tables as LaTeX: floats with booktabs rules, of plain ASCII, so that any engine sets them."""

from __future__ import annotations

import re

from efftx.report.fairness import sweep_tables
from efftx.report.items import Item
from efftx.report.markup import one_line
from efftx.report.model import Cell, Table, parts, words_columns
from efftx.report.tables import tables

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
    "µ": r"$\mu$",
    "“": "``",
    "”": "''",
    "␣": r"\textvisiblespace{}",
}
WIDEST_UNSCALED = 66  # characters of a row that fit a line of the usual 10 points


def escape_latex(text: str) -> str:
    """`text` in one line, with every character that LaTeX would read as a command made harmless."""
    return "".join(LATEX_SPECIALS.get(character, character) for character in one_line(text))


def item_latex(item: Item) -> str:
    """The item's tables, one float a size (several where a table is wide), and one of the paper's curves."""
    labels = [f"{item.slug}-{measured.size}" for measured in item.measured] or [item.slug]
    if item.experiment.published and item.experiment.published.curves:
        labels.append(f"{item.slug}-published")
    swept = sweep_tables(item)
    labels += [f"{item.slug}-sweep{f'-{i}' if i else ''}" for i in range(len(swept))]
    return "\n".join(to_latex(t, label) for t, label in zip([*tables(item), *swept], labels, strict=True))


def to_latex(table: Table, label: str) -> str:
    """The table in floats of the booktabs style, a wide one in several; labels `tab:label`, `tab:label-2` and so on."""
    found = parts(table)
    labels = [label if i == 1 else f"{label}-{i}" for i in range(1, len(found) + 1)]
    return "\n".join(_float(part, name) for part, name in zip(found, labels, strict=True))


def _float(table: Table, label: str) -> str:

    def bold(cell: Cell) -> str:
        text = escape_latex(cell.text)
        return rf"\textbf{{{text}}}" if cell.bold else text

    n_columns = len(table.columns)
    narrow = _characters(table) <= WIDEST_UNSCALED
    lines = [
        "% needs \\usepackage{booktabs}" + ("" if narrow else " and \\usepackage{graphicx}"),
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{escape_latex(f'{table.subject} {table.caption}')}}}",
        rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9:-]', '-', label)}}}",
        *([] if narrow else [r"  \resizebox{\linewidth}{!}{%"]),
        rf"  \begin{{tabular}}{{l{''.join('l' if words else 'r' for words in words_columns(table))}}}",
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


def _characters(table: Table) -> int:
    """Letters of the widest row that the columns' widths allow, gaps included."""
    rows = [row for block in table.blocks for row in block.rows]
    stub = max([len(table.stub), *(len(row.label) for row in rows)])
    columns = [max([len(name), *(len(row.cells[i].text) for row in rows)]) for i, name in enumerate(table.columns)]
    return stub + sum(width + 2 for width in columns)


def _first_of_line(text: str) -> str:
    """`text` as the first cell of a line: a bracket or a star there would belong to the command that ends the last."""
    return ("{}" if text.lstrip().startswith(("[", "*")) else "") + escape_latex(text)
