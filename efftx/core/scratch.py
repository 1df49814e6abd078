"""Folders for what is thrown away at once; what a killed process left of them is swept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder in `parent`, removed at the end, as are those of killed processes with the prefix that lie there.

    Its process holds a lock on it, which goes with the process, however that ends. `parent`: by default the system's
    folder for temporary files.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    sweep(parent, prefix)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # a file system without locks, where nothing is swept
                if not _locked(descriptor) or not folder.is_dir():
                    continue  # a sweep came between its making and its locking
            yield folder
            return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def sweep(parent: Path, prefix: str) -> None:
    """Removes the scratch folders in `parent` with the prefix that killed processes have left."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.getuid() and _locked(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
