"""LaTeX of the tables: every character as itself, every row as wide as the table, and an engine that sets it."""

from __future__ import annotations

import re

from efftx.report import latex
from efftx.report.model import Block, Cell, Kind, Row, Table

from .test_markup import nasty_table


def test_latex_shows_every_special_character_as_itself() -> None:
    assert latex.escape_latex(r"5% a_b & $ # {} ^ ~ \ ±") == (
        r"5\% a\_b \& \$ \# \{\} \textasciicircum{} \textasciitilde{} \textbackslash{} $\pm$"
    )


def test_a_raised_power_becomes_an_exponent_in_latex() -> None:
    assert latex.escape_latex("2.6×10⁻⁵") == r"2.6$\times$10$^{-}$$^{5}$"


def test_latex_has_booktabs_rules_and_one_cell_a_column() -> None:
    text = latex.to_latex(nasty_table(), "paper-table2_cpu")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert r"\cmidrule(lr){2-2} \cmidrule(lr){3-3}" in text
    assert r"\label{tab:paper-table2-cpu}" in text
    assert r"\textbf{81.0 $\pm$ 1.0}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    for line in body.strip().splitlines():
        assert len(re.findall(r"(?<!\\)&", line)) == 2, line
        assert not re.search(r"(?<!\\)[%#_]", line), line


def test_a_wide_latex_table_is_set_in_parts_and_a_wide_part_is_scaled_to_the_line() -> None:
    cells = tuple(Cell("1", Kind.MEASURED) for _ in range(7))
    text = latex.to_latex(Table("s", "c", "m", tuple("abcdefg"), (Block("", (Row("a", cells),)),)), "x")
    assert re.findall(r"\\label\{([^}]*)\}", text) == ["tab:x", "tab:x-2"]
    assert "m & a & b & c & d \\\\" in text
    assert "m & e & f & g \\\\" in text
    assert r"\resizebox" not in text
    wide = Table("s", "c", "m", ("x" * 50, "y" * 50), (Block("", (Row("a", cells[:2]),)),))
    assert r"\resizebox{\linewidth}" in latex.to_latex(wide, "x")


def test_a_bracket_at_the_beginning_of_a_latex_row_is_no_option_of_the_line_end() -> None:
    rows = tuple(Row(label, (Cell("1", Kind.MEASURED),)) for label in ("[k]", "*", "a"))
    text = latex.to_latex(Table("s", "c", "[m]", ("x",), (Block("", rows),)), "x")
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("{}")] == [
        r"{}[m] & x \\",
        r"{}[k] & 1 \\",
        r"{}* & 1 \\",
    ]


def test_latex_keeps_a_caption_in_one_paragraph() -> None:
    text = latex.to_latex(Table("a\n\nb", "c|`d`", "m", (), ()), "x")
    assert r"\caption{a b c\textbar{}\textasciigrave{}d\textasciigrave{}}" in text
