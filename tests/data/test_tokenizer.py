from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from efftx.core.artifact import checksum_file, write_checked
from efftx.core.files import DamagedFileError
from efftx.data import tokenizer
from efftx.data.sentencepiece_model import train_sentencepiece
from efftx.data.tokenizer import (
    T5,
    VOCABULARY_FILE,
    TextConfig,
    check_tokenizer,
    fetch_t5,
    open_vocabulary,
    text_vocab_size,
)
from efftx.data.trained_bpe import train_bpe
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError

TEXTS = [f"{a} and {b} are numbers, {a * b} is their product" for a in range(40) for b in range(40, 50)]
SUM = "ab" * 32


def opened(texts: Iterable[str] = TEXTS, trained_on: str = SUM, **keys: object) -> Vocabulary:
    return open_vocabulary(TextConfig("c4", 16, **keys), trained_on, lambda: texts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_sentencepiece(40, TEXTS)


@pytest.fixture
def model_path(model: bytes, tmp_path: Path) -> str:
    (tmp_path / "spiece.model").write_bytes(model)
    return str(tmp_path / "spiece.model")


def test_bytes_are_the_same_whatever_the_text_and_the_size() -> None:
    config = TextConfig("c4", 16, tokenizer="bytes")
    assert opened(tokenizer="bytes").size == text_vocab_size(config) == 359
    assert text_vocab_size(config, "span_corruption") == 359


def trained(kind: str, n_pieces: int) -> bytes:
    return train_bpe(n_pieces, TEXTS) if kind == "bpe" else train_sentencepiece(n_pieces, TEXTS)


@pytest.mark.parametrize(("kind", "n_pieces"), [("unigram", 40), ("bpe", 300)])
def test_a_vocabulary_is_trained_on_the_text_and_told_beforehand(kind: str, n_pieces: int) -> None:
    vocabulary = opened(tokenizer=kind, vocab_size=n_pieces)
    assert vocabulary.name == f"{kind}-{n_pieces}"
    config = TextConfig("c4", 16, tokenizer=kind, vocab_size=n_pieces)
    assert vocabulary.size == text_vocab_size(config) == n_pieces + 100
    assert vocabulary.checksum == hashlib.sha256(trained(kind, n_pieces)).hexdigest()


def test_it_is_trained_once_for_each_text_kind_and_size() -> None:
    reads = 0

    class Counted(list[str]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal reads
            reads += 1
            return super().__iter__()

    texts = Counted(TEXTS)
    first = opened(texts, tokenizer="bpe", vocab_size=300)
    assert opened(texts, tokenizer="bpe", vocab_size=300).checksum == first.checksum
    assert reads == 1
    opened(texts, tokenizer="bpe", vocab_size=301)
    opened(texts, tokenizer="unigram", vocab_size=40)
    opened(texts, "cd" * 32, tokenizer="bpe", vocab_size=300)
    assert reads == 4


@pytest.mark.parametrize(("kind", "n_pieces"), [("unigram", 40), ("bpe", 300)])
def test_a_damaged_trained_vocabulary_is_trained_again(root: Path, kind: str, n_pieces: int) -> None:
    first = opened(tokenizer=kind, vocab_size=n_pieces)
    (file,) = root.glob("prepared/vocabulary-*/[st]*")
    file.write_bytes(b"?" + file.read_bytes()[1:])
    assert opened(tokenizer=kind, vocab_size=n_pieces).checksum == first.checksum


@pytest.mark.parametrize(("kind", "n_pieces"), [("unigram", 40), ("bpe", 300)])
def test_a_file_is_read_instead_of_a_training(tmp_path: Path, kind: str, n_pieces: int) -> None:
    model = trained(kind, n_pieces)
    (tmp_path / "given").write_bytes(model)
    vocabulary = opened([], tokenizer=kind, vocab_size=n_pieces, tokenizer_path=str(tmp_path / "given"))
    digest = hashlib.sha256(model).hexdigest()
    assert (vocabulary.name, vocabulary.checksum) == (f"{kind}-{n_pieces}@{digest[:12]}", digest)


@pytest.mark.parametrize(("kind", "n_pieces"), [("unigram", 40), ("bpe", 300)])
def test_a_vocabulary_that_a_run_has_kept_is_called_as_when_it_was_trained(
    tmp_path: Path, kind: str, n_pieces: int
) -> None:
    kept = tmp_path / VOCABULARY_FILE
    keys = {"tokenizer": kind, "vocab_size": n_pieces, "tokenizer_path": str(kept)}
    write_checked(kept, trained(kind, n_pieces))
    assert opened([], **keys).name == f"{kind}-{n_pieces}"
    kept.write_bytes(kept.read_bytes().replace(b"e", b"i", 1))
    with pytest.raises(DamagedFileError):
        opened([], **keys)
    checksum_file(kept).unlink()
    with contextlib.suppress(UserError):
        assert "@" in opened([], **keys).name


def test_a_file_of_the_other_library_is_refused(model_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file of `tokenizers`"):
        opened(tokenizer="bpe", vocab_size=40, tokenizer_path=model_path)
    (tmp_path / "tokenizer.json").write_bytes(trained("bpe", 300))
    with pytest.raises(UserError, match="is no SentencePiece model"):
        opened(tokenizer="unigram", vocab_size=300, tokenizer_path=str(tmp_path / "tokenizer.json"))


def test_another_file_is_not_called_t5s(model_path: str, monkeypatch: pytest.MonkeyPatch, model: bytes) -> None:
    keys = {"tokenizer": "t5", "vocab_size": 40, "tokenizer_path": model_path}
    digest = hashlib.sha256(model).hexdigest()
    assert opened(**keys).name == f"sentencepiece-40@{digest[:12]}"
    for known in (replace(T5, sha256=digest), replace(T5, others=frozenset({digest}))):
        monkeypatch.setattr(tokenizer, "T5", known)
        assert opened(**keys).name == "t5-40"


def test_no_single_flipped_bit_leaves_the_name_of_t5(samples: Path, tmp_path: Path) -> None:
    model = (samples / "data" / "t5" / "spiece.model").read_bytes()
    names = set()
    for bit in random.Random(0).sample(range(8 * len(model)), 200):
        flipped = bytearray(model)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "spiece.model").write_bytes(flipped)
        try:
            vocabulary = opened(tokenizer="t5", tokenizer_path=str(tmp_path / "spiece.model"))
        except UserError as error:
            names.add(error.kind)
        else:
            assert vocabulary.name == f"sentencepiece-32000@{hashlib.sha256(flipped).hexdigest()[:12]}"
            names.add("named by its bytes")
    assert "named by its bytes" in names


@pytest.mark.parametrize("kind", ["t5", "unigram"])
def test_a_file_of_another_size_than_the_config_says_is_refused(model_path: str, kind: str) -> None:
    with pytest.raises(UserError, match="a vocabulary file of another size than the config says") as raised:
        opened(tokenizer=kind, vocab_size=32000, tokenizer_path=model_path)
    assert raised.value.kind == "bad_value"
    assert "data.vocab_size=40" in raised.value.hint


def test_a_bpe_of_another_size_than_the_config_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(trained("bpe", 300))
    with pytest.raises(UserError, match=r"has 300 pieces, but data\.vocab_size=301"):
        opened(tokenizer="bpe", vocab_size=301, tokenizer_path=str(tmp_path / "tokenizer.json"))


def test_a_missing_or_wrong_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read data\.tokenizer_path=") as raised:
        opened(tokenizer_path=str(tmp_path / "nothing"))
    assert raised.value.kind == "missing_file"
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="is no SentencePiece model"):
        opened(tokenizer_path=str(tmp_path / "text"))


def test_an_unknown_tokenizer_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer=unigrams is not a tokenizer") as raised:
        check_tokenizer(TextConfig("c4", 16, tokenizer="unigrams"))
    assert "'unigram'" in raised.value.hint


def test_bytes_read_no_file(model_path: str) -> None:
    with pytest.raises(UserError, match="reads no file"):
        check_tokenizer(TextConfig("c4", 16, tokenizer="bytes", tokenizer_path=model_path))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_text_too_short_for_its_vocabulary_leaves_nothing(root: Path, kind: str) -> None:
    with pytest.raises(UserError, match="too short"):
        opened(tokenizer=kind, vocab_size=5000)
    assert not list(root.glob("prepared/vocabulary*"))


def test_without_a_network_the_message_names_the_file_that_would_do(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Cannot reach") as raised:
        opened()
    assert raised.value.kind == "no_network"
    for word in ("data.tokenizer_path", "spiece.model", "bytes", "data.path", str(root / "downloads")):
        assert word in raised.value.hint


def test_offline_the_vocabulary_is_not_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as raised:
        opened()
    assert raised.value.kind == "no_network"
    assert str(root / "downloads") in raised.value.hint
    assert not root.exists()


def test_a_file_put_there_by_hand_is_used(root: Path, model: bytes) -> None:
    published = replace(T5, n_bytes=len(model), sha256=hashlib.sha256(model).hexdigest())
    (root / "downloads").mkdir(parents=True)
    (root / "downloads" / "t5-spiece.model").write_bytes(model)
    assert fetch_t5(published).read_bytes() == model


def test_t5s_own_vocabulary_reads_hello_world_as_8774_296() -> None:
    samples = os.environ.get("EFFTX_SAMPLES")
    path = Path(samples or "", "data", "t5", "spiece.model")
    if not samples or not path.is_file():
        pytest.skip("EFFTX_SAMPLES names no folder with data/t5/spiece.model")
    vocabulary = opened(tokenizer_path=str(path))
    assert vocabulary.encode("Hello world") == [8774, 296]
    assert vocabulary.decode([8774, 296, 1, 0]) == "Hello world"
    assert (vocabulary.name, vocabulary.n_pieces, vocabulary.size) == ("t5-32000", 32000, 32100)
    assert vocabulary.sentinel(0) == 32099
