"""Documents as JSON lines, plain or compressed, or as Parquet, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efftx.data.text_files import open_regular, read_file, read_lines, utf8_text
from efftx.errors import UserError

PARQUET = ".parquet"
MOST_BYTES = 1 << 28
"""Of a JSON array, which is read at once."""
_ROWS_AT_ONCE = 256
_ARRAY = 'An array is [{"text": "..."}, ...].'


def read_rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """The rows of a file of JSON lines or of Parquet (by its name), None for a blank line.

    `UserError` with file and line for a line that is no JSON object, and for a file that is damaged or no file.
    """
    return _parquet_rows(path) if path.suffix.lower() == PARQUET else read_json_lines(path)


def read_json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a file in order, None for a blank line; `UserError` with file and line for any other line.

    A file that is one JSON array of them is read too, at once, if it has no more than MOST_BYTES.
    """
    if utf8_text(read_file(path, 1024), path).lstrip().startswith(b"["):  # which may be one long line
        yield from _items(path)
        return
    for number, line in enumerate(read_lines(path), 1):
        yield json_object(line, f"{path}, line {number}") if line.strip() else None


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object in a line; `UserError`, which calls the line `place`, where there is none."""
    row = _parsed(line, place)
    if not isinstance(row, dict):
        raise UserError("bad_document", f"{place} is not a JSON object.", 'A line is {"text": "..."}.')
    return row


def _items(path: Path) -> Iterator[dict[str, Any]]:
    content = utf8_text(read_file(path, MOST_BYTES), path)
    if len(content) > MOST_BYTES:
        message = f"{path} is one JSON array of more than {MOST_BYTES:,} bytes."
        raise UserError("bad_document", message, 'Make lines of it: jq -c ".[]".')
    for number, item in enumerate(_parsed(content, str(path)), 1):
        if not isinstance(item, dict):
            raise UserError("bad_document", f"{path}, item {number} is not a JSON object.", _ARRAY)
        yield item


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError("bad_document", f"{place} is not JSON that can be read: it is nested too deeply.") from error
    except UnicodeDecodeError as error:
        hint = "Convert the file to UTF-8."
        raise UserError("bad_document", f"{place} is not JSON: it is not UTF-8.", hint) from error
    except json.JSONDecodeError as error:
        raise UserError("bad_document", f"{place} is not JSON: {error}.", "Every line is one JSON object.") from error
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        raise UserError("bad_document", f"{place} is not JSON that can be read: a number is too long.") from error


def read_texts(path: Path, field: str = "text") -> Iterator[str | None]:
    """The text of each row, None for a blank line and a text that is empty; `UserError` for a row without the field."""
    for number, row in enumerate(read_rows(path), 1):
        if row is None:
            yield None
            continue
        place = f"{path}, line {number}"
        if field not in row:
            known = ", ".join(f'"{key}"' for key in list(row)[:20])
            message = f'{place}: the document has no "{field}".'
            raise UserError("bad_document", message, f"It has: {known}." if known else "Every line is one document.")
        text = row[field]
        if text is None:
            yield None
        elif isinstance(text, str):
            yield whole_text(text, place) if text.strip() else None
        else:
            raise UserError("bad_document", f'{place}: "{field}" is no text.', 'A line is {"text": "..."}.')


def whole_text(text: str, place: str) -> str:
    """`text`, if UTF-8 can hold it; `UserError` for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError("bad_document", f"{place}: half of a surrogate pair is no text.") from error
    return text


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    # Loading pyarrow costs more than a data set of JSON lines should wait for.
    import pyarrow.parquet  # type: ignore[import-untyped]

    with open_regular(path) as file:
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise UserError("damaged_file", f"{path} cannot be read as Parquet: {why}", "Get it again.") from error
