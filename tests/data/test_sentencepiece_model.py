from __future__ import annotations

import io
import subprocess
import sys

import pytest
import sentencepiece

from efftx.data import sentencepiece_model
from efftx.data.sentencepiece_model import SentencePieceVocabulary, train_sentencepiece
from efftx.data.vocabulary import EOS, PAD
from efftx.errors import UserError

NOUNS = ["cat", "dog", "house", "river", "stone", "bread", "window", "garden", "letter", "morning"]
TEXTS = [f"The {a} sees a {b}.\nIt is the {b} of the {a}, {i} years old." for i, a in enumerate(NOUNS) for b in NOUNS]


@pytest.fixture(scope="module")
def trained() -> bytes:
    return train_sentencepiece(50, TEXTS)


def test_a_trained_vocabulary_has_its_pieces_and_100_sentinels(trained: bytes) -> None:
    vocabulary = SentencePieceVocabulary(trained, "unigram", "x")
    assert (vocabulary.name, vocabulary.n_pieces, vocabulary.size) == ("unigram-50", 50, 150)
    assert vocabulary.sentinel(0) == 149


def test_what_it_was_trained_on_comes_back_with_its_blanks_as_spaces(trained: bytes) -> None:
    vocabulary = SentencePieceVocabulary(trained, "unigram", "x")
    ids = vocabulary.encode(TEXTS[7])
    assert min(ids) > 2
    assert max(ids) < 50
    assert vocabulary.decode([*ids, EOS, PAD]) == TEXTS[7].replace("\n", " ")
    assert len(ids) < 0.8 * len(TEXTS[7])


def test_sentinels_stand_between_the_pieces(trained: bytes) -> None:
    vocabulary = SentencePieceVocabulary(trained, "unigram", "x")
    ids = [*vocabulary.encode("cat"), 149, *vocabulary.encode("dog"), 148]
    assert vocabulary.decode(ids) == "cat<extra_id_0>dog<extra_id_1>"
    assert vocabulary.decode([]) == ""


def test_the_same_text_gives_the_same_file_in_every_process(trained: bytes) -> None:
    code = (
        "import sys; from efftx.data.sentencepiece_model import train_sentencepiece as train\n"
        f"sys.stdout.buffer.write(train(50, {TEXTS!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == trained
    assert done.stderr == b""


def test_only_the_beginning_of_a_long_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_model, "TRAINING_CHARACTERS", 2000)
    start = train_sentencepiece(40, TEXTS)
    read: list[str] = []

    def texts():  # type: ignore[no-untyped-def]
        for text in TEXTS:
            read.append(text)
            yield text

    assert train_sentencepiece(40, texts()) == start
    assert sum(map(len, read)) < 2000 + 2 * max(map(len, TEXTS))
    assert train_sentencepiece(40, TEXTS[50:]) != start


@pytest.mark.parametrize(
    ("n_pieces", "said", "hint"), [(5000, "too short", "at most"), (8, "more characters", "at least")]
)
def test_a_text_that_does_not_fit_the_vocabulary_is_refused(n_pieces: int, said: str, hint: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        train_sentencepiece(n_pieces, TEXTS)
    assert hint in raised.value.hint


def test_the_hint_is_a_size_that_works() -> None:
    with pytest.raises(UserError) as raised:
        train_sentencepiece(5000, TEXTS)
    most = int(raised.value.hint.split()[-1].rstrip("."))
    assert SentencePieceVocabulary(train_sentencepiece(most, TEXTS), "unigram", "x").n_pieces == most


@pytest.mark.parametrize("damage", [b"", b"no model at all", None])
def test_other_bytes_are_no_vocabulary(trained: bytes, damage: bytes | None) -> None:
    model = trained[:500] if damage is None else damage
    with pytest.raises(UserError, match="my file is no SentencePiece model") as raised:
        SentencePieceVocabulary(model, "unigram", "my file")
    assert raised.value.kind == "damaged_file"


def test_other_ids_for_padding_and_end_are_refused() -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=written, vocab_size=50, minloglevel=2
    )
    with pytest.raises(UserError, match=r"at \(-1, 2, 0\), not at \(0, 1, 2\)"):
        SentencePieceVocabulary(written.getvalue(), "unigram", "x")


def test_the_pieces_have_a_sum_of_their_own(trained: bytes) -> None:
    a, b = (SentencePieceVocabulary(model, "unigram", "x") for model in (trained, train_sentencepiece(49, TEXTS)))
    assert len(a.pieces_sha256) == 64
    assert a.pieces_sha256 != b.pieces_sha256
    assert a.pieces_sha256 == SentencePieceVocabulary(trained, "other", "y").pieces_sha256
