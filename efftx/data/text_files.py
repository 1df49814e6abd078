"""Bytes of a text that a user points to: one file or a folder with its splits, plain or compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from efftx.data.prepared import SPLITS
from efftx.errors import UserError

_MAGIC = {".xz": b"\xfd7zXZ\x00", ".gz": b"\x1f\x8b", ".bz2": b"BZh", ".zip": b"PK\x03\x04"}
_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_SPLIT_SUFFIXES = ("", ".xz", ".gz", ".bz2")


@dataclass(frozen=True)
class Text:
    """The bytes, and the sizes of train, valid and test where a folder gives them."""

    content: bytes
    sizes: tuple[int, int, int] | None


def read_text(path: Path, at_most: int) -> Text:
    """The text in a file, a compressed file (.zip, .xz, .gz, .bz2) or a folder with train, valid and test.

    Reads at most `at_most` + 1 bytes, which is enough to know that a text is too long. `UserError` for a path that is
    missing or cannot be read, a folder without the three splits, a damaged or truncated archive.
    """
    path = path.expanduser()
    if path.is_dir():
        pieces = [read_file(_split_file(path, split), at_most) for split in SPLITS]
        train, valid, test = map(len, pieces)
        return Text(b"".join(pieces), (train, valid, test))
    if not path.exists():
        hint = f"Set data.path to a file, or to a folder with {', '.join(SPLITS)}."
        raise UserError("missing_file", f"data.path={path} does not exist.", hint)
    return Text(read_file(path, at_most), None)


def _split_file(folder: Path, split: str) -> Path:
    for suffix in _SPLIT_SUFFIXES:
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    raise UserError(
        "missing_file",
        f"The folder data.path={folder} has no {split} file.",
        f"Put {', '.join(SPLITS)} into it (or each with .xz, .gz or .bz2), or set data.path to one file.",
    )


def read_file(path: Path, at_most: int) -> bytes:
    """The first `at_most` + 1 bytes of one file, decompressed if need be."""
    with unpacked(path) as file:
        return file.read(at_most + 1)


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """One file as a stream, decompressed if its first bytes or its name say that it is compressed.

    `UserError` for a file that is missing, damaged or truncated, also where this shows while it is read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(6)
            file.seek(0)
            kind = next((kind for kind, magic in _MAGIC.items() if head.startswith(magic)), None)
            if kind is None and path.suffix not in _MAGIC:
                yield file
            elif kind is None:  # gzip would read an empty file as an empty text
                raise _damaged(path, f"it does not begin like a {path.suffix} file")
            else:
                with _decompressed(file, kind, path) as stream:
                    yield stream
    except OSError as error:
        raise UserError("missing_file", f"Cannot read {path}: {error.strerror or error}.") from error


@contextmanager
def _decompressed(file: IO[bytes], kind: str, path: Path) -> Iterator[IO[bytes]]:
    try:
        if kind == ".zip":
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) != 1:
                    message = f"{path} holds {len(members)} files instead of one."
                    raise UserError("bad_value", message, "Unpack it and set data.path to the file that is meant.")
                with archive.open(members[0]) as stream:
                    yield stream
        else:
            with _OPENERS[kind](file) as stream:
                yield stream
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError("damaged_file", f"{path} is damaged or truncated: {why}.", "Get the file again.")
