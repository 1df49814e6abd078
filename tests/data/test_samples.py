"""The package's own texts: small, readable as what they stand for, and addressed by `efftx:samples/<name>`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efftx.data.prepared import SPLITS
from efftx.data.samples import is_sample, resolve_path
from efftx.errors import UserError


def folder_of(name: str) -> Path:
    folder = resolve_path(f"efftx:samples/{name}", name)
    assert folder is not None
    return folder


def rows(name: str, split: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder_of(name) / f"{split}.jsonl").read_text("utf-8").splitlines()]


def test_no_path_is_the_folder_of_that_name_in_the_data_root_where_there_is_one(root: Path) -> None:
    assert resolve_path(None, "c4") is None
    (root / "c4").mkdir(parents=True)
    assert resolve_path(None, "c4") == root / "c4"


def test_a_path_of_the_users_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_path("~/texts", "c4") == Path("/home/someone/texts")
    assert resolve_path("samples/c4", "c4") == Path("samples/c4")


@pytest.mark.parametrize("path", ["efftx:samples/c5", "efftx:c4", "efftx:samples/../c4", "efftx:samples/", "efftx:"])
def test_unknown_samples_are_refused_with_the_nearest_name(path: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve_path(path, "c4")
    assert raised.value.kind == "missing_file"
    assert "efftx:samples/c4" in raised.value.hint


def test_only_a_prefix_makes_a_path_a_sample() -> None:
    assert is_sample("efftx:samples/c4")
    assert not is_sample("/data/efftx:samples/c4")
    assert not is_sample(None)


def test_the_documents_are_30_5_and_5_and_no_two_are_equal() -> None:
    texts = [row["text"] for split in SPLITS for row in rows("c4", split)]
    assert [len(rows("c4", split)) for split in SPLITS] == [30, 5, 5]
    assert len(set(texts)) == 40


def test_every_summary_is_shorter_than_its_source() -> None:
    pairs = [row for split in SPLITS for row in rows("summarization", split)]
    assert len(pairs) == 24
    for row in pairs:
        assert isinstance(row["source"], str)
        assert isinstance(row["summaries"], list)
        assert row["summaries"]
        assert all(len(summary) < len(row["source"]) / 2 for summary in row["summaries"])


def test_half_of_the_sentence_pairs_are_entailments() -> None:
    for split, count in (("train", 18), ("dev", 6), ("test", 6)):
        head, *lines = (folder_of("glue") / "rte" / f"{split}.tsv").read_text("utf-8").splitlines()
        assert head.split("\t") == ["index", "sentence1", "sentence2", "label"]
        labels = [line.split("\t")[3] for line in lines]
        assert (labels.count("entailment"), labels.count("not_entailment")) == (count // 2, count // 2)
