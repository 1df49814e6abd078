"""Files that hold pictures: image files, arrays of NumPy, Parquet and archives, read one picture at a time.

Shape suffixes: H rows of pixels, W pixels of a row, S pixels of a square's side; the last axis is red, green, blue.
"""

from __future__ import annotations

import math
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from efftx.core.numbered import by_number
from efftx.data.arrays import DAMAGED_ARCHIVE, check_ended, names_of_arrays, read_array, read_header
from efftx.data.document_files import DocumentFiles, find_named
from efftx.data.json_lines import read_rows
from efftx.data.picture import read_picture, square_of
from efftx.data.text_files import is_hidden, open_regular
from efftx.errors import UserError

HINT = (
    "Set data.path to a folder of pictures (.png, .jpg, .webp, ...), to an .npz, .npy or .parquet file, to a .tar or "
    ".zip of any of these, to a folder of such files, or to a pattern such as 'pictures/*.png'."
)
_PICTURE = r"png|jpe?g|webp|bmp|gif|tiff?|ppm|pgm"
_FILES = re.compile(rf".+\.({_PICTURE}|npz|npy|parquet|tar|zip)", re.IGNORECASE)
# a.png and a.jpg may be two pictures, a.npz and a.zip hold the same ones.
_FORMS = re.compile(r"\.(npz|npy|parquet|tar|zip)$", re.IGNORECASE)
_IN_ARCHIVE = re.compile(rf".+\.({_PICTURE}|npz|npy)", re.IGNORECASE)
_FIELDS = ("image", "img")
"""What Parquet files of the Hub call their pictures."""
_MOST_FILE_BYTES = 1 << 28
_MOST_SIDE = 1 << 14
_ROWS_AT_ONCE = 1 << 23
"""Bytes of an array that are read at once."""


def find_pictures(given: str) -> DocumentFiles:
    """The files that `given` (a file, a folder or a pattern) means, by split; `UserError` where there is none."""
    return find_named(given, HINT, _FILES, "file of pictures", _FORMS)


def read_squares(path: Path, side: int, done: Counter[str]) -> Iterator[np.ndarray]:
    """The pictures of a file in order, each (S, S, 3) uint8 with S = `side`; `done` counts conversions and what is
    left out.

    `UserError` with the place for a file that is damaged, a picture that cannot be read, an array of other than bytes
    or of Python objects, which are never unpickled.
    """
    for pixels_HW3 in read_pixels(path, done):
        if (square_SS3 := square_of(pixels_HW3, side, done)) is not None:
            yield square_SS3


def read_pixels(path: Path, done: Counter[str]) -> Iterator[np.ndarray]:
    """The pictures of a file in order, each (H, W, 3) uint8 as it is; `UserError` as `read_squares`."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path, done)
        return
    with open_regular(path, HINT) as file:
        try:
            if kind == ".tar":
                yield from _tar(file, path, done)
            elif kind == ".zip":
                with zipfile.ZipFile(file) as archive:
                    for name in sorted(archive.namelist(), key=by_number):
                        if _is_picture(name):
                            with archive.open(name) as member:
                                yield from _member(member, name, f"{path}, {name}", done)
            else:
                yield from _member(file, path.name, str(path), done)
        except DAMAGED_ARCHIVE as error:
            message = f"{path} is damaged or truncated: {error}."
            raise UserError("damaged_file", message, "Get the file again.") from error


def _is_picture(member: str) -> bool:
    return _IN_ARCHIVE.fullmatch(member) is not None and not is_hidden(member)


def _tar(file: IO[bytes], path: Path, done: Counter[str]) -> Iterator[np.ndarray]:
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            if member.isfile() and _is_picture(member.name) and (content := archive.extractfile(member)):
                yield from _member(content, member.name, f"{path}, {member.name}", done)
        # Of a member's damaged header tarfile makes the end of the archive, which is a block of zeros.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no member and no end of the archive at byte {archive.offset:,}")


def _member(file: IO[bytes], name: str, place: str, done: Counter[str]) -> Iterator[np.ndarray]:
    kind = Path(name).suffix.lower()
    if kind == ".npz":
        yield from _npz(file, place, done)
    elif kind == ".npy":
        yield from _pictures_of(*read_header(file, place), file, place, done)
    else:
        content = file.read(_MOST_FILE_BYTES + 1)
        if len(content) > _MOST_FILE_BYTES:
            raise UserError("bad_picture", f"{place} has more than {_MOST_FILE_BYTES:,} bytes.", "Make it smaller.")
        yield read_picture(content, place, done)


def _parquet(path: Path, done: Counter[str]) -> Iterator[np.ndarray]:
    for number, row in enumerate(read_rows(path), 1):
        yield picture_of_row(row or {}, f"{path}, row {number}", done)


def picture_of_row(row: dict[str, Any], place: str, done: Counter[str]) -> np.ndarray:
    """The picture of a Parquet row, whose `image` or `img` is a file's bytes or has them; `UserError` without one."""
    cell = next((row[field] for field in _FIELDS if field in row), None)
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        known = ", ".join(list(row)[:20])
        message = f"{place} has no picture's bytes in {' or '.join(_FIELDS)}."
        raise UserError("bad_picture", message, f"It has: {known}." if known else HINT)
    return read_picture(content, place, done)


def _npz(file: IO[bytes], place: str, done: Counter[str]) -> Iterator[np.ndarray]:
    """`images`, or `data` as the ImageNet64 of Chrabaszcz et al. has it, or JPEG files end to end, or the one array."""
    with zipfile.ZipFile(file) as archive:
        names = names_of_arrays(archive)
        if {"jpeg", "offsets"} <= set(names):
            yield from _packed(archive, place, done)
            return
        named = [name for name in ("images", "data") if name in names] or (names if len(names) == 1 else [])
        if not named:
            message = f"{place} holds no array called images or data."
            raise UserError("bad_picture", message, f"It holds: {', '.join(names[:20])}." if names else HINT)
        with archive.open(f"{named[0]}.npy") as member:
            yield from _pictures_of(*read_header(member, f"{place}, {named[0]}"), member, f"{place}, {named[0]}", done)


def _packed(archive: zipfile.ZipFile, place: str, done: Counter[str]) -> Iterator[np.ndarray]:
    packed, offsets = (read_array(archive, name, f"{place}, {name}") for name in ("jpeg", "offsets"))
    if packed.dtype != np.uint8 or packed.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        raise UserError("bad_picture", f"{place}: jpeg must be bytes and offsets whole numbers, in one row each.", HINT)
    for number, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        yield read_picture(packed[start:end].tobytes(), f"{place}, picture {number}", done)


def _pictures_of(
    shape: tuple[int, ...], dtype: np.dtype[Any], file: IO[bytes], place: str, done: Counter[str]
) -> Iterator[np.ndarray]:
    """The pictures of an array whose bytes follow: grey, colours last or first, or rows of them as published."""
    side = math.isqrt(shape[1] // 3) if len(shape) == 2 else 0
    planes_first = False
    match shape:
        case (_, n) if n == 3 * side * side > 0:
            one, planes_first = (3, side, side), True
        case (_, h, w) if min(h, w) > 0:
            one = (h, w, 1)
        case (_, h, w, 3 | 1) if min(h, w) > 0:
            one = (h, w, shape[3])
        case (_, 3, h, w) if min(h, w) > 0:
            one, planes_first = (3, h, w), True
        case _:
            one = (0, 0, 0)
    if dtype != np.uint8 or 0 in one or max(one) > _MOST_SIDE:
        message = f"{place} is an array {list(shape)} of {dtype}, not pictures."
        raise UserError("bad_picture", message, "Save uint8 [pictures, height, width, 3].")
    if len(shape) == 3 and shape[1] > 4 and shape[2] in (3, 4):
        message = f"{place} is an array {list(shape)}: one picture in colours, where several are expected."
        hint = f"Save it as [1, {shape[0]}, {shape[1]}, 3]: numpy.save(file, array[None, :, :, :3])."
        raise UserError("bad_picture", message, hint)
    n_bytes = math.prod(one)
    at_once = max(1, _ROWS_AT_ONCE // n_bytes)
    for first in range(0, shape[0], at_once):
        count = min(at_once, shape[0] - first)
        content = file.read(count * n_bytes)
        if len(content) < count * n_bytes:
            raise UserError("damaged_file", f"{place} ends before its array does.", "Get the file again.")
        for pixels in np.frombuffer(content, np.uint8).reshape(count, *one):
            if one[2] == 1:
                done["grey"] += 1
                yield np.repeat(pixels, 3, axis=2)
            else:
                yield pixels.transpose(1, 2, 0) if planes_first else pixels
    check_ended(file, place)
