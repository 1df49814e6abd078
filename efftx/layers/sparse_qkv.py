"""Sparse queries, keys and values: a multiplicative layer that all three share, and a convolution for each.

Shape suffixes: B batch, L length, D d_model, S modules, m width of a module, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efftx.layers.cache import Cache, Place, RecentInputs
from efftx.layers.initialize import glorot_
from efftx.layers.matrix import Read
from efftx.layers.module_convolution import ConvolutionStepper, ModuleConvolution, joined_bytes
from efftx.layers.multiplicative import Multiplicative
from efftx.layers.projections import merge_heads, split_heads
from efftx.layers.settings import SparseQKVConfig, check_sparse_qkv
from efftx.layers.sparse_qkv_maps import last_matrix, make_convolution, make_map, make_output
from efftx.native.program import Normed, NotCompiledError, Program, Stream, buffer

JOINED_UP_TO = 2**20
"""Bytes up to which decoding keeps the three kernels in one matrix: they stay in a core's cache."""


class SparseQKV(nn.Module):
    """Queries, keys and values of all heads from few weights, and what follows attention: none by default.

    In place of `DenseQKV`; heads are as wide as d_model / n_heads, and S need not be n_heads. With `share_qk` one
    convolution gives queries and keys alike (`qk`), or the mean of two (`average_qk`), and `forward` returns no key.
    The shared layer has a bias, as in the authors' code: at d_model 1024, S 16 and F 3 the layer has 169,152 weights,
    168,128 without it; 192,704 with the paper's kernel, F x F for values too. Raises UserError as `check_sparse_qkv`
    does.
    """

    def __init__(self, config: SparseQKVConfig, d_model: int, n_heads: int, *, share_qk: bool) -> None:
        super().__init__()
        check_sparse_qkv(config, d_model, n_heads)
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.d_qk = self.d_head
        self.share_qk = share_qk
        self.average_qk = config.average_qk
        self.S = config.S
        self.concat_input = config.concat_input
        shared = config.variant == "multiplicative_convolution"
        self.multiplicative = Multiplicative(d_model, d_model, config.S) if shared else None
        if share_qk and not self.average_qk:
            self.qk = make_map(config, d_model)
        else:
            self.q = make_map(config, d_model)
            self.k = make_map(config, d_model)
        self.v = make_map(config, d_model, of_values=True)
        self.o = make_output(config, d_model)

    def reset_parameters(self) -> None:
        """A dense output projection is Glorot-uniform with zero bias; the other parts start themselves."""
        for layer in self.o:
            if isinstance(layer, nn.Linear):
                glorot_(layer)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream: the last layer after attention, or the values' where there is none."""
        return [last_matrix(self.o[-1] if len(self.o) else self.v)]

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, L, d_model) -> q, k, v of shape (B, H, L, d_head); k is None under share_qk."""
        return self.from_shared(*self.shared(x_BLD))

    def shared(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """What queries and keys are made from, and what values are, (B, L, E) each."""
        h_BLD = x_BLD if self.multiplicative is None else self.multiplicative(x_BLD)
        return h_BLD, self.with_input(h_BLD, x_BLD) if self.concat_input else h_BLD

    def from_shared(self, h_BLD: Tensor, value_input: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Queries, keys (None under share_qk) and values, (B, H, L, d_head) each."""
        if not self.share_qk:
            return self._heads(self.q(h_BLD)), self._heads(self.k(h_BLD)), self._heads(self.v(value_input))
        qk_BLD = (self.q(h_BLD) + self.k(h_BLD)) / 2 if self.average_qk else self.qk(h_BLD)
        return self._heads(qk_BLD), None, self._heads(self.v(value_input))

    def output(self, o_BHLd: Tensor) -> Tensor:
        """(B, H, L, d_head) -> (B, L, d_model)."""
        result: Tensor = self.o(merge_heads(o_BHLd))
        return result

    def stepper(self, *, int8: bool = False) -> SparseQKVStepper:
        """The layer for one token at a time; its few weights stay in float, whatever `int8` says."""
        return SparseQKVStepper(self)

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return split_heads(x_BLD, self.n_heads)

    def with_input(self, h_BLD: Tensor, x_BLD: Tensor) -> Tensor:
        """Every module of the shared layer beside the same module of the input (B, L, 2 d_model)."""
        h_BLSm, x_BLSm = (y.unflatten(-1, (self.S, -1)) for y in (h_BLD, x_BLD))
        return torch.cat([h_BLSm, x_BLSm], dim=-1).flatten(2)


class SparseQuery(nn.Module):
    """Queries for cross-attention from a multiplicative layer and a convolution; no output projection (authors' code).

    The kernel is that of self-attention's queries. Raises UserError as `check_sparse_qkv` does.
    """

    def __init__(self, config: SparseQKVConfig, d_model: int, n_heads: int) -> None:
        super().__init__()
        check_sparse_qkv(config, d_model, n_heads)
        self.n_heads = n_heads
        self.multiplicative = Multiplicative(d_model, d_model, config.S)
        self.convolution = make_convolution(config, d_model)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, H, L, d_head)."""
        return split_heads(self.convolution(self.multiplicative(x_BLD)), self.n_heads)

    def output(self, o_BHLd: Tensor) -> Tensor:
        """(B, H, L, d_head) -> (B, L, d_model): the heads one after the other."""
        return merge_heads(o_BHLd)

    def stepper(self, *, int8: bool = False) -> SparseQueryStepper:
        """The layer for one token at a time; its few weights stay in float, whatever `int8` says."""
        return SparseQueryStepper(self)


class _Recent(Cache):
    """The recent inputs of every convolution of a layer, by name."""

    def __init__(self, **inputs: RecentInputs) -> None:
        self.inputs = inputs

    def reorder(self, rows_B: Tensor) -> None:
        for recent in self.inputs.values():
            recent.reorder(rows_B)


class SparseQKVStepper:
    """`SparseQKV` for one token a row, in any variant; the kernels of queries and keys lie side by side.

    Convolutions keep their last F inputs: those of the queries' and keys', the values' where they read another, and
    those of the output.
    """

    def __init__(self, layer: SparseQKV) -> None:
        self._layer = layer
        self.n_heads, self.share_qk = layer.n_heads, layer.share_qk
        self._shared = None if layer.multiplicative is None else layer.multiplicative.stepper()
        maps = [layer.qk] if layer.share_qk and not layer.average_qk else [layer.q, layer.k]
        kernels = [m for m in (*maps, layer.v) if isinstance(m, ModuleConvolution)]
        # Together the kernels save a call; apart they save the zeros that widen the values'.
        together = bool(kernels) and not layer.concat_input and joined_bytes(kernels) <= JOINED_UP_TO
        apart = bool(kernels) and not together
        self._qk = ConvolutionStepper(kernels if together else kernels[:-1]) if kernels else None
        self._v = ConvolutionStepper(kernels[-1:]) if apart else None
        last = [m for m in layer.o if isinstance(m, ModuleConvolution)]
        self._o = ConvolutionStepper(last) if last else None
        # A module's own attributes are found by a search that takes longer than a small product.
        self._concat_input, self._after = layer.concat_input, list(layer.o)
        self._convolutions = kernels
        self._plain = not layer.concat_input and not layer.average_qk and len(kernels) == len(maps) + 1

    def new_state(self, batch: int) -> _Recent:
        """No inputs yet."""
        found = {}
        if self._qk is not None:
            found["qk"] = self._qk.new_state(batch)
        if self._v is not None and self._layer.concat_input:
            found["v"] = self._v.new_state(batch)
        if self._o is not None:
            found["o"] = self._o.new_state(batch)
        return _Recent(**found)

    def prefill(self, x_BLD: Tensor, state: _Recent, n_B: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """The layer's own forward; the last inputs of each row's `n_B` tokens are kept."""
        for_qk, for_v = self._layer.shared(x_BLD)
        for name, given in {"qk": for_qk, "v": for_v}.items():
            if name in state.inputs:
                state.inputs[name].fill(given, n_B)
        return self._layer.from_shared(for_qk, for_v)

    def output_of_prompt(self, o_BHLd: Tensor, state: _Recent, n_B: Tensor | None) -> Tensor:
        """The layer's own output; the last inputs of its convolution are kept."""
        y = merge_heads(o_BHLd)
        for layer in self._layer.o:
            if isinstance(layer, ModuleConvolution):
                state.inputs["o"].fill(y, n_B)
            y = layer(y)
        return y

    def step(self, x_BD: Tensor, state: _Recent) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, d_model) -> q, k, v of shape (B, H, d); k is None under share_qk."""
        if self._qk is None:
            q, k, v = self._layer.from_shared(*self._layer.shared(x_BD.unsqueeze(1)))
            return q.squeeze(2), None if k is None else k.squeeze(2), v.squeeze(2)
        recent = state.inputs["qk"]
        if self._concat_input:
            h_BLD, for_v = self._layer.shared(x_BD.unsqueeze(1))
            recent.push(h_BLD.squeeze(1))
            state.inputs["v"].push(for_v.squeeze(1))
        elif self._shared is None:
            recent.push(x_BD)
        else:
            recent.push(self._shared(x_BD))
        parts = self._qk.step(recent)
        if self._v is not None:
            parts = (*parts, *self._v.step(state.inputs["v"] if self._concat_input else recent))
        heads = [self._heads(part) for part in parts]
        if not self.share_qk:
            return heads[0], heads[1], heads[2]
        return (heads[0] + heads[1]) / 2 if len(heads) == 3 else heads[0], None, heads[-1]

    def output(self, o_BHd: Tensor, state: _Recent, place: Place) -> Tensor:
        """(B, H, d) or (B, H, 1, d) -> (B, d_model)."""
        y_BD = o_BHd.flatten(1)
        for layer in self._after:
            if isinstance(layer, ModuleConvolution):
                assert self._o is not None
                state.inputs["o"].push(y_BD)
                y_BD = self._o.step(state.inputs["o"])[0].flatten(1)
            else:
                y_BD = layer(y_BD)
        if self._after:
            place.lap("output")
        return y_BD

    @property
    def compile_output(self) -> Callable[[Program, Tensor | Stream, Stream], None] | None:
        """The output as an operation, None where there is none."""
        return self._compile_after if self._after else None

    def compile(self, program: Program, x: Normed) -> tuple[Tensor, Tensor | None, Tensor]:
        """One row as an operation; where its queries, keys and values will be, (H d) each.

        Raises NotCompiledError for other variants than a multiplicative layer and convolutions over it alone.
        """
        shared = self._layer.multiplicative
        if shared is None or not self._plain:
            raise NotCompiledError("A variant of sparse QKV.")
        parts = _compiled(program, x, shared, self._convolutions, _inputs_of_self)
        return parts[0], None if self.share_qk else parts[1], parts[-1]

    def _compile_after(self, program: Program, heads: Tensor | Stream, y: Stream) -> None:
        last = self._after[0]
        if len(self._after) > 1 or not isinstance(last, nn.Linear) or not isinstance(heads, Tensor):
            raise NotCompiledError("An output of sparse QKV that is not dense.")
        program.matvec(heads, last.weight.detach(), last.bias.detach(), y, "output", adds=True)

    def reads(self) -> list[Read]:
        """What a token reads."""
        prepared = [p.read("QKV") for p in (self._shared, self._qk, self._v) if p is not None]
        if self._qk is None:
            maps = (m for name, m in self._layer.named_children() if name in ("q", "k", "qk", "v"))
            prepared += [_read_of(m, "QKV") for m in maps]
        return [*prepared, *(_read_of(m, "output") for m in self._layer.o)]

    def _heads(self, x_BSm: Tensor) -> Tensor:
        """Heads of modules: the same numbers, and the same places where there are as many."""
        return x_BSm if x_BSm.shape[1] == self.n_heads else x_BSm.reshape(x_BSm.shape[0], self.n_heads, -1)


class SparseQueryStepper:
    """`SparseQuery` for one token a row."""

    def __init__(self, layer: SparseQuery) -> None:
        self._layer, self.n_heads = layer, layer.n_heads
        self._shared = layer.multiplicative.stepper()
        self._convolution = ConvolutionStepper([layer.convolution])

    def new_state(self, batch: int) -> RecentInputs:
        """No inputs yet."""
        return self._convolution.new_state(batch)

    def prefill(self, x_BLD: Tensor, state: RecentInputs, n_B: Tensor | None) -> Tensor:
        """The layer's own forward; the last inputs of each row's `n_B` tokens are kept."""
        h_BLD = self._layer.multiplicative(x_BLD)
        state.fill(h_BLD, n_B)
        return split_heads(self._layer.convolution(h_BLD), self.n_heads)

    def output_of_prompt(self, o_BHLd: Tensor, state: RecentInputs, n_B: Tensor | None) -> Tensor:
        """The heads one after the other."""
        return self._layer.output(o_BHLd)

    def step(self, x_BD: Tensor, state: RecentInputs) -> Tensor:
        """(B, d_model) -> (B, H, 1, d)."""
        state.push(self._shared(x_BD))
        (q_BSm,) = self._convolution.step(state)
        return q_BSm.reshape(x_BD.shape[0], self.n_heads, 1, -1)

    def output(self, o_BH1d: Tensor, state: RecentInputs, place: Place) -> Tensor:
        """(B, H, 1, d) -> (B, d_model): the heads one after the other."""
        return o_BH1d.flatten(1)

    compile_output = None
    """The heads one after the other are the output."""

    def compile(self, program: Program, x: Normed) -> Tensor:
        """One row as an operation; where its queries will be, (H d)."""
        (q,) = _compiled(program, x, self._layer.multiplicative, [self._layer.convolution], _inputs_of_query)
        return q

    def reads(self) -> list[Read]:
        """What a token reads."""
        return [self._shared.read("QKV"), self._convolution.read("QKV")]


def _inputs_of_self(cache: Any) -> RecentInputs:
    """Of an `AttentionCache`."""
    recent: RecentInputs = cache.projections.inputs["qk"]
    return recent


def _inputs_of_query(cache: Any) -> RecentInputs:
    """Of a `CrossCache`."""
    recent: RecentInputs = cache.query
    return recent


def _compiled(
    program: Program,
    x: Normed,
    shared: Multiplicative,
    convolutions: Sequence[ModuleConvolution],
    recent: Callable[[Any], RecentInputs],
) -> Sequence[Tensor]:
    """A multiplicative layer and convolutions over it as an operation: where their outputs will be, (D) each."""
    if shared.bias is None:
        raise NotCompiledError("A multiplicative layer without a bias.")
    weights = [(layer.kernel.detach(), layer.bias.detach()) for layer in convolutions]
    y_nSm = buffer("qkv", len(weights) * shared.bias.numel())
    layer = [shared.gate.detach(), shared.proj.detach(), shared.bias.detach()]
    program.modules(x, layer, weights, y_nSm, recent)
    return y_nSm.chunk(len(weights))


def _read_of(module: nn.Module, component: str) -> Read:
    weights = list(module.parameters())
    return Read(component, sum(w.numel() for w in weights), sum(w.nbytes for w in weights))
