"""The report as HTML, Markdown and LaTeX: the templates in `templates/`, filled with items, chapters and tables.

Those of HTML escape whatever they get; the others say where (`md`, `tex`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from efftx.report import numbers, sentences
from efftx.report.badges import BADGES, INTERVAL, MEANINGS, REPLAY, count_verdicts, tally
from efftx.report.chapters import OURS, PAPER, Chapter, merged
from efftx.report.fairness import sweep_tables
from efftx.report.items import Item
from efftx.report.latex import escape_latex, fits_a_line, tex_first_of_line
from efftx.report.markup import escape_markdown, flat_headings
from efftx.report.model import Cell, Kind, Table, parts, words_columns
from efftx.report.provenance import configurations, counted, machines, provenance
from efftx.report.tables import tables
from efftx.study.comparisons import CONTRADICTED
from efftx.study.records import slug
from efftx.study.significance import LEVEL

if TYPE_CHECKING:
    from efftx.report.drawings import Drawing  # draws with matplotlib, which `--against` does without

SHORT = 24
"""Characters of a row's name that a page does not break."""
WHOSE = {PAPER: "the paper's", OURS: "ours"}
WRONG = {"stale": "fails", "partial": "open", "not run": "notrun"}
"""The badge of a state in which something is missing."""


def page(chapters: Sequence[Chapter], drawn: Mapping[str, Sequence[Drawing]], drawn_with: str) -> str:
    """The report as one HTML page that needs nothing else: what became of each claim, then paper by paper each item.

    `drawn` holds the drawings by the item's slug; `drawn_with` names the library that made them.
    """
    letters = machines(item for chapter in chapters for item in chapter.items)
    return rendered("page.html", chapters=chapters, drawn=drawn, drawn_with=drawn_with, letters=letters)


def item_markdown(item: Item, drawn: Sequence[Drawing], letters: Mapping[str, str] | None = None) -> str:
    """One item as a Markdown document, its machines by the `letters` of the report."""
    return rendered("item.md", item=item, drawn=drawn, letters=letters)


def index_markdown(chapters: Sequence[Chapter]) -> str:
    """The list of all items with their verdicts as a Markdown document."""
    return rendered("index.md", chapters=chapters)


def to_markdown(table: Table) -> str:
    """One table as GitHub Markdown."""
    return rendered("table.md", table=table)


def to_latex(tables: Mapping[str, Table]) -> str:
    """Tables in floats under their labels; of a wide one several, labelled `tab:label`, `tab:label-2` and so on."""
    floats = []
    for name, table in tables.items():
        label = re.sub(r"[^A-Za-z0-9:-]", "-", name)
        floats += [(part, label if i == 1 else f"{label}-{i}") for i, part in enumerate(parts(table), 1)]
    return _TEX.get_template("tables.tex").render(floats=floats)


def item_latex(item: Item) -> str:
    """The item's tables, one float a size (several where a table is wide), and one of the paper's curves."""
    labels = [f"{item.slug}-{measured.size}" for measured in item.measured] or [item.slug]
    if item.experiment.published and item.experiment.published.curves:
        labels.append(f"{item.slug}-published")
    swept = sweep_tables(item)
    labels += [f"{item.slug}-sweep{f'-{i}' if i else ''}" for i in range(len(swept))]
    return to_latex(dict(zip(labels, [*tables(item), *swept], strict=True)))


def record_anchor(item: Item, size: str, row: str) -> str:
    """The anchor of the records of one row at one size."""
    return f"{item.slug}-{size}-records-{slug(row)}"


def anchor_behind(item: Item, cell: Cell) -> str:
    """The anchor of the records behind a cell of ours, "" for any other."""
    return record_anchor(item, cell.size, cell.row) if cell.kind in (Kind.MEASURED, Kind.BASELINE) and cell.size else ""


def _fence(text: str, least: int) -> str:
    """So many backticks that no run of them in `text` ends what they enclose."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _code(text: str) -> str:
    fence = _fence(text, 1)
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def _fenced(text: str, language: str) -> str:
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def rendered(name: str, **context: object) -> str:
    """The template `name`, filled."""
    return _TEMPLATES.get_template(name).render(context)


_TEMPLATES = Environment(
    loader=PackageLoader("efftx.report"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"code": _code, "fenced": _fenced, "md": escape_markdown}
_TEMPLATES.filters |= {"tex": escape_latex, "tex_first": tex_first_of_line}
_TEMPLATES.globals |= {"BADGES": BADGES, "LEVEL": LEVEL, "MEANINGS": MEANINGS, "NOT_RUN": numbers.NOT_RUN}
_TEMPLATES.globals |= {"CONTRADICTED": CONTRADICTED, "INTERVAL": INTERVAL, "REPLAY": REPLAY}
_TEMPLATES.globals |= {"OURS": OURS, "PAPER": PAPER, "SHORT": SHORT, "WHOSE": WHOSE, "WRONG": WRONG}
_USED: tuple[Callable[..., object], ...] = (
    *(anchor_behind, configurations, count_verdicts, counted, fits_a_line, flat_headings, merged, parts, provenance),
    *(record_anchor, sentences.details, sentences.formula, sentences.how_tested, sweep_tables, tables, tally),
    *(to_markdown, words_columns),
)
_TEMPLATES.globals |= {function.__name__: function for function in _USED}
# Braces are LaTeX's own.
_TEX = _TEMPLATES.overlay(
    block_start_string="<%",
    block_end_string="%>",
    variable_start_string="<<",
    variable_end_string=">>",
    comment_start_string="<#",
    comment_end_string="#>",
)
