"""An item as a Markdown document and as a LaTeX file, and the index that lists all items."""

from __future__ import annotations

import re
from collections.abc import Sequence

from efftx.report import markup
from efftx.report.badges import tally
from efftx.report.drawings import Drawing
from efftx.report.items import Item, Measured
from efftx.report.provenance import HEADINGS, provenance
from efftx.report.tables import tables
from efftx.reproduce.claims import Verdict


def item_markdown(item: Item, drawn: Sequence[Drawing]) -> str:
    """The whole item: tables, figures, claims with their verdicts, provenance, notes."""
    escape = markup.escape_markdown
    parts = [f"# {escape(item.experiment.id)}\n\n{escape(item.experiment.caption)}\n"]
    parts.append(f"State: **{item.state}**{f' – {escape(item.why)}' if item.why else ''}\n")
    parts += [markup.to_markdown(table) for table in tables(item)]
    parts += [
        f"![{escape(d.subject)}]({d.name}.svg)\n\n{escape(d.caption)} Data: [{d.name}.csv]({d.name}.csv)\n"
        for d in drawn
    ]
    parts += _claims(item)
    for measured in item.measured:
        parts.append(_provenance(measured))
    if item.experiment.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {escape(note)}" for note in item.experiment.notes) + "\n")
    return "\n".join(parts)


def item_latex(item: Item) -> str:
    """The item's tables, one float a size, and one of the paper's curves."""
    labels = [f"{item.slug}-{measured.size}" for measured in item.measured] or [item.slug]
    if item.experiment.published and item.experiment.published.curves:
        labels.append(f"{item.slug}-published")
    return "\n".join(markup.to_latex(table, label) for table, label in zip(tables(item), labels, strict=True))


def index_markdown(items: Sequence[Item]) -> str:
    """One line an item: state, sizes, verdicts, and where the rest is."""
    lines = [
        "# Report\n",
        "Every table and figure: measured here, the published values beside. The same in one page: `index.html`.",
        "Written by `efftx report`; `efftx report --check` says whether it is what the records give.\n",
        "| item | what | state | sizes | claims |",
        "|:---|:---|:---|:---|:---|",
    ]
    for item in items:
        link = f"[{markup.escape_markdown(item.experiment.id)}]({item.slug}.md)"
        caption = markup.escape_markdown(" ".join(item.experiment.caption.split()))
        sizes = ", ".join(m.size for m in item.measured) or "–"
        lines.append(f"| {link} | {caption} | {item.state} | {sizes} | {tally(item.verdicts) or '–'} |")
    return "\n".join(lines) + "\n"


def margin_reason(verdict: Verdict) -> str:
    """Why the margin of a claim is that large, to go on behind its verdict; empty where it has none."""
    return f". Margin: {verdict.claim.reason}" if verdict.claim.reason else ""


def _claims(item: Item) -> list[str]:
    escape = markup.escape_markdown
    sizes = [(f" (size {m.size})", m.verdicts) for m in item.measured] or [("", item.verdicts)]
    return [
        f"## Claims{where}\n\n"
        + "\n".join(f"- **{v.verdict}**: {escape(v.says)} – {escape(v.why + margin_reason(v))}" for v in verdicts)
        + "\n"
        for where, verdicts in sizes
        if verdicts
    ]


def _provenance(measured: Measured) -> str:
    escape = markup.escape_markdown
    found = provenance(measured)
    lines = [f"## Records (size {measured.size})\n", f"| {' | '.join(HEADINGS)} |", f"|{':---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(escape(cell) for cell in line)} |" for line in found.lines]
    lines += ["", *[f"- machine {letter}: {escape(text)}" for letter, text in found.machines]]
    if found.commands:
        commands = "\n".join(found.commands)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", commands)), default=0))
        lines += ["", f"{fence}sh", commands, fence]
    return "\n".join(lines) + "\n"
