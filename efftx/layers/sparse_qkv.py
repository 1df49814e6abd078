"""Sparse queries, keys and values: a multiplicative layer that all three share, and a convolution for each.

Shape suffixes: B batch, L length, D d_model, S modules, m width of a module, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from efftx.layers.cache import Cache, Position, RecentInputs
from efftx.layers.cost import Read, Rows, map_flops
from efftx.layers.initialize import glorot_
from efftx.layers.module_convolution import ModuleConvolution
from efftx.layers.multiplicative import Multiplicative
from efftx.layers.projections import merge_heads, projection_reads, split_heads
from efftx.layers.settings import SparseQKVConfig, check_sparse_qkv
from efftx.layers.sparse_qkv_maps import LowRank, last_matrix, make_convolution, make_map, make_output


class SparseQKV(nn.Module):
    """Queries, keys and values of all heads from few weights, and what follows attention: none by default.

    In place of `DenseQKV`; heads are as wide as d_model / n_heads, and S need not be n_heads. With `share_qk` one
    convolution gives queries and keys alike (`qk`), or the mean of two (`average_qk`), and `forward` returns no key.
    The shared layer has a bias, as in the authors' code: at d_model 1024, S 16 and F 3 the layer has 169,152 weights,
    168,128 without it; with the paper's kernel, F x F for values too, 193,728 and 192,704. Raises UserError as
    `check_sparse_qkv` does.
    """

    keeps_its_start = True

    def __init__(self, config: SparseQKVConfig, d_model: int, n_heads: int, *, share_qk: bool = False) -> None:
        super().__init__()
        check_sparse_qkv(config, d_model, n_heads)
        self.n_heads, self.d_head, self.d_model = n_heads, d_model // n_heads, d_model
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
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A dense output projection is Glorot-uniform with zero bias; the other parts start themselves."""
        for layer in self.o:
            if isinstance(layer, nn.Linear):
                glorot_(layer)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream: the last layer after attention, or the values' where there is none."""
        return [last_matrix(self.o[-1] if len(self.o) else self.v)]

    def forward(self, x_BLD: Tensor, cache: ConvolutionCache | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, L, d_model) -> q, k, v of shape (B, H, L, d_head); k is None under share_qk."""
        h_BLD = value_input = x_BLD if self.multiplicative is None else self.multiplicative(x_BLD)
        if self.concat_input:  # every module beside the same one of the input, (B, L, 2 d_model)
            modules = [y_BLD.unflatten(-1, (self.S, -1)) for y_BLD in (h_BLD, x_BLD)]
            value_input = torch.cat(modules, dim=-1).flatten(2)
        of_qk = kept(cache, "qk", h_BLD)
        of_v = kept(cache, "v", value_input) if self.concat_input else of_qk
        if self.share_qk and not self.average_qk:
            return self._heads(self.qk(h_BLD, **of_qk)), None, self._heads(self.v(value_input, **of_v))
        q_BLD, k_BLD = self.q(h_BLD, **of_qk), self.k(h_BLD, **of_qk)
        if self.share_qk:
            return self._heads((q_BLD + k_BLD) / 2), None, self._heads(self.v(value_input, **of_v))
        return self._heads(q_BLD), self._heads(k_BLD), self._heads(self.v(value_input, **of_v))

    def output(self, o_BHLd: Tensor, cache: ConvolutionCache | None = None) -> Tensor:
        """(B, H, L, d_head) -> (B, L, d_model)."""
        y_BLD = merge_heads(o_BHLd)
        for layer in self.o:
            y_BLD = layer(y_BLD, **(kept(cache, "o", y_BLD) if isinstance(layer, ModuleConvolution) else {}))
        return y_BLD

    def weight_reads(self) -> list[Read]:
        """All, the output apart."""
        return projection_reads(self)

    def flops(self, length: int) -> float:
        """Forward FLOPs a token of rows of `length`: the shared layer, queries, keys, values and the output."""
        return map_flops([*(layer for layer in self.children() if layer is not self.o), *self.o], length)

    def saved(self, rows: Rows) -> float:
        """Bytes kept for the backward pass besides queries, keys, values and the heads' output: the results between
        layers, and the matrices of multiplicative layers, multiplied out.
        """
        d, matrix = rows.bytes_per_feature * self.d_model, float(rows.element_bytes * self.d_model**2)
        kept = sum(isinstance(layer, Multiplicative) for layer in self.modules()) * matrix
        kept += sum(rows.bytes_per_feature * layer.rank for layer in self.modules() if isinstance(layer, LowRank))
        if self.multiplicative is not None:
            kept += d + (2 * d if self.concat_input else 0)
        return kept + d * (len(self.o) > 1)

    def new_cache(self, batch: int, position: Position) -> ConvolutionCache:
        """No inputs yet, of the convolutions of queries and keys, of values where theirs differ, and of the output."""
        of_qk = [m for m in self.children() if isinstance(m, ModuleConvolution)]
        of_v = [of_qk.pop()] if of_qk and self.concat_input else []
        return ConvolutionCache(batch, position, qk=of_qk, v=of_v, o=list(self.o))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return split_heads(x_BLD, self.n_heads)


class SparseQuery(nn.Module):
    """Queries for cross-attention from a multiplicative layer and a convolution; no output projection (authors' code).

    The kernel is that of self-attention's queries. Raises UserError as `check_sparse_qkv` does.
    """

    keeps_its_start = True

    def __init__(self, config: SparseQKVConfig, d_model: int, n_heads: int) -> None:
        super().__init__()
        check_sparse_qkv(config, d_model, n_heads)
        self.n_heads = n_heads
        self.multiplicative = Multiplicative(d_model, d_model, config.S)
        self.convolution = make_convolution(config, d_model)

    def forward(self, x_BLD: Tensor, cache: ConvolutionCache | None = None) -> Tensor:
        """(B, L, d_model) -> (B, H, L, d_head)."""
        h_BLD = self.multiplicative(x_BLD)
        return split_heads(self.convolution(h_BLD, **kept(cache, "qk", h_BLD)), self.n_heads)

    def output(self, o_BHLd: Tensor) -> Tensor:
        """(B, H, L, d_head) -> (B, L, d_model): the heads one after the other."""
        return merge_heads(o_BHLd)

    def weight_reads(self) -> list[Read]:
        """All, the output apart."""
        return projection_reads(self)

    def flops(self, length: int) -> float:
        """Forward FLOPs a token of rows of `length`."""
        return map_flops(self.children(), length)

    def saved(self, rows: Rows) -> float:
        """Bytes kept for the backward pass besides the queries: the shared layer's result and its whole matrix."""
        d_model = self.multiplicative.d_out
        return rows.bytes_per_feature * d_model + float(rows.element_bytes * d_model**2)

    def new_cache(self, batch: int, position: Position) -> ConvolutionCache:
        """No inputs yet."""
        return ConvolutionCache(batch, position, qk=[self.convolution])


class ConvolutionCache(Cache):
    """The last inputs of a layer's convolutions, by the name of what they make; several may read the same ones."""

    def __init__(self, batch: int, position: Position, **layers: Sequence[nn.Module]) -> None:
        self.inputs: dict[str, RecentInputs] = {}
        for name, readers in layers.items():
            convolutions = [layer for layer in readers if isinstance(layer, ModuleConvolution)]
            if convolutions:
                n_modules = max(layer.kernel.shape[1] for layer in convolutions)
                first = convolutions[0]
                F, _, d_module, _ = first.kernel.shape
                inputs = RecentInputs(batch, F, first.S, d_module, n_modules // 2, first.bias, position)
                self.inputs[name] = inputs

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        for recent in self.inputs.values():
            recent.reorder(rows_B)


def kept(cache: ConvolutionCache | None, name: str, x_BLE: Tensor) -> dict[str, RecentInputs]:
    """The inputs of the convolutions called `name`, `x` added to them, as their argument; none where none are kept."""
    if cache is None or name not in cache.inputs:
        return {}
    cache.inputs[name].keep(x_BLE)
    return {"recent": cache.inputs[name]}
