"""The convolution over length and modules: kernel and bias around `ops.module_convolution`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from efftx.layers.cache import RecentInputs
from efftx.layers.initialize import BIAS_DEVIATION
from efftx.ops.module_convolution import module_convolution


class ModuleConvolution(nn.Module):
    """S modules of `d_module_in` inputs to as many of `d_module` outputs; every module sees `n_modules` around it.

    The kernel (F, n_modules, d_module_in, d_module) and the bias (d_module) are the same for all modules and positions.
    """

    kernel: Tensor
    bias: Tensor

    def __init__(self, S: int, d_module: int, *, F: int, n_modules: int, d_module_in: int | None = None) -> None:
        super().__init__()
        self.S = S
        self.kernel = nn.Parameter(torch.empty(F, n_modules, d_module_in or d_module, d_module))
        self.bias = nn.Parameter(torch.empty(d_module))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Glorot-uniform kernel over all its taps, biases Gaussian of deviation 1e-6 (authors' code)."""
        n_positions, n_modules, d_module_in, d_module = self.kernel.shape
        bound = math.sqrt(6 / (n_positions * n_modules * (d_module_in + d_module)))
        nn.init.uniform_(self.kernel, -bound, bound)
        nn.init.normal_(self.bias, std=BIAS_DEVIATION)

    def forward(self, x_BLE: Tensor, recent: RecentInputs | None = None) -> Tensor:
        """(B, L, S d_module_in) -> (B, L, S d_module), modules one after the other.

        `recent` keeps the inputs, `x` and, where that is one token a row, those of the positions before it.
        """
        if recent is not None and recent.position.n:
            # One product: PyTorch's convolution takes ten times as long for a single position.
            n_modules, kernel_KO = self.kernel.shape[1], self.taps().flatten(0, 2)
            y_NO = torch.addmm(self.bias, recent.neighbourhoods(n_modules), kernel_KO)
            return y_NO.view(x_BLE.shape[0], 1, -1)
        return module_convolution(x_BLE.unflatten(-1, (self.S, -1)), self.taps(), self.bias).flatten(2)

    def taps(self) -> Tensor:
        """The kernel in floats, however it is kept."""
        return self.kernel

    def flops(self, length: int) -> float:
        """Forward FLOPs a token of rows of `length`: the last F - 1 outputs are computed and cut off."""
        n_positions = self.kernel.shape[0]
        return 2.0 * self.S * self.kernel.numel() * (length + n_positions - 1) / length
