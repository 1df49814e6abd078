"""Arrays of NumPy in files that a user gives: their headers are read first, and objects are never unpickled."""

from __future__ import annotations

import lzma
import math
import tarfile
import zipfile
import zlib
from typing import IO, Any

import numpy as np

from efftx.data.text_files import is_hidden
from efftx.errors import UserError

DAMAGED_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, RuntimeError)
"""What reading a damaged or encrypted .zip, .npz or .tar raises."""


def read_header(file: IO[bytes], place: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that begins in `file`, which then stands before its first byte.

    `UserError`, which calls it `place`, for what is no array, for Python objects, and for one stored column by column.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        shape, by_column, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise UserError("damaged_file", f"{place} is no array of NumPy.", "Get the file again.") from error
    if dtype.hasobject:
        message = f"{place} is an array of Python objects, which are never unpickled: that could run any program."
        raise UserError("bad_array", message, "Save it as numbers: numpy.stack(arrays).astype(numpy.uint8).")
    if by_column and len(shape) > 1:
        raise UserError("bad_array", f"{place} is stored column by column.", "Save numpy.ascontiguousarray of it.")
    return shape, dtype


def names_of_arrays(archive: zipfile.ZipFile) -> list[str]:
    """The arrays of an .npz in order; hidden members, and what is no array, are left out."""
    names = [name for name in archive.namelist() if name.endswith(".npy") and not is_hidden(name)]
    return [name.removesuffix(".npy") for name in names]


def read_array(archive: zipfile.ZipFile, name: str, place: str) -> np.ndarray:
    """A whole array of an .npz; `UserError` as `read_header`, and where the file does not end with the array."""
    with archive.open(f"{name}.npy") as member:
        shape, dtype = read_header(member, place)
        n_bytes = math.prod(shape) * dtype.itemsize
        content = member.read(n_bytes) if n_bytes <= archive.getinfo(f"{name}.npy").file_size else b""
        if len(content) < n_bytes:
            raise UserError("damaged_file", f"{place} ends before its array does.", "Get the file again.")
        check_ended(member, place)
        return np.frombuffer(content, dtype).reshape(shape)


def check_ended(file: IO[bytes], place: str) -> None:
    """`UserError` unless `file`, whose array is read, ends there: a damaged header may say that it holds less."""
    if file.read(1):
        raise UserError("damaged_file", f"{place} goes on after its array.", "Get the file again, one array a file.")
