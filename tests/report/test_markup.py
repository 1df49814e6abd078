from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown

from efftx.report import markup, render
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


def test_markdown_has_as_many_cells_in_every_line() -> None:
    lines = [line for line in render.to_markdown(nasty_table()).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert "| Published: one | Measured: one |" in lines[0]
    assert "**81.0 ± 1.0**" in lines[2]
    assert r"\<c>" in lines[2]


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


def parsed(markdown: str) -> list[Any]:
    """The tokens of the rendered page, those of a line one by one."""
    return [child for token in Markdown(markdown).parsed for child in (token.children or [token])]


def rendered(markdown: str) -> str:
    """The words that a reader of the rendered page sees."""
    return "".join(token.content for token in parsed(markdown) if token.type in ("text", "code_inline"))


def test_markdown_escapes_what_would_be_markup_where_it_stands_and_nothing_else() -> None:
    assert markup.escape_markdown("a | b & <c> `d` $e$ ~f~ &amp;\ng") == r"a \| b & \<c> \`d\` \$e\$ \~f\~ \&amp; g"
    assert markup.escape_markdown("c4[3210+40+30 documents,unigram-2000]") == "c4[3210+40+30 documents,unigram-2000]"
    assert markup.escape_markdown("THP_MEM_ALLOC_ENABLE=1, x < 3 > 2 # a & b - c") == (
        "THP_MEM_ALLOC_ENABLE=1, x < 3 > 2 # a & b - c"
    )
    assert markup.escape_markdown("+ Sparse FF") == r"\+ Sparse FF"
    assert markup.escape_markdown("- x") == r"\- x"
    assert markup.escape_markdown("12. x") == r"12\. x"
    assert markup.escape_markdown("1.5 x") == "1.5 x"
    assert markup.escape_markdown("-1.5") == "-1.5"


@pytest.mark.parametrize(
    "text", [SCRIPT, NASTY, "a\\", "_a_ b_c_d __e__", "[x](y) [z][w] ![i](j) [^1] [ ] k", "a<", "==="]
)
def test_what_is_escaped_is_rendered_as_it_is(text: str) -> None:
    assert rendered(markup.escape_markdown(text)) == text
    assert rendered(f"**{markup.escape_markdown(text)}** and so on") == f"{text} and so on"


@given(st.text(alphabet=st.sampled_from("ab1 .\\`*_[](){}<>|#~&$!+-=:;^/\"'"), min_size=1))
def test_any_text_is_rendered_as_it_is(text: str) -> None:
    text = " ".join(text.split())
    assert " ".join(rendered(f"x {markup.escape_markdown(text)} x").split()) == " ".join(f"x {text} x".split())


@pytest.mark.parametrize("text", [SCRIPT, NASTY, "a\r\n\r\n# b", "a\u2028b"])
def test_no_name_breaks_a_markdown_table(text: str) -> None:
    row = Row(text, (Cell(text, Kind.WORDS),))
    lines = render.to_markdown(Table(text, text, text, (text,), (Block(text, (row,)),), notes=(text,))).split("\n")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table} == {3}
    assert not any(line.startswith("#") for line in lines)
    assert not any(token.type.startswith("html") for token in parsed("\n".join(lines)))


@pytest.mark.parametrize("text", ["=1+1", "+ Sparse FF", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1+1"])
def test_a_spreadsheet_reads_no_cell_as_a_formula(text: str) -> None:
    lines = list(csv.reader(io.StringIO(markup.rows_to_csv([text], [[text, "1"]]), newline="")))
    assert [line[0] for line in lines] == [f"'{text}".replace("\r", " ")] * 2


@pytest.mark.parametrize("number", ["-1.5", "+2", "-1e-05", "-inf", ""])
def test_a_number_stays_a_number(number: str) -> None:
    assert markup.escape_csv(number) == number
