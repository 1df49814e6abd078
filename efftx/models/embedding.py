"""What a model reads: token ids as vectors, with their positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.positions import CoupledPositions


class TokenEmbedding(nn.Module):
    """One row a token, Gaussian at the start.

    `std` None is a deviation of 1, or of d_model^-0.5 where the same matrix gives the logits.
    """

    def __init__(self, vocab_size: int, d_model: int, *, tied: bool, std: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.tied = tied
        self.std = (d_model**-0.5 if tied else 1.0) if std is None else std

    def reset_parameters(self) -> None:
        """Gaussian rows."""
        nn.init.normal_(self.weight, std=self.std)

    def active_parameters(self) -> int:
        """One row, or all where the same matrix gives the logits."""
        return self.weight.numel() if self.tied else self.weight.shape[1]

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """(B, L) token ids -> (B, L, d_model)."""
        return F.embedding(tokens_BL, self.weight)


def embed(
    tokens_BL: Tensor,
    embedding: TokenEmbedding,
    positions: nn.Module | None,
    dropout: float,
    start_B1: Tensor | None = None,
) -> Tensor:
    """Token and position embeddings, (B, L, d_model); `dropout` 0 outside training.

    `start_B1` are the positions that coupled ones count each row from (`coupled_starts`), None for 0.
    """
    x: Tensor = embedding(tokens_BL)
    if isinstance(positions, CoupledPositions):
        x = x + positions.of_tokens(tokens_BL, start_B1)
    elif positions is not None:
        batch, length = tokens_BL.shape
        x = x + positions(length, batch)
    return F.dropout(x, dropout)


def coupled_starts(positions: nn.Module | None, *tokens_BL: Tensor) -> Tensor | None:
    """The position that each row counts from in training, one for all that it is told of; None where none is drawn."""
    if not isinstance(positions, CoupledPositions):
        return None
    return positions.starts(tokens_BL[0].shape[0], max(tokens.shape[1] for tokens in tokens_BL))


def shift_right(tokens_BL: Tensor) -> Tensor:
    """What a decoder reads to predict `tokens`: a 0, then all but the last of them."""
    return F.pad(tokens_BL, (1, 0))[:, :-1]
