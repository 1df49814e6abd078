"""Text as LaTeX, of plain ASCII, so that any engine sets it, and which tables it sets in a line."""

from __future__ import annotations

from efftx.report.markup import one_line
from efftx.report.model import Table

LATEX_SPECIALS = {
    **{character: f"\\{character}" for character in "{}$&#%_"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "|": r"\textbar{}"},
    **{"`": r"\textasciigrave{}", "<": r"\textless{}", ">": r"\textgreater{}", "…": r"\ldots{}"},
    **{"␣": r"\textvisiblespace{}", '"': "''", "–": "--", "—": "---", "“": "``", "”": "''"},
    **{"±": r"$\pm$", "†": r"$^\dagger$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$"},
    **{"≈": r"$\approx$", "→": r"$\rightarrow$", "²": r"$^2$", "√": r"$\surd$", "−": r"$-$", "µ": r"$\mu$"},
    **{raised: rf"$^{{{plain}}}$" for raised, plain in zip("⁰¹³⁴⁵⁶⁷⁸⁹⁻", "013456789-", strict=True)},
}
WIDEST_UNSCALED = 66  # characters of a row that fit a line of the usual 10 points


def escape_latex(text: str) -> str:
    """`text` in one line, with every character that LaTeX would read as a command made harmless."""
    return "".join(LATEX_SPECIALS.get(character, character) for character in one_line(text))


def tex_first_of_line(text: str) -> str:
    """`text` as the first cell of a line: a bracket or a star there would belong to the command that ends the last."""
    return ("{}" if text.lstrip().startswith(("[", "*")) else "") + escape_latex(text)


def fits_a_line(table: Table) -> bool:
    """Whether the widest row that the columns' widths allow, gaps included, fits a line unscaled."""
    stub = max([len(table.stub), *(len(row.label) for row in table.rows)])
    columns = [
        max([len(name), *(len(row.cells[i].text) for row in table.rows)]) for i, name in enumerate(table.columns)
    ]
    return stub + sum(width + 2 for width in columns) <= WIDEST_UNSCALED
