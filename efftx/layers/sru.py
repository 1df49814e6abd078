"""The recurrent path of Terraformer, beside the feed-forward layer.

Shape suffixes: B batch, L length, D d_model, d units of the SRU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from efftx.layers.cache import Cache, Place
from efftx.layers.initialize import glorot_
from efftx.layers.matrix import Read
from efftx.layers.settings import SRUConfig
from efftx.native.program import Normed, Program, Stream, buffer
from efftx.ops.replay import Replay
from efftx.ops.sru import sru, sru_step

LAYER_NORM_EPS = 1e-6
BIAS_DEVIATION = 1e-6


class SRU(nn.Module):
    """One simple recurrent unit over the length; `kernel` (d, 3d) and `bias` (3d) hold r, f, y as the authors do."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(d, 3 * d))
        self.bias = nn.Parameter(torch.empty(3 * d))

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

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, biases Gaussian of deviation 1e-6 (authors' code)."""
        for layer in (self.into, self.out):
            glorot_(layer)
            nn.init.normal_(layer.bias, std=BIAS_DEVIATION)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.out.weight]

    def forward(self, x_BLD: Tensor, replay: Replay | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model); makes no discrete choice, so that `replay` is not used."""
        x = self.into(self.norm(x_BLD))
        for layer in self.layers:
            x, _ = layer(x)
        result: Tensor = self.out(x)
        return result

    def stepper(self, *, int8: bool = False) -> SRUStepper:
        """The path for one token at a time; its few weights stay in float, whatever `int8` says."""
        return SRUStepper(self)


class SRUState(Cache):
    """The state of every SRU layer after the last token, (B, layers, d)."""

    def __init__(self, batch: int, n_layers: int, like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.c_BNd = like.new_zeros(batch, n_layers, like.shape[0], dtype=dtype)


class SRUStepper:
    """`SRUBranch` for one token a row."""

    def __init__(self, layer: SRUBranch) -> None:
        self._layer = layer
        recurrences = (one for one in layer.layers if isinstance(one, SRU))
        self._recurrences = [(one.kernel.detach(), one.bias.detach()) for one in recurrences]

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> SRUState:
        """States of zero."""
        return SRUState(batch, len(self._recurrences), self._recurrences[0][0])

    def prefill(self, x_BLD: Tensor, cache: SRUState, n_B: Tensor | None) -> Tensor:
        """The layer's own forward; the state after each row's `n_B` tokens is kept."""
        x = self._layer.into(self._layer.norm(x_BLD))
        for i, layer in enumerate(self._layer.layers):
            x, c_BLd = layer(x)
            if n_B is None:
                cache.c_BNd[:, i] = c_BLd[:, -1]
            else:
                cache.c_BNd[:, i] = c_BLd[torch.arange(len(n_B), device=n_B.device), n_B - 1]
        y_BLD: Tensor = self._layer.out(x)
        return y_BLD

    def step(self, x_BD: Tensor, cache: SRUState, place: Place) -> Tensor:
        """(B, d_model) -> (B, d_model)."""
        x = self._layer.into(self._layer.norm(x_BD))
        for i, (kernel, bias) in enumerate(self._recurrences):
            x, c_Bd = sru_step(x, torch.addmm(bias, x, kernel), cache.c_BNd[:, i])
            cache.c_BNd[:, i] = c_Bd
        y_BD: Tensor = self._layer.out(x)
        place.lap("SRU")
        return y_BD

    def compile(self, program: Program, stream: Stream) -> Callable[[Stream], None]:
        """One token of one row as operations, up to the last product, which the given function adds to a stream."""
        layer = self._layer
        norm = Normed(stream, layer.norm.weight.detach(), layer.norm.bias.detach(), layer.norm.eps)
        x, out = buffer("recurrent", layer.into.out_features), layer.out
        program.matvec(norm, layer.into.weight.detach(), layer.into.bias.detach(), x, "SRU")
        for i, (kernel, bias) in enumerate(self._recurrences):
            y = buffer(f"recurrent {i}", x.numel())
            program.recurrent_unit(x, kernel, bias, y, i)
            x = y
        return lambda y: program.matvec(x, out.weight.detach(), out.bias.detach(), y, "SRU", adds=True)

    def reads(self) -> list[Read]:
        """What a token reads."""
        weights = list(self._layer.parameters())
        return [Read("SRU", sum(w.numel() for w in weights), sum(w.nbytes for w in weights))]
