"""What sparse queries, keys and values are made of: the maps, convolutions and output of each variant.

Shape suffixes: B batch, L length, S modules, m width of a module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efftx.layers.initialize import BIAS_DEVIATION, glorot_
from efftx.layers.module_convolution import ModuleConvolution
from efftx.layers.multiplicative import Multiplicative
from efftx.layers.settings import SparseQKVConfig

CODE_MODULES = 3
"""Modules that the authors' kernels of queries, keys and outputs see; a value's sees its own alone."""


class Modular(nn.Module):
    """A block-diagonal matrix: every module has its own, from its inputs to its outputs (authors' LocallyConnected)."""

    def __init__(self, S: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(S, d_model // S, d_model // S))
        self.bias = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform blocks, biases Gaussian of deviation 1e-6."""
        for block in self.weight:
            nn.init.xavier_uniform_(block)
        nn.init.normal_(self.bias, std=BIAS_DEVIATION)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, S m) -> (B, L, S m)."""
        x_BLSm = x_BLD.unflatten(-1, (self.weight.shape[0], -1))
        return torch.einsum("blsm,smn->blsn", x_BLSm, self.weight).flatten(2) + self.bias

    def flops(self, length: int) -> float:
        """Forward FLOPs a token."""
        return 2.0 * self.weight.numel()


class LowRank(nn.Module):
    """Two dense layers with nothing between them (authors' LowRankDense)."""

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.down = nn.Linear(d_model, rank)
        self.up = nn.Linear(rank, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        glorot_(self.down)
        glorot_(self.up)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(.., S m) -> (.., S m)."""
        y: Tensor = self.up(self.down(x_BLD))
        return y

    def flops(self, length: int) -> float:
        """Forward FLOPs a token."""
        return 2.0 * (self.down.weight.numel() + self.up.weight.numel())


def last_matrix(layer: nn.Module) -> Tensor:
    """The matrix that gives a map's outputs."""
    names = {ModuleConvolution: "kernel", Multiplicative: "proj", LowRank: "up.weight"}
    return layer.get_parameter(names.get(type(layer), "weight"))


def make_map(config: SparseQKVConfig, d_model: int, *, of_values: bool = False) -> nn.Module:
    """What makes the queries, the keys or the values from the shared layer's output or the input."""
    if config.variant in ("multiplicative_convolution", "convolution"):
        return make_convolution(config, d_model, of_values=of_values)
    if config.variant == "multiplicative":
        return Multiplicative(d_model, d_model, config.S)
    if config.variant == "modular":
        return Modular(config.S, d_model)
    return LowRank(d_model, config.rank or d_model // config.S)


def make_convolution(config: SparseQKVConfig, d_model: int, *, of_values: bool = False) -> ModuleConvolution:
    """A convolution over length and modules, of queries and keys or of values."""
    d_module = d_model // config.S
    n_modules = config.F if config.kernel == "paper" else 1 if of_values else CODE_MODULES
    d_module_in = 2 * d_module if of_values and config.concat_input else d_module
    return ModuleConvolution(config.S, d_module, F=config.F, n_modules=n_modules, d_module_in=d_module_in)


def make_output(config: SparseQKVConfig, d_model: int) -> nn.Sequential:
    """What follows attention: nothing, or the layers that `output` names."""
    layers = nn.Sequential()
    if config.output in ("multiplicative", "multiplicative_convolution"):
        layers.add_module("multiplicative", Multiplicative(d_model, d_model, config.S))
    if config.output in ("convolution", "multiplicative_convolution"):
        layers.add_module("convolution", make_convolution(config, d_model))
    if config.output == "dense":
        layers.add_module("dense", nn.Linear(d_model, d_model))
    return layers
