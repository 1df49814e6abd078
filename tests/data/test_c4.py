from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from efftx.data.c4 import C4Config, prepare_c4
from efftx.data.catalogue import listed, verify
from efftx.data.dataset import Dataset, find_source, notes_of, open_dataset
from efftx.data.hub import HubRows
from efftx.data.known_files import not_known
from efftx.data.prepared import SPLITS
from efftx.data.span_corruption import SpanCorruption
from efftx.errors import UserError

WORDS = ["the", "river", "is", "wide", "and", "its", "water", "cold", "in", "winter", "here", "people", "fish", "often"]


def documents(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"Document {seed}.{i}: {' '.join(draw.choices(WORDS, k=20))}." for i in range(count)]


TEXTS = {"train": documents(60, 1), "valid": documents(8, 2), "test": documents(7, 3)}


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "kind": "document"}) + "\n" for text in texts).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "train.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS["train"])))
    (tmp_path / "c4" / "valid.jsonl.xz").write_bytes(lzma.compress(lines(TEXTS["valid"])))
    (tmp_path / "c4" / "test.jsonl").write_bytes(lines(TEXTS["test"]))
    return tmp_path / "c4"


def own(words: str) -> str:
    """The variant of the files of `folder`, which are not known to be C4's."""
    return rf"jsonl\[train\.jsonl\.gz\+valid\.jsonl\.xz\+test\.jsonl sha256:[0-9a-f]{{12}} {re.escape(words)}\]"


def config(path: Path | str | None, length: int = 32, **keys: Any) -> C4Config:
    return C4Config("c4", length, None if path is None else str(path), **({"tokenizer": "bytes"} | keys))


def text_of(dataset: Dataset, split: str) -> str:
    """All that is counted of valid or test, with | at the end of a document."""
    found = []
    for step in range(dataset.n_batches(split, 3) or 0):
        batch = dataset.batch(split, 0, step, 3)
        found += batch.tokens_BL[batch.weights_BL > 0].tolist()
    return "".join("|" if token == 1 else chr(token - 3) for token in found)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_reads_every_document_of_its_file_and_no_other(folder: Path, split: str) -> None:
    assert text_of(open_dataset(config(folder)), split) == "".join(f"{text}|" for text in TEXTS[split])


@pytest.mark.parametrize("objective", ["lm", "span_corruption"])
def test_training_reads_the_training_documents_alone(folder: Path, objective: str) -> None:
    dataset = open_dataset(config(folder), objective)
    batch = dataset.batch("train", 0, 0, 64)
    tokens = batch.tokens_BL if batch.inputs_BE is None else torch.cat([batch.inputs_BE, batch.tokens_BL], 1)
    text = "".join(chr(token - 3) for token in tokens.flatten().tolist() if 2 < token < 259)
    assert "Document 1." in text
    assert "Document 2." not in text
    assert "Document 3." not in text


def test_both_objectives_have_one_table_one_variant_and_one_checksum(folder: Path) -> None:
    rows = {objective: open_dataset(config(folder), objective) for objective in find_source("c4").objectives}
    assert set(rows) == {"lm", "span_corruption"}
    for objective, dataset in rows.items():
        assert (dataset.name, notes_of(dataset)) == ("jsonl", (not_known(str(folder), "C4"),))
        assert re.fullmatch(own("60+8+7 documents, bytes"), dataset.variant)
        assert dataset.unit == "nats/token"
        assert dataset.vocab_size == find_source("c4").vocab_size(config(folder), objective) == 359
    assert len({dataset.checksum for dataset in rows.values()}) == 1
    assert rows["lm"].input_length == 0
    assert (rows["span_corruption"].input_length, isinstance(rows["span_corruption"], SpanCorruption)) == (32, True)


def test_a_vocabulary_is_trained_on_the_training_documents(folder: Path) -> None:
    keys = {"tokenizer": "bpe", "vocab_size": 300}
    dataset = open_dataset(config(folder, 8, **keys))
    assert re.fullmatch(own("60+8+7 documents, bpe-300"), dataset.variant)
    assert dataset.vocab_size == 400
    batch = dataset.batch("valid", 0, 0, 1)
    assert dataset.vocabulary.decode(batch.tokens_BL[0].tolist()) in TEXTS["valid"][0]  # type: ignore[attr-defined]


def test_fewer_documents_are_the_first_of_the_training_file(folder: Path) -> None:
    few = prepare_c4(config(folder, n_documents=5))
    assert few.meta["documents"] == {"train": 5, "valid": 8, "test": 7}
    expected = b"".join(
        b"".join(bytes([byte + 3, 0]) for byte in text.encode()) + b"\1\0" for text in TEXTS["train"][:5]
    )
    assert few.path("train").read_bytes() == expected
    assert few.folder != prepare_c4(config(folder)).folder


def test_one_file_is_split_90_5_5_by_documents(folder: Path) -> None:
    (folder / "all.jsonl").write_bytes(lines(TEXTS["train"]))
    dataset = open_dataset(config(folder / "all.jsonl"))
    (digest,) = re.findall("sha256:([0-9a-f]{12}) ", dataset.variant)
    assert dataset.variant == f"jsonl[all.jsonl sha256:{digest} 54+3+3 documents, 90/5/5, bytes]"
    assert hashlib.sha256((folder / "all.jsonl").read_bytes()).hexdigest().startswith(digest)
    assert text_of(dataset, "valid") == "".join(f"{text}|" for text in TEXTS["train"][54:57])
    assert text_of(dataset, "test") == "".join(f"{text}|" for text in TEXTS["train"][57:])
    assert "36+2+2 documents" in open_dataset(config(folder / "all.jsonl", n_documents=40)).variant
    with pytest.raises(UserError, match="There are no documents for valid in jsonl"):
        open_dataset(config(folder / "all.jsonl", n_documents=9))


def test_the_files_names_do_not_matter_and_their_content_does(folder: Path, tmp_path: Path) -> None:
    first = open_dataset(config(folder))
    folder.rename(tmp_path / "other")
    assert open_dataset(config(tmp_path / "other")).checksum == first.checksum
    (tmp_path / "other" / "test.jsonl").write_bytes(lines(TEXTS["test"][:-1]))
    changed = open_dataset(config(tmp_path / "other"))
    assert "60+8+6 documents" in changed.variant
    assert changed.checksum != first.checksum


def test_efftx_brings_a_small_one_along_that_no_result_mistakes_for_c4() -> None:
    dataset = open_dataset(config("efftx:samples/c4", 64))
    assert dataset.variant == "c4[efftx:samples/c4 30+5+5 documents,bytes]"
    (row,) = verify("c4")
    assert row["licence"].startswith("Apache-2.0")


def test_the_usual_place_is_read_without_a_path(folder: Path, root: Path) -> None:
    root.mkdir()
    folder.rename(root / "c4")
    dataset = open_dataset(config(None))
    assert re.fullmatch(own("60+8+7 documents, bytes"), dataset.variant)
    assert notes_of(dataset) == (not_known(None, "C4"),)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int | None]]:
    """A Hub that gives the documents of TEXTS, and what it was asked for."""
    asked: list[tuple[str, int, int | None]] = []

    def stream(self: HubRows, split: str, start: int, count: int | None, hint: str) -> Iterator[dict[str, str]]:
        asked.append((split, start, count))
        assert self.place == "allenai/c4"
        texts = TEXTS["train"] if split == "train" else TEXTS["valid" if start == 0 else "test"]
        return ({"text": text} for text in texts[:count])

    monkeypatch.setattr(HubRows, "stream", stream)
    return asked


def test_without_a_path_the_hubs_first_documents_are_read(published: list[Any]) -> None:
    dataset = open_dataset(config(None, n_documents=40))
    assert published == [("train", 0, 40), ("validation", 0, 2), ("validation", 182_304, 2)]
    assert dataset.variant == "c4[en:40,bytes]"
    assert text_of(dataset, "test") == "".join(f"{text}|" for text in TEXTS["test"][:2])
    open_dataset(config(None, n_documents=40))
    assert len(published) == 3  # prepared once, found without a network


def test_no_number_of_documents_is_all_of_c4(published: list[Any]) -> None:
    dataset = open_dataset(config(None))
    assert published == [("train", 0, None), ("validation", 0, 182_304), ("validation", 182_304, 182_304)]
    assert dataset.variant == "c4[en,bytes]"


def test_without_a_network_the_message_names_the_files_that_would_do(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for tokenizer in ("bytes", "bpe", "t5"):
        with pytest.raises(UserError) as raised:
            open_dataset(config(None, tokenizer=tokenizer))
        assert raised.value.kind == "no_network"
        assert "data.path" in raised.value.hint
    assert [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def with_line(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "test.jsonl").write_bytes(lines(TEXTS["test"]) + content)

    return write


def with_nothing_in_test(folder: Path) -> None:
    (folder / "test.jsonl").write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "kind", "said"),
    [
        (with_line(b"text\n"), "bad_document", r"test\.jsonl, line 8 is not JSON"),
        (with_line(b"{}\n"), "bad_document", r'test\.jsonl, line 8: the document has no "text"'),
        (
            with_nothing_in_test,
            "bad_value",
            "There are no documents for test in jsonl",
        ),
    ],
)
def test_a_bad_file_is_refused_and_nothing_half_written_stays(
    folder: Path, root: Path, harm: Callable[[Path], None], kind: str, said: str
) -> None:
    harm(folder)
    with pytest.raises(UserError, match=said) as raised:
        open_dataset(config(folder))
    assert raised.value.kind == kind
    assert not list(root.glob("prepared/jsonl*"))


def test_a_missing_path_and_a_negative_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as raised:
        open_dataset(config(tmp_path / "nothing"))
    assert raised.value.kind == "missing_file"
    assert "train.jsonl" in raised.value.hint
    with pytest.raises(UserError, match=r"data\.n_documents=-1"):
        open_dataset(config(tmp_path, n_documents=-1))


def test_a_row_longer_than_a_split_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="longer than the test split of " + own("60+8+7 documents, bytes")):
        open_dataset(config(folder, 2000))


def test_it_is_listed_and_its_damage_is_seen(folder: Path) -> None:
    assert [row["state"] for name in ("c4", "jsonl") for row in listed(name)] == ["not prepared"] * 2
    prepared = prepare_c4(config(folder))
    assert [row["state"] for row in verify("c4")] == ["not prepared"]
    (row,) = verify("jsonl")
    assert row["state"] == "verified"
    assert re.fullmatch(own("60+8+7 documents, bytes"), row["variant"])
    assert row["bytes"] == sum(len(text) for texts in TEXTS.values() for text in texts)
    prepared.path("valid").write_bytes(b"?")
    assert [row["state"] for row in verify("jsonl")] == ["damaged"]
    assert prepare_c4(config(folder)).meta == prepared.meta


def test_blank_lines_and_empty_documents_are_left_out_and_counted(folder: Path) -> None:
    before = open_dataset(config(folder))
    (folder / "test.jsonl").write_bytes(b"\n" + lines([*TEXTS["test"][:3], "", *TEXTS["test"][3:]]) + b" \n")
    dataset = open_dataset(config(folder))
    assert text_of(dataset, "test") == text_of(before, "test")
    assert notes_of(dataset)[1:] == ("Left out: 3 lines or rows that are blank or lack a text or a label.",)


def test_files_as_the_hub_has_them_are_read_from_its_own_folders(tmp_path: Path) -> None:
    for name, texts in {
        "en/c4-train.00000-of-01024.json.gz": TEXTS["train"][:40],
        "en/c4-train.00001-of-01024.json.gz": TEXTS["train"][40:],
        "en/c4-validation.00000-of-00008.json.gz": TEXTS["valid"],
        "realnewslike/c4-train.00000-of-00512.json.gz": TEXTS["test"],
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(lines(texts)))
    dataset = open_dataset(config(tmp_path))
    assert " 60+4+4 documents, validation halved, bytes]" in dataset.variant
    assert text_of(dataset, "valid") + text_of(dataset, "test") == "".join(f"{text}|" for text in TEXTS["valid"])
    one = open_dataset(config(tmp_path / "en" / "c4-train.00000-of-01024.json.gz"))
    assert one.variant.startswith("jsonl[c4-train.00000-of-01024.json.gz sha256:")


def test_the_papers_rows_on_real_text_in_t5s_pieces() -> None:
    samples = Path(os.environ.get("EFFTX_SAMPLES") or ".", "data")
    if not (samples / "c4").is_dir() or not (samples / "t5").is_dir():
        pytest.skip("EFFTX_SAMPLES names no folder with data/c4 and data/t5")
    keys = {"tokenizer": "t5", "tokenizer_path": str(samples / "t5" / "spiece.model"), "target_length": 256}
    dataset = open_dataset(config(samples / "c4", 512, **keys), "span_corruption")
    assert dataset.variant == "c4[3210+40+30 documents,t5-32000]"
    assert (dataset.vocab_size, dataset.length, dataset.input_length) == (32100, 256, 512)
    batch = dataset.batch("valid", 0, 0, 8)
    assert batch.inputs_BE is not None
    assert (batch.inputs_BE[:, -1] == 1).all()
    assert (batch.weights_BL.sum(1) == 114).all()
    assert [prepare_c4(config(samples / "c4", 512, **keys)).meta["documents"][split] for split in SPLITS] == [
        3210,
        40,
        30,
    ]
