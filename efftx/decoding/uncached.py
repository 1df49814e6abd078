"""Uncached generation: a full forward pass a token, nothing kept. The oracle of decoding with caches.

Shape suffixes: B rows of a batch, E input tokens of a row, L target tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from efftx.data.vocabulary import EOS
from efftx.decoding.generate import generate, most_likely

Model = Callable[..., Tensor]
"""Logits (B, L, V) of token ids (B, L), and of the encoder's (B, E) where there is one; row t is made from the tokens
before t."""


class UncachedSession:
    """Decodes with `model`, whose rows hold at most `capacity` tokens, given the encoder's padded `inputs_BE` or none.

    Costs the square of what decoding with caches costs. Rows of one length go through the model together and are never
    padded: attention is causal, but a hash attention's chunks would see where padding is sorted to. The caller puts
    the model into eval mode. ValueError for a row that leaves no room for the next token.
    """

    def __init__(self, model: Model, capacity: int, inputs_BE: Tensor | None = None) -> None:
        self.model = model
        self.capacity = capacity
        self.inputs_BE = inputs_BE
        self._rows: list[list[int]] = []
        self._device = torch.device("cpu") if inputs_BE is None else inputs_BE.device
        if inputs_BE is None and isinstance(model, nn.Module):
            self._device = next((p.device for p in model.parameters()), self._device)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V) of the token after each prompt; prompts may differ in length, or be empty."""
        self._rows = [list(prompt) for prompt in prompts]
        return self._next()

    def step(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) of the token after one more token a row."""
        for row, token in zip(self._rows, tokens_B.tolist(), strict=True):
            row.append(token)
        return self._next()

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        self._rows = [list(self._rows[row]) for row in rows_B.tolist()]
        if self.inputs_BE is not None:
            self.inputs_BE = self.inputs_BE[rows_B]

    @torch.no_grad()
    def _next(self) -> Tensor:
        lengths = [len(row) for row in self._rows]
        if max(lengths) >= self.capacity:
            message = f"A row of {max(lengths)} tokens leaves no room for another: the capacity is {self.capacity}."
            raise ValueError(message)
        logits: list[Tensor] = [torch.empty(0)] * len(lengths)
        for length in set(lengths):
            alike = [i for i, n in enumerate(lengths) if n == length]
            # The model never reads the token at the last place.
            tokens_BL = torch.tensor([[*self._rows[i], 0] for i in alike], device=self._device)
            inputs = () if self.inputs_BE is None else (self.inputs_BE[torch.tensor(alike, device=self._device)],)
            for i, row_V in zip(alike, self.model(tokens_BL, *inputs)[:, -1], strict=True):
                logits[i] = row_V
        return torch.stack(logits)


def greedy(model: Model, inputs_BE: Tensor, max_len: int, eos: int = EOS) -> list[list[int]]:
    """The most likely token after the most likely tokens, for every row up to and with its `eos`, at most `max_len`.

    The caller puts the model into eval mode.
    """
    if max_len < 1:
        raise ValueError(f"Decoding needs room for at least one token, but max_len is {max_len}.")
    session = UncachedSession(model, max_len, inputs_BE)
    return [row.tokens for row in generate(session, [[]] * len(inputs_BE), most_likely, max_len, eos)]
