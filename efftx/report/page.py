"""The whole report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from efftx.report.badges import BADGES, badge, tally
from efftx.report.chapters import Chapter
from efftx.report.drawings import DRAWN_WITH, Drawing
from efftx.report.items import Item
from efftx.report.section import section
from efftx.report.stylesheet import STYLESHEET
from efftx.report.summary import summary


def page(chapters: Sequence[Chapter], drawn: Mapping[str, Sequence[Drawing]]) -> str:
    """The page: what became of each claim first, then paper by paper and item by item; `drawn` by the item's slug."""
    body = "\n".join(_chapter(chapter, drawn) for chapter in chapters)
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
<p>Every table and figure of the papers as <code>efftx</code> measured it, the published values beside it in columns
or rows of their own. A result names its size and its data; a small run supports or contradicts a direction,
a ratio or an ordering, and is no attempt at the paper's number.</p>
</header>
<main>
{summary(chapters)}
{body}
</main>
<footer><p>Made from the records by <code>efftx report</code>; figures drawn with {DRAWN_WITH}.</p></footer>
</body>
</html>
"""


def _chapter(chapter: Chapter, drawn: Mapping[str, Sequence[Drawing]]) -> str:
    source = f"<p>{escape(chapter.paper.source)}</p>" if chapter.paper.source else ""
    sections = "\n".join(section(item, chapter.number_of(item), drawn.get(item.slug, ())) for item in chapter.items)
    return (
        f'<section class="paper" aria-labelledby="{chapter.slug}">\n'
        f'<h2 id="{chapter.slug}">{escape(chapter.paper.title)}</h2>\n{source}\n{_contents(chapter)}\n{sections}\n'
        "</section>"
    )


def _contents(chapter: Chapter) -> str:
    """Every table and figure that the paper prints, in its order, the missing ones too; then our own."""
    rows = []
    for entry in chapter.entries:
        here = (
            "<br>".join(_link(item) for item in entry.items)
            or f'<span class="none">{escape(entry.printed.missing)}</span>'
        )
        rows.append(_row(entry.number, entry.printed.caption, here, entry.items))
    rows += [_row("ours", item.experiment.caption, _link(item), [item]) for item in chapter.own]
    heads = "".join(
        f'<th scope="col">{heading}</th>' for heading in ("in the paper", "what it shows", "here", "claims")
    )
    caption = "Every table and figure of the paper, and what is ours"
    return (
        f'<table class="contents"><caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>"
    )


def _link(item: Item) -> str:
    state = "" if item.state == "recorded" else f" ({item.state})"
    return f'<a href="#{item.slug}">{escape(item.experiment.id)}</a>{state}'


def _row(number: str, caption: str, here: str, items: Sequence[Item]) -> str:
    verdicts = [verdict for item in items for verdict in item.verdicts]
    counts = {word: sum(v.verdict == word for v in verdicts) for word in BADGES}
    badges = " ".join(badge(word, str(count)) for word, count in counts.items() if count)
    told = f'<span class="badges" role="img" aria-label="{tally(verdicts)}">{badges}</span>' if badges else ""
    return (
        f'<tr><th scope="row">{escape(number)}</th><td class="words">{escape(" ".join(caption.split()))}</td>'
        f'<td class="words">{here}</td><td class="words">{told}</td></tr>'
    )
