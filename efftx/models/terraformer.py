"""Terraformer's junction: an encoder-decoder without cross-attention (Sparse is Enough; authors' code).

The decoder reads one joined sequence: the encoder's outputs, then its own tokens, right after the last real encoder
token. All its attention is causal self-attention, two sub-layers a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efftx.layers.cost import Cost, Rows, Work, linear_flops
from efftx.layers.initialize import LAYER_NORM_EPS, glorot_
from efftx.models.block import Context
from efftx.models.streams import ReversibleConfig, Streams, merge, split
from efftx.ops.concatenation import cut_after, join_after


class Concatenated(nn.Module):
    """The encoder's streams in front of the decoder's tokens.

    Both reversible streams go on as they are (`reversible.encoder=streams`), or their mean does through a linear layer
    and a LayerNorm, on both of the decoder's streams (`merged`). An ordinary encoder's one stream goes on as it is.
    """

    def __init__(self, d_model: int, reversible: ReversibleConfig) -> None:
        super().__init__()
        self.reversible = reversible
        merges = reversible.enabled and reversible.encoder == "merged"
        self.bridge = nn.Linear(d_model, d_model) if merges else None
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS) if merges else None

    def reset_parameters(self) -> None:
        """Glorot-uniform weight, zero bias."""
        if self.bridge is not None:
            glorot_(self.bridge)

    def leave(self, encoded: Streams) -> Streams:
        """One or two streams, (B, E, d_model) each."""
        if self.bridge is None or self.norm is None:
            return encoded
        return split(self.norm(self.bridge(merge(encoded))), self.reversible)

    def cost(self, rows: Rows) -> Cost:
        """The layer between the encoder's streams and the decoder's, where they are merged."""
        return Cost() if self.bridge is None else Cost({"junction": Work(rows.length * linear_flops(self.bridge))})

    def enter(self, x_BLD: Tensor, encoded: Streams, is_token_BE: Tensor) -> tuple[Streams, Context]:
        """The joined streams (B, E + L, d_model), and in the context that what follows a row's last token is padding.

        Causality hides it from the tokens; hash attention must besides give it no place among them.
        """
        n_B = is_token_BE.sum(1)
        joined = tuple(join_after(stream, x_BLD, n_B) for stream in encoded)
        place_J = torch.arange(joined[0].shape[1], device=n_B.device)
        return joined, Context(key_mask_BL=place_J < (n_B + x_BLD.shape[1])[:, None])

    def cut(self, h_BJD: Tensor, is_token_BE: Tensor, length: int) -> Tensor:
        """The rows of the decoder's tokens, (B, length, width)."""
        return cut_after(h_BJD, is_token_BE.sum(1), length)

    def ids(self, token_BL: Tensor, inputs_BE: Tensor, is_token_BE: Tensor) -> Tensor:
        """The encoder's real tokens, the decoder's, and behind them padding, (B, E + L)."""
        return join_after(inputs_BE.unsqueeze(-1), token_BL.unsqueeze(-1), is_token_BE.sum(1)).squeeze(-1)
