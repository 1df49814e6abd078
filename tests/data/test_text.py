"""A user's own text: which bytes are read, how they are split, and what a record says of it."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx import cli
from efftx.data import text
from efftx.data.catalogue import prepare, verify
from efftx.data.dataset import Dataset, notes_of, open_dataset
from efftx.data.prepared import SPLITS
from efftx.data.text import TextFilesConfig, prepare_text, read_own_text
from efftx.errors import UserError
from tests.data.shipped_config import shipped_config

LINES = b"".join(f"Line {i} of a text, w\u00fcrfel.\n".encode() for i in range(200))


def config(path: Path | str, length: int = 16, **keys: Any) -> TextFilesConfig:
    return TextFilesConfig("text", length, str(path), **({"tokenizer": "bytes"} | keys))


def counted(dataset: Dataset, split: str) -> bytes:
    """All that is counted of valid or test."""
    found: list[int] = []
    for step in range(dataset.n_batches(split, 4) or 0):
        batch = dataset.batch(split, 0, step, 4)
        found += batch.tokens_BL[batch.weights_BL > 0].tolist()
    return bytes(found)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_one_file_is_split_90_5_5_at_ends_of_lines(tmp_path: Path) -> None:
    dataset = open_dataset(config(write(tmp_path / "my.txt", LINES)))
    digest = hashlib.sha256(LINES).hexdigest()
    assert dataset.name == "text"
    assert dataset.variant == f"text[my.txt sha256:{digest[:12]} {len(LINES):,} bytes, 90/5/5]"
    assert (dataset.checksum, dataset.unit, dataset.vocab_size) == (digest, "bits/dim", 256)
    assert notes_of(dataset) == ()
    valid, test = counted(dataset, "valid"), counted(dataset, "test")
    assert LINES.endswith(valid + test)
    assert (valid[:5], test[:5], valid[-1:]) == (b"Line ", b"Line ", b"\n")
    assert len(valid) / len(LINES) == pytest.approx(0.05, abs=0.01)
    assert len(test) / len(LINES) == pytest.approx(0.05, abs=0.01)


@given(st.text(min_size=60, alphabet=st.sampled_from("aü日\n")), st.integers(0, 400))
def test_the_splits_are_the_text_and_each_is_whole_utf8(content: str, spaces: int) -> None:
    whole = (content + " " * spaces).encode()
    own = [text.cut_at_lines(whole, first, last) for first, last in ((0, 90), (90, 95), (95, 100))]
    assert b"".join(own) == (content + " " * spaces).encode()
    for part, share in zip(own, (0.9, 0.05, 0.05), strict=True):
        part.decode()
        assert len(part) / sum(map(len, own)) == pytest.approx(share, abs=0.07)


def test_a_folder_and_a_pattern_are_its_files_one_after_another(tmp_path: Path) -> None:
    write(tmp_path / "b" / "z.txt", b"z" * 50)
    write(tmp_path / "a.txt.gz", gzip.compress(b"a" * 50))
    write(tmp_path / "c.txt", b"c" * 50)
    whole = b"a" * 50 + b"\n" + b"z" * 50 + b"\n" + b"c" * 50
    assert b"".join(read_own_text(str(tmp_path)).splits.values()) == whole
    assert b"".join(read_own_text(f"{tmp_path}/*.txt").splits.values()) == b"c" * 50
    assert read_own_text(str(tmp_path)).called.startswith("a.txt.gz+z.txt+c.txt sha256:")


def test_files_named_by_the_splits_are_these(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.txt", name.encode() * 20)
    own = read_own_text(str(tmp_path))
    assert own.splits == {"train": b"train" * 20, "valid": b"dev" * 20, "test": b"test" * 20}
    assert own.rule == ""
    assert own.notes == ()
    write(tmp_path / "more.txt", b"more")
    more = read_own_text(str(tmp_path))
    assert (more.splits, more.rule, more.called) == (own.splits, "", own.called)
    assert more.notes == ("Left out: more.txt, beside files that are named by split.",)


@pytest.mark.parametrize("pattern", ["", "/*"])
def test_a_split_is_a_word_of_the_name(tmp_path: Path, pattern: str) -> None:
    for name in ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"):
        write(tmp_path / name, name.encode() * 9)
    own = read_own_text(f"{tmp_path}{pattern}")
    assert own.splits == {split: f"wiki.{split}.tokens".encode() * 9 for split in SPLITS}
    assert own.rule == ""


def test_a_file_named_test_is_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", LINES)
    write(tmp_path / "test.txt", b"A test.\n" * 9)
    own = read_own_text(str(tmp_path))
    assert own.splits["test"] == b"A test.\n" * 9
    assert own.splits["train"] + own.splits["valid"] == LINES
    assert len(own.splits["valid"]) / len(LINES) == pytest.approx(0.05, abs=0.01)
    assert own.splits["train"].endswith(b"\n")
    assert own.rule == ", 95/5"


def test_without_a_test_file_the_validation_file_is_halved_at_the_end_of_a_line(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", b"Some text.\n" * 9)
    write(tmp_path / "validation.txt", LINES)
    own = read_own_text(str(tmp_path))
    assert own.splits["train"] == b"Some text.\n" * 9
    assert own.splits["valid"] + own.splits["test"] == LINES
    assert len(own.splits["valid"]) / len(LINES) == pytest.approx(0.5, abs=0.01)
    assert own.splits["test"].startswith(b"Line ")
    assert (own.rule, own.notes) == (", validation halved", ())


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_whose_files_are_blank_is_told_and_never_taken_from_another(tmp_path: Path, split: str) -> None:
    for name in SPLITS:
        write(tmp_path / name / "a.txt", LINES)
    write(tmp_path / split / "b.txt", b"")
    assert read_own_text(str(tmp_path)).notes == ("1 of 4 files hold no text and are left out.",)
    write(tmp_path / split / "a.txt", b"\n \n")
    with pytest.raises(UserError, match=f"{split} of data.path={tmp_path} holds no text") as raised:
        read_own_text(str(tmp_path))
    assert f"{split}/a.txt" in raised.value.message
    assert raised.value.hint


def test_files_of_no_split_beside_named_ones_need_not_be_text(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", LINES)
    write(tmp_path / "cover.png", b"\xff\xfe\x00")
    own = read_own_text(str(tmp_path))
    assert b"".join(own.splits.values()) == LINES
    assert own.notes == ("Left out: cover.png, beside files that are named by split.",)


def test_paragraphs_are_documents_in_a_vocabulary_of_pieces(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}\nof two lines." for i in range(60)]
    write(tmp_path / "my.txt", "\r\n\r\n\n".join(paragraphs).encode())
    dataset = open_dataset(config(tmp_path / "my.txt", 8, tokenizer="bpe", vocab_size=280))
    assert re.fullmatch(r"text\[my\.txt sha256:[0-9a-f]{12} 1,845 bytes, 90/5/5, bpe-280\]", dataset.variant)
    assert (dataset.vocab_size, dataset.unit) == (380, "nats/token")
    tokens: list[int] = []
    for step in range(dataset.n_batches("test", 1) or 0):
        batch = dataset.batch("test", 0, step, 1)
        tokens += batch.tokens_BL[batch.weights_BL > 0].tolist()
    ends = [i for i, token in enumerate(tokens) if token == 1]
    assert len(ends) == 3
    decoded = dataset.vocabulary.decode(tokens[ends[0] + 1 : ends[1]])  # type: ignore[attr-defined]
    assert decoded == paragraphs[-2]


@pytest.mark.parametrize("objective", ["lm", "span_corruption"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_objective_and_vocabulary_is_priced_as_it_is_opened(
    tmp_path: Path, objective: str, tokenizer: str
) -> None:
    its = config(write(tmp_path / "my.txt", LINES), tokenizer=tokenizer, vocab_size=280)
    dataset = open_dataset(its, objective)
    assert dataset.vocab_size == text.SOURCE.vocab_size(its, objective)
    assert dataset.length == text.SOURCE.target_length(its, objective)


def test_another_name_or_another_byte_is_another_corpus(tmp_path: Path) -> None:
    first = prepare_text(config(write(tmp_path / "a.txt", LINES)))
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    second = prepare_text(config(tmp_path / "b.txt"))
    assert first.meta["tokens_sha256"] == second.meta["tokens_sha256"]
    assert "text[b.txt " in second.meta["variant"]
    third = prepare_text(config(write(tmp_path / "b.txt", LINES[:-2] + b"?\n")))
    assert third.meta["tokens_sha256"] != second.meta["tokens_sha256"]
    assert {row["state"] for row in verify("text")} == {"verified"}
    assert len(verify("text")) == 3


@pytest.mark.parametrize("objective", ["lm", "span_corruption"])
def test_another_split_of_the_same_bytes_is_another_corpus(tmp_path: Path, objective: str) -> None:
    def checksum(*places: str) -> str:
        folder = tmp_path / "-".join(places)
        for place, letter, n in zip(places, "abc", (500, 600, 700), strict=True):
            write(folder / place / f"{letter}.txt", letter.encode() * n + b"\n")
        return open_dataset(config(folder), objective).checksum

    ways = [("train", "train", "valid"), ("train", "valid", "valid"), ("train", "train", "test"), ("train",) * 3]
    assert len({checksum(*way) for way in (*ways, ("train", "valid", "test"))}) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no text"),
        (b"\n \r\n\t\n", "holds no text"),
        (b"a\nb\n\xff\n", r"my\.txt, line 3 is not UTF-8"),
        ("ä\n€\n".encode() + b"\xe2\x82", r"my\.txt, line 3 is not UTF-8"),
        ("a\nb".encode("utf-16-le"), r"my\.txt, line 1 holds a NUL"),
        ("text".encode("utf-16"), "is UTF-16 or UTF-32 text"),
        (b"\xef\xbb\xbf", "holds no text"),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 3, 1 << 24])
def test_what_is_no_text_is_told(
    tmp_path: Path, content: bytes, said: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efftx.data.text._AT_ONCE", at_once)  # also between the bytes of a character
    with pytest.raises(UserError, match=said) as raised:
        read_own_text(str(write(tmp_path / "my.txt", content)))
    assert raised.value.hint
    for short in (b"", b"\xef\xbb\xbf"):
        assert b"".join(read_own_text(str(write(tmp_path / "x.txt", short + b"abc"))).splits.values()) == b"abc"


def test_empty_files_among_others_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", LINES)
    write(tmp_path / "b.txt", b"")
    write(tmp_path / "c.txt", b"\n\n")
    dataset = open_dataset(config(tmp_path))
    assert notes_of(dataset) == ("2 of 3 files hold no text and are left out.",)
    assert dataset.checksum == hashlib.sha256(LINES).hexdigest()


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.zip", "a.txt.zip"])
def test_a_text_that_stands_plain_and_compressed_is_read_once(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.txt", LINES)
    write(tmp_path / "a.md", b"Another.\n")
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.txt", LINES)
    else:
        write(tmp_path / name, (gzip if name.endswith("gz") else lzma).compress(LINES))
    own = read_own_text(str(tmp_path))
    assert b"".join(own.splits.values()) == b"Another.\n" + LINES
    assert f"Left out: {name}, " in "".join(own.notes)
    called = own.called
    (tmp_path / name).unlink()
    assert read_own_text(str(tmp_path)).called == called, "what is not read is no part of the corpus"


def test_two_files_that_share_a_name_and_not_their_text_are_both_read(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b" \n")
    write(tmp_path / "a.txt.gz", gzip.compress(LINES))
    write(tmp_path / "b.md", b"Another.\n")
    own = read_own_text(str(tmp_path))
    assert b"".join(own.splits.values()) == LINES + b"Another.\n"
    write(tmp_path / "a.txt", LINES[:-1])
    own = read_own_text(str(tmp_path))
    assert (sum(own.sizes), own.notes) == (2 * len(LINES) - 1 + 1 + 9, ())


def test_a_zip_of_another_text_is_not_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", LINES)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", LINES[:-1])
    own = read_own_text(str(tmp_path))
    assert (sum(own.sizes), own.notes) == (2 * len(LINES) - 1, ())


def test_one_huge_line_and_crlf_are_read_as_they_are(tmp_path: Path) -> None:
    for content in (b"x" * 100_000, LINES.replace(b"\n", b"\r\n")):
        own = read_own_text(str(write(tmp_path / "my.txt", content)))
        assert b"".join(own.splits.values()) == content
        assert own.sizes[0] / len(content) == pytest.approx(0.9, abs=0.01)


def test_a_text_too_long_to_be_read_at_once_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MOST_BYTES", 1000)
    write(tmp_path / "my.txt", b"x" * 999)
    assert sum(read_own_text(str(tmp_path)).sizes) == 999
    write(tmp_path / "more.txt", b"y\n")
    with pytest.raises(UserError, match="more than 1,000 bytes") as raised:
        read_own_text(str(tmp_path))
    assert "data=jsonl" in raised.value.hint
    packed = gzip.compress(b"z" * 1001)
    assert len(packed) < 1000
    with pytest.raises(UserError, match="more than 1,000 bytes"):
        read_own_text(str(write(tmp_path / "my.txt.gz", packed)))


def test_without_a_path_it_is_said_which_files_would_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=text needs files") as raised:
        prepare(shipped_config("text"))
    assert "data.path" in raised.value.hint


def test_train_plan_sample_and_the_catalogue_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "my text.txt", LINES)
    words = ["data=text", f"data.path='{path}'", "model=reformer", "size=smoke"]

    def run(*command: str) -> dict[str, Any]:
        assert cli.main([*command, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert run("plan", *words)["parameters"] > 0
    trained = run("train", *words, "training.steps=2", "schedule.warmup=1", "evaluation.batches=1")
    result = json.loads((Path(trained["run"]) / "result.json").read_text())
    digest = hashlib.sha256(LINES).hexdigest()
    assert result["data"] == {
        "name": "text",
        "variant": f"text[my text.txt sha256:{digest[:12]} {len(LINES):,} bytes, 90/5/5]",
        "checksum": digest,
    }
    assert run("sample", trained["run"], "prompt=Line", "max_new=4")["samples"]
    rows = [row for row in run("data", "list")["data"] if row["name"] == "text"]
    assert [row["state"] for row in rows] == ["prepared"]
    assert run("data", "verify", "text")["data"] == [{**row, "state": "verified"} for row in rows]
    assert SPLITS == ("train", "valid", "test")
