"""Records: one JSON file a run, under `results/records/`; all that the report ever reads."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from efftx.errors import UserError


@dataclass
class Record:
    """What one run of one row at one seed gave.

    config        the resolved configuration of a training run, or a measure's parameters.
    hash          over all of it that can change a result.
    column_hashes the same for the configuration under which each column was evaluated.
    composed_from over all that the configurations were composed from: while it is the same, nothing is composed anew to
                  see that the hashes still are (a table is listed in milliseconds).
    first_losses  training losses of the first three steps (nats a token), exact; for a measure the numbers that a
                  replay must give again ([]: nothing in it can be replayed, as with a timing).
    data          name, variant and checksum of the data set, with ROUGE its tokenizer ({} for a measure).
    metrics       column ("" for a table without columns) -> metric -> value; None: never reached.
    curve         evaluations during training: `step` and metrics on the validation split.
    series        a measure's plot data: name -> list of numbers.
    pretraining   of the run that this one started from: `config`, `hash`, `data`, `first_losses`, `metrics` and
                  `weights_sha256`; {} where it started afresh, and then not in the file.
    """

    id: str
    row: str
    seed: int
    size: str
    config: dict[str, Any]
    hash: str
    metrics: dict[str, dict[str, float | None]]
    column_hashes: dict[str, str] = field(default_factory=dict)
    composed_from: str = ""
    first_losses: list[float] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    wall_seconds: float = 0.0
    command: str = ""
    series: dict[str, list[float]] = field(default_factory=dict)
    pretraining: dict[str, Any] = field(default_factory=dict)


@dataclass
class Verification:
    """What replaying a record gave: `fresh`, `stale`, or `not replayable`, and why.

    `exact` says whether the comparison was bit for bit (same torch, threads and processor) or to the stated tolerance.
    """

    hash: str
    verdict: str
    why: str
    exact: bool
    replayed: list[float] = field(default_factory=list)


class RecordStore:
    """The records under one results folder; `EFFTX_RESULTS` moves it, `./results` is where it is otherwise."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root if root is not None else os.environ.get("EFFTX_RESULTS", "results"))

    def path(self, id: str, row: str, seed: int, size: str) -> Path:
        """Where the record of one row and seed lies, or would lie."""
        return self.root / "records" / id / size / f"{slug(row)}-seed{seed}.json"

    def write(self, record: Record) -> Path:
        """Write `record`, whole or not at all; what an earlier replay said of its forerunner is forgotten."""
        path = self.path(record.id, record.row, record.seed, record.size)
        write_json(path, {k: v for k, v in asdict(record).items() if v or k != "pretraining"})
        self._verification_path(record).unlink(missing_ok=True)
        return path

    def read(self, id: str, row: str, seed: int, size: str) -> Record | None:
        """The record of one row and seed, None where there is none; UserError names a damaged file."""
        path = self.path(id, row, seed, size)
        return _read_record(path) if path.exists() else None

    def read_all(self, id: str) -> list[Record]:
        """Every record of one item, at all sizes, in the order of the paths; UserError names a damaged file."""
        folder = self.root / "records" / id
        return [_read_record(path) for path in sorted(folder.glob("*/*.json"))]

    def write_verification(self, record: Record, verification: Verification) -> None:
        """Keep, beside the records, what a replay of `record` said."""
        write_json(self._verification_path(record), asdict(verification))

    def verification(self, record: Record) -> Verification | None:
        """What the last replay of this very record said; None where it was never replayed."""
        path = self._verification_path(record)
        if not path.exists():
            return None
        found = Verification(**_read_json(path, Verification))
        return found if found.hash == record.hash else None

    def _verification_path(self, record: Record) -> Path:
        return self.root / "verified" / record.id / record.size / f"{slug(record.row)}-seed{record.seed}.json"


def slug(name: str) -> str:
    """A row's name as a file name: letters, digits, points and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "row"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one step (a temporary file beside it, then a rename); NaN and infinities are refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_record(path: Path) -> Record:
    return Record(**_read_json(path, Record))


def _read_json(path: Path, kind: type) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError("damaged_record", f"{path} is not readable JSON: {error}", _MEND) from error
    if not isinstance(content, dict):
        raise UserError("damaged_record", f"{path} is not a {kind.__name__.lower()}", _MEND)
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    wrong = sorted((set(content) - {f.name for f in fields(kind)}) | (needed - set(content)))
    if wrong:
        raise UserError("damaged_record", f"{path}: '{wrong[0]}' is missing or is no field of a record", _MEND)
    return content


_MEND = "Restore the file, or delete it and run `efftx reproduce` again."
