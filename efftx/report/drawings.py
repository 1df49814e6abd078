"""All figures of an item, each with the numbers it was drawn from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

import matplotlib

from efftx.report import figures
from efftx.report.illustrations import illustrate
from efftx.report.items import Item, Measured
from efftx.report.numbers import sentence
from efftx.report.plotdata import Plot, panels, paper_plot, to_csv
from efftx.report.trends import trend_plots

DRAWN_WITH = f"matplotlib {matplotlib.__version__}"
# A page's drawings take their colours from the page, so that they can be read in the dark as well.
THEMED = {
    figures.INK: "var(--ink)",
    figures.FAINT: "var(--faint)",
    "#dddddd": "var(--rule)",
    "#ffffff": "var(--paper)",
    **{colour.lower(): f"var(--line-{i})" for i, colour in enumerate(figures.PALETTE)},
}


@dataclass(frozen=True)
class Drawing:
    """One figure: its file name without ending, what stands under it, its SVG text, its data as CSV."""

    name: str
    subject: str
    caption: str
    svg: str
    csv: str

    @property
    def inline(self) -> str:
        """The SVG as an element of a page: titled, in the page's colours, its inner names unlike any other's."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
        svg = re.sub(r"#[0-9a-f]{6}\b", lambda m: THEMED.get(m.group().lower(), m.group()), svg, flags=re.IGNORECASE)
        svg = re.sub(r'\bid="([^"]+)"', rf'id="{self.name}.\1"', svg)
        svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{self.name}.\1"', svg)
        svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{self.name}.\1)", svg)
        title = f"{self.name}.title"
        svg = svg.replace("<svg", f'<svg role="img" aria-labelledby="{title}"', 1)
        return svg.replace(">", f'><title id="{title}">{escape(self.subject)}</title>', 1).strip()


def all_drawings(item: Item) -> list[Drawing]:
    """The figures of `item` size by size, and beside the largest size's the paper's own figure."""
    drawn = []
    paper = paper_plot(item)
    for measured in item.measured:
        drawn += drawings(item, measured)
        if paper is not None:
            drawn.append(_drawn(item, item.slug, paper))
            paper = None
    return [*drawn, _drawn(item, item.slug, paper)] if paper is not None else drawn


def drawings(item: Item, measured: Measured) -> list[Drawing]:
    """The figures of `item` at one size: the panels of its plot, its trend, its illustration, as it asks for them."""
    name = f"{item.slug}-{measured.size}"
    drawn = [_drawn(item, name, lines) for lines in (*panels(item, measured), *trend_plots(item, measured))]
    if illustration := illustrate(item, measured):
        word = str((item.experiment.figure or {})["draw"]).replace("_", "-")
        data = illustration.data
        subject = sentence(item.experiment.caption)
        drawn.append(Drawing(f"{name}-{word}", subject, data.caption, illustration.svg, to_csv(data)))
    return drawn


def _drawn(item: Item, name: str, plot: Plot) -> Drawing:
    subject = sentence(item.experiment.caption)
    subject = f"{subject.rstrip('.')} ({plot.title})." if plot.title else subject
    full = f"{name}-{plot.panel}" if plot.panel else name
    return Drawing(full, subject, plot.caption, figures.draw(plot), to_csv(plot))
