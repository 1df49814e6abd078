"""Files that a user points to: which they are, and their bytes, plain or compressed."""

from __future__ import annotations

import glob
import gzip
import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

from efftx.core.files import DamagedFileError, file_sha256, open_file
from efftx.data.compressed_streams import open_bz2, open_xz
from efftx.data.prepared import SPLITS
from efftx.errors import UserError

_MAGIC = {".xz": b"\xfd7zXZ\x00", ".gz": b"\x1f\x8b", ".bz2": b"BZh", ".zip": b"PK\x03\x04"}
_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {".xz": open_xz, ".gz": gzip.open, ".bz2": open_bz2}
_SPLIT_SUFFIXES = ("", ".xz", ".gz", ".bz2")
_UTF16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
MOST_FILES = 100_000
LONGEST_LINE = 1 << 26
"""Bytes of the longest line that is read: 64 MiB, of which the longest article has one in a hundred."""


@dataclass(frozen=True)
class Text:
    """The bytes, and the sizes of train, valid and test where a folder gives them."""

    content: bytes
    sizes: tuple[int, int, int] | None


def local_path(given: str) -> Path:
    """The path that a user wrote, `~` being home; `UserError` where that cannot be a path."""
    try:
        path = Path(given).expanduser()
        path.lstat()
    except RuntimeError as error:  # `~name` of nobody
        raise UserError("missing_file", f"{given} does not exist: {error}") from error
    except ValueError as error:  # a NUL in it
        raise UserError("missing_file", f"{given!r} is not a path: {error}.") from error
    except OSError:  # told where the file is read
        pass
    return path


def kind_of(path: Path) -> str:
    """`file`, `folder`, `other` (a pipe, a device, a socket) or `missing`; `UserError` where nobody may look."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


def open_regular(path: Path, hint: str = "Give a file.") -> BinaryIO:
    """The file, to read; `UserError` where it is missing, or a folder, a pipe or a device, which might never end."""
    with _told(path, hint):
        return open_file(path, hint)


def sums_of(files: Sequence[Path], hint: str) -> list[str]:
    """SHA-256 of each file as it lies on the disk; `UserError` as `open_regular`."""
    sums = []
    for path in files:
        with _told(path, hint):
            sums.append(file_sha256(path))
    return sums


@contextmanager
def _told(path: Path, hint: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError("missing_file", f"Cannot read {path}: {error.strerror}.", hint) from error
    except DamagedFileError as error:
        raise UserError("bad_file", f"Cannot read {path}: {error.why}.", hint) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def find_files(given: str, hint: str) -> list[Path]:
    """The files that `given` means: one file, a folder with all below it, or a pattern with `*`, `?` or `[...]`.

    In the order of their paths; hidden ones are left out. `UserError` with `hint` where there is none, and for more
    than MOST_FILES.
    """
    path = local_path(given)
    kind = kind_of(path)
    if kind == "missing":
        names = glob.iglob(str(path), recursive=True) if glob.has_magic(str(path)) else iter(())
        inside = [Path(name) for name in islice(names, MOST_FILES + 1)]
        if not inside:
            raise UserError("missing_file", f"data.path={given} does not exist.", hint)
    elif kind == "folder":
        inside = list(islice(path.rglob("*"), MOST_FILES + 1))
    else:
        return [path]
    if len(inside) > MOST_FILES:
        message = f"data.path={given} holds more than {MOST_FILES:,} files."
        raise UserError("bad_value", message, "Give the folder of the texts alone, or write them into fewer files.")
    if kind == "folder":
        inside = [p for p in inside if not is_hidden(p.relative_to(path).as_posix())]
    files = sorted(file for file in inside if kind_of(file) == "file")
    if not files:
        raise UserError("missing_file", f"data.path={given} holds no file.", hint)
    return files


def is_hidden(name: str) -> bool:
    """Whether a name in a folder or an archive, `/` between its parts, is hidden: `.x`, or what macOS adds to a zip."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def read_text(path: Path, at_most: int) -> Text:
    """The text in a file, a compressed file (.zip, .xz, .gz, .bz2) or a folder with train, valid and test.

    Reads at most `at_most` + 1 bytes, which is enough to know that a text is too long. `UserError` for a path that is
    missing or cannot be read, a folder without the three splits, a damaged or truncated archive.
    """
    path = local_path(str(path))
    kind = kind_of(path)
    if kind == "folder":
        pieces = [read_file(_split_file(path, split), at_most) for split in SPLITS]
        train, valid, test = map(len, pieces)
        return Text(b"".join(pieces), (train, valid, test))
    if kind == "missing":
        hint = f"Set data.path to a file, or to a folder with {', '.join(SPLITS)}."
        raise UserError("missing_file", f"data.path={path} does not exist.", hint)
    return Text(read_file(path, at_most), None)


def holds_splits(given: str) -> bool:
    """Whether `read_text` can read a path: it is no pattern, and as a folder it has train, valid and test."""
    path = local_path(given)
    kind = kind_of(path)
    if kind == "folder":
        return all(any((path / f"{split}{suffix}").is_file() for suffix in _SPLIT_SUFFIXES) for split in SPLITS)
    return kind != "missing"


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


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of one file with their ends, decompressed if need be, without a byte-order mark.

    `UserError` for UTF-16 and UTF-32, whose line ends are no bytes, and for a line longer than LONGEST_LINE.
    """
    with unpacked(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                message = f"{path}, line {number} is longer than {LONGEST_LINE:,} bytes."
                raise UserError("bad_document", message, "A document is one line: write it in several.")
            yield utf8_text(line, path) if number == 1 else line


def utf8_text(content: bytes, path: Path) -> bytes:
    """The beginning of a file without UTF-8's byte-order mark; `UserError` where the mark is that of UTF-16 or -32."""
    if content.startswith(_UTF16_OR_32):
        hint = f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name} (UTF-32 if it is that)."
        raise UserError("bad_document", f"{path} is UTF-16 or UTF-32 text, not UTF-8.", hint)
    return content.removeprefix(b"\xef\xbb\xbf")


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """One file as a stream, decompressed if its first bytes or its name say that it is compressed.

    `UserError` for a file that is missing, no regular file, damaged or truncated, also where this shows while it is
    read.
    """
    try:
        with open_regular(path) as file:
            head = file.read(6) or b""  # None from a file of the kernel's that has nothing now
            file.seek(0)
            kind = next((kind for kind, magic in _MAGIC.items() if head.startswith(magic)), None)
            if kind is None and path.suffix.lower() not in _MAGIC:
                yield file
            elif kind is None:  # gzip would read an empty file as an empty text
                raise _damaged(path, f"it does not begin like a {path.suffix} file")
            else:
                with _decompressed(file, kind, path) as stream:
                    yield stream
    except OSError as error:
        raise _unreadable(path, error) from error


@contextmanager
def _decompressed(file: IO[bytes], kind: str, path: Path) -> Iterator[IO[bytes]]:
    try:
        if kind == ".zip":
            with zipfile.ZipFile(file) as archive:
                members = [m for m in archive.infolist() if not m.is_dir() and not is_hidden(m.filename)]
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


def _unreadable(path: Path, error: OSError | ValueError) -> UserError:
    return UserError("missing_file", f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.")
