"""One picture: its file's bytes as RGB values, a square of it, and squares as one picture again.

Shape suffixes: H rows of pixels, W pixels of a row, S pixels of a square's side; the last axis is red, green, blue.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from efftx.errors import UserError

CONVERSIONS = {
    "grey": "Grey pictures, whose red, green and blue are the grey value",
    "alpha": "Pictures with transparent places, laid over white",
    "16 bits": "Pictures of 16 bits a value, whose upper 8 are kept",
    "colours": "Pictures in CMYK or another space than RGB, converted",
    "animated": "Pictures of several frames, whose first is taken",
    "cropped": "Pictures that are not square, cut to the square at their centre",
    "small": "Pictures smaller than data.side, left out",
}
"""What was done to pictures that are not square RGB of 8 bits, as a note says it."""
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_PNG_BIT_DEPTH = 24
"""Where a PNG file has it."""
_HINT = "Save it again as PNG or JPEG with 8 bits a value, or take it out of the folder."


def read_picture(content: bytes, place: str, done: Counter[str]) -> np.ndarray:
    """The pixels (H, W, 3) uint8 of a file's bytes; `done` counts what had to be converted, by CONVERSIONS.

    `UserError`, which calls the file `place`, for what is no picture, is damaged or truncated, has values that are no
    bytes, or has so many pixels that Pillow takes it for a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage there is an error to come; of odd headers nothing to do
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                depth = content[_PNG_BIT_DEPTH] if image.format == "PNG" else 8
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's JPEG with a preview
                    done["animated"] += 1
                return _pixels(image, depth, place, done)
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        message = f"{place} would take more than {Image.MAX_IMAGE_PIXELS:,} pixels: that is no photograph."
        raise UserError("bad_picture", message, "Make it smaller, or take it out of the folder.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError("bad_picture", f"{place} is no picture that can be read.", _HINT) from error
    except Exception as error:  # what Pillow's decoders raise has no common type
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError("damaged_file", f"{place} is damaged or truncated: {why}.", "Get the file again.") from error


def _pixels(image: Image.Image, depth: int, place: str, done: Counter[str]) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode in _GREY:
        done["grey"] += 1
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values_HW = np.asarray(image)
        if image.mode == "F" or values_HW.min() < 0 or values_HW.max() > 0xFFFF:
            raise UserError("bad_picture", f"{place} has values that are no bytes (Pillow's mode {image.mode}).", _HINT)
        done["16 bits"] += 1
        grey_HW = (values_HW.astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[:, :, None], 3, axis=2)
    if depth == 16:  # of colours Pillow keeps the upper 8 bits itself
        done["16 bits"] += 1
    if image.has_transparency_data:
        rgba_HW4 = np.asarray(image.convert("RGBA"))
        if bool((rgba_HW4[:, :, 3] < 0xFF).any()):
            done["alpha"] += 1
        alpha_HW1 = rgba_HW4[:, :, 3:].astype(np.uint32)
        over_white = rgba_HW4[:, :, :3] * alpha_HW1 + 255 * (255 - alpha_HW1)
        return ((over_white + 127) // 255).astype(np.uint8)
    if image.mode not in ("RGB", "RGBX", "P", "1", "L"):
        done["colours"] += 1
    return np.asarray(image.convert("RGB"))


def square_of(pixels_HW3: np.ndarray, side: int, done: Counter[str]) -> np.ndarray | None:
    """The square at the centre, brought to `side` pixels by a box filter; None where a picture has fewer."""
    height, width = pixels_HW3.shape[:2]
    n = min(height, width)
    if n < side:
        done["small"] += 1
        return None
    if height != width:
        done["cropped"] += 1
    top, left = (height - n) // 2, (width - n) // 2
    return box_filter(pixels_HW3[top : top + n, left : left + n], side)


def box_filter(square_NN3: np.ndarray, side: int) -> np.ndarray:
    """The mean over each of `side` x `side` equal areas, pixels at a border counted by their share, halves rounded up.

    Whole numbers throughout, so that every machine gives the same bytes.
    """
    n = square_NN3.shape[0]
    if n == side:
        return square_NN3
    # In units of 1 / (n side): pixel j covers [j side, (j + 1) side), area i covers [i n, (i + 1) n).
    pixel_N, area_S1 = side * np.arange(n), n * np.arange(side)[:, None]
    share_SN = np.clip(np.minimum(area_S1 + n, pixel_N + side) - np.maximum(area_S1, pixel_N), 0, None)
    share_SN = share_SN.astype(np.float64)  # exact: all sums are whole and far below 2^53
    total_3SS = share_SN @ square_NN3.transpose(2, 0, 1).astype(np.float64) @ share_SN.T
    mean_3SS = (total_3SS.astype(np.int64) + n * n // 2) // (n * n)
    return mean_3SS.transpose(1, 2, 0).astype(np.uint8)


def grid_png(squares: Sequence[np.ndarray], gap: int = 2) -> bytes:
    """Squares (S, S, 3) as one PNG, row by row, as many in a row as there are rows, on white."""
    columns = math.ceil(math.sqrt(len(squares)))
    rows = math.ceil(len(squares) / columns)
    step = len(squares[0]) + gap
    canvas = np.full((rows * step - gap, columns * step - gap, 3), 0xFF, np.uint8)
    for number, square_SS3 in enumerate(squares):
        top, left = step * (number // columns), step * (number % columns)
        canvas[top : top + step - gap, left : left + step - gap] = square_SS3
    packed = io.BytesIO()
    Image.fromarray(canvas).save(packed, "PNG")
    return packed.getvalue()


def conversion_notes(done: Counter[str]) -> list[str]:
    """A note for each kind of conversion that was done."""
    return [f"{words}: {done[kind]:,}." for kind, words in CONVERSIONS.items() if done[kind]]
