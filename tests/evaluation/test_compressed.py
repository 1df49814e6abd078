from __future__ import annotations

import io
import lzma

import numpy as np
import pytest
from PIL import Image

from efftx.evaluation.compressed import png_bits, xz_bits


def test_xz_counts_the_whole_file_over_the_bytes_that_it_gives_back() -> None:
    data = b"abcd" * 1000
    packed = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    assert lzma.decompress(packed) == data
    assert xz_bits(data) == pytest.approx(8 * len(packed) / 4000)
    assert xz_bits(data) < 0.3
    assert xz_bits(np.random.default_rng(0).bytes(4000)) > 8


def test_png_counts_every_images_own_file() -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    flat = np.full((1, 16, 16, 1), 7, np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise[0]).save(file, "PNG", optimize=True)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file.getvalue()))), noise[0])
    assert png_bits(noise[:1]) == pytest.approx(8 * file.tell() / 768)
    assert png_bits(noise) > 8 > png_bits(flat)
