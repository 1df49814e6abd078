from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.data.vocabulary import EOS, PAD, UNK, ByteVocabulary

BYTES = ByteVocabulary()


def test_padding_end_and_unknown_are_0_1_and_2() -> None:
    assert (PAD, EOS, UNK) == (0, 1, 2)


def test_byte_b_is_3_plus_b() -> None:
    assert BYTES.encode("A\u00fc") == [3 + 65, 3 + 0xC3, 3 + 0xBC]
    assert (BYTES.n_pieces, BYTES.size) == (259, 359)


@given(st.text())
def test_every_text_comes_back_from_its_bytes(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text


def test_sentinels_are_the_last_ids_the_first_one_highest() -> None:
    assert [BYTES.sentinel(i) for i in (0, 1, 99)] == [358, 357, 259]
    for i in (-1, 100):
        with pytest.raises(ValueError, match="no sentinel"):
            BYTES.sentinel(i)


def test_sentinels_are_shown_and_padding_is_not() -> None:
    a, b = BYTES.encode("ab")
    assert BYTES.decode([a, 358, b, 357, EOS, PAD, PAD]) == "a<extra_id_0>b<extra_id_1>"


def test_a_cut_character_decodes_to_a_mark_and_unknown_to_nothing() -> None:
    assert BYTES.decode([*BYTES.encode("\u00fc")[:1], UNK]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, 359])
def test_an_id_outside_the_table_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="no id of bytes"):
        BYTES.decode([token])
