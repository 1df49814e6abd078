"""What `efftx data list`, `prepare` and `verify` do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from efftx.data.dataset import DataConfig, Source, find_source, refuse_path
from efftx.data.prepared import VOCABULARY, damage, data_root, prepared_root, read_prepared


def listed(name: str) -> list[dict[str, Any]]:
    """One row for each prepared variant of a data set, or one row where there is none.

    Keys: name, variant, path, bytes, sha256, licence, state, why (what is damaged, else None), notes (what was left
    out). The state is `needs no file`, `not prepared`, `files there` (at its usual place, and not prepared), `prepared`
    or `damaged`; nothing is hashed, so that none is `verified`.
    """
    return _rows(find_source(name), hashes=False)


def prepare(config: DataConfig) -> dict[str, Any]:
    """Prepares a data set, a damaged one anew, and gives its row; `UserError` where that is not possible."""
    source = find_source(config.name)
    if source.prepare is None:
        refuse_path(config)
        return _row(source, "needs no file")
    source.check(config)
    prepared = source.prepare(config)
    return _prepared_row(source.name, source, prepared.folder, hashes=True) | {
        "notes": list(prepared.meta.get("notes", ()))
    }


def verify(name: str) -> list[dict[str, Any]]:
    """The same rows after hashing all arrays again: what is prepared is `verified` or `damaged`; changes nothing."""
    return _rows(find_source(name), hashes=True)


def vocabularies(*, hashes: bool) -> list[dict[str, Any]]:
    """One row for each vocabulary that was trained on a data set and kept; keys and states as above."""
    return [_prepared_row(VOCABULARY, None, folder, hashes=hashes) for folder in _folders(VOCABULARY)]


def _folders(name: str) -> list[Path]:
    a_key = re.compile(re.escape(name) + r"-[0-9a-f]{12}(-\d+){0,3}")
    return sorted(path for path in prepared_root().glob(f"{name}-*") if a_key.fullmatch(path.name))


def _rows(source: Source, *, hashes: bool) -> list[dict[str, Any]]:
    if source.prepare is None:
        return [_row(source, "needs no file")]
    folders = _folders(source.name)
    unprepared = "files there" if (data_root() / source.name).exists() else "not prepared"
    return [_prepared_row(source.name, source, folder, hashes=hashes) for folder in folders] or [
        _row(source, unprepared)
    ]


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


def _prepared_row(name: str, source: Source | None, folder: Path, *, hashes: bool) -> dict[str, Any]:
    why = damage(folder, hashes=hashes)
    prepared = read_prepared(folder)
    meta = prepared.meta if prepared else {"name": name, "variant": None, "bytes": None, "sha256": None}
    return {
        "name": meta["name"],
        "variant": meta["variant"],
        "path": str(folder),
        "bytes": meta["bytes"],
        "sha256": meta["sha256"],
        "licence": meta.get("licence", source.licence if source else None),
        "state": "damaged" if why else "verified" if hashes else "prepared",
        "why": why,
        "notes": meta.get("notes", []),
    }
