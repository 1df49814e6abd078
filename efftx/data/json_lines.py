"""Documents as JSON lines, plain or compressed, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efftx.data.text_files import unpacked
from efftx.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.bz2")


def find_json_lines(folder: Path, split: str) -> Path:
    """`<split>.jsonl`, plain or compressed, in a folder; `UserError` where there is none."""
    for suffix in SUFFIXES:
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    raise UserError(
        "missing_file",
        f"The folder data.path={folder} has no {split}.jsonl.",
        "Put train.jsonl, valid.jsonl and test.jsonl into it (or each with .gz, .xz or .bz2), or set data.path to one "
        "file.",
    )


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file in order; `UserError` with file and line for a line that is empty or no JSON object."""
    with unpacked(path) as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            if not line.strip():
                raise UserError("bad_document", f"{place} is empty.", "Every line is one JSON object.")
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError("bad_document", f"{place} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise UserError("bad_document", f"{place} is not a JSON object.", 'A line is {"text": "..."}.')
            yield row


def read_texts(path: Path, key: str = "text") -> Iterator[str]:
    """The text of each document; `UserError` with file and line for a document without one."""
    for number, row in enumerate(read_json_lines(path), 1):
        text = row.get(key)
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                "bad_document",
                f"{path}, line {number}: the document has no text.",
                f'Every line is one JSON object with a "{key}" that is not empty.',
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError("bad_document", f"{path}, line {number}: half of a surrogate pair is no text.") from error
        yield text
