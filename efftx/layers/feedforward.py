"""The position-wise feed-forward layer, whole or slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_sigmoid": gelu_sigmoid,
}
"""`gelu` is the tanh approximation, as in the Reformer authors' code; `gelu_sigmoid` the Sparse Transformer's."""


class _TwoLayers(nn.Module):
    def __init__(self, d_model: int, d_ff: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, d_ff)
        self.w2 = nn.Linear(d_ff, d_model)
        if activation not in ACTIVATIONS:
            raise UserError("bad_value", f"activation={activation} is not known.", nearest(activation, ACTIVATIONS))
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        glorot_(self.w1)
        glorot_(self.w2)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.w2.weight]

    def forward(self, x_BLD: Tensor) -> Tensor:
        hidden = F.dropout(self.activation(self.w1(x_BLD)), self.dropout, self.training)
        out: Tensor = self.w2(hidden)
        return out


class FeedForward(nn.Module):
    """activation(x W1 + b1) W2 + b2, dropout on the hidden units; `chunk_len` positions at a time where not 0.

    Raises UserError for an activation that is none of `ACTIVATIONS`.
    """

    def __init__(
        self, d_model: int, d_ff: int, *, activation: str = "relu", dropout: float = 0.0, chunk_len: int = 0
    ) -> None:
        super().__init__()
        self.layers = _TwoLayers(d_model, d_ff, activation, dropout)
        self.chunk_len = chunk_len

    def forward(self, x_BLD: Tensor, state: RecomputeState | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model); makes no discrete choice, so that `state` is not used."""
        if not self.chunk_len or self.chunk_len >= x_BLD.shape[1]:
            out: Tensor = self.layers(x_BLD)
            return out

        def one_slice(parameters: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
            return (functional_call(self.layers, dict(parameters), (x,)),)

        return chunked(one_slice, dict(self.layers.named_parameters()), (x_BLD,), self.chunk_len)[0]

    def weight_reads(self) -> list[Read]:
        """All."""
        return [read_whole("feed-forward", self)]

    def cost(self, rows: Rows) -> Cost:
        """Both products; of the hidden units one copy under relu, two under gelu, three with dropout.

        Slices are run again in the backward pass, and keep nothing.
        """
        inner, w1 = self.layers, self.layers.w1
        sliced = is_sliced(self.chunk_len, rows.length)
        flops = rows.length * (linear_flops(w1) + linear_flops(inner.w2))
        work = {"feedforward": Work(flops, 2.0 + sliced, last=0.0 if sliced else 0.5)}
        copies = 3 if inner.dropout > 0 else 1 if inner.activation is F.relu else 2
        d, f = rows.bytes_per_feature * w1.in_features, rows.bytes_per_feature * w1.out_features
        saved, besides = copies * f, f + d if inner.dropout > 0 else 2 * f
        if sliced:
            held = saved + besides - d * (inner.dropout > 0)
            saved, besides = 0.0, sliced_bytes(rows, self.chunk_len, held, d, 2 * w1.weight.numel())
        dropped = float(rows.batch * rows.length * w1.out_features * (inner.dropout > 0))
        return Cost(work, saved, besides, draws=dropped * (1 + sliced), redrawn=dropped)

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> None:
        """Nothing is kept from token to token."""
