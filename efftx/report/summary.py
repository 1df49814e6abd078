"""The first screen of the page: what holds, what does not, what was not tested, what it cost, and why to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from efftx.report.badges import BADGES, badge, tally
from efftx.report.chapters import OURS, PAPER, Chapter, Spent
from efftx.report.items import Item
from efftx.report.section import quoted
from efftx.study.claims import Verdict
from efftx.study.comparisons import CONTRADICTED, HOLDS, NOT_RUN, NOT_TESTED, UNDECIDED
from efftx.study.significance import LEVEL, MIN_SEEDS

MEANINGS = {
    HOLDS: "the test over the seeds excludes the opposite",
    CONTRADICTED: "the test excludes the claim",
    UNDECIDED: f"neither, or fewer than {MIN_SEEDS} seeds",
    NOT_TESTED: "a model in it has not passed its gate: it has not beaten a trivial answer",
    NOT_RUN: "a cell it speaks of has no record",
}
HEADINGS = ("its claims", "our claims", "tables and figures", "records", "replays", "machine hours")
TRUST = (
    f"A verdict comes from a test over seeds at one level, {100 * LEVEL:.0f} %, corrected over all comparisons of its "
    "claim (Holm); what is exact is counted and not tested. Models are compared only where each of them has beaten the "
    "trivial answers of its table, its gates. Every number is that of a record, which names its configuration, data, "
    "machine and command. A replay runs the first steps of a record again with today's code; timings come out "
    "differently each time and are not replayed."
)


def summary(chapters: Sequence[Chapter]) -> str:
    """Totals in one table, what the verdicts mean, then the claims of each paper, and ours folded below them."""
    parts = [
        '<section id="summary" aria-labelledby="summary-heading">',
        '<h2 id="summary-heading">What holds, and what does not</h2>',
        _totals(chapters),
        _legend(),
        f'<p class="trust">{TRUST}</p>',
        *(_claims(chapter) for chapter in chapters if chapter.items),
    ]
    return "\n".join([*parts, "</section>"])


def _totals(chapters: Sequence[Chapter]) -> str:
    head = "".join(f'<th scope="col">{heading}</th>' for heading in ("paper", *HEADINGS))
    rows = [_row(f'<a href="#{chapter.slug}">{escape(chapter.paper.title)}</a>', [chapter]) for chapter in chapters]
    if len(chapters) > 1:
        rows.append(_row("all", chapters))
    caption = "Claims with their verdicts, what is shown of each paper, and what it took"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="totals">'
        f"<caption><span>{caption}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>"
        "</table></div>"
    )


def _row(name: str, chapters: Sequence[Chapter]) -> str:
    spent = Spent.of(item for chapter in chapters for item in chapter.items)
    entries = [entry for chapter in chapters for entry in chapter.entries]
    shown = sum(entry.is_shown for entry in entries)
    cells = [
        *(_counts([v for chapter in chapters for _, v in chapter.claims(by)]) for by in (PAPER, OURS)),
        f"{shown} of {len(entries)} shown" if entries else "–",
        f"{spent.records:,}" if spent.records else "–",
        escape(spent.replayed.replace(", ", ",\n")) or "–",
        f"{spent.hours:.1f}" if spent.records else "–",
    ]
    told = [f'<td class="words" data-label="{label}">{cell}</td>' for label, cell in zip(HEADINGS, cells, strict=True)]
    return f'<tr><th scope="row">{name}</th>{"".join(told)}</tr>'


def _counts(verdicts: Sequence[Verdict]) -> str:
    """How many claims got which verdict, a badge each."""
    counts = {word: sum(v.verdict == word for v in verdicts) for word in BADGES}
    badges = " ".join(badge(word, str(count)) for word, count in counts.items() if count)
    return f'<span class="badges" role="img" aria-label="{tally(verdicts)}">{badges}</span>' if badges else "–"


def _legend() -> str:
    rows = "\n".join(f"<li>{badge(word)} {meaning}</li>" for word, meaning in MEANINGS.items())
    return f'<ul class="legend" aria-label="What the verdicts mean">\n{rows}\n</ul>'


def _claims(chapter: Chapter) -> str:
    title = escape(chapter.paper.title)
    theirs, ours = chapter.claims(PAPER), chapter.claims(OURS)
    parts = [f"<h3>{title}</h3>"]
    if theirs:
        parts.append(f"<h4>The paper's claims ({len(theirs)})</h4>\n{_listed(chapter, theirs)}")
    if ours:
        words = f"Our claims ({len(ours)}: {tally([v for _, v in ours])})"
        parts.append(
            f"<details{'' if theirs else ' open'}><summary>{words}</summary>\n{_listed(chapter, ours)}</details>"
        )
    return "\n".join(parts)


def _listed(chapter: Chapter, claims: Sequence[tuple[Item, Verdict]]) -> str:
    """The claims, those with one verdict together: what holds first, then what does not."""
    lines = [
        f'<li>{badge(word)} <a href="#{item.slug}">{escape(chapter.number_of(item) or item.experiment.id)}</a> '
        f'<span class="says">{escape(v.says)}</span>{quoted(v)}<span class="why">{escape(v.why)}</span></li>'
        for word in BADGES
        for item, v in claims
        if v.verdict == word
    ]
    return '<ul class="claims">\n' + "\n".join(lines) + "\n</ul>"
