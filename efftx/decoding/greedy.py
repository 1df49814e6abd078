"""Greedy decoding by definition: a full forward pass a token.

Shape suffixes: B rows of a batch, E input tokens of a row, L target tokens of a row, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from efftx.decoding.full_pass import FullPass
from efftx.decoding.generate import generate, most_likely

EOS = 1


class EncoderDecoder(Protocol):
    """A model that shifts its targets right inside: row t of its logits is made from the tokens before t."""

    def __call__(self, tokens_BL: Tensor, inputs_BE: Tensor, /) -> Tensor:
        """Logits (B, L, V)."""
        ...


def greedy(model: EncoderDecoder, inputs_BE: Tensor, max_len: int, eos: int = EOS) -> list[list[int]]:
    """The most likely token after the most likely tokens, for every row up to and with its `eos`, at most `max_len`.

    The caller puts the model into eval mode.
    """
    if max_len < 1:
        raise ValueError(f"Decoding needs room for at least one token, but max_len is {max_len}.")
    session = FullPass(model, max_len, inputs_BE)
    return [row.tokens for row in generate(session, [[]] * len(inputs_BE), most_likely, max_len, eos)]
