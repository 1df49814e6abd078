"""Corpora of summaries: which files, which keys, how they are split, and what the variant says of it."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from efftx.config.compose import compose
from efftx.data import known_files
from efftx.data.catalogue import prepare, verify
from efftx.data.dataset import find_source, notes_of, open_dataset
from efftx.data.hub import HubRows
from efftx.data.known_files import not_known
from efftx.data.pairs import TextPairs
from efftx.data.summarization import SummarizationConfig, check_summarization, open_summarization
from efftx.errors import UserError
from efftx.evaluation.rouge import TOKENIZER
from efftx.training.loop import train
from tests.data.shipped_config import shipped_config

SAMPLES = "efftx:samples/summarization"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small files here stand for the published ones; a test of a user's own files takes this back."""
    monkeypatch.setattr("efftx.data.summarization.are", lambda what, sums: True)


def config(path: Path | str | None, **keys: Any) -> SummarizationConfig:
    values: dict[str, Any] = {"length": 400, "target_length": 60, "tokenizer": "bytes"} | keys
    return SummarizationConfig("summarization", path=None if path is None else str(path), **values)


def open_at(path: Path | str | None, **keys: Any) -> TextPairs:
    return open_summarization(config(path, **keys))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def row(i: int) -> dict[str, Any]:
    return {"article": f"Article {i}.", "abstract": f"Abstract {i}."}


def test_the_packages_samples_are_called_so_whatever_the_corpus() -> None:
    dataset = open_at(SAMPLES)
    assert dataset.variant == f"summarization[{SAMPLES} 16+4+4 documents,bytes]"
    assert open_at(SAMPLES, corpus="scitldr").checksum == dataset.checksum
    assert dataset.metrics == ("rouge",)
    assert dataset.chance_accuracy is None
    assert dataset.label_targets == []
    assert dataset.references("test", 1)[0].startswith("Short and frequent breaks")


def test_a_trained_vocabulary_reads_the_training_split() -> None:
    dataset = open_at(SAMPLES, tokenizer="unigram", vocab_size=400)
    assert dataset.variant == f"summarization[{SAMPLES} 16+4+4 documents,unigram-400]"
    assert dataset.vocab_size == 500
    target = dataset.batch("test", 0, 0, 1).tokens_BL[0].tolist()
    assert dataset.decode(target) == dataset.references("test", 0)[0]


@pytest.mark.parametrize("pattern", ["{}.txt", "{}.jsonl.gz", "arxiv_{}.json", "arxiv-v1.{}.jsonl"])
@pytest.mark.parametrize("valid", ["valid", "val", "validation", "dev"])
def test_a_folder_has_a_file_for_each_split(tmp_path: Path, pattern: str, valid: str) -> None:
    for split, numbers in (("train", range(4)), (valid, range(4, 6)), ("test", range(6, 9))):
        write(tmp_path / pattern.format(split), [row(i) for i in numbers])
    dataset = open_at(tmp_path)
    assert dataset.variant == "summarization[arxiv 4+2+3 documents,bytes]"
    assert dataset.references("valid", 0) == ["Abstract 4."]
    assert dataset.source("test", 2) == "Article 8."


def test_a_corpus_of_another_name_is_read_where_it_stands_alone(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "dev", "test")):
        write(tmp_path / f"dialogsum.{split}.jsonl", [{"dialogue": f"Dialogue {i}.", "summary": f"S {i}."}])
    assert open_at(tmp_path).references("valid", 0) == ["S 1."]
    write(tmp_path / "other.test.jsonl", [row(1)])
    with pytest.raises(UserError, match="has not one file for each split"):
        open_at(tmp_path)


def test_files_with_the_corpus_in_their_name_come_before_bare_ones(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "valid", "test")):
        write(tmp_path / f"{split}.jsonl", [row(i)])
        write(tmp_path / f"scitldr_a_{split}.jsonl", [row(10 + i)])
        write(tmp_path / f"scitldrish_{split}.jsonl", [row(20 + i)])
    assert open_at(tmp_path, corpus="scitldr").references("test", 0) == ["Abstract 12."]
    assert open_at(tmp_path, corpus="arxiv").references("test", 0) == ["Abstract 2."]


@pytest.mark.parametrize("whole_path", [True, False])
def test_one_file_is_split_90_5_5_by_document_and_says_so(tmp_path: Path, whole_path: bool) -> None:
    file = tmp_path / "cnn_dailymail_test.jsonl.gz"
    write(file, [row(i) for i in range(40)])
    write(tmp_path / "other_test.jsonl", [row(i) for i in range(9)])
    dataset = open_at(file if whole_path else tmp_path, corpus="cnn_dailymail")
    assert dataset.variant == "summarization[cnn_dailymail 36+2+2 documents of one file 90/5/5,bytes]"
    assert [dataset.references("valid", 0), dataset.references("test", 1)] == [["Abstract 36."], ["Abstract 39."]]
    trained_on = {dataset.decode(r) for r in dataset.batch("train", 0, 0, 36).tokens_BL.tolist()}
    assert trained_on == {f"Abstract {i}." for i in range(36)}


def test_equal_files_of_two_corpora_have_two_variants(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / f"{split}.jsonl", [row(1)])
    variants = {open_at(tmp_path, corpus=corpus).variant for corpus in ("arxiv", "scitldr", "arxiv")}
    assert variants == {f"summarization[{corpus} 1+1+1 documents,bytes]" for corpus in ("arxiv", "scitldr")}


def one_document(tmp_path: Path, document: dict[str, Any]) -> TextPairs:
    for split in ("train", "valid", "test"):
        write(tmp_path / f"{split}.jsonl", [document])
    return open_at(tmp_path)


@pytest.mark.parametrize(
    ("document", "source", "references"),
    [
        ({"source": "A. B.", "summaries": ["C.", "D."]}, "A. B.", ["C.", "D."]),
        ({"source": ["A.", "B."], "target": ["C.", "D."], "title": "T"}, "A.\nB.", ["C.", "D."]),
        ({"id": "1", "article": "A. B.", "highlights": "C .\nD ."}, "A. B.", ["C .\nD ."]),
        ({"article": " A. \n", "abstract": "C. D."}, "A.", ["C. D."]),
        ({"document": "A.", "summary": "B."}, "A.", ["B."]),
        ({"text": "A.", "summary": "B.", "title": "T"}, "A.", ["B."]),
        ({"dialogue": "x: A.\r\ny: B.", "summary": "C."}, "x: A.\r\ny: B.", ["C."]),
        ({"article_text": ["a .", "b ."], "abstract_text": ["<S> c . </S>", "<S> d . </S>"]}, "a .\nb .", ["c .\nd ."]),
    ],
)
def test_each_corpus_has_its_own_keys(
    tmp_path: Path, document: dict[str, Any], source: str, references: list[str]
) -> None:
    dataset = one_document(tmp_path, document)
    assert dataset.source("test", 0) == source
    assert dataset.references("test", 0) == references


def test_documents_without_text_or_summary_are_left_out_and_counted(tmp_path: Path) -> None:
    empty: list[dict[str, Any]] = [
        {"article_text": [], "abstract_text": ["<S> a </S>"]},
        {"article": "A", "abstract": " "},
    ]
    for split in ("train", "valid", "test"):
        write(tmp_path / f"{split}.jsonl", [*empty, {"source": "A", "summaries": ["", "b"]}])
    dataset = open_at(tmp_path)
    assert dataset.variant == "summarization[arxiv 1+1+1 (6 left out) documents,bytes]"
    assert dataset.references("train", 0) == ["b"]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"text": "A"}, "has no source with a summary"),
        ({"article": "A"}, "has no source with a summary"),
        ({"article": "A", "abstract": 3}, "neither a string nor a list of strings"),
        ({"article": ["A", 3], "abstract": "B"}, "neither a string nor a list of strings"),
        ({"article": "A", "abstract": "\ud800"}, "surrogate"),
    ],
)
def test_a_bad_document_is_named_with_file_and_line(tmp_path: Path, document: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        one_document(tmp_path, document)
    assert raised.value.kind == "bad_document"
    assert "train.jsonl, line 1" in raised.value.message


def test_files_are_looked_for_in_the_data_root(root: Path) -> None:
    with pytest.raises(UserError) as raised:
        open_at(None)
    assert raised.value.kind == "missing_file"
    assert str(root / "summarization") in raised.value.message
    assert "scientific_papers" in raised.value.hint
    assert "efftx:samples/summarization" in raised.value.hint
    for split in ("train", "val", "test"):
        write(root / "summarization" / f"{split}.txt", [row(1)])
    assert open_at(None).variant == "summarization[arxiv 1+1+1 documents,bytes]"


def test_a_folder_without_the_corpus_says_which_files_would_do(tmp_path: Path) -> None:
    write(tmp_path / "cnn_dailymail_test.jsonl", [row(1)])
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError) as raised:
            open_at(path, corpus="scitldr")
        assert raised.value.kind == "missing_file"
        assert "scitldr_a_valid.jsonl" in raised.value.hint


def test_two_files_for_one_split_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "test.jsonl.gz"):
        write(tmp_path / name, [row(1)])
    with pytest.raises(UserError, match="not one file for each split"):
        open_at(tmp_path)


def test_an_unknown_corpus_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.corpus=arxive") as raised:
        check_summarization(config(SAMPLES, corpus="arxive"))
    assert "'arxiv'" in raised.value.hint


def test_a_summary_has_room_for_a_quarter_of_its_source_unless_told_otherwise() -> None:
    assert open_at(SAMPLES, length=64, target_length=0).length == 16


def test_the_sample_files_are_read_as_they_are(samples: Path) -> None:
    folder, vocabulary = samples / "data" / "summarization", samples / "data" / "t5" / "spiece.model"
    if not folder.is_dir() or not vocabulary.is_file():
        pytest.skip("EFFTX_SAMPLES names no folder with data/summarization and data/t5")
    keys = {"tokenizer": "t5", "tokenizer_path": str(vocabulary)}
    scitldr = open_at(folder, corpus="scitldr", n_documents=20, length=64, **keys)
    assert scitldr.variant == "summarization[scitldr 20+619+618 documents,t5-32000]"
    assert len(scitldr.references("test", 0)) == 2
    news = open_at(folder, corpus="cnn_dailymail", length=64, **keys)
    assert news.variant == "summarization[cnn_dailymail 180+10+10 documents of one file 90/5/5,t5-32000]"
    assert news.source("train", 0).startswith("(CNN)The Palestinian Authority officially became")


def test_the_papers_rows_have_15360_and_1024_tokens() -> None:
    config = shipped_config("summarization")
    assert config == SummarizationConfig(
        "summarization", 15360, target_length=1024, tokenizer="t5", vocab_size=32000, corpus="arxiv"
    )
    source = find_source("summarization")
    assert (source.target_length(config, "seq2seq"), source.vocab_size(config, "seq2seq")) == (1024, 32100)


def test_it_is_opened_by_name_and_for_text_to_text_alone() -> None:
    config = SummarizationConfig("summarization", 64, SAMPLES, 32, tokenizer="bytes")
    dataset = open_dataset(config, "seq2seq")
    assert dataset.batch("train", 0, 0, 2).tokens_BL.shape == (2, 32)
    assert (dataset.vocab_size, dataset.input_length) == (
        find_source("summarization").vocab_size(config, "seq2seq"),
        64,
    )
    with pytest.raises(UserError, match="does not offer objective=lm"):
        open_dataset(config, "lm")


def test_what_is_prepared_is_listed(root: Path) -> None:
    assert [row["state"] for row in verify("summarization")] == ["not prepared"]
    row = prepare(SummarizationConfig("summarization", 64, SAMPLES, 32, tokenizer="bytes"))
    assert (row["state"], row["licence"]) == ("verified", "Apache-2.0, written for efftx")
    assert row["variant"].startswith("summarization[efftx:samples/summarization")
    assert verify("summarization") == [row]


def test_a_result_says_by_which_words_rouge_was_counted(tmp_path: Path) -> None:
    words = ["model=scaling", "data=summarization", "data.path=efftx:samples/summarization", "size=smoke"]
    result = train(
        compose([*words, "training.steps=1", "schedule.warmup=0", "evaluation.batches=1"]),
        tmp_path / "run",
        silent=True,
    )
    assert result.data["rouge_tokenizer"] == TOKENIZER
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"]["rouge_tokenizer"] == TOKENIZER


def test_a_users_own_files_are_not_called_by_the_name_of_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efftx.data.summarization.are", known_files.are)
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}.txt", [row(i) for i in range(3)])
    dataset = open_at(tmp_path)
    assert re.fullmatch(
        r"summarization\[train\.txt\+val\.txt\+test\.txt sha256:[0-9a-f]{12} 3\+3\+3 documents,bytes\]", dataset.variant
    )
    assert notes_of(dataset) == (not_known(str(tmp_path), "arxiv"),)


def test_files_as_the_hub_has_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "3.0.0").mkdir()
    for name, numbers in {
        "train-00000-of-00002": range(3),
        "train-00001-of-00002": range(3, 5),
        "validation-00000-of-00001": range(5, 7),
        "test-00000-of-00001": range(7, 8),
    }.items():
        rows = [{"article": f"Article {i}.", "highlights": f"Abstract {i}.", "id": str(i)} for i in numbers]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "3.0.0" / f"{name}.parquet")
    dataset = open_at(tmp_path, corpus="cnn_dailymail")
    assert dataset.variant == "summarization[cnn_dailymail 5+2+1 documents,bytes]"
    assert [dataset.references("train", i) for i in (0, 4)] == [["Abstract 0."], ["Abstract 4."]]
    assert dataset.references("test", 0) == ["Abstract 7."]


def test_without_a_path_cnn_dailymail_is_read_from_the_hub_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(self: HubRows, split: str, hint: str) -> Iterator[dict[str, Any]]:
        asked.append((self.place, self.subset, self.revision, split))
        return iter([{"article": f"Article of {split}.", "highlights": "A.\nB.", "id": "1"}])

    monkeypatch.setattr(HubRows, "rows", rows)
    dataset = open_at(None, corpus="cnn_dailymail")
    assert dataset.variant == "summarization[cnn_dailymail 1+1+1 documents,bytes]"
    assert dataset.source("valid", 0) == "Article of validation."
    commit = "96df5e686bee6baa90b8bee7c28b81fa3fa6223d"
    assert asked == [("abisee/cnn_dailymail", "3.0.0", commit, split) for split in ("train", "validation", "test")]
    with pytest.raises(UserError, match=r"data=summarization needs files"):
        open_at(None, corpus="arxiv")
