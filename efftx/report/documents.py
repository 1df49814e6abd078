"""An item as a Markdown document and as a LaTeX file, and the index that lists all papers and items."""

from __future__ import annotations

import re
from collections.abc import Sequence

from efftx.report import latex, markup, sentences
from efftx.report.badges import tally
from efftx.report.chapters import OURS, PAPER, Chapter
from efftx.report.drawings import Drawing
from efftx.report.fairness import sweep_tables
from efftx.report.items import Item, Measured
from efftx.report.provenance import HEADINGS, counted, provenance
from efftx.report.tables import tables
from efftx.study.claims import Verdict


def item_markdown(item: Item, drawn: Sequence[Drawing]) -> str:
    """The whole item: claims with their verdicts, tables, figures, notes, and, folded, tests and records."""
    escape = markup.escape_markdown
    parts = [f"# {escape(item.experiment.id)}\n\n{escape(item.experiment.caption)}\n"]
    if item.state != "recorded":
        parts.append(f"State: **{item.state}**{f' – {escape(item.why)}' if item.why else ''}\n")
    parts += _claims(item)
    parts += [markup.to_markdown(table) for table in [*tables(item), *sweep_tables(item)]]
    parts += [
        f"![{escape(d.subject)}]({d.name}.svg)\n\n{escape(d.caption)} Data: [{d.name}.csv]({d.name}.csv)\n"
        for d in drawn
    ]
    if item.experiment.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {escape(note)}" for note in item.experiment.notes) + "\n")
    parts += [_tests(item, measured) for measured in item.measured if measured.verdicts]
    parts += [_provenance(measured) for measured in item.measured]
    return "\n".join(parts)


def item_latex(item: Item) -> str:
    """The item's tables, one float a size (several where a table is wide), and one of the paper's curves."""
    labels = [f"{item.slug}-{measured.size}" for measured in item.measured] or [item.slug]
    if item.experiment.published and item.experiment.published.curves:
        labels.append(f"{item.slug}-published")
    swept = sweep_tables(item)
    labels += [f"{item.slug}-sweep{f'-{i}' if i else ''}" for i in range(len(swept))]
    return "\n".join(latex.to_latex(t, label) for t, label in zip([*tables(item), *swept], labels, strict=True))


def index_markdown(chapters: Sequence[Chapter]) -> str:
    """Paper by paper every table and figure that it prints, with what became of the claims, and where the rest is."""
    escape = markup.escape_markdown
    lines = [
        "# Report\n",
        "Every table and figure of the papers: measured here, the published values beside. The same in one page:",
        "`index.html`. Written by `efftx report`; `efftx report --check` says whether it is what the records give.",
    ]
    for chapter in chapters:
        lines.append(f"\n## {escape(chapter.paper.title)}\n")
        if chapter.paper.source:
            lines.append(f"{escape(chapter.paper.source)}.\n")
        lines += [f"{sentence}\n" for sentence in totals(chapter)]
        lines += ["| in the paper | what | here | sizes | claims |", "|:---|:---|:---|:---|:---|"]
        for entry in chapter.entries:
            if entry.items:
                lines += [_line(item, entry.number) for item in entry.items]
            else:
                caption = escape(entry.printed.caption)
                lines.append(f"| {escape(entry.number)} | {caption} | {escape(entry.printed.missing)} | – | – |")
        lines += [_line(item, "ours") for item in chapter.own]
    return "\n".join(lines) + "\n"


def totals(chapter: Chapter) -> list[str]:
    """What became of the claims, how much of the paper is shown, and what its records took, a sentence each."""
    found = []
    for by, whose in ((PAPER, "The paper's claims"), (OURS, "Ours")):
        if claims := chapter.claims(by):
            found.append(f"{whose} ({len(claims)}): {tally([verdict for _, verdict in claims])}.")
    shown = [entry for entry in chapter.entries if entry.is_shown]
    if chapter.entries:
        found.append(f"Shown: {len(shown)} of {len(chapter.entries)} tables and figures of the paper.")
    spent = chapter.spent
    if spent.records:
        found.append(f"{spent.records:,} records, {spent.hours:.1f} machine hours; replays: {spent.replayed}.")
    return found


def _line(item: Item, number: str) -> str:
    escape = markup.escape_markdown
    link = f"[{escape(item.experiment.id)}]({item.slug}.md)"
    state = "" if item.state == "recorded" else f", {item.state}"
    caption = escape(" ".join(item.experiment.caption.split()))
    sizes = ", ".join(m.size for m in item.measured) or "–"
    return f"| {escape(number)} | {caption} | {link}{state} | {sizes} | {tally(item.verdicts) or '–'} |"


def _claims(item: Item) -> list[str]:
    escape = markup.escape_markdown
    sizes = [(f" (size {m.size})", m.verdicts) for m in item.measured] or [("", item.verdicts)]
    return [
        f"## Claims{where}\n\n"
        + "\n".join(f"- **{v.verdict}**: {escape(v.says)}{_quoted(v)} – {escape(v.why)}" for v in verdicts)
        + "\n"
        for where, verdicts in sizes
        if verdicts
    ]


def _quoted(verdict: Verdict) -> str:
    """The paper's own words behind a claim of the paper's."""
    return f" (“{markup.escape_markdown(verdict.claim.quote)}”)" if verdict.claim.quote else ""


def _tests(item: Item, measured: Measured) -> str:
    """The formula, the test and every comparison of each claim, folded."""
    lines = ["<details>", f"<summary>How the claims were tested (size {measured.size})</summary>", ""]
    for verdict in measured.verdicts:
        lines += _test(item, verdict)
    return "\n".join([*lines, "", "</details>", ""])


def _test(item: Item, verdict: Verdict) -> list[str]:
    escape = markup.escape_markdown
    told = [f"- **{escape(verdict.says)}** ({verdict.verdict})"]
    told.append(f"  - {_code(sentences.formula(verdict.claim))}")
    told.append(f"  - {escape(sentences.how_tested(verdict.claim))}")
    return told + [f"  - {escape(detail)}" for detail in sentences.details(verdict, item.experiment)]


def _code(text: str) -> str:
    """`text` as code, between as many backticks as it needs."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def _provenance(measured: Measured) -> str:
    escape = markup.escape_markdown
    found = provenance(measured)
    lines = ["<details>", f"<summary>{counted(measured)}</summary>", ""]
    lines += [f"| {' | '.join(HEADINGS)} |", f"|{':---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(escape(cell) for cell in line)} |" for line in found.lines]
    lines += ["", *[f"- machine {letter}: {escape(text)}" for letter, text in found.machines]]
    if found.commands:
        commands = "\n".join(found.commands)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", commands)), default=0))
        lines += ["", f"{fence}sh", commands, fence]
    return "\n".join([*lines, "", "</details>"]) + "\n"
