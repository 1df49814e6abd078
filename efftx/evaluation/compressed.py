"""What a general compressor makes of bytes: the bits a byte that a model of the same bytes has to beat."""

from __future__ import annotations

import io
import lzma

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def xz_bits(data: bytes) -> float:
    """Bits a byte of `data`, at least one byte, in the xz format at its strongest preset, the container included."""
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)


def png_bits(images: NDArray[np.uint8]) -> float:
    """Bits a channel of images (N, height, width, channels: 1 or 3), each a PNG file of its own as Pillow writes it."""
    total = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", optimize=True)
        total += file.tell()
    return 8 * total / images.size
