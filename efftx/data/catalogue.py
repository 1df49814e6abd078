"""What `efftx data list`, `prepare` and `verify` do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from efftx.data.dataset import DataConfig, Source, find_source, names, refuse_path
from efftx.data.prepared import damage, prepared_root, read_prepared


def list_data() -> list[dict[str, Any]]:
    """One row for each prepared variant of each data set, or one row for a data set without any.

    Keys: name, variant, path, bytes, sha256, licence, state (`verified`, `damaged`, `not prepared`, `needs no file`),
    why (what is damaged, else None), notes (what was left out). Every array is hashed: `verified` means that its bytes
    are the right ones.
    """
    return [row for name in names() for row in verify(name)]


def prepare(config: DataConfig) -> dict[str, Any]:
    """Prepares a data set, a damaged one anew, and gives its row; `UserError` where that is not possible."""
    source = find_source(config.name)
    if source.prepare is None:
        refuse_path(config)
        return _row(source, "needs no file")
    source.check(config)
    prepared = source.prepare(config)
    return _prepared_row(source, prepared.folder) | {"notes": list(prepared.meta.get("notes", ()))}


def verify(which: str | DataConfig) -> list[dict[str, Any]]:
    """The rows of one data set (all its prepared variants) after hashing its arrays again; changes nothing."""
    source = find_source(which if isinstance(which, str) else which.name)
    if source.prepare is None:
        return [_row(source, "needs no file")]
    a_key = re.compile(re.escape(source.name) + r"-[0-9a-f]{12}(-\d+){0,3}")
    folders = sorted(path for path in prepared_root().glob(f"{source.name}-*") if a_key.fullmatch(path.name))
    return [_prepared_row(source, folder) for folder in folders] or [_row(source, "not prepared")]


def _row(source: Source, state: str) -> dict[str, Any]:
    return {
        "name": source.name,
        "variant": source.variant,
        "path": None,
        "bytes": source.n_bytes,
        "sha256": source.sha256,
        "licence": source.licence,
        "state": state,
        "why": None,
        "notes": [],
    }


def _prepared_row(source: Source, folder: Path) -> dict[str, Any]:
    why = damage(folder)
    prepared = read_prepared(folder)
    meta = prepared.meta if prepared else {"name": source.name, "variant": None, "bytes": None, "sha256": None}
    return _row(source, "damaged" if why else "verified") | {
        "name": meta["name"],
        "variant": meta["variant"],
        "path": str(folder),
        "bytes": meta["bytes"],
        "sha256": meta["sha256"],
        "licence": meta.get("licence", source.licence),
        "why": why,
        "notes": meta.get("notes", []),
    }
