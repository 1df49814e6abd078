"""A file that moves to another split makes other data of the same bytes, which are prepared anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from efftx.data.c4 import C4Config
from efftx.data.dataset import DataConfig, Dataset, open_dataset
from efftx.data.glue import GlueConfig
from efftx.data.jsonl import JsonlConfig
from efftx.data.music import MusicConfig
from efftx.data.pictures import PicturesConfig
from efftx.data.summarization import SummarizationConfig
from efftx.data.text import TextFilesConfig
from efftx.data.wmt14 import WMTConfig

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small files here stand for the published ones, whose names no variant tells."""
    for name in ("c4", "summarization", "glue", "wmt14"):
        monkeypatch.setattr(f"efftx.data.{name}.are", lambda what, sums: True)


def as_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(path: Path, rows: Rows) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def texts(i: int) -> Rows:
    return [{"text": f"Document {i}.{j}"} for j in range(4)]


def translations(i: int) -> Rows:
    return [{"en": f"word {i}.{j}", "de": f"Wort {i}.{j}"} for j in range(4)]


def summaries(i: int) -> Rows:
    return [{"article": f"Article {i}.{j}", "abstract": f"its end {i}"} for j in range(4)]


def labelled(i: int) -> Rows:
    return [{"sentence1": f"One {i}", "sentence2": f"two {j}", "label": j % 2} for j in range(4)]


def pixels(path: Path, i: int) -> None:
    np.savez(path, images=np.full((i + 1, 2, 2, 3), i, np.uint8))


def plain(path: Path, i: int) -> None:
    path.write_text(f"Text {i}.\n" * 4)


def codes(path: Path, i: int) -> None:
    np.savez(path, np.full(40, i, np.uint8))


def writes(write: Callable[[Path, Rows], None], rows: Callable[[int], Rows]) -> Callable[[Path, int], None]:
    return lambda path, i: write(path, rows(i))


TEXT: dict[str, Any] = {"length": 8, "tokenizer": "bytes"}
PAIRS: dict[str, Any] = {"length": 64, "target_length": 32, "tokenizer": "bytes"}
CASES: dict[str, tuple[Callable[[str], DataConfig], str, Callable[[Path, int], None]]] = {
    "jsonl": (lambda path: JsonlConfig("jsonl", path=path, **TEXT), "jsonl", writes(as_lines, texts)),
    "text": (lambda path: TextFilesConfig("text", path=path, **TEXT), "txt", plain),
    "c4": (lambda path: C4Config("c4", path=path, **TEXT), "jsonl", writes(as_lines, texts)),
    "wmt14": (lambda path: WMTConfig("wmt14", path=path, **PAIRS), "jsonl", writes(as_lines, translations)),
    "summarization": (
        lambda path: SummarizationConfig("summarization", path=path, **PAIRS),
        "parquet",
        writes(as_parquet, summaries),
    ),
    "glue": (
        lambda path: GlueConfig("glue", path=path, length=64, tokenizer="bytes"),
        "parquet",
        writes(as_parquet, labelled),
    ),
    "images": (lambda path: PicturesConfig("images", 12, path, side=2), "npz", pixels),
    "music": (lambda path: MusicConfig("music", 8, path), "npz", codes),
}


def written(folder: Path, name: str, *files: str) -> Callable[[], Dataset]:
    """Puts the data set's files there, each other than the one before; gives what opens them."""
    config, ending, write = CASES[name]
    folder.mkdir()
    for i, file in enumerate(files):
        write(folder / f"{file}.{ending}", i)
    objective = "seq2seq" if ending == "parquet" or name == "wmt14" else "lm"
    return lambda: open_dataset(config(str(folder)), objective)


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_moves_to_another_split_is_prepared_anew(tmp_path: Path, name: str) -> None:
    opened = written(tmp_path / "files", name, "train-0", "train-1", "validation-1", "test-0")
    before = opened()
    assert opened().checksum == before.checksum
    (file,) = (tmp_path / "files").glob("train-1.*")
    file.rename(file.with_name(f"validation-0{file.suffix}"))  # between the same neighbours
    after = opened()
    assert after.checksum != before.checksum
    fresh = written(tmp_path / "fresh", name, "train-0", "validation-0", "validation-1", "test-0")
    assert fresh().checksum == after.checksum


def test_the_same_files_of_c4_named_by_split_are_not_those_that_are_cut_90_5_5(tmp_path: Path) -> None:
    opened = written(tmp_path / "files", "c4", *"abcdef")
    assert opened().variant == "c4[21+1+2 documents, 90/5/5,bytes]"
    for letter in "abcdef":
        split = {"e": "valid", "f": "test"}.get(letter, "train")
        (tmp_path / "files" / f"{letter}.jsonl").rename(tmp_path / "files" / f"{split}-{letter}.jsonl")
    assert opened().variant == "c4[16+4+4 documents,bytes]"
