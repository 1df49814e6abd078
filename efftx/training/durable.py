"""Files that are either wholly there or not at all, also after a kill or a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efftx.errors import UserError


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: a reader, or a kill, sees the old bytes or the new ones, never a mixture.

    Raises OSError, with the file as it was and nothing beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError met while writing under `path` (disk full, read-only, no such place) into a UserError."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: Exception) -> UserError:
    """The one message for a file that cannot be written, with the hint that fits the cause."""
    code = error.errno if isinstance(error, OSError) else None
    text = os.strerror(code) if code else str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        hint = "Free some space, lower checkpoint.keep, or set run_dir= to another disk; the same command then resumes."
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "Make it writable, or set run_dir= or EFFTX_RUNS to a place that is."
    else:
        hint = "Check the path, or set run_dir= or EFFTX_RUNS to another place."
    return UserError("cannot_write", f"cannot write under {path}: {text}.", hint)
