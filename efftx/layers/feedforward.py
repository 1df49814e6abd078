"""The position-wise feed-forward layer, whole or slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from efftx.errors import UserError, nearest
from efftx.layers.cache import Position
from efftx.layers.cost import Cost, Read, Rows, Work, is_sliced, linear_flops, read_whole, sliced_bytes
from efftx.layers.initialize import glorot_
from efftx.ops.chunking import chunked
from efftx.ops.gelu import gelu_sigmoid
from efftx.ops.recompute_state import RecomputeState

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "gelu_sigmoid": gelu_sigmoid,
}
"""`gelu` is the tanh approximation, as in the Reformer authors' code; `gelu_sigmoid` the Sparse Transformer's."""


class FeedForward(nn.Module):
    """activation(x W1 + b1) W2 + b2, dropout on the hidden units; `chunk_len` positions at a time where not 0.

    Raises UserError for an activation that is none of `ACTIVATIONS`.
    """

    def __init__(
        self, d_model: int, d_ff: int, *, activation: str = "relu", dropout: float = 0.0, chunk_len: int = 0
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError("bad_value", f"activation={activation} is not known.", nearest(activation, ACTIVATIONS))
        # Any: a module gives its children untyped, and in int8 these are no longer nn.Linear.
        self.layers: Any = nn.ModuleDict({"w1": nn.Linear(d_model, d_ff), "w2": nn.Linear(d_ff, d_model)})
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        self.chunk_len = chunk_len
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        glorot_(self.layers.w1)
        glorot_(self.layers.w2)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        matrix: Tensor = self.layers.w2.weight
        return [matrix]

    def forward(self, x_BLD: Tensor, state: RecomputeState | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model); makes no discrete choice, so that `state` is not used."""
        if is_sliced(self.chunk_len, x_BLD.shape[1]):
            return chunked(self._slice, dict(self.named_parameters()), (x_BLD,), self.chunk_len)[0]
        hidden = F.dropout(self.activation(self.layers.w1(x_BLD)), self.dropout, self.training)
        out: Tensor = self.layers.w2(hidden)
        return out

    def _slice(self, parameters: Mapping[str, Tensor], x_BCD: Tensor) -> tuple[Tensor]:
        return (functional_call(self, dict(parameters), (x_BCD,)),)

    def weight_reads(self) -> list[Read]:
        """All of its weights."""
        return [read_whole("feed-forward", self)]

    def cost(self, rows: Rows) -> Cost:
        """Both products; of the hidden units one copy under relu, two under gelu, three with dropout.

        Slices are run again in the backward pass, and keep nothing.
        """
        w1, w2, drops = self.layers.w1, self.layers.w2, self.dropout > 0
        sliced = is_sliced(self.chunk_len, rows.length)
        flops = rows.length * (linear_flops(w1) + linear_flops(w2))
        work = {"feedforward": Work(flops, 2.0 + sliced, last=0.0 if sliced else 0.5)}
        copies = 3 if drops else 1 if self.activation is F.relu else 2
        d, f = rows.bytes_per_feature * w1.in_features, rows.bytes_per_feature * w1.out_features
        saved, besides = copies * f, f + d if drops else 2 * f
        if sliced:
            held = saved + besides - d * drops
            saved, besides = 0.0, sliced_bytes(rows, self.chunk_len, held, d, 2 * w1.weight.numel())
        dropped = float(rows.batch * rows.length * w1.out_features * drops)
        return Cost(work, saved, besides, draws=dropped * (1 + sliced), redrawn=dropped)

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> None:
        """Nothing is kept from token to token."""
