from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from efftx.data.json_lines import find_json_lines, read_json_lines, read_texts
from efftx.errors import UserError

ROWS = [{"text": "W\u00fcrfel", "kind": "document"}, {"text": "two\nlines"}]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_line_is_a_document_plain_or_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](CONTENT))
    assert find_json_lines(tmp_path, "train") == path
    assert list(read_json_lines(path)) == ROWS
    assert list(read_texts(path)) == ["W\u00fcrfel", "two\nlines"]


def test_the_last_line_need_not_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT.rstrip(b"\n"))
    assert list(read_json_lines(tmp_path / "file")) == ROWS


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "is empty"),
        (b"  ", "is empty"),
        (b'{"text": "cut', "is not JSON"),
        (b'{"text": "\xff"}', "is not JSON"),
        (b'["text"]', "is not a JSON object"),
        (b'{"kind": "document"}', "the document has no text"),
        (b'{"text": null}', "the document has no text"),
        (b'{"text": 3}', "the document has no text"),
        (b'{"text": " \\n"}', "the document has no text"),
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


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read") as raised:
        list(read_json_lines(tmp_path / "nothing.jsonl"))
    assert raised.value.kind == "missing_file"
    with pytest.raises(UserError, match=r"has no valid\.jsonl") as raised:
        find_json_lines(tmp_path, "valid")
    assert ".xz" in raised.value.hint
