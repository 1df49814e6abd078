"""Dense projections to queries, keys, values, and from the heads' outputs back to the model's width.

Shape suffixes: B batch, L length, D d_model, H heads, d width of a head, E width of all heads together.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.cache import Place
from efftx.layers.initialize import glorot_
from efftx.layers.matrix import Read, joined, matrix_of
from efftx.native.program import Normed, NotCompiledError, Program, Stream, buffer


def split_heads(x_BLE: Tensor, n_heads: int) -> Tensor:
    """(B, L, E) -> (B, H, L, d): head h owns columns h d to (h + 1) d."""
    return x_BLE.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x_BHLd: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, E), the heads one after the other."""
    return x_BHLd.transpose(1, 2).flatten(2)


class DenseQKV(nn.Module):
    """Queries, keys and values of all heads, and the output projection.

    With `share_qk` one projection gives queries and keys alike (`qk`), and `forward` returns no key. Weights: d_model x
    (n_heads d_head) each, and back; no biases unless asked for, as in the authors' LSH layer. Queries and keys of their
    own may be `d_qk` a head narrower than the values (Sparse Transformer, "half-size"): zeros fill them up.
    """

    def __init__(
        self, d_model: int, n_heads: int, d_head: int, *, share_qk: bool, bias: bool, d_qk: int | None = None
    ) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_head
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

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        for layer in self.children():
            assert isinstance(layer, nn.Linear)
            glorot_(layer)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.o.weight]

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, L, d_model) -> q, k, v of shape (B, H, L, d_head); k is None under share_qk."""
        if self.share_qk:
            return self._heads(self.qk(x_BLD)), None, self._heads(self.v(x_BLD))
        return self._heads(self.q(x_BLD)), self._heads(self.k(x_BLD)), self._heads(self.v(x_BLD))

    def output(self, o_BHLd: Tensor) -> Tensor:
        """(B, H, L, d_head) -> (B, L, d_model)."""
        result: Tensor = self.o(merge_heads(o_BHLd))
        return result

    def stepper(self, *, int8: bool = False) -> DenseQKVStepper:
        """The projections of one token at a time."""
        return DenseQKVStepper(self, int8=int8)

    def _heads(self, x_BLE: Tensor) -> Tensor:
        x_BHLd = split_heads(x_BLE, self.n_heads)
        return F.pad(x_BHLd, (0, self.d_head - x_BHLd.shape[-1])) if x_BHLd.shape[-1] < self.d_head else x_BHLd


class DenseQKVStepper:
    """`DenseQKV` for one token a row: queries, keys and values by one product, and the output projection."""

    def __init__(self, layer: DenseQKV, *, int8: bool) -> None:
        self.n_heads, self.share_qk = layer.n_heads, layer.share_qk
        self._qkv = joined([layer.qk, layer.v] if layer.share_qk else [layer.q, layer.k, layer.v], int8=int8)
        self._o = matrix_of(layer.o, int8=int8)
        self._layer = layer
        self._n_parts = 2 if layer.share_qk else 3
        self._n_outputs = self._n_parts * layer.o.in_features
        self._qkv_of, self._o_of = self._qkv.product, self._o.product

    def new_state(self, batch: int) -> None:
        """Nothing is kept from token to token."""

    def prefill(self, x_BLD: Tensor, state: None, n_B: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """The layer's own forward."""
        q, k, v = self._layer(x_BLD)
        return q, k, v

    def output_of_prompt(self, o_BHLd: Tensor, state: None, n_B: Tensor | None) -> Tensor:
        """The layer's own output."""
        return self._layer.output(o_BHLd)

    def step(self, x_BD: Tensor, state: None) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, d_model) -> q, k, v of shape (B, H, d); k is None under share_qk."""
        layer = self._layer
        if layer.d_qk < layer.d_head:
            narrow = self.n_heads * layer.d_qk
            q, k, v = self._qkv_of(x_BD).split([narrow, narrow, self.n_heads * layer.d_head], 1)
            q, k, v = (x.unflatten(1, (self.n_heads, -1)) for x in (q, k, v))
            q, k = (F.pad(x, (0, layer.d_head - layer.d_qk)) for x in (q, k))
            return q, k, v
        parts = self._qkv_of(x_BD).view(x_BD.shape[0], self._n_parts, self.n_heads, -1).unbind(1)
        return (parts[0], None, parts[1]) if self.share_qk else (parts[0], parts[1], parts[2])

    def output(self, o_BHd: Tensor, state: None, place: Place) -> Tensor:
        """(B, H, d) or (B, H, 1, d) -> (B, d_model)."""
        y_BD = self._o_of(o_BHd.flatten(1))
        place.lap("output")
        return y_BD

    def compile(self, program: Program, x: Normed) -> tuple[Tensor, Tensor | None, Tensor]:
        """The product of one row as an operation; where its queries, keys and values will be, (H d) each."""
        if self._layer.d_qk < self._layer.d_head:
            raise NotCompiledError("Queries and keys that are narrower than values.")
        qkv_E = buffer("qkv", self._n_outputs)
        self._qkv.compile(program, x, qkv_E, "QKV")
        parts = qkv_E.chunk(self._n_parts)
        return (parts[0], None, parts[1]) if self.share_qk else (parts[0], parts[1], parts[2])

    def compile_output(self, program: Program, heads: Tensor | Stream, y: Stream) -> None:
        """The output projection of one row as an operation."""
        assert isinstance(heads, Tensor)
        self._o.compile(program, heads, y, "output", adds=True)

    def reads(self) -> list[Read]:
        """What a token reads."""
        return [self._qkv.read("QKV"), self._o.read("output")]


class DenseQuery(nn.Module):
    """Queries of all heads, and the output projection: what cross-attention takes from the decoder's own stream."""

    def __init__(self, d_model: int, n_heads: int, d_head: int, *, bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.o = nn.Linear(n_heads * d_head, d_model, bias=bias)

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        glorot_(self.q)
        glorot_(self.o)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.o.weight]

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, H, L, d_head)."""
        return split_heads(self.q(x_BLD), self.n_heads)

    def output(self, o_BHLd: Tensor) -> Tensor:
        """(B, H, L, d_head) -> (B, L, d_model)."""
        result: Tensor = self.o(merge_heads(o_BHLd))
        return result

    def stepper(self, *, int8: bool = False) -> DenseQueryStepper:
        """The query of one token at a time."""
        return DenseQueryStepper(self, int8=int8)


class DenseQueryStepper:
    """`DenseQuery` for one token a row."""

    def __init__(self, layer: DenseQuery, *, int8: bool) -> None:
        self.n_heads = layer.n_heads
        self._q, self._o = matrix_of(layer.q, int8=int8), matrix_of(layer.o, int8=int8)
        self._layer = layer
        self._q_of, self._o_of = self._q.product, self._o.product

    def new_state(self, batch: int) -> None:
        """Nothing is kept from token to token."""

    def prefill(self, x_BLD: Tensor, state: None, n_B: Tensor | None) -> Tensor:
        """The layer's own forward."""
        q_BHLd: Tensor = self._layer(x_BLD)
        return q_BHLd

    def output_of_prompt(self, o_BHLd: Tensor, state: None, n_B: Tensor | None) -> Tensor:
        """The layer's own output."""
        return self._layer.output(o_BHLd)

    def step(self, x_BD: Tensor, state: None) -> Tensor:
        """(B, d_model) -> (B, H, 1, d)."""
        return self._q_of(x_BD).view(x_BD.shape[0], self.n_heads, 1, -1)

    def output(self, o_BH1d: Tensor, state: None, place: Place) -> Tensor:
        """(B, H, 1, d) -> (B, d_model)."""
        y_BD = self._o_of(o_BH1d.flatten(1))
        place.lap("output")
        return y_BD

    def compile(self, program: Program, x: Normed) -> Tensor:
        """The product of one row as an operation; where its queries will be, (H d)."""
        q_E = buffer("qkv", self._layer.q.out_features)
        self._q.compile(program, x, q_E, "QKV")
        return q_E

    def compile_output(self, program: Program, heads: Tensor | Stream, y: Stream) -> None:
        """The output projection of one row as an operation."""
        assert isinstance(heads, Tensor)
        self._o.compile(program, heads, y, "output", adds=True)

    def reads(self) -> list[Read]:
        """What a token reads."""
        return [self._q.read("QKV"), self._o.read("output")]
