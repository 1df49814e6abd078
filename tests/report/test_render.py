"""A table as HTML: every name is text, every heading has a scope."""

from __future__ import annotations

import re

from efftx.report import render
from efftx.report.model import Block, Cell, Kind, Row, Span, Table

from .test_markup import SCRIPT, nasty_table


def table_html(table: Table) -> str:
    return str(render._TEMPLATES.get_template("table.html").make_module().table(table))  # type: ignore[attr-defined]


def test_html_escapes_names_and_scopes_every_heading() -> None:
    text = table_html(nasty_table())
    assert "<c>" not in text
    assert "&lt;c&gt;" in text
    assert "&amp;" in text
    assert all("scope=" in tag for tag in re.findall(r"<th\b[^>]*>", text))
    assert '<td class="published-unverified">12.3 †</td>' in text
    assert '<td class="measured"><strong>81.0 ± 1.0</strong></td>' in text
    assert text.count("<caption>") == 1


def test_html_keeps_a_script_as_text() -> None:
    row = Row(SCRIPT, (Cell(SCRIPT, Kind.WORDS),))
    text = table_html(Table(SCRIPT, SCRIPT, SCRIPT, (SCRIPT,), (Block(SCRIPT, (row,)),), (Span(SCRIPT, 1),), (SCRIPT,)))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 9
    assert text.count("</td>") == 1
