"""A user's own documents, in JSON lines or Parquet, under any key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from efftx import cli
from efftx.data.dataset import notes_of, open_dataset
from efftx.data.jsonl import JsonlConfig
from efftx.errors import UserError

ROWS = [{"body": f"Document {i} says what it says.", "id": i} for i in range(40)]


def config(path: Path | str | None, **keys: Any) -> JsonlConfig:
    values: dict[str, Any] = {"tokenizer": "bytes", "field": "body"} | keys
    return JsonlConfig("jsonl", 16, None if path is None else str(path), **values)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_documents_are_read_under_the_key_that_is_named(file: Path) -> None:
    dataset = open_dataset(config(file))
    assert dataset.name == "jsonl"
    assert dataset.variant.startswith("jsonl[my.jsonl sha256:")
    assert dataset.variant.endswith(" body 36+2+2 documents, 90/5/5, bytes]")
    first = dataset.batch("test", 0, 0, 1).tokens_BL[0].tolist()
    assert bytes(token - 3 for token in first) == ROWS[38]["body"].encode()[:16]  # type: ignore[attr-defined]
    assert notes_of(dataset) == ()


def test_a_wrong_key_is_told_with_those_that_are_there(file: Path) -> None:
    with pytest.raises(UserError, match=r'my\.jsonl, line 1: the document has no "text"') as raised:
        open_dataset(config(file, field="text"))
    assert '"body", "id"' in raised.value.hint


def test_a_file_that_belongs_to_no_split_is_told(file: Path, tmp_path: Path) -> None:
    for name in ("train-0", "valid-0"):
        (tmp_path / f"{name}.jsonl").write_text(file.read_text())
    assert notes_of(open_dataset(config(tmp_path))) == ("Left out: my.jsonl, beside files that are named by split.",)


def test_parquet_gives_the_same_documents(file: Path, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "my.parquet")
    one, other = open_dataset(config(file)), open_dataset(config(tmp_path / "my.parquet"))
    assert one.checksum == other.checksum
    assert one.variant != other.variant
    (tmp_path / "my.parquet").rename(tmp_path / "MY.PARQUET")
    assert open_dataset(config(tmp_path / "MY.PARQUET")).checksum == one.checksum


def test_only_so_many_documents_are_taken_as_are_asked_for(file: Path) -> None:
    few = open_dataset(config(file, n_documents=20))
    assert " 18+1+1 documents" in few.variant
    assert notes_of(few) == ("No more than the first 20 documents are read: data.n_documents=20 (0: all).",)
    assert notes_of(open_dataset(config(file, n_documents=41))) == ()
    with pytest.raises(UserError, match="n_documents=-1"):
        open_dataset(config(file, n_documents=-1))


def test_without_a_path_it_is_said_which_files_would_do() -> None:
    with pytest.raises(UserError, match="data=jsonl needs files") as raised:
        open_dataset(config(None))
    assert "data.field" in raised.value.hint


def test_ablate_trains_on_it_and_a_note_counts_what_is_left_out(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text() + '\n{"body": ""}\n')
    words = ["data=jsonl", f"data.path={file}", "data.field=body", "data.length=16"]
    few = ["model=terraformer", "size=smoke", "training.steps=1", "schedule.warmup=0", "evaluation.batches=1"]
    assert cli.main(["ablate", *words, *few, "sparse_ff.N=0,4", "--json"]) == 0
    out = capsys.readouterr().out
    assert [run["state"] for run in json.loads(out)["runs"]] == ["done", "done"]
    assert cli.main(["train", *words, *few, "seed=5"]) == 0
    note = "Left out: 2 lines or rows that are blank or lack a text or a label."
    assert note in capsys.readouterr().err
    assert cli.main(["data", "prepare", "jsonl", f"data.path={file}", "data.field=body", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["data"][0]["notes"] == [note]
    assert err == f"{note}\n"
    assert cli.main(["data", "verify", "jsonl", f"data.path={file}"]) == 2
