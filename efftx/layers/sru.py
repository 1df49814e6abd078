"""The recurrent path of Terraformer, beside the feed-forward layer.

Shape suffixes: B batch, L length, D d_model, d units of the SRU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efftx.layers.cache import Cache, Position
from efftx.layers.cost import Cost, Read, Rows, Work, read_whole
from efftx.layers.initialize import BIAS_DEVIATION, LAYER_NORM_EPS, glorot_
from efftx.layers.settings import SRUConfig
from efftx.ops.recompute_state import RecomputeState
from efftx.ops.sru import sru


class SRU(nn.Module):
    """One simple recurrent unit over the length; `kernel` (d, 3d) and `bias` (3d) hold r, f, y as the authors do."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(d, 3 * d))
        self.bias = nn.Parameter(torch.empty(3 * d))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Glorot-uniform kernel over all three parts at once, biases Gaussian of deviation 1e-6 (authors' code)."""
        nn.init.xavier_uniform_(self.kernel)
        nn.init.normal_(self.bias, std=BIAS_DEVIATION)

    def forward(self, x_BLd: Tensor, state_Bd: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs and states after each position, each (B, L, d); `state_Bd` is the one before the first, else zero."""
        return sru(x_BLd, x_BLd @ self.kernel + self.bias, state_Bd)


class SRUBranch(nn.Module):
    """out(SRU(into(LayerNorm(x)))), to be added to the feed-forward layer's output (Terraformer; authors' code).

    It reads the block's input and normalises it itself. Causal, and so also in an encoder, as the authors have it.
    """

    def __init__(self, d_model: int, config: SRUConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.into = nn.Linear(d_model, config.d)
        self.layers = nn.ModuleList(SRU(config.d) for _ in range(config.n_layers))
        self.out = nn.Linear(config.d, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, biases Gaussian of deviation 1e-6 (authors' code)."""
        for layer in (self.into, self.out):
            glorot_(layer)
            nn.init.normal_(layer.bias, std=BIAS_DEVIATION)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.out.weight]

    def forward(self, x_BLD: Tensor, state: RecomputeState | None = None, cache: SRUCache | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model), from the states in `cache` on where it is given.

        It makes no discrete choice, so that `state` is not used.
        """
        x = self.into(self.norm(x_BLD))
        for i, layer in enumerate(self.layers):
            x, c_BLd = layer(x, None if cache is None else cache.c_BNd[:, i])
            if cache is not None:
                cache.keep(i, c_BLd)
        result: Tensor = self.out(x)
        return result

    def weight_reads(self) -> list[Read]:
        """All of its weights."""
        return [read_whole("SRU", self)]

    def cost(self, rows: Rows) -> Cost:
        """Of each layer its input, gates (three, their sigmoids and complements), state and output; and its norm."""
        d_model, d, n = self.into.in_features, self.into.out_features, len(self.layers)
        work = {"sru": Work(rows.length * (4.0 * d_model * d + n * 6.0 * d * d))}
        return Cost(work, rows.bytes_per_feature * (d_model + 12 * n * d))

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> SRUCache:
        """States of zero."""
        return SRUCache(batch, len(self.layers), self.into.bias, position)


class SRUCache(Cache):
    """The state of every SRU layer after the last token, (B, layers, d)."""

    def __init__(self, batch: int, n_layers: int, like: Tensor, position: Position) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.c_BNd = torch.zeros(batch, n_layers, like.shape[0], dtype=dtype, device=like.device)
        self.position = position

    def keep(self, layer: int, c_BLd: Tensor) -> None:
        """The state of a layer after each row's last token, of those after all that it was given."""
        own_B = self.position.own_B
        rows_B = torch.arange(c_BLd.shape[0], device=c_BLd.device)
        self.c_BNd[:, layer] = c_BLd[:, -1] if own_B is None else c_BLd[rows_B, own_B - 1]
