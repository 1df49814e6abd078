"""The layer in a self-attention's place that adds nothing: a control that says what the attention was worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efftx.layers.cache import Position
from efftx.layers.cost import Cost, Read, Rows
from efftx.ops.recompute_state import RecomputeState


class NoAttention(nn.Module):
    """Zeros, so that the residual stream passes as it is. It has no weights and keeps nothing.

    Its input's gradient is 0 and not absent: DDP waits for one of every weight, here of the norm before the layer.
    """

    def forward(self, x_BLD: Tensor, state: RecomputeState | None = None, key_mask_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> zeros of the same shape."""
        return x_BLD.masked_fill(torch.ones((), dtype=torch.bool, device=x_BLD.device), 0.0)

    def output_matrices(self) -> list[Tensor]:
        """An empty list: it writes nothing to the residual stream."""
        return []

    def weight_reads(self) -> list[Read]:
        """An empty list: it has no weights."""
        return []

    def cost(self, rows: Rows) -> Cost:
        """No work, and nothing held."""
        return Cost()

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> None:
        """Nothing is kept from token to token."""
