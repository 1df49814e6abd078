"""The layer in a self-attention's place that adds nothing: a control that says what the attention was worth."""

from __future__ import annotations

from torch import Tensor, nn

from efftx.layers.cache import Position
from efftx.layers.cost import Cost, Read, Rows
from efftx.ops.recompute_state import RecomputeState


class NoAttention(nn.Module):
    """Zeros, so that the residual stream passes as it is. It has no weights and keeps nothing."""

    def forward(self, x_BLD: Tensor, state: RecomputeState | None = None, key_mask_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> zeros of the same shape."""
        return x_BLD.new_zeros(x_BLD.shape)

    def output_matrices(self) -> list[Tensor]:
        """None."""
        return []

    def weight_reads(self) -> list[Read]:
        """None."""
        return []

    def cost(self, rows: Rows) -> Cost:
        """Nothing."""
        return Cost()

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> None:
        """Nothing is kept from token to token."""
