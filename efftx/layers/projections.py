"""Dense projections to queries, keys, values, and from the heads' outputs back to the model's width.

Shape suffixes: B batch, L length, D d_model, H heads, d width of a head, E width of all heads together.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.cache import Position
from efftx.layers.cost import Read, Rows, map_flops, read_whole
from efftx.layers.initialize import glorot_


def split_heads(x_BLE: Tensor, n_heads: int) -> Tensor:
    """(B, L, E) -> (B, H, L, d): head h owns columns h d to (h + 1) d."""
    return x_BLE.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x_BHLd: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, E), the heads one after the other."""
    return x_BHLd.transpose(1, 2).flatten(2)


def projection_reads(project: nn.Module) -> list[Read]:
    """What a token reads of projections, of those in front of attention and of that behind it, called `o`."""
    parts = dict(project.named_children())
    output = parts.pop("o", None)
    return [read_whole("QKV", *parts.values()), read_whole("output", output)]


class _Dense(nn.Module):
    """What linear projections cost, of all heads and of the output."""

    def weight_reads(self) -> list[Read]:
        """All, the output apart."""
        return projection_reads(self)

    def flops(self, length: int) -> float:
        """Forward FLOPs a token."""
        return map_flops(self.children(), length)

    def saved(self, rows: Rows) -> float:
        """Bytes kept for the backward pass besides what attention itself reads and gives: none."""
        return 0.0


class DenseQKV(_Dense):
    """Queries, keys and values of all heads, and the output projection.

    With `share_qk` one projection gives queries and keys alike (`qk`), and `forward` returns no key. Weights: d_model x
    (n_heads d_head) each, and back; no biases unless asked for, as in the authors' LSH layer. Queries and keys of their
    own may be `d_qk` a head narrower than the values (Sparse Transformer, "half-size"): zeros fill them up.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        share_qk: bool = False,
        bias: bool = False,
        d_qk: int | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.d_head, self.d_model = n_heads, d_head, d_model
        self.d_qk = d_head if d_qk is None else d_qk
        self.share_qk = share_qk
        width = n_heads * d_head
        if share_qk:
            self.qk = nn.Linear(d_model, width, bias=bias)
        else:
            self.q = nn.Linear(d_model, n_heads * self.d_qk, bias=bias)
            self.k = nn.Linear(d_model, n_heads * self.d_qk, bias=bias)
        self.v = nn.Linear(d_model, width, bias=bias)
        self.o = nn.Linear(width, d_model, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        for layer in self.children():
            assert isinstance(layer, nn.Linear)
            glorot_(layer)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.o.weight]

    def forward(self, x_BLD: Tensor, cache: None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, L, d_model) -> q, k, v of shape (B, H, L, d_head); k is None under share_qk."""
        if self.share_qk:
            return self._heads(self.qk(x_BLD)), None, self._heads(self.v(x_BLD))
        return self._heads(self.q(x_BLD)), self._heads(self.k(x_BLD)), self._heads(self.v(x_BLD))

    def output(self, o_BHLd: Tensor, cache: None = None) -> Tensor:
        """(B, H, L, d_head) -> (B, L, d_model)."""
        result: Tensor = self.o(merge_heads(o_BHLd))
        return result

    def new_cache(self, batch: int, position: Position) -> None:
        """Nothing is kept from token to token."""

    def _heads(self, x_BLE: Tensor) -> Tensor:
        x_BHLd = split_heads(x_BLE, self.n_heads)
        return F.pad(x_BHLd, (0, self.d_head - x_BHLd.shape[-1])) if x_BHLd.shape[-1] < self.d_head else x_BHLd


class DenseQuery(_Dense):
    """Queries of all heads, and the output projection: what cross-attention takes from the decoder's own stream."""

    def __init__(self, d_model: int, n_heads: int, d_head: int, *, bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.o = nn.Linear(n_heads * d_head, d_model, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        glorot_(self.q)
        glorot_(self.o)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.o.weight]

    def forward(self, x_BLD: Tensor, cache: None = None) -> Tensor:
        """(B, L, d_model) -> (B, H, L, d_head)."""
        return split_heads(self.q(x_BLD), self.n_heads)

    def output(self, o_BHLd: Tensor) -> Tensor:
        """(B, H, L, d_head) -> (B, L, d_model)."""
        result: Tensor = self.o(merge_heads(o_BHLd))
        return result

    def new_cache(self, batch: int, position: Position) -> None:
        """Nothing is kept from token to token."""
