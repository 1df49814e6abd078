"""The convolution over length and modules: kernel and bias around `ops.module_convolution`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
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

    All must see as many positions and modules. The inputs of the past lie in a `RecentInputs`, whose last row is the
    token's own.
    """

    def __init__(self, layers: Sequence[ModuleConvolution]) -> None:
        first = layers[0]
        self.S, (self.n_positions, self.n_modules, self.d_module_in) = first.S, first.kernel.shape[:3]
        self._n = len(layers)
        self._kernel = torch.cat([layer.kernel.detach().flatten(0, 2) for layer in layers], dim=1).contiguous()
        self._bias = torch.cat([layer.bias.detach() for layer in layers])

    def new_state(self, batch: int) -> RecentInputs:
        """No inputs yet."""
        return RecentInputs(batch, self.n_positions, self.S, self.d_module_in, self.n_modules // 2, self._kernel)

    def step(self, recent: RecentInputs) -> tuple[Tensor, ...]:
        """The outputs at the newest position, (B, S d_module) for each layer."""
        batch = recent.buffer_BRSm.shape[0]
        y_NE = torch.addmm(self._bias, recent.neighbourhoods(self.n_modules), self._kernel)
        parts = y_NE.view(batch, self.S, self._n, -1).unbind(2)
        return tuple(part.reshape(batch, -1) for part in parts)

    def read(self, component: str) -> Read:
        """All weights."""
        n_weights = self._kernel.numel() + self._bias.numel()
        return Read(component, n_weights, n_weights * self._kernel.element_size())
