"""Drawings made of pixels, from records' series: where heads look, and the pictures and sounds that models draw.

They are written as SVG by hand, with PNG images that are stored, not compressed: the same bytes on every machine.
Shape suffixes: P panels, H, W pixels of a panel; the last axis is red, green, blue.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from efftx.report.plotdata import Line, Plot, Point
from efftx.study.experiment import Experiment
from efftx.study.records import Record

WIDTH, LABEL, GAP, LINE = 302.4, 96, 3, 12  # of the drawing, in points, as wide as every other (`figures.WIDTH`)
PAPER, INK = np.array([0xF7, 0xFB, 0xFF]), np.array([0x08, 0x30, 0x6B])
MARK = np.array([0xD5, 0x5E, 0x00], np.uint8)


@dataclass(frozen=True)
class Strip:
    """A row of panels of one size, uint8 (H, W, 3) each, its name on the left and perhaps names above the panels."""

    name: str
    panels: tuple[np.ndarray, ...]
    titles: tuple[str, ...] = ()


def stored_png(pixels_HW3: np.ndarray) -> bytes:
    """The pixels as a PNG whose bytes depend on nothing else: its data are stored as they are."""
    height, width, _ = pixels_HW3.shape
    lines = b"".join(b"\0" + line.tobytes() for line in np.ascontiguousarray(pixels_HW3, np.uint8))
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(lines, 0),
        b"IEND": b"",
    }
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def draw_strips(strips: Sequence[Strip]) -> str:
    """The strips one below the other as SVG text, their panels as wide as the drawing lets them be."""
    most = max(len(strip.panels) for strip in strips)
    wide = (WIDTH - LABEL - GAP * most) / most
    body, y = [], 2.0
    for strip in strips:
        height, width, _ = strip.panels[0].shape
        tall = wide * min(height / width, 1.0)  # a spectrum has more bands than frames
        if strip.titles:
            y += LINE
        for i, panel in enumerate(strip.panels):
            x = LABEL + i * (wide + GAP)
            if strip.titles:
                body.append(_text(x + wide / 2, y - 3, strip.titles[i], "middle"))
            data = base64.b64encode(stored_png(panel)).decode()
            body.append(
                f'<image x="{x:.2f}" y="{y:.2f}" width="{wide:.2f}" height="{tall:.2f}" preserveAspectRatio="none" '
                f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
            )
        words = strip.name.split("\n")
        for i, word in enumerate(words):
            body.append(_text(2, y + tall / 2 + 3 + 10 * (i - (len(words) - 1) / 2), word, "start"))
        y += tall + GAP
    size = f'width="{WIDTH}pt" height="{y:.2f}pt" viewBox="0 0 {WIDTH} {y:.2f}"'
    ground = f'<rect width="{WIDTH}" height="{y:.2f}" fill="#ffffff"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', "<g>", ground, *body, "</g>", "</svg>\n"])


def _text(x: float, y: float, words: str, anchor: str) -> str:
    look = f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="8.5" fill="#222222" text-anchor="{anchor}"'
    return f'<text x="{x:.2f}" y="{y:.2f}" {look}>{escape(words)}</text>'


def shaded(values_HW: np.ndarray) -> np.ndarray:
    """Values from 0 to their largest as shades from pale to dark, (H, W, 3)."""
    share_HW1 = values_HW[..., None] / max(float(values_HW.max()), 1e-12)
    return np.round(PAPER + (INK - PAPER) * share_HW1).astype(np.uint8)


def maps_of(series: Mapping[str, list[float]]) -> np.ndarray:
    """The maps of a record, (heads, S, S)."""
    side = int(series["side"][0])
    return np.array(series["map"]).reshape(-1, side, side)


def draw_maps(experiment: Experiment, records: Sequence[Record]) -> str:
    """Layers side by side, heads below each other: the weight of each pixel for one query, which is marked; as SVG."""
    layers = []
    for record in records:
        row, column = (int(part) for part in record.series["query"])
        panels = [shaded(map_SS) for map_SS in maps_of(record.series)]
        for panel in panels:
            panel[row, column] = MARK
        layers.append(panels)
    titles = tuple(record.row.removeprefix("layer ") for record in records)
    return draw_strips(
        [
            Strip(f"head {head + 1}", tuple(p[min(head, len(p) - 1)] for p in layers), () if head else titles)
            for head in range(max(map(len, layers)))
        ]
    )


def maps_plot(experiment: Experiment, records: Sequence[Record]) -> Plot:
    """The numbers of `draw_maps`: a line a layer and head, weight over the number of the pixel."""
    lines = [
        Line(experiment.label(record.row), "measured", _points(map_SS.flatten()), f"head {head}")
        for record in records
        for head, map_SS in enumerate(maps_of(record.series), 1)
    ]
    row, column = (int(part) for part in records[0].series["query"])
    return Plot(
        caption=f"The pixels that a query at row {row + 1}, column {column + 1} (orange) gives weight to, layer by "
        "layer; dark is the most of a panel. One seed, the mean over the test pictures.",
        x_label="pixel",
        y_label="weight",
        lines=tuple(lines),
    )


def _points(values: np.ndarray) -> tuple[Point, ...]:
    return tuple(Point(float(i), float(value)) for i, value in enumerate(values))


def draw_samples(experiment: Experiment, records: Sequence[Record]) -> str:
    """A strip a record: its pictures, or the spectra of its sounds; as SVG text."""
    return draw_strips([Strip(experiment.label(r.row).replace(", ", "\n"), tuple(_panels(r.series))) for r in records])


def _panels(series: Mapping[str, list[float]]) -> list[np.ndarray]:
    n, shape = int(series["n"][0]), [int(part) for part in series["shape"]]
    rows = np.array(series["rows"]).reshape(n, *shape)
    return list(rows.astype(np.uint8)) if len(shape) == 3 else [shaded(level_TF.T[::-1]) for level_TF in rows]


def samples_plot(experiment: Experiment, records: Sequence[Record]) -> Plot:
    """The numbers of `draw_samples`: a line a row and sample, a picture's bytes or a spectrum's levels."""
    lines = []
    has_sounds = any(len(record.series["shape"]) < 3 for record in records)
    sounds = "; of sounds the spectrum, time to the right, half the rate on top" if has_sounds else ""
    for record in records:
        n = int(record.series["n"][0])
        for number, row in enumerate(np.array(record.series["rows"]).reshape(n, -1), 1):
            lines.append(Line(experiment.label(record.row), "measured", _points(row), f"sample {number}"))
    return Plot(
        caption=f"Pictures pixel by pixel{sounds}. One seed.",
        x_label="place",
        y_label="value",
        lines=tuple(lines),
    )
