"""A model small enough to be known whole: the next token's logits are a table of the last two tokens."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class Table(nn.Module):
    """Logits of a token after the two before it, 0 standing before the first; rows of an encoder's input add theirs."""

    table: Tensor

    def __init__(self, vocab_size: int, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab_size, vocab_size, vocab_size)
        self.register_buffer("table", scale * torch.randn(shape, generator=generator, dtype=torch.float64))

    def forward(self, tokens_BL: Tensor, inputs_BE: Tensor | None = None) -> Tensor:
        last_BL = nn.functional.pad(tokens_BL, (1, 0))[:, :-1]
        before_BL = nn.functional.pad(tokens_BL, (2, 0))[:, :-2]
        logits_BLV = self.table[before_BL, last_BL]
        return logits_BLV if inputs_BE is None else logits_BLV + self.table[0, inputs_BE[:, :1]]

    def log_probability(self, prompt: list[int], tokens: list[int]) -> float:
        """By definition: the sum over the tokens, each after all before it."""
        total, so_far = 0.0, [0, 0, *prompt]
        for token in tokens:
            total += float(self.table[so_far[-2], so_far[-1]].log_softmax(0)[token])
            so_far.append(token)
        return total


def all_continuations(vocab_size: int, max_new: int, eos: int | None) -> list[list[int]]:
    """Every text of at most `max_new` tokens that ends with its first `eos`, or has none and is of full length."""
    found = []
    for n in range(1, max_new + 1):
        for tokens in itertools.product(range(vocab_size), repeat=n):
            ends = tokens[-1] == eos
            if eos not in tokens[:-1] and (ends or n == max_new):
                found.append(list(tokens))
    return found
