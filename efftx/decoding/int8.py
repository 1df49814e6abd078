"""Layers whose dense products and chosen rows are read as int8, a scale a row (`ops.int8`), for one token a row.

The kernels of `native` read the same weights, and round inputs to int16 in place of bfloat16.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from efftx.layers.cache import Position
from efftx.layers.cost import Read, read_whole
from efftx.layers.feedforward import FeedForward
from efftx.layers.projections import DenseQKV, DenseQuery
from efftx.layers.sparse_ff import SparseFF
from efftx.native.program import Rows8
from efftx.ops.int8 import int8_linear, int8_rows_dot, int8_rows_sum, pack_rows, quantize_rows
from efftx.ops.selected_rows import shared_plan
from efftx.ops.sparse_ff import choose_units, chosen_probability, hashed_units, with_token_bias

ROUNDED = (DenseQKV, DenseQuery, FeedForward)
"""Layers all of whose linear parts are rounded, as the logits are; sparse QKV and the SRU have few weights."""


class Int8Linear(nn.Module):
    """x W^T + b with int8 weights and a scale for every output; activations are rounded to bfloat16."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__()
        weight, scale = quantize_rows(weight_OI)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias_O is None else bias_O.detach())

    def rows(self) -> Rows8:
        """The weights for the kernels."""
        return Rows8(self.weight, self.scale.float())

    def forward(self, x_TI: Tensor) -> Tensor:
        """(.., I) -> (.., O)."""
        return int8_linear(x_TI, self.weight, self.scale, self.bias)


class Int8SparseFF(nn.Module):
    """`SparseFF` for one token a row: controller and chosen rows in int8, W2's rows packed with their scales."""

    w1: Tensor
    scale: Tensor
    w2: Tensor
    b2: Tensor
    b1: Tensor | None

    def __init__(self, layer: SparseFF) -> None:
        super().__init__()
        self.config, self.salt = layer.config, layer.salt
        if self.config.has_controller:
            self.controller = nn.Sequential(Int8Linear(layer.c1), Int8Linear(layer.c2, layer.c_bias))
        if self.config.controller == "oracle":
            self.all_w1 = Int8Linear(layer.w1, layer.b1)
        w1, scale = quantize_rows(layer.w1)
        rows = {"w1": w1, "scale": scale, "w2": pack_rows(*quantize_rows(layer.w2)), "b2": layer.b2, "b1": layer.b1}
        for name, tensor in rows.items():
            self.register_buffer(name, None if tensor is None else tensor.detach())

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> None:
        """Nothing is kept from token to token."""

    def weight_reads(self) -> list[Read]:
        """As of the layer itself, a row with its scales."""
        n, chooses_by_w1 = self.config.N, self.config.controller == "oracle"
        n_scales = 0 if chooses_by_w1 else self.scale.nbytes // n
        first = read_whole("feed-forward", *(self.all_w1,) if chooses_by_w1 else (self.w1, self.b1))
        if not chooses_by_w1:
            first = Read("feed-forward", first.weights // n, first.bytes // n + n_scales, chosen=True)
        second = Read("feed-forward", self.w1.shape[0] // n * self.b2.numel(), self.w2.nbytes // n, chosen=True)
        controller = read_whole("controller", self.controller if self.config.has_controller else None)
        return [controller, first, second, read_whole("feed-forward", self.b2)]

    def rows(self) -> tuple[Rows8, Rows8]:
        """The rows of both matrices for the kernels, W2's as they are packed."""
        packed_UP, width = self.w2, self.w1.shape[1]
        scale_U = packed_UP[:, width : width + 4].contiguous().view(torch.float32).squeeze(1)
        return Rows8(self.w1, self.scale.float()), Rows8(packed_UP, scale_U)

    def share_rows(self, other: Int8SparseFF) -> None:
        """Reads the rows of `other`, which are alike, in place of its own."""
        self.w1, self.scale, self.w2 = other.w1, other.scale, other.w2

    def forward(self, x_B1D: Tensor, state: None = None, token_B1: Tensor | None = None) -> Tensor:
        """(B, 1, d_model) -> (B, 1, d_model)."""
        x_BD, n, (n_units, d_model) = x_B1D.squeeze(1), self.config.N, self.w1.shape
        plan = shared_plan(len(x_BD), n_units // n, d_model, n, x_BD.device)
        index_BG, logits_BGN = self._choose(x_BD, None if token_B1 is None else token_B1.squeeze(1))
        row_BG = plan.rows(index_BG)
        hidden_BG = int8_rows_dot(x_BD, self.w1, self.scale, row_BG)
        hidden_BG = (hidden_BG if self.b1 is None else hidden_BG + self.b1[row_BG]).relu()
        if self.config.multiply_by_controller and logits_BGN is not None:
            hidden_BG = hidden_BG * chosen_probability(logits_BGN, index_BG)
        return (int8_rows_sum(hidden_BG, self.w2, row_BG, plan) + self.b2).unsqueeze(1)

    def _choose(self, x_BD: Tensor, token_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The units, (B, G), and the controller's logits where they decide."""
        config = self.config
        hashed = None
        if token_B is not None:
            hashed = hashed_units(token_B, self.w1.shape[0] // config.N, config.N, self.salt)
        if config.controller == "token":
            assert hashed is not None
            return hashed, None
        scores = self.all_w1 if config.controller == "oracle" else self.controller
        logits_BGN = scores(x_BD).unflatten(-1, (-1, config.N))
        if config.token_bias:
            assert hashed is not None
            logits_BGN = with_token_bias(logits_BGN, hashed, config.token_bias)
        return choose_units(logits_BGN), logits_BGN


def in_int8(module: nn.Module, *, rounds: bool = False) -> nn.Module:
    """A copy that shares all weights but those that it reads as int8; `rounds`: all linear parts are."""
    if isinstance(module, SparseFF):
        return Int8SparseFF(module)
    if rounds and isinstance(module, nn.Linear):
        return Int8Linear(module.weight, module.bias)
    copied = copy.copy(module)
    vars(copied).pop("forward", None)  # a block that recomputes holds one that is bound to it
    rounds = rounds or isinstance(module, ROUNDED)
    copied._modules = {
        name: None if child is None else in_int8(child, rounds=rounds) for name, child in module._modules.items()
    }
    return copied
