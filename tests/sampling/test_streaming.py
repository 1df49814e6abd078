"""Text comes as its tokens come, never half a character, and together it is what decoding all at once gives."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import efftx
from efftx.core.visible import visible
from efftx.data.copy_add import Digits
from efftx.data.json_lines import read_texts
from efftx.data.rendering import Numbers, Pieces, RawBytes, Rendering
from efftx.data.sentencepiece_model import SentencePieceVocabulary, train_sentencepiece
from efftx.data.trained_bpe import BPEVocabulary, train_bpe
from efftx.data.vocabulary import ByteVocabulary
from efftx.sampling.streaming import TextStream

SAMPLE = [text for text in read_texts(Path(efftx.__file__).parent / "data" / "samples" / "c4" / "train.jsonl") if text]
TEXTS = [
    "the cat sat on the mat, naïve and grün",
    "der Hund schläft 😀 under the mat",
    "cats and mats and hats 日本",
] * 4


@cache
def rendering(name: str) -> Rendering:
    return {
        "bytes": RawBytes,
        "byte pieces": lambda: Pieces(ByteVocabulary()),
        "unigram": lambda: Pieces(SentencePieceVocabulary(train_sentencepiece(300, SAMPLE), "unigram", "a test's")),
        "bpe": lambda: Pieces(BPEVocabulary(train_bpe(290, TEXTS), "a test's")),
        "numbers": lambda: Numbers(500),
        "digits": lambda: Digits(10),
    }[name]()


SIZES = {"bytes": 256, "byte pieces": 359, "unigram": 400, "bpe": 390, "numbers": 500, "digits": 13}


def streamed(how: Rendering, prompt: list[int], tokens: list[int]) -> list[str]:
    stream = TextStream(how.decode, prompt)
    return [*(stream.push(token) for token in tokens), stream.finish()]


@pytest.mark.parametrize("name", ["bytes", "byte pieces", "bpe"])
def test_a_character_of_several_tokens_comes_whole(name: str) -> None:
    how = rendering(name)
    tokens = how.encode("aé😀𝄞b")
    found = streamed(how, how.encode("x"), tokens)
    assert "".join(found) == "aé😀𝄞b"
    assert all("\ufffd" not in text for text in found)
    assert "" in found, "something was held back"
    assert found[-1] == "", "the last character did not have to wait for an end"


def test_the_blank_before_a_word_comes_although_the_word_alone_has_none() -> None:
    how = rendering("unigram")
    tokens = how.encode("the bread and the water")
    assert how.decode(how.encode("so the")[-1:]) == "the"
    for n in range(len(tokens)):
        prompt = how.decode(tokens[:n])
        assert prompt + "".join(streamed(how, tokens[:n], tokens[n:])) == "the bread and the water"


@pytest.mark.parametrize("name", SIZES)
@given(data=st.data())
@settings(max_examples=60)
def test_whatever_tokens_come_the_stream_is_their_text(name: str, data: st.DataObject) -> None:
    how, ids = rendering(name), st.integers(0, SIZES[name] - 1)
    prompt = (
        how.encode(data.draw(st.sampled_from(["", "the", "the mat"]))) if name in ("bytes", "unigram", "bpe") else []
    )
    tokens = data.draw(st.lists(ids, max_size=30))
    if name == "bytes":
        tokens = data.draw(st.lists(st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0x61, 0xFF]), max_size=30))
    whole = how.decode([*prompt, *tokens])
    assert "".join(streamed(how, prompt, tokens)) == whole[len(how.decode(prompt)) :]


def test_a_blank_that_is_a_token_of_its_own_comes_once() -> None:
    how = rendering("unigram")
    (blank,) = [i for i in range(SIZES["unigram"]) if how.decode([*how.encode("the"), i]) == "the "][:1]
    for rest in ([blank, *how.encode("the")], [blank, blank], [blank, blank, *how.encode("the")]):
        prompt = how.encode("the")
        assert "".join(streamed(how, prompt, rest)) == how.decode([*prompt, *rest])[len(how.decode(prompt)) :]


def test_tokens_that_say_nothing_do_not_cost_the_next_word_its_blank() -> None:
    how = rendering("unigram")
    the = how.encode("the")
    assert "".join(streamed(how, [], [*the, 1, 0, 1, *the])) == "the the"


def test_what_is_cut_at_the_end_is_shown_as_such() -> None:
    assert streamed(RawBytes(), [], [0x61, 0xF0, 0x9F]) == ["a", "", "", "\ufffd"]


def test_a_long_text_is_not_decoded_from_its_beginning_for_every_token() -> None:
    longest = 0

    def decode(ids: object) -> str:
        nonlocal longest
        longest = max(longest, len(ids))  # type: ignore[arg-type]
        return RawBytes().decode(ids)  # type: ignore[arg-type]

    stream = TextStream(decode)
    assert "".join(stream.push(token) for token in b"some text " * 100) == "some text " * 100
    assert longest <= 3


def test_a_terminal_is_not_commanded_by_what_a_model_says() -> None:
    assert visible("a\x1b[2J\r\x07\tb\n\x9b\x7f") == "a\u241b[2J\u240d\u2407\tb\n\ufffd\u2421"
