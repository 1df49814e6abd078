"""The whole report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from efftx.report import figures, markup
from efftx.report.badges import BADGES, tally
from efftx.report.documents import margin_reason
from efftx.report.drawings import DRAWN_WITH, Drawing
from efftx.report.items import Item, Measured
from efftx.report.provenance import HEADINGS, provenance
from efftx.report.stylesheet import STYLESHEET
from efftx.report.tables import tables
from efftx.reproduce.claims import Verdict
from efftx.reproduce.comparisons import CONTRADICTED, HOLDS, NOT_RUN, NOT_TESTED, UNDECIDED

STATES = {"recorded": "holds", "stale": "fails", "partial": "open", "not run": "notrun"}
# Inline SVG takes its colours from the page, so that it can be read in the dark as well.
THEMED = {
    figures.INK: "var(--ink)",
    figures.FAINT: "var(--faint)",
    "#dddddd": "var(--rule)",
    "#ffffff": "var(--paper)",
    **{colour.lower(): f"var(--line-{i})" for i, colour in enumerate(figures.PALETTE)},
}


def page(items: Sequence[Item], drawn: Mapping[str, Sequence[Drawing]]) -> str:
    """The page: what there is and what became of each claim first, then item by item; `drawn` by the item's slug."""
    sections = "\n".join(_section(item, drawn.get(item.slug, ())) for item in items)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>efftx: tables and figures, measured</title>
<style>
{STYLESHEET}</style>
</head>
<body>
<header>
<h1>Tables and figures, measured</h1>
<p>Every table and figure as <code>efftx</code> measured it, the published values beside it in columns
or rows of their own. A result names its size and its data; a small run supports or contradicts a direction,
a ratio or an ordering, and is no attempt at the paper's number.</p>
</header>
<main>
<section aria-labelledby="overview">
<h2 id="overview">Overview</h2>
{_overview(items)}
{_legend()}
</section>
{sections}
</main>
<footer><p>Made from the records by <code>efftx report</code>; figures drawn with {DRAWN_WITH}.</p></footer>
</body>
</html>
"""


def _overview(items: Sequence[Item]) -> str:
    rows = []
    for item in items:
        badges = " ".join(_badge(v.verdict, title=v.says, short=True) for v in item.verdicts)
        sizes = ", ".join(m.size for m in item.measured) or "–"
        rows.append(
            f'<tr><th scope="row"><a href="#{item.slug}">{escape(item.experiment.id)}</a></th>'
            f"<td class='words'>{escape(item.experiment.caption)}</td>"
            f"<td class='words'>{_state(item)}</td><td class='words'>{sizes}</td>"
            f'<td class="words"><span class="badges" role="img" aria-label="{escape(tally(item.verdicts))}">'
            f"{badges or '–'}</span></td></tr>"
        )
    return (
        '<div class="scroll"><table class="overview"><caption>All items, with their claims at the largest size '
        'that was run</caption>\n<thead><tr><th scope="col">item</th><th scope="col">what it shows</th>'
        '<th scope="col">state</th>'
        '<th scope="col">sizes</th><th scope="col">claims</th></tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _legend() -> str:
    meanings = {
        HOLDS: "its test over the seeds rejects the opposite at 5 %, Holm over the comparisons of the claim",
        CONTRADICTED: "the test of the opposite does",
        UNDECIDED: "neither does, or there are fewer than three seeds",
        NOT_TESTED: "no model beat the trivial answer",
        NOT_RUN: "a cell it speaks of has no record",
    }
    rows = "\n".join(f"<li>{_badge(word)} {meaning}</li>" for word, meaning in meanings.items())
    return f'<ul class="legend" aria-label="What the verdicts mean">\n{rows}\n</ul>'


def _section(item: Item, drawn: Sequence[Drawing]) -> str:
    experiment = item.experiment
    parts = [f'<section class="item" aria-labelledby="{item.slug}">']
    parts.append(
        f'<h2 id="{item.slug}"><span class="id">{escape(experiment.id)}</span> {escape(experiment.caption)}</h2>'
    )
    parts.append(f'<p class="state">{_state(item)}{f" {escape(item.why)}" if item.why else ""}</p>')
    parts += [markup.to_html(table) for table in tables(item)]
    parts += [_figure(drawing) for drawing in drawn]
    for where, verdicts in [(f", size {m.size}", m.verdicts) for m in item.measured] or [("", item.verdicts)]:
        if verdicts:
            parts.append(_claims(f"Claims{where}", verdicts))
    if experiment.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in experiment.notes)
        parts.append(f"<h3>Notes</h3>\n<ul>{notes}</ul>")
    if experiment.head:
        parts.append(f"<details><summary>About this experiment</summary><pre>{escape(experiment.head)}</pre></details>")
    parts += [_records(measured) for measured in item.measured]
    parts.append('<p class="top"><a href="#overview">Overview</a></p>')
    return "\n".join([*parts, "</section>"])


def _state(item: Item) -> str:
    return f'<span class="badge {STATES[item.state]}">{item.state}</span>'


def _badge(verdict: str, title: str = "", short: bool = False) -> str:
    style, sign = BADGES[verdict]
    tip = f' title="{escape(f"{title}: {verdict}")}"' if title else ""
    text = sign if short else f"{sign} {verdict}"
    return f'<span class="badge {style}"{tip}>{text}</span>'


def _claims(heading: str, verdicts: Sequence[Verdict]) -> str:
    lines = "\n".join(
        f'<li>{_badge(v.verdict)} <span class="says">{escape(v.says)}</span><br>'
        f'<span class="why">{escape(v.why + margin_reason(v))}</span></li>'
        for v in verdicts
    )
    return f'<h3>{escape(heading)}</h3>\n<ul class="claims">\n{lines}\n</ul>'


def _figure(drawing: Drawing) -> str:
    return (
        f'<figure id="{drawing.name}">\n{inline_svg(drawing)}\n<figcaption>{escape(drawing.caption)} '
        f"Data: <code>{drawing.name}.csv</code></figcaption>\n</figure>"
    )


def inline_svg(drawing: Drawing) -> str:
    """The drawing as an element of the page: titled, in the page's colours, its inner names unlike any other's."""
    svg = drawing.svg[drawing.svg.index("<svg") :]
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda m: THEMED.get(m.group().lower(), m.group()), svg, flags=re.IGNORECASE)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{drawing.name}.\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{drawing.name}.\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{drawing.name}.\1)", svg)
    title = f"{drawing.name}.title"
    head = f'<svg role="img" aria-labelledby="{title}"'
    return (
        svg.replace("<svg", head, 1).replace(">", f'><title id="{title}">{escape(drawing.subject)}</title>', 1).strip()
    )


def _records(measured: Measured) -> str:
    found = provenance(measured)
    head = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(line[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in line[1:])}</tr>'
        for line in found.lines
    )
    machines = "".join(f"<li>machine {letter}: {escape(text)}</li>" for letter, text in found.machines)
    commands = escape("\n".join(found.commands))
    n = len(found.lines)
    return (
        f"<details><summary>Records at size {measured.size} ({n})</summary>\n"
        f'<div class="scroll"><table class="records"><caption>Records at size {measured.size}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n"
        f"<ul>{machines}</ul>\n<pre>{commands}</pre></details>"
    )
