"""What efftx writes and reads back: JSON that carries a checksum, and other bytes with a checksum beside them.

A sealed document is JSON whose last member is `checksum`: SHA-256 over all the bytes before it. Whatever bit of the
file changes, the reader notices. In a log (`.jsonl`) every line is sealed, each over the line before it too, so that a
line that is lost, moved or changed is noticed; `Mark` says how far a log goes, so that a lost end is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from efftx.core.files import DamagedFileError, open_file, read_file, write_atomically

MOST_BYTES = 1 << 28
"""Of a document; efftx's own are a thousandth of it."""
MOST_BYTES_A_LINE = 1 << 24
DEEPEST = 100
MOST_DIGITS = 400

_TAIL = b',\n "checksum": "%b"\n}\n'
_LINE_TAIL = b', "checksum": "%b"}\n'
_DIGITS, _LINE_DIGITS = 64, 16
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


# ---- JSON ------------------------------------------------------------------------------------------------------------


def parse_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN or infinity, no key twice, at most DEEPEST levels and MOST_DIGITS digits a number.

    ValueError says what is wrong.
    """
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    if max(accumulate(1 if b in b"[{" else -1 for b in brackets), default=0) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_number,
            parse_int=_integer,
        )
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None


def dump_json(content: Mapping[str, Any], *, indent: int | None = None, sort_keys: bool = False) -> bytes:
    """JSON in UTF-8, NaN and infinities refused with a ValueError, half a surrogate pair (of a path) escaped."""
    text = json.dumps(content, indent=indent, sort_keys=sort_keys, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def finite(value: Any) -> Any:
    """The value with NaN and infinities, which JSON does not have, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key stands twice in it")
    return mapping


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _number(text: str) -> float:
    number = float(text)
    if len(text) > MOST_DIGITS or not math.isfinite(number):
        raise ValueError("a number in it is too large")
    return number


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError("a number in it is too large")
    return int(text)


# ---- documents -------------------------------------------------------------------------------------------------------


def write_document(path: Path, content: Mapping[str, Any], *, sort_keys: bool = False) -> None:
    """Write a sealed document in one step. OSError as `write_atomically`; ValueError for what JSON cannot hold."""
    write_atomically(path, seal(content, sort_keys=sort_keys))


def seal(content: Mapping[str, Any], *, sort_keys: bool = False) -> bytes:
    """The bytes of a sealed document; `content` has at least one member, and none called `checksum`."""
    _check_members(content)
    data = dump_json(content, indent=1, sort_keys=sort_keys).removesuffix(b"\n}")
    sealed = data + _TAIL % _checksum(data, _DIGITS)
    if len(sealed) > MOST_BYTES:
        raise ValueError(f"a document of {len(sealed):,} bytes is more than {MOST_BYTES:,}")
    return sealed


def read_document(path: Path, hint: str = "Remove it.") -> dict[str, Any] | None:
    """The content of a sealed document, None where there is none; DamagedFileError where a bit of it has changed."""
    try:
        data = read_file(path, MOST_BYTES, hint)
    except FileNotFoundError:
        return None
    body = data[: -len(_TAIL % bytes(_DIGITS))]
    if not data:
        raise DamagedFileError(path, "it is empty", hint)
    if body + _TAIL % _checksum(body, _DIGITS) != data:
        raise DamagedFileError(path, "it does not have its checksum", hint)
    return _content(path, data, hint)


def _checksum(data: bytes, digits: int) -> bytes:
    return hashlib.sha256(data).hexdigest()[:digits].encode()


def _check_members(content: Mapping[str, Any]) -> None:
    if not content or "checksum" in content:
        raise ValueError("a sealed document has members, and its checksum is its own")


def _content(path: Path, data: bytes, hint: str) -> dict[str, Any]:
    try:
        content = parse_json(data)
    except ValueError as error:
        raise DamagedFileError(path, str(error), hint) from None
    if not isinstance(content, dict):
        raise DamagedFileError(path, "it is no JSON object", hint)
    del content["checksum"]
    return content


# ---- logs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """How far a log goes: so many lines, so many bytes, and the checksum of the last line."""

    lines: int = 0
    bytes: int = 0
    checksum: str = ""


def seal_line(content: Mapping[str, Any], before: Mark) -> tuple[bytes, Mark]:
    """A line for the log that goes as far as `before`, and how far it goes then."""
    _check_members(content)
    data = dump_json(content).removesuffix(b"}")
    checksum = _checksum(before.checksum.encode() + data, _LINE_DIGITS)
    line = data + _LINE_TAIL % checksum
    return line, Mark(before.lines + 1, before.bytes + len(line), checksum.decode())


def read_log(path: Path, at_most: int | None = None, hint: str = "") -> Iterator[tuple[dict[str, Any], Mark]]:
    """The lines of a log in order, each with how far the log goes with it; the first `at_most` of them.

    Nothing where there is no file. Half a line at the end, which a kill leaves, is none. DamagedFileError names the
    first line that is not as it was written.
    """
    mark = Mark()
    try:
        file = open_file(path, hint)
    except FileNotFoundError:
        return
    with file:
        while at_most is None or mark.lines < at_most:
            line = file.readline(MOST_BYTES_A_LINE)
            if not line.endswith(b"\n"):
                if len(line) == MOST_BYTES_A_LINE:
                    raise DamagedFileError(path, f"line {mark.lines + 1} is too long", hint)
                return
            body = line[: -len(_LINE_TAIL % bytes(_LINE_DIGITS))]
            checksum = _checksum(mark.checksum.encode() + body, _LINE_DIGITS)
            if body + _LINE_TAIL % checksum != line:
                raise DamagedFileError(path, f"line {mark.lines + 1} does not have its checksum", hint)
            mark = Mark(mark.lines + 1, mark.bytes + len(line), checksum.decode())
            yield _content(path, line, hint), mark


def end_of_log(path: Path, at_most: int | None = None, hint: str = "") -> Mark:
    """How far a log goes, or its first `at_most` lines; as `read_log`."""
    last = deque(read_log(path, at_most, hint), maxlen=1)
    return last[0][1] if last else Mark()


# ---- bytes with a checksum beside them -------------------------------------------------------------------------------


def checksum_file(path: Path) -> Path:
    """Where the checksum of `path` lies, in the form that `sha256sum -c` reads."""
    return path.with_name(f"{path.name}.sha256")


def write_checked(path: Path, data: bytes) -> None:
    """Write `data` and its checksum beside it; a kill between the two leaves a file that counts as damaged."""
    write_atomically(checksum_file(path), _beside(path, data))
    write_atomically(path, data)


def read_checked(path: Path, hint: str = "Remove it.") -> bytes | None:
    """The bytes that `write_checked` wrote, None where there is no file; DamagedFileError where they have changed."""
    try:
        data = read_file(path, MOST_BYTES, hint)
    except FileNotFoundError:
        return None
    beside = checksum_file(path)
    try:
        recorded = read_file(beside, 4096, hint)
    except FileNotFoundError:
        raise DamagedFileError(path, f"its checksum, {beside.name}, is missing", hint) from None
    if recorded != _beside(path, data):
        raise DamagedFileError(path, f"it does not have the checksum in {beside.name}", hint)
    return data


def _beside(path: Path, data: bytes) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode("utf-8", "surrogateescape")
