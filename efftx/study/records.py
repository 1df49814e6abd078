"""Records: one JSON file a run, under `results/records/`; all that the report ever reads.

Each carries a checksum and says itself where it belongs. A file that has changed, lacks a field, holds another kind of
value or lies in another's place is damaged: `read` raises, `read_all` leaves it out, `damaged` names it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from efftx.core.artifact import read_document, write_document
from efftx.core.files import DamagedFileError, sweep, writing

_MEND = "Restore the file, or delete it and run `efftx reproduce` again."


COSTS = ("parameters", "active_parameters", "flops_per_token", "controller_share")
"""Metrics that a configuration has without any training; see `plan.costs`."""

SWEEPS = "sweep/"
"""Where the runs of sweeps lie, below the folder of their item and size."""


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
    costs         of a training: `plan.costs` of its configuration; {} in records that were made before there were any.
    swept         of a run of a sweep: `key`, `value` and, where it diverged, `diverged` in words (metrics and curve are
                  then empty); {} for a row's own record, and then not in the file.
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
    costs: dict[str, float] = field(default_factory=dict)
    swept: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The value of the sweep that this is a run of."""
        return self.swept.get("value")


@dataclass
class Verification:
    """What replaying a record gave: `fresh`, `stale`, or `not replayable`, and why.

    exact        the numbers came out with the same bits; where `fresh` without it, within the tolerance in `why`.
    replayed     the numbers that came out.
    environment  of the replay: processor, its instructions, GPU, torch, threads, and the git commit of the code.
    """

    hash: str
    verdict: str
    why: str
    exact: bool
    replayed: list[float] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)


class RecordStore:
    """The records under one results folder; `EFFTX_RESULTS` moves it, `./results` is where it is otherwise."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root if root is not None else os.path.expanduser(os.environ.get("EFFTX_RESULTS") or "results"))

    def path(self, id: str, row: str, seed: int, size: str, value: float | None = None) -> Path:
        """Where the record of one row and seed lies, or would lie; with `value`, of its sweep's run at that."""
        return self.root / "records" / id / size / _name(row, seed, value)

    def write(self, record: Record) -> Path:
        """Write `record`, whole or not at all, and remove the verification of the record that it replaces.

        ValueError for what is no record (NaN as a value); UserError where it cannot be written.
        """
        path = self.path(record.id, record.row, record.seed, record.size, record.value)
        content = {k: v for k, v in asdict(record).items() if v or k not in ("pretraining", "costs", "swept")}
        _write(path, content, Record)
        self._verification_path(record).unlink(missing_ok=True)
        return path

    def read(self, id: str, row: str, seed: int, size: str, value: float | None = None) -> Record | None:
        """The record of a row and seed (of its sweep's run at `value`), None where there is none; DamagedFileError."""
        record = self._read_record(path := self.path(id, row, seed, size, value))
        if record is not None and record.row != row:  # two names may make one file name
            raise DamagedFileError(path, f"it is of a row '{record.row}', not '{row}'", _MEND)
        return record

    def read_all(self, id: str) -> list[Record]:
        """The records of one item at all sizes, in the order of the paths, without the damaged ones and the sweeps'."""
        return self._read_some(self._paths(id))

    def of_other_items(self, id: str, seed: int, size: str) -> list[Record]:
        """The records that all items but `id` have at this seed and size, those of sweeps too."""
        folders = (folder / size for folder in sorted((self.root / "records").glob("*/*")))
        names = (f"*-seed{seed}.json", f"{SWEEPS}*-seed{seed}-*.json")
        own_folder = self.root / "records" / id / size
        return self._read_some(
            p for folder in folders if folder != own_folder for name in names for p in folder.glob(name)
        )

    def read_sweeps(self, id: str) -> list[Record]:
        """The records of the runs of an item's sweeps, as `read_all`."""
        return self._read_some(self._paths(id, SWEEPS))

    def _read_some(self, paths: Iterable[Path]) -> list[Record]:
        records = []
        for path in paths:
            try:
                records.append(self._read_record(path))
            except DamagedFileError:
                continue
        return [record for record in records if record is not None]

    def damaged(self, ids: Iterable[str]) -> list[DamagedFileError]:
        """The damaged records of these items, and the damaged files of what replays of theirs said."""
        errors = []
        for path in (path for id in ids for path in (*self._paths(id), *self._paths(id, SWEEPS))):
            try:
                record = self._read_record(path)
                if record is not None:
                    _read(self._verification_path(record), Verification)
            except DamagedFileError as error:
                errors.append(error)
        return errors

    def write_verification(self, record: Record, verification: Verification) -> None:
        """Keep, beside the records, what a replay of `record` said."""
        _write(self._verification_path(record), asdict(verification), Verification)

    def verification(self, record: Record) -> Verification | None:
        """What the last replay of this very record said; None where it was never replayed, or the file is damaged."""
        try:
            verification = _read(self._verification_path(record), Verification)
        except DamagedFileError:
            return None
        return verification if verification is not None and verification.hash == record.hash else None

    def sweep(self) -> None:
        """Remove what killed writers left half-written."""
        for root in (self.root / "records", self.root / "verified"):
            for folder, _, _ in os.walk(root):
                sweep(Path(folder))

    def _paths(self, id: str, below: str = "") -> Iterator[Path]:
        return iter(sorted((self.root / "records" / id).glob(f"*/{below}*.json")))

    def _read_record(self, path: Path) -> Record | None:
        record = _read(path, Record)
        if record is not None and path != self.path(record.id, record.row, record.seed, record.size, record.value):
            why = f"it says that it is of {record.id}, {record.row}, seed {record.seed}, size {record.size}"
            raise DamagedFileError(path, why, _MEND)
        return record

    def _verification_path(self, record: Record) -> Path:
        return self.root / "verified" / record.id / record.size / _name(record.row, record.seed, record.value)


def _name(row: str, seed: int, value: float | None) -> str:
    return f"{slug(row)}-seed{seed}.json" if value is None else f"{SWEEPS}{slug(row)}-seed{seed}-{value!r}.json"


def slug(name: str) -> str:
    """A row's name as a file name: letters, digits, points and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "row"


_Kind = TypeVar("_Kind", Record, Verification)


def _write(path: Path, content: Mapping[str, Any], kind: type) -> None:
    if wrong := _wrong(content, kind):
        raise ValueError(f"no {kind.__name__.lower()} for {path}: {wrong}")
    with writing(path, "set EFFTX_RESULTS to another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write_document(path, content, sort_keys=True)


def _read(path: Path, kind: type[_Kind]) -> _Kind | None:
    content = read_document(path, _MEND)
    if content is None:
        return None
    if wrong := _wrong(content, kind):
        raise DamagedFileError(path, wrong, _MEND)
    return kind(**content)


def _wrong(content: Mapping[str, Any], kind: type) -> str:
    """What keeps `content` from being a `kind`, in words; empty where it is one."""
    hints = _hints(kind)
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if lacking := sorted(needed - content.keys()):
        return f"'{lacking[0]}' is missing"
    if unknown := sorted(content.keys() - hints.keys()):
        return f"'{unknown[0]}' is no field of a {kind.__name__.lower()}"
    return next((f"'{key}' holds {_shortly(v)}" for key, v in content.items() if not _fits(v, hints[key])), "")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is what a field of this type may hold; a number is finite, and True is none."""
    if hint is Any:
        return True
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    origin, of = _parts(hint)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(key, of[0]) and _fits(item, of[1]) for key, item in value.items())
    if origin is list:
        return isinstance(value, list) and all(_fits(item, of[0]) for item in value)
    if hint in (int, float):
        kinds = (int, float) if hint is float else int
        return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, NoneType if hint is None else hint)


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def _shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
