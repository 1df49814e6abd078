from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from efftx.data import json_lines, text_files
from efftx.data.json_lines import read_json_lines, read_rows, read_texts
from efftx.errors import UserError

ROWS = [{"text": "W\u00fcrfel", "kind": "document"}, {"text": "two\nlines"}]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_line_is_a_document_plain_or_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](CONTENT))
    assert list(read_json_lines(path)) == ROWS
    assert list(read_texts(path)) == ["W\u00fcrfel", "two\nlines"]


def test_the_last_line_need_not_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT.rstrip(b"\n"))
    assert list(read_json_lines(tmp_path / "file")) == ROWS


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "cut', "is not JSON"),
        (b'{"text": "\xff"}', "is not UTF-8"),
        (b'"text"', "is not a JSON object"),
        (b'["text"]', "is not a JSON object"),
        (b'{"kind": "document"}', 'the document has no "text"'),
        (b'{"text": 3}', '"text" is no text'),
        (b'{"text": ["a"]}', '"text" is no text'),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"text": ' + b'{"a": ' * 200_000, "nested too deeply"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "a number is too long"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(CONTENT + line + b"\n" + CONTENT)
    texts = read_texts(path)
    assert [next(texts), next(texts)] == [row["text"] for row in ROWS]  # what comes before it is read
    with pytest.raises(UserError, match=said) as raised:
        next(texts)
    assert raised.value.kind == "bad_document"
    assert f"{path}, line 3" in raised.value.message


def test_another_key_may_hold_the_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'{"source": "a"}\n')
    assert list(read_texts(tmp_path / "file", "source")) == ["a"]


def test_a_truncated_archive_is_refused_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(CONTENT * 10_000)[:-9])
    with pytest.raises(UserError, match="damaged or truncated") as raised:
        list(read_json_lines(path))
    assert raised.value.kind == "damaged_file"


def test_a_blank_line_and_an_empty_text_are_no_document_and_no_refusal(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b'\n{"text": "a"}\r\n  \t\n{"text": ""}\n{"text": " \\n"}\n{"text": null}\n{"text": "b"}\n\n')
    assert list(read_texts(path)) == [None, "a", None, None, None, None, "b", None]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_may_be_one_array_of_documents(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "file.json").write_text(" " * bool(indent) + json.dumps(ROWS, indent=indent))
    assert list(read_texts(tmp_path / "file.json")) == [row["text"] for row in ROWS]


def test_an_array_on_one_line_may_be_longer_than_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 10)
    (tmp_path / "file.json").write_text(json.dumps(ROWS))
    assert list(read_texts(tmp_path / "file.json")) == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"text": "a"}, "b"]', "item 2 is not a JSON object"),
        (b'[{"text": "a"}', "file is not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'[{"text": "a", "n": ' + b"9" * 5000 + b"}]", "a number is too long"),
        (b'["\xff"]', "is not UTF-8"),
        (b"[" + b" " * 2000 + b"]", "one JSON array of more than 1,000 bytes"),
    ],
)
def test_an_array_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    if "1,000" in said:
        monkeypatch.setattr(json_lines, "MOST_BYTES", 1000)
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        list(read_texts(tmp_path / "file"))
    assert raised.value.kind == "bad_document"
    assert str(tmp_path / "file") in raised.value.message


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + CONTENT)
    assert list(read_texts(tmp_path / "file")) == [row["text"] for row in ROWS]
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / "file").write_bytes(CONTENT.decode().encode(encoding))
        with pytest.raises(UserError, match="is UTF-16 or UTF-32 text") as raised:
            list(read_texts(tmp_path / "file"))
        assert "iconv" in raised.value.hint


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 50)
    (tmp_path / "file").write_bytes(CONTENT + b" " * 51)
    with pytest.raises(UserError, match="file, line 3 is longer than 50 bytes"):
        list(read_json_lines(tmp_path / "file"))


@pytest.mark.parametrize("rows", [[], ROWS, [{"text": str(i)} for i in range(1000)]])
def test_rows_of_parquet_are_read_as_those_of_json_lines(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema([("text", pyarrow.string())]))
    pyarrow.parquet.write_table(table, tmp_path / "file.parquet")
    assert list(read_texts(tmp_path / "file.parquet")) == [row["text"] for row in rows]


def test_a_damaged_parquet_file_is_told(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    for kept in (0, 3, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.parquet").write_bytes(content[:kept])
        with pytest.raises(UserError, match="cannot be read as Parquet") as raised:
            list(read_rows(tmp_path / "cut.parquet"))
        assert raised.value.kind == "damaged_file"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read") as raised:
        list(read_json_lines(tmp_path / "nothing.jsonl"))
    assert raised.value.kind == "missing_file"
