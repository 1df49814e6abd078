"""The recurrent path of Terraformer, beside the feed-forward layer.

Shape suffixes: B batch, L length, D d_model, d units of the SRU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efftx.layers.initialize import glorot_
from efftx.ops.replay import Replay
from efftx.ops.sru import sru

LAYER_NORM_EPS = 1e-6
BIAS_DEVIATION = 1e-6


@dataclass
class SRUConfig:
    """`n_layers` SRU layers of `d` units in every feed-forward block, 0 for none (authors: 1 of 32, 64 when big)."""

    n_layers: int = 0
    d: int = 32


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

    def forward(self, x_BLD: Tensor, replay: Replay | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model); makes no discrete choice, so that `replay` is not used."""
        x = self.into(self.norm(x_BLD))
        for layer in self.layers:
            x, _ = layer(x)
        result: Tensor = self.out(x)
        return result
