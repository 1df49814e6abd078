"""Greedy decoding by definition: a full forward pass a token.

Shape suffixes: B rows of a batch, E input tokens of a row, L target tokens of a row, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

EOS = 1


class EncoderDecoder(Protocol):
    """A model that shifts its targets right inside: row t of its logits is made from the tokens before t."""

    def __call__(self, tokens_BL: Tensor, inputs_BE: Tensor, /) -> Tensor:
        """Logits (B, L, V)."""
        ...


@torch.no_grad()
def greedy(model: EncoderDecoder, inputs_BE: Tensor, max_len: int, eos: int = EOS) -> list[list[int]]:
    """The most likely token after the most likely tokens, for every row up to and with its `eos`, at most `max_len`.

    A row that has ended stays so: what it says while others go on is dropped. Nothing is kept from one token to the
    next, so that this costs the square of what decoding with caches costs, and is the oracle of it. The caller puts the
    model into eval mode.
    """
    if max_len < 1:
        raise ValueError(f"Decoding needs room for at least one token, but max_len is {max_len}.")
    rows = inputs_BE.shape[0]
    tokens_BL = inputs_BE.new_zeros(rows, 0)
    ended_B = torch.zeros(rows, dtype=torch.bool, device=inputs_BE.device)
    while tokens_BL.shape[1] < max_len and not ended_B.all():
        logits_BLV = model(F.pad(tokens_BL, (0, 1)), inputs_BE)  # the model never reads the token at the last place
        chosen_B = logits_BLV[:, -1].argmax(-1)
        tokens_BL = torch.cat([tokens_BL, chosen_B[:, None]], 1)
        ended_B |= chosen_B == eos
    return [row[: row.index(eos) + 1] if eos in row else row for row in tokens_BL.tolist()]
