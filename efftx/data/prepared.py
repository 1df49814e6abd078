"""Where the prepared arrays of a data set live, and how they come there whole or not at all.

A prepared folder is `<data root>/prepared/<key>/`: the arrays, and `meta.json` with the size and SHA-256 of each and a
checksum of its own. It is written beside its place under a file lock and renamed: a reader sees all of it or nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from efftx.core.artifact import read_document, write_document
from efftx.core.cache import cache_root
from efftx.core.files import file_sha256, sync, writing
from efftx.errors import UserError

META = "meta.json"
ELSEWHERE = "set EFFTX_DATA to a folder that can be written and has room"
VOCABULARY = "vocabulary"
"""What the prepared folder of a vocabulary is called, in place of a data set's name."""
SPLITS = ("train", "valid", "test")


def data_root() -> Path:
    """The folder of downloads and prepared arrays: `EFFTX_DATA`, else `efftx/data` in the user's cache folder."""
    if root := os.environ.get("EFFTX_DATA"):
        return Path(root).expanduser().absolute()
    return cache_root() / "data"


def prepared_root() -> Path:
    """The folder that holds one folder for each prepared data set."""
    return data_root() / "prepared"


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: `folder`, and `meta` with name, variant, bytes, sha256 and the arrays' sizes and sums."""

    folder: Path
    meta: dict[str, Any]

    def path(self, split: str) -> Path:
        """The array of a split."""
        return self.folder / f"{split}.bin"

    def size(self, split: str) -> int:
        """Bytes of a split's array."""
        return int(self.meta["files"][f"{split}.bin"]["bytes"])


def read_prepared(folder: Path) -> Prepared | None:
    """The folder with its meta data, None where there is none that can be read."""
    try:
        meta = read_document(folder / META)
    except UserError:
        return None
    complete = meta is not None and {"files", "name", "variant", "bytes", "sha256"} <= meta.keys()
    return Prepared(folder, meta) if meta is not None and complete else None


def damage(folder: Path, *, hashes: bool = True) -> str | None:
    """What is wrong with a prepared folder, in words; None if every array has the size and SHA-256 in its meta data.

    Without `hashes` the sizes alone are looked at, which takes no time.
    """
    prepared = read_prepared(folder)
    if prepared is None:
        return f"{META} is missing or cannot be read"
    if str(prepared.meta["sha256"])[:12] not in folder.name:
        return f"{META} does not belong to this folder"
    for name, facts in prepared.meta["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {facts['bytes']:,}"
        if hashes and file_sha256(path) != facts["sha256"]:
            return f"{name} has another SHA-256 than when it was prepared"
    return None


def prepare_once(key: str, write: Callable[[Path], dict[str, Any]]) -> Prepared:
    """The prepared folder `key`, made by `write(new_folder)` unless it is there and intact.

    `write` fills the folder it is given and returns the meta data (name, variant, bytes, sha256, ...). Any number of
    processes may ask at once: one writes, the others wait. Every array is hashed here, so that a record never names
    a checksum that its bytes do not have. `UserError` if the data root cannot be written; nothing half-written stays.
    """
    target = prepared_root() / key
    if damage(target) is None and (prepared := read_prepared(target)):  # no lock: a read-only data root is enough
        return prepared
    with writing(target, ELSEWHERE), locked(key):
        if damage(target) is None and (prepared := read_prepared(target)):
            return prepared
        _sweep(key)
        new = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".tmp", dir=target.parent))
        try:
            meta = write(new)
            arrays = sorted(new.iterdir())
            for path in arrays:
                sync(path)
            meta["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in arrays}
            write_document(new / META, meta, sort_keys=True)
            new.chmod(0o755)  # mkdtemp's 0o700 would shut out the other users of a shared data root
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
            new.rename(target)
            sync(target.parent)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return Prepared(target, meta)


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """Holds the machine-wide lock of a prepared folder."""
    prepared_root().mkdir(parents=True, exist_ok=True)
    with FileLock(prepared_root() / f".{key}.lock"):
        yield


def _sweep(own: str) -> None:
    """Remove the half-written folders of killed processes.

    The caller holds the lock of the key `own`; a folder of another key goes if its lock is free, so that no process is
    writing it now.
    """
    for folder in prepared_root().glob(".*.tmp"):
        key = folder.name.removeprefix(".").rsplit(".", 2)[0]
        with contextlib.suppress(OSError):  # in use (Timeout is one), or another user's, who alone can remove it
            if key == own:
                shutil.rmtree(folder)
            else:
                with FileLock(prepared_root() / f".{key}.lock", timeout=0):
                    shutil.rmtree(folder)
