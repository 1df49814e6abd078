"""One item on the page: its claims with their verdicts, tables, figures, notes, and, folded, tests and records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from efftx.report import figures, markup, sentences
from efftx.report.badges import badge
from efftx.report.drawings import Drawing
from efftx.report.fairness import sweep_tables
from efftx.report.items import Item, Measured
from efftx.report.model import Cell, Kind
from efftx.report.provenance import configurations, counted, provenance
from efftx.report.tables import tables
from efftx.study.claims import Verdict
from efftx.study.records import slug

WRONG = {"stale": "fails", "partial": "open", "not run": "notrun"}
# Inline SVG takes its colours from the page, so that it can be read in the dark as well.
THEMED = {
    figures.INK: "var(--ink)",
    figures.FAINT: "var(--faint)",
    "#dddddd": "var(--rule)",
    "#ffffff": "var(--paper)",
    **{colour.lower(): f"var(--line-{i})" for i, colour in enumerate(figures.PALETTE)},
}


def section(item: Item, number: str, drawn: Sequence[Drawing]) -> str:
    """The item under its number in the paper ("" for one of our own)."""
    experiment = item.experiment
    place = f'<span class="id">{escape(number or "Ours")} <code>{escape(experiment.id)}</code></span>'
    parts = [
        f'<section class="item" aria-labelledby="{item.slug}">',
        f'<h3 id="{item.slug}">{place} {escape(experiment.caption)}</h3>',
    ]
    if item.state in WRONG:
        why = f" {escape(item.why)}" if item.why else ""
        parts.append(f'<p class="state"><span class="badge {WRONG[item.state]}">{item.state}</span>{why}</p>')
    for where, verdicts in [(f", size {m.size}", m.verdicts) for m in item.measured] or [("", item.verdicts)]:
        if verdicts:
            parts.append(_claims(item, f"Claims{where}", verdicts))
    shown = "\n".join(markup.to_html(table, lambda cell: _record_of(item, cell)) for table in tables(item))
    empty = not item.measured and experiment.published is None
    parts.append(f"<details><summary>The table that a run fills</summary>\n{shown}</details>" if empty else shown)
    parts += [
        f"<details><summary>The sweep behind it</summary>\n{markup.to_html(table)}</details>"
        for table in sweep_tables(item)
    ]
    parts += [_figures(drawn)] if drawn else []
    if experiment.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in experiment.notes)
        parts.append(f"<h4>Notes</h4>\n<ul>{notes}</ul>")
    if experiment.head:
        parts.append(f"<details><summary>About this experiment</summary><pre>{escape(experiment.head)}</pre></details>")
    parts += [_records(item, measured) for measured in item.measured]
    parts.append('<p class="top"><a href="#summary">Summary</a></p>')
    return "\n".join([*parts, "</section>"])


def _claims(item: Item, heading: str, verdicts: Sequence[Verdict]) -> str:
    lines = []
    for v in verdicts:
        lines.append(
            f'<li>{badge(v.verdict)} <span class="says">{escape(v.says)}</span>{quoted(v)}'
            f'<span class="why">{escape(v.why)}</span>{_test(item, v)}</li>'
        )
    return f"<h4>{escape(heading)}</h4>\n" + '<ul class="claims">\n' + "\n".join(lines) + "\n</ul>"


def quoted(verdict: Verdict) -> str:
    """The paper's own words behind a claim of the paper's."""
    return f' <q class="quote">{escape(verdict.claim.quote)}</q>' if verdict.claim.quote else ""


def _test(item: Item, verdict: Verdict) -> str:
    """The formula, the test, and every comparison, folded."""
    told = [f"<code>{escape(sentences.formula(verdict.claim))}</code>", escape(sentences.how_tested(verdict.claim))]
    told += [escape(detail) for detail in sentences.details(verdict, item.experiment)]
    lines = "".join(f"<li>{line}</li>" for line in told)
    return f'<details class="test"><summary>how it was tested</summary><ul>{lines}</ul></details>'


def _figures(drawn: Sequence[Drawing]) -> str:
    return '<div class="figures">\n' + "\n".join(_figure(drawing) for drawing in drawn) + "\n</div>"


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


def _anchor(item: Item, size: str, row: str) -> str:
    return f"{item.slug}-{size}-records-{slug(row)}"


def _record_of(item: Item, cell: Cell) -> str:
    """The anchor of the records behind a cell of ours, "" for any other."""
    return _anchor(item, cell.size, cell.row) if cell.kind in (Kind.MEASURED, Kind.BASELINE) and cell.size else ""


def _records(item: Item, measured: Measured) -> str:
    """Row by row what was run: overrides, each seed's record and its replay, the whole configuration folded; then
    machines and commands.
    """
    experiment, found = item.experiment, provenance(measured)
    parts = [f'<details class="records"><summary>{counted(measured)}</summary>']
    if common := experiment.common_overrides(measured.size) if experiment.kind == "train" else []:
        parts.append(f"<p>Every row: <code>{escape(' '.join(common))}</code></p>")
    for row in dict.fromkeys(record.row for record in measured.records):
        spec = experiment.rows.get(row)
        own = (
            " ".join([*spec.overrides, *spec.sizes.get(measured.size, [])])
            if spec
            else "a gate, computed from the data"
        )
        told = f" <code>{escape(own)}</code>" if own else ""
        lines = "\n".join(
            f"<li>{', '.join(_told(line))}</li>"
            for record, line in zip(measured.records, found.lines, strict=True)
            if record.row == row
        )
        anchor = _anchor(item, measured.size, row)
        whole = "\n".join(_configuration(text) for text in configurations(measured, row))
        parts.append(
            f'<div id="{anchor}"><p><b>{escape(experiment.label(row))}</b>{told}</p>\n<ul>{lines}</ul>\n{whole}</div>'
        )
    parts.append(
        "<ul>" + "".join(f"<li>machine {letter}: {escape(text)}</li>" for letter, text in found.machines) + "</ul>"
    )
    parts.append(f"<pre>{escape(chr(10).join(found.commands))}</pre></details>")
    return "\n".join(parts)


def _configuration(text: str) -> str:
    return f'<details class="config"><summary>the whole configuration</summary><pre>{escape(text)}</pre></details>'


def _told(line: Sequence[str]) -> list[str]:
    """A record in words, from a line of the provenance: `seed 0`, `config 0123`, `replayed: not yet`."""
    seed, config, data, checksum, wall, machine, code, replayed = map(escape, line[1:])
    told = [f"seed {seed}", f"config <code>{config}</code>"]
    told += [f"data {data}, sha-256 <code>{checksum}</code>"] if data != "–" else []
    return [*told, wall, f"machine {machine}", f"code <code>{code}</code>", f"replayed: {replayed}"]
