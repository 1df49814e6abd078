"""All figures of an item, each with the numbers it was drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib

from efftx.report import figures
from efftx.report.illustrations import illustrate
from efftx.report.items import Item, Measured
from efftx.report.plotdata import plot, to_csv

DRAWN_WITH = f"matplotlib {matplotlib.__version__}"


@dataclass(frozen=True)
class Drawing:
    """One figure: its file name without ending, what stands under it, its SVG text, its data as CSV."""

    name: str
    subject: str
    caption: str
    svg: str
    csv: str


def drawings(item: Item, measured: Measured) -> list[Drawing]:
    """The figures of `item` at one size: the plot of its lines, then its illustration, where it asks for them."""
    name = f"{item.slug}-{measured.size}"
    found = []
    lines = plot(item, measured)
    if lines is not None:
        found.append(Drawing(name, lines.subject, lines.caption, figures.draw(lines), to_csv(lines)))
    illustration = illustrate(item, measured)
    if illustration is not None:
        word = str((item.experiment.figure or {})["draw"]).replace("_", "-")
        data = illustration.data
        found.append(Drawing(f"{name}-{word}", data.subject, data.caption, illustration.svg, to_csv(data)))
    return found
