"""Pictures made of pixels: what is in a record is what the drawing shows, byte by byte."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efftx.report.illustrations import illustrate
from efftx.report.items import gather
from efftx.report.picture_drawings import Strip, draw_strips, shaded, stored_png
from efftx.study.records import RecordStore

from .conftest import make_experiment, make_record

RNG = np.random.default_rng(0)


def images_in(svg: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


def series_of(pictures: np.ndarray) -> dict[str, list[float]]:
    n, *shape = pictures.shape
    rows = [float(byte) for byte in pictures.flatten()]
    return {"rows": rows, "n": [float(n)], "given": [0.0], "shape": [float(part) for part in shape]}


def drawn(store: RecordStore, name: str, **series: Any) -> Any:
    store.write(make_record("Full", 0, series=series))
    item = gather(store, make_experiment(figure={"draw": name}))
    found = illustrate(item, item.measured[0])
    assert found is not None
    return found


def test_a_stored_png_is_read_back_pixel_by_pixel() -> None:
    for height, width in ((1, 1), (3, 5), (64, 64)):
        pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored_png(pixels)))), pixels)


def test_the_pictures_of_a_record_are_drawn_as_they_are(store: RecordStore) -> None:
    pictures = RNG.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    found = drawn(store, "samples", **series_of(pictures))
    assert all(np.array_equal(a, b) for a, b in zip(images_in(found.svg), pictures, strict=True))
    assert [point.y for point in found.data.lines[1].points] == [float(b) for b in pictures[1].flatten()]
    assert "sound" not in found.data.caption


def test_a_sound_is_drawn_as_its_spectrum_low_tones_below(store: RecordStore) -> None:
    levels = np.zeros((2, 3, 4))
    levels[1, 2, 0] = 20
    series = {"rows": levels.flatten().tolist(), "n": [2.0], "given": [0.0], "shape": [3.0, 4.0]}
    first, second = images_in(drawn(store, "samples", **series).svg)
    assert first.shape == (4, 3, 3)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) == 1
    assert np.argwhere((second != first).any(-1)).tolist() == [[3, 2]]


def test_maps_are_darkest_where_the_weight_is_and_mark_the_query(store: RecordStore) -> None:
    map_HSS = np.zeros((2, 3, 3))
    map_HSS[0, 0, 1], map_HSS[1, 2, 2] = 0.5, 0.25
    found = drawn(store, "attention_maps", map=map_HSS.flatten().tolist(), query=[1.0, 0.0], side=[3.0])
    heads = images_in(found.svg)
    darkest = [np.unravel_index(head.astype(int).sum(-1).argmin(), (3, 3)) for head in heads]
    assert darkest == [(0, 1), (2, 2)]
    assert all(head[1, 0].tolist() == [0xD5, 0x5E, 0x00] for head in heads)
    assert [line.series for line in found.data.lines] == ["head 1", "head 2"]


def test_all_zero_is_pale() -> None:
    assert shaded(np.zeros((2, 2))).min() >= 0xF0


def test_equal_numbers_give_equal_bytes_and_names_are_text() -> None:
    strip = Strip("a < b", (np.zeros((2, 2, 3), np.uint8),), ("1",))
    assert draw_strips([strip]) == draw_strips([strip])
    assert "a &lt; b" in draw_strips([strip])


def test_no_panel_is_taller_than_it_is_wide() -> None:
    strips = [Strip("tall", (np.zeros((64, 2, 3), np.uint8),)), Strip("wide", (np.zeros((2, 8, 3), np.uint8),))]
    sizes = re.findall(r'<image [^>]*width="([0-9.]+)" height="([0-9.]+)"', draw_strips(strips))
    (w, h), (wide, low) = ([float(one) for one in size] for size in sizes)
    assert h == w
    assert low == pytest.approx(wide / 4, abs=0.01)
