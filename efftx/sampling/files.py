"""Samples that are no text: what a picture or a sound begins with, and the files that its samples are written to."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from efftx.core.counts import count
from efftx.core.files import place_of, write_atomically, writing
from efftx.data.dataset import open_dataset
from efftx.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from efftx.sampling.request import Request
    from efftx.sampling.trained import Trained

SHARE = 0.5
"""Of a row that is to be completed so much is given, unless told otherwise."""
FOLDER = "samples"
"""Where a run's directory has its samples."""


def read_starts(trained: Trained, request: Request) -> list[list[int]]:
    """What each of the `n` rows begins with: nothing, or the first share of the file at `path` or of a test row.

    UserError for a text, which a picture or a sound does not begin with, for a beam, as the data set's for a file, and
    for an `out` that cannot be written.
    """
    kind, name = trained.rendering.kind, trained.config.data.name
    for key in ("prompt", "input", "beam"):
        if getattr(request, key) is not None:
            message = f"{key}= is for texts, and what data={name} gives is a {kind}."
            hint = f"Draw n= of them, or complete={SHARE} of one at data.path=: {trained.rendering.form}."
            raise UserError("bad_value", message, hint)
    if request.out is not None:
        place_of("out", request.out)
    if request.complete is None and request.path is None:
        return [[] for _ in range(request.n)]
    share = SHARE if request.complete is None else request.complete
    length = trained.config.data.length
    n_given = min(max(round(share * length), 1), length - 1)
    if request.path is not None:
        rows = [trained.rendering.encode(request.path)] * request.n
    else:
        dataset = open_dataset(trained.config.data, trained.config.objective)
        rows = dataset.batch("test", 0, 0, request.n).tokens_BL.tolist()
        if len(rows) < request.n:
            message = (
                f"The test split of data={name} has {count(len(rows), 'row')}, and n={request.n} are to be completed."
            )
            raise UserError("bad_value", message, f"Set n={len(rows)} or less.")
    if len(rows[0]) <= n_given:
        message = f"data.path={request.path} has {count(len(rows[0]), 'token')}, and {n_given:,} are to be given."
        raise UserError("bad_value", message, "Give a longer one, or a smaller complete=.")
    return [row[:n_given] for row in rows]


def write_files(trained: Trained, request: Request, rows: Sequence[Sequence[int]]) -> list[Path]:
    """Writes the samples as files, named by `out` or else by what was asked for, in the run; gives their paths.

    The same request of the same checkpoint writes the same bytes. UserError where they cannot be written.
    """
    if request.out is None:
        asked = replace(request, threads=None)
        digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:8]
        stem = trained.run / FOLDER / f"step-{trained.step:08d}-seed-{request.seed}-{digest}"
    else:
        stem = Path(request.out).expanduser()
    written = []
    for ending, content in trained.rendering.files(rows):
        path = stem.with_name(stem.name.removesuffix(f".{ending.rpartition('.')[2]}") + ending)
        with writing(path, "set out= to another place"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        written.append(path)
    return written
