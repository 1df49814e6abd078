from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from efftx.data import trained_bpe
from efftx.data.trained_bpe import BPEVocabulary, train_bpe
from efftx.data.vocabulary import EOS, PAD, UNK, ByteVocabulary
from efftx.errors import UserError

NOUNS = ["cat", "dog", "house", "river", "stone", "bread", "window", "garden", "letter", "morning"]
TEXTS = [f"The {a} sees a {b}.\nIt is the {b} of the {a}, {i} years old." for i, a in enumerate(NOUNS) for b in NOUNS]
MODEL = train_bpe(300, TEXTS)
VOCABULARY = BPEVocabulary(MODEL, "x")


def test_it_has_its_pieces_and_100_sentinels() -> None:
    assert (VOCABULARY.name, VOCABULARY.n_pieces, VOCABULARY.size) == ("bpe-300", 300, 400)
    assert VOCABULARY.sentinel(0) == 399
    assert VOCABULARY.checksum == hashlib.sha256(MODEL).hexdigest()


def test_padding_end_and_unknown_come_first_then_the_bytes_then_what_was_merged() -> None:
    pieces = json.loads(MODEL)["model"]["vocab"]
    assert list(pieces)[:3] == ["<pad>", "</s>", "<unk>"]
    assert list(pieces.values()) == list(range(300))
    assert all(len(piece) == 1 for piece in list(pieces)[3:259])
    assert all(len(piece) > 1 for piece in list(pieces)[259:])


@given(st.text())
@example("")
@example("  two  blanks\t\r\n\n\u00a0\u3000 ")
@example("e\u0301 \u00e9 \ufb01 \u212b \u1e9e \U0001f469\u200d\U0001f680 \x00\ufeff\ufffd")
@example("</s><pad> <unk><extra_id_0>")
def test_every_text_comes_back_as_it_was_without_special_pieces(text: str) -> None:
    ids = VOCABULARY.encode(text)
    assert all(UNK < token < VOCABULARY.n_pieces for token in ids)
    assert VOCABULARY.decode(ids) == text
    assert len(ids) <= len(text.encode())


def test_what_it_was_trained_on_takes_fewer_pieces_than_bytes() -> None:
    assert sum(len(VOCABULARY.encode(text)) for text in TEXTS) < 0.6 * sum(len(text.encode()) for text in TEXTS)


@given(st.lists(st.integers(0, 399)))
def test_any_ids_of_the_table_have_a_text(ids: list[int]) -> None:
    assert VOCABULARY.decode(ids).count("<extra_id_") == sum(token >= 300 for token in ids)


def test_special_pieces_give_nothing_and_wrong_utf8_the_replacement_as_with_bytes() -> None:
    cat, euro = VOCABULARY.encode("cat"), VOCABULARY.encode("\u20ac")
    assert VOCABULARY.decode([UNK, *cat, EOS, PAD, PAD]) == "cat"
    assert VOCABULARY.decode([*cat, 399, UNK, *cat, 398]) == "cat<extra_id_0>cat<extra_id_1>"
    cut = ByteVocabulary().encode("\u20ac")[:2]
    assert VOCABULARY.decode([*cat, *euro[:2]]) == "cat" + ByteVocabulary().decode(cut) == "cat\ufffd"


def test_an_id_outside_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="400 is no id of bpe-300, which has 400"):
        VOCABULARY.decode([400])


@pytest.mark.parametrize("settings", [{"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "4"}])
def test_the_same_text_gives_the_same_file_in_every_process(settings: dict[str, str]) -> None:
    code = (
        "import sys; from efftx.data.trained_bpe import train_bpe\n"
        "sys.stdout.buffer.write(train_bpe(300, sys.stdin.read().split('|')))"
    )
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"} | settings
    found = subprocess.run(
        [sys.executable, "-c", code], input="|".join(TEXTS).encode(), capture_output=True, check=True, env=environment
    )
    assert found.stdout == MODEL
    assert found.stderr == b""


def test_pairs_as_frequent_as_each_other_are_merged_in_one_order() -> None:
    texts = [f"{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)]
    merges = json.loads(train_bpe(700, texts))["model"]["merges"]
    assert merges == sorted(merges)[: len(merges)]
    assert train_bpe(700, texts[::-1]) == train_bpe(700, texts)


def test_only_the_beginning_of_a_long_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_bpe, "TRAINING_CHARACTERS", len("".join(TEXTS[:20])) + 5)

    def texts():  # type: ignore[no-untyped-def]
        yield from TEXTS[:20]
        yield TEXTS[20][:5] + "zebra " * 1000
        raise AssertionError("read on")

    assert train_bpe(280, texts()) == train_bpe(280, [*TEXTS[:20], TEXTS[20][:5]])


def test_an_error_of_the_text_is_passed_on() -> None:
    def texts():  # type: ignore[no-untyped-def]
        yield TEXTS[0]
        raise UserError("no_network", "Cannot reach it.")

    with pytest.raises(UserError, match="Cannot reach it"):
        train_bpe(280, texts())


@pytest.mark.parametrize(("n_pieces", "said", "bound"), [(5000, "too short", "most"), (258, "256 bytes", "least 259")])
def test_a_text_that_does_not_fit_the_vocabulary_is_refused(n_pieces: int, said: str, bound: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        train_bpe(n_pieces, TEXTS)
    assert raised.value.kind == "bad_value"
    assert f"at {bound}" in raised.value.hint


def test_the_named_bounds_are_possible() -> None:
    with pytest.raises(UserError) as raised:
        train_bpe(5000, TEXTS)
    most = int(raised.value.hint.split()[-1].rstrip("."))
    for n_pieces in (259, most):
        vocabulary = BPEVocabulary(train_bpe(n_pieces, TEXTS), "x")
        assert vocabulary.n_pieces == n_pieces
        assert vocabulary.decode(vocabulary.encode(TEXTS[3])) == TEXTS[3]


@pytest.mark.parametrize("damage", [b"", b"no model at all", b"{}", MODEL[:500], b"\xff" + MODEL])
def test_other_bytes_are_no_vocabulary(damage: bytes) -> None:
    with pytest.raises(UserError, match="my file is no file of `tokenizers`") as raised:
        BPEVocabulary(damage, "my file")
    assert raised.value.kind == "damaged_file"


def changed(change: Callable[[Any], object]) -> bytes:
    file = json.loads(MODEL)
    change(file)
    return json.dumps(file).encode()


def without_padding(file: Any) -> None:
    file["added_tokens"] = []
    file["model"]["vocab"] = {piece.replace("pad", "s"): i for piece, i in file["model"]["vocab"].items()}


def without_a_byte(file: Any) -> None:
    file["model"]["vocab"]["?!?"] = file["model"]["vocab"].pop("\u0124")  # the byte 6


def with_a_gap(file: Any) -> None:
    last = list(file["model"]["vocab"])[-1]
    file["model"]["vocab"][last] = 300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_padding, r"at \(None, 1, 2\), not at \(0, 1, 2\)"),
        (without_a_byte, "does not give back the text"),
        (with_a_gap, "are not 0 to 299"),
        (lambda file: file.update(normalizer={"type": "NFKC"}), "does not give back the text"),
        (lambda file: file.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}), "give back"),
        (lambda file: file["pre_tokenizer"].update(add_prefix_space=True), "does not give back the text"),
    ],
)
def test_missing_pieces_and_a_text_that_would_change_are_refused(change: Callable[[Any], object], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        BPEVocabulary(changed(change), "x")
    assert raised.value.kind == "bad_value"


def test_a_file_that_cuts_or_fills_up_its_texts_does_not_here() -> None:
    library = Tokenizer.from_buffer(MODEL)
    library.enable_truncation(3)
    library.enable_padding(length=9)
    vocabulary = BPEVocabulary(library.to_str().encode(), "x")
    for text in ("a", TEXTS[0]):
        assert vocabulary.encode(text) == VOCABULARY.encode(text)


def test_the_pieces_have_a_sum_of_their_own_in_whatever_file_they_come() -> None:
    same = BPEVocabulary(json.dumps(json.loads(MODEL), indent=1).encode(), "x")
    assert same.checksum != VOCABULARY.checksum
    assert same.pieces_sha256 == VOCABULARY.pieces_sha256
    assert BPEVocabulary(train_bpe(301, TEXTS), "x").pieces_sha256 != VOCABULARY.pieces_sha256
