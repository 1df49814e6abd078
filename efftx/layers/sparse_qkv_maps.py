"""What sparse queries, keys and values are made of: the config, and the maps of each variant.

Shape suffixes: B batch, L length, S modules, m width of a module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efftx.errors import UserError, nearest
from efftx.layers.initialize import glorot_
from efftx.layers.module_convolution import ModuleConvolution
from efftx.layers.multiplicative import BIAS_DEVIATION, Multiplicative

VARIANTS = ("multiplicative_convolution", "multiplicative", "convolution", "modular", "low_rank")
OUTPUTS = ("none", "multiplicative", "convolution", "multiplicative_convolution", "dense")
KERNELS = ("code", "paper")
CROSS = ("dense", "query")
CODE_MODULES = 3
"""Modules that the authors' kernels of queries, keys and outputs see; a value's sees its own alone."""


@dataclass
class SparseQKVConfig:
    """Keys of sparse queries, keys and values ("Sparse is Enough", section 3.2); `S` modules, 0 for dense ones.

    `F` positions of a kernel; `kernel` code: queries and keys see 3 modules and values 1, paper: all see F. `variant`:
    multiplicative_convolution, or for ablation multiplicative or convolution alone, modular (each module a matrix of
    its own), low_rank (through `rank` numbers, 0 for d_model / S). `output` is what follows attention: none in the
    authors' models, or the words of the variants, or dense. `concat_input`: the values' convolution reads the shared
    layer's module and the input's. `average_qk`: a shared query and key is the mean of two, as in the authors' LSH
    layer of three projections. `cross`: dense, or query for a sparse query without an output projection. `encoder`
    false leaves the encoder's projections dense.
    """

    S: int = 0
    F: int = 3
    kernel: str = "code"
    variant: str = "multiplicative_convolution"
    rank: int = 0
    output: str = "none"
    concat_input: bool = False
    average_qk: bool = False
    cross: str = "dense"
    encoder: bool = True


def check_sparse_qkv(config: SparseQKVConfig, d_model: int, n_heads: int) -> None:
    """Raises UserError, naming key and value, for what no sparse layer of this width could be built from."""
    words = {"kernel": KERNELS, "variant": VARIANTS, "output": OUTPUTS, "cross": CROSS}
    for key, known in words.items():
        word = getattr(config, key)
        if word not in known:
            raise UserError("bad_value", f"sparse_qkv.{key}={word} is not known.", nearest(word, known))
    for key, least in {"S": 1, "F": 1, "rank": 0}.items():
        if getattr(config, key) < least:
            raise _bad(f"sparse_qkv.{key}={getattr(config, key)} must be at least {least}.")
    if d_model % config.S:
        raise _bad(f"d_model={d_model} is not divisible by sparse_qkv.S={config.S}: modules are of one width.")
    if n_heads < 1 or d_model % n_heads:
        raise _bad(f"d_model={d_model} is not divisible by n_heads={n_heads}: sparse queries fill all of d_model.")
    if config.kernel == "paper" and config.F % 2 == 0:
        raise _bad(
            f"sparse_qkv.F={config.F} with sparse_qkv.kernel=paper would be an even number of modules: no module is "
            "its middle.",
            "Choose an odd F, or sparse_qkv.kernel=code.",
        )
    if config.rank and config.variant != "low_rank":
        raise _bad(f"sparse_qkv.rank={config.rank} is of sparse_qkv.variant=low_rank, not of {config.variant}.")
    if config.concat_input and config.variant != "multiplicative_convolution":
        raise _bad(
            "sparse_qkv.concat_input=true is of sparse_qkv.variant=multiplicative_convolution, not of "
            f"{config.variant}."
        )


class Modular(nn.Module):
    """A block-diagonal matrix: every module has its own, from its inputs to its outputs (authors' LocallyConnected)."""

    def __init__(self, S: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(S, d_model // S, d_model // S))
        self.bias = nn.Parameter(torch.empty(d_model))

    def reset_parameters(self) -> None:
        """Glorot-uniform blocks, biases Gaussian of deviation 1e-6."""
        for block in self.weight:
            nn.init.xavier_uniform_(block)
        nn.init.normal_(self.bias, std=BIAS_DEVIATION)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, S m) -> (B, L, S m)."""
        x_BLSm = x_BLD.unflatten(-1, (self.weight.shape[0], -1))
        return torch.einsum("blsm,smn->blsn", x_BLSm, self.weight).flatten(2) + self.bias


class LowRank(nn.Module):
    """Two dense layers with nothing between them (authors' LowRankDense)."""

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(d_model, rank)
        self.up = nn.Linear(rank, d_model)

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        glorot_(self.down)
        glorot_(self.up)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(.., S m) -> (.., S m)."""
        y: Tensor = self.up(self.down(x_BLD))
        return y


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


def _bad(message: str, hint: str = "") -> UserError:
    return UserError("bad_value", message, hint)
