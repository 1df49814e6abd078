from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console

from efftx.report import markup
from efftx.report.model import Block, Cell, Kind, Row, Span, Table

SCRIPT = """<script>alert('x"')</script> & </td> | `a` ~~b~~ $c$ &amp; \\ [d](javascript:e)"""
NASTY = r"50% of a_b & <c> | $d #1 {e} \f ~g ^h *i* `j` [k]"


def nasty_table() -> Table:
    cells = (
        Cell("12.3 †", Kind.UNVERIFIED, NASTY, "one", "", 12.34),
        Cell("81.0 ± 1.0", Kind.MEASURED, NASTY, "one", "cpu", 81.0, 1.0, 3, bold=True),
    )
    missing = (Cell("–", Kind.MISSING), Cell("not run", Kind.MISSING, "b", "one", "cpu", n=0))
    return Table(
        subject=NASTY,
        caption="Measured.",
        stub="model",
        columns=("one", "one"),
        blocks=(Block("", (Row(NASTY, cells), Row("b", missing))),),
        spans=(Span("Published", 1), Span("Measured", 1)),
        notes=(NASTY,),
    )


def test_latex_shows_every_special_character_as_itself() -> None:
    assert markup.escape_latex(r"5% a_b & $ # {} ^ ~ \ ±") == (
        r"5\% a\_b \& \$ \# \{\} \textasciicircum{} \textasciitilde{} \textbackslash{} $\pm$"
    )


def test_a_raised_power_becomes_an_exponent_in_latex() -> None:
    assert markup.escape_latex("2.6×10⁻⁵") == r"2.6$\times$10$^{-}$$^{5}$"


def test_latex_has_booktabs_rules_and_one_cell_a_column() -> None:
    text = markup.to_latex(nasty_table(), "paper-table2_cpu")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert r"\cmidrule(lr){2-2} \cmidrule(lr){3-3}" in text
    assert r"\label{tab:paper-table2-cpu}" in text
    assert r"\textbf{81.0 $\pm$ 1.0}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    for line in body.strip().splitlines():
        assert len(re.findall(r"(?<!\\)&", line)) == 2, line
        assert not re.search(r"(?<!\\)[%#_]", line), line


def test_a_wide_latex_table_is_scaled_to_the_line() -> None:
    row = Row("a", tuple(Cell("1", Kind.MEASURED) for _ in range(7)))
    table = Table("s", "c", "m", tuple("abcdefg"), (Block("", (row,)),))
    assert r"\resizebox{\linewidth}" in markup.to_latex(table, "x")
    assert r"\resizebox" not in markup.to_latex(nasty_table(), "x")


def test_markdown_has_as_many_cells_in_every_line() -> None:
    lines = [line for line in markup.to_markdown(nasty_table()).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert "| Published: one | Measured: one |" in lines[0]
    assert "**81.0 ± 1.0**" in lines[2]
    assert r"\<c\>" in lines[2]


def test_html_escapes_names_and_scopes_every_heading() -> None:
    text = markup.to_html(nasty_table())
    assert "<c>" not in text
    assert "&lt;c&gt;" in text
    assert "&amp;" in text
    assert all("scope=" in tag for tag in re.findall(r"<th\b[^>]*>", text))
    assert '<td class="published-unverified">12.3 †</td>' in text
    assert '<td class="measured"><strong>81.0 ± 1.0</strong></td>' in text
    assert text.count("<caption>") == 1


def test_csv_is_unrounded_and_keeps_kinds_apart() -> None:
    lines = list(csv.DictReader(io.StringIO(markup.to_csv([nasty_table()]))))
    assert [(line["row"], line["kind"], line["size"], line["mean"], line["std"], line["n"]) for line in lines] == [
        (NASTY, "published-unverified", "", "12.34", "", ""),
        (NASTY, "measured", "cpu", "81.0", "1.0", "3"),
        ("b", "missing", "cpu", "", "", "0"),
    ]


def test_csv_lists_a_published_value_once_for_all_sizes() -> None:
    table = nasty_table()
    assert markup.to_csv([table, table]) == markup.to_csv([table])


def on_terminal(table: Table, width: int) -> str:
    out = io.StringIO()
    markup.to_terminal(table, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_shows_names_and_numbers(width: int) -> None:
    text = on_terminal(nasty_table(), width)
    assert "81.0 ± 1.0" in text
    assert "12.3 †" in text
    assert "[k]" in text  # rich would take it for a style


def test_the_terminal_shows_words_below_the_numbers() -> None:
    row = Row("full", (Cell("max(b l^2)", Kind.WORDS), Cell("1.99", Kind.MEASURED)))
    table = Table("s", "c", "m", ("memory", "exponent"), (Block("", (row,)),))
    lines = [line.strip() for line in on_terminal(table, 80).splitlines()]
    assert "full  1.99" in [re.sub(r"\s{2,}", "  ", line) for line in lines]
    assert "full – memory: max(b l^2)" in lines


def test_markdown_shows_markup_entities_and_mathematics_as_they_are() -> None:
    assert markup.escape_markdown("a | b & <c> `d` $e$ ~f~ &amp;\ng") == (r"a \| b \& \<c\> \`d\` \$e\$ \~f\~ \&amp; g")
    assert markup.escape_markdown("+ Sparse FF") == r"\+ Sparse FF"
    assert markup.escape_markdown("- x") == r"\- x"
    assert markup.escape_markdown("12. x") == r"12\. x"
    assert markup.escape_markdown("1.5 x") == "1.5 x"
    assert markup.escape_markdown("-1.5") == "-1.5"


@pytest.mark.parametrize("text", [SCRIPT, NASTY, "a\r\n\r\n# b", "a\u2028b"])
def test_no_name_breaks_a_markdown_table(text: str) -> None:
    row = Row(text, (Cell(text, Kind.WORDS),))
    lines = markup.to_markdown(Table(text, text, text, (text,), (Block(text, (row,)),), notes=(text,))).split("\n")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table} == {3}
    assert not any(line.startswith("#") for line in lines)
    for special in "<>`~$&[]":
        assert not re.search(rf"(?<!\\)(?:\\\\)*{re.escape(special)}", "".join(lines)), special


def test_a_bracket_at_the_beginning_of_a_latex_row_is_no_option_of_the_line_end() -> None:
    rows = tuple(Row(label, (Cell("1", Kind.MEASURED),)) for label in ("[k]", "*", "a"))
    text = markup.to_latex(Table("s", "c", "[m]", ("x",), (Block("", rows),)), "x")
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("{}")] == [
        r"{}[m] & x \\",
        r"{}[k] & 1 \\",
        r"{}* & 1 \\",
    ]


def test_latex_keeps_a_caption_in_one_paragraph() -> None:
    text = markup.to_latex(Table("a\n\nb", "c|`d`", "m", (), ()), "x")
    assert r"\caption{a b c\textbar{}\textasciigrave{}d\textasciigrave{}}" in text


@pytest.mark.parametrize("text", ["=1+1", "+ Sparse FF", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1+1"])
def test_a_spreadsheet_reads_no_cell_as_a_formula(text: str) -> None:
    lines = list(csv.reader(io.StringIO(markup.rows_to_csv([text], [[text, "1"]]), newline="")))
    assert [line[0] for line in lines] == [f"'{text}".replace("\r", " ")] * 2


@pytest.mark.parametrize("number", ["-1.5", "+2", "-1e-05", "-inf", ""])
def test_a_number_stays_a_number(number: str) -> None:
    assert markup.escape_csv(number) == number


def test_html_keeps_a_script_as_text() -> None:
    row = Row(SCRIPT, (Cell(SCRIPT, Kind.WORDS),))
    text = markup.to_html(
        Table(SCRIPT, SCRIPT, SCRIPT, (SCRIPT,), (Block(SCRIPT, (row,)),), (Span(SCRIPT, 1),), (SCRIPT,))
    )
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 8
    assert text.count("</td>") == 1
