"""The convolution over length and modules: kernel and bias around `ops.module_convolution`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.cache import RecentInputs
from efftx.layers.matrix import Read
from efftx.layers.multiplicative import BIAS_DEVIATION
from efftx.ops.module_convolution import module_convolution


class ModuleConvolution(nn.Module):
    """S modules of `d_module_in` inputs to as many of `d_module` outputs; every module sees `n_modules` around it.

    The kernel (F, n_modules, d_module_in, d_module) and the bias (d_module) are the same for all modules and positions.
    """

    def __init__(self, S: int, d_module: int, *, F: int, n_modules: int, d_module_in: int | None = None) -> None:
        super().__init__()
        self.S = S
        self.kernel = nn.Parameter(torch.empty(F, n_modules, d_module_in or d_module, d_module))
        self.bias = nn.Parameter(torch.empty(d_module))

    def reset_parameters(self) -> None:
        """A Glorot-uniform kernel over all its taps, biases Gaussian of deviation 1e-6 (authors' code)."""
        n_positions, n_modules, d_module_in, d_module = self.kernel.shape
        bound = math.sqrt(6 / (n_positions * n_modules * (d_module_in + d_module)))
        nn.init.uniform_(self.kernel, -bound, bound)
        nn.init.normal_(self.bias, std=BIAS_DEVIATION)

    def forward(self, x_BLE: Tensor) -> Tensor:
        """(B, L, S d_module_in) -> (B, L, S d_module), modules one after the other."""
        return module_convolution(x_BLE.unflatten(-1, (self.S, -1)), self.kernel, self.bias).flatten(2)


class ConvolutionStepper:
    """Convolutions of one input for one token a row: their kernels side by side in one matrix, laid out here.

    Kernels that see fewer modules than another are widened with zeros. The inputs of the past lie in a `RecentInputs`,
    whose last row is the token's own.
    """

    def __init__(self, layers: Sequence[ModuleConvolution]) -> None:
        first = layers[0]
        self.S, (self.n_positions, _, self.d_module_in) = first.S, first.kernel.shape[:3]
        self.n_modules = max(layer.kernel.shape[1] for layer in layers)
        self._n = len(layers)
        self._n_weights = sum(layer.kernel.numel() + layer.bias.numel() for layer in layers)
        wide = [_widened(layer.kernel.detach(), self.n_modules).flatten(0, 2) for layer in layers]
        self._kernel = torch.cat(wide, dim=1).contiguous()
        self._bias = torch.cat([layer.bias.detach() for layer in layers])

    def new_state(self, batch: int) -> RecentInputs:
        """No inputs yet."""
        return RecentInputs(batch, self.n_positions, self.S, self.d_module_in, self.n_modules // 2, self._kernel)

    def step(self, recent: RecentInputs) -> tuple[Tensor, ...]:
        """The outputs at the newest position, (B, S, d_module) for each layer."""
        y_NE = torch.addmm(self._bias, recent.neighbourhoods(self.n_modules), self._kernel)
        return y_NE.view(-1, self.S, self._n, y_NE.shape[1] // self._n).unbind(2)

    def read(self, component: str) -> Read:
        """All weights; the bytes are with the zeros."""
        return Read(component, self._n_weights, self._kernel.nbytes + self._bias.nbytes)


def joined_bytes(layers: Sequence[ModuleConvolution]) -> int:
    """Bytes of the joined kernels of `layers`, zeros included."""
    widest = max(layer.kernel.shape[1] for layer in layers)
    return sum(layer.kernel.nbytes // layer.kernel.shape[1] * widest for layer in layers)


def _widened(kernel_FKmn: Tensor, n_modules: int) -> Tensor:
    missing = (n_modules - kernel_FKmn.shape[1]) // 2
    return F.pad(kernel_FKmn, (0, 0, 0, 0, missing, missing))
