"""Layers whose dense products and chosen rows are read as int8, a scale a row, or int4, a scale a group of inputs.

For one token a row, of `ops.int8` and `ops.int4`; controllers, multiplicative layers and convolutions over modules are
int8 in both. The kernels of `native` read the same weights, and round the inputs of int8 to int16 in place of bfloat16.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from efftx.decoding.quantization import Quantization
from efftx.layers.cache import Position
from efftx.layers.cost import Read, read_whole
from efftx.layers.feedforward import FeedForward
from efftx.layers.module_convolution import ModuleConvolution
from efftx.layers.multiplicative import Multiplicative
from efftx.layers.projections import DenseQKV, DenseQuery
from efftx.layers.sparse_ff import SparseFF
from efftx.native.program import Rows4, Rows8
from efftx.ops.int4 import int4_linear, int4_rows_dot, int4_rows_sum, packed_bytes, quantize_groups
from efftx.ops.int8 import (
    dequantize_rows,
    int8_linear,
    int8_rows_dot,
    int8_rows_sum,
    pack_rows,
    quantize_columns,
    quantize_rows,
)
from efftx.ops.selected_rows import RowPlan, shared_plan
from efftx.ops.sparse_ff import choose_units, chosen_probability, hashed_units, with_token_bias

ROUNDED = (DenseQKV, DenseQuery, FeedForward)
"""Layers all of whose linear parts are rounded, as the logits are; the SRU has few weights."""


def weight_bytes(weight_OI: Tensor, quantization: Quantization) -> int:
    """What a matrix takes, without the scales of int8, which are few."""
    n_rows, width = weight_OI.shape
    return n_rows * (width if quantization == "int8" else packed_bytes(width))


class QuantizedLinear(nn.Module):
    """x W^T + b of quantised weights (O, I)."""

    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__()
        self.n_outputs, self.n_inputs = weight_OI.shape
        self.register_buffer("bias", None if bias_O is None else bias_O.detach())

    @abstractmethod
    def rows(self) -> Rows8 | Rows4:
        """The weights for the kernels."""


class Int8Linear(QuantizedLinear):
    """Int8 weights and a scale for every output; activations are rounded to bfloat16."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__(weight_OI, bias_O)
        weight, scale = quantize_rows(weight_OI)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def rows(self) -> Rows8:
        """The weights for the kernels."""
        return Rows8(self.weight, self.scale.float())

    def forward(self, x_TI: Tensor) -> Tensor:
        """(.., I) -> (.., O)."""
        return int8_linear(x_TI, self.weight, self.scale, self.bias)


class Int4Linear(QuantizedLinear):
    """Int4 weights in groups, packed (O, P)."""

    weight: Tensor

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__(weight_OI, bias_O)
        self.register_buffer("weight", quantize_groups(weight_OI))
        self.n_packed = weight_OI.numel() - self.weight.numel()

    def rows(self) -> Rows4:
        """The weights for the kernels."""
        return Rows4(self.weight, self.n_inputs)

    def forward(self, x_TI: Tensor) -> Tensor:
        """(.., I) -> (.., O). Raises ValueError for another width."""
        if x_TI.shape[-1] != self.n_inputs:
            raise ValueError(f"Rows of {self.n_inputs} inputs need tokens of that width, not {x_TI.shape[-1]}.")
        return int4_linear(x_TI, self.weight, self.bias)


LINEAR: dict[Quantization, type[QuantizedLinear]] = {"int8": Int8Linear, "int4": Int4Linear}


class Int8Multiplicative(Multiplicative):
    """`Multiplicative` read as int8: a scale for each row of the gate and each column of the projection.

    Its own forward multiplies the weights out in float32; the kernels round the gated inputs to int16.
    """

    gate_scale: Tensor
    proj_scale: Tensor

    def __init__(self, layer: Multiplicative) -> None:
        nn.Module.__init__(self)
        self.d_out = layer.d_out
        (gate, gate_scale), (proj, proj_scale) = quantize_rows(layer.gate), quantize_columns(layer.proj)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        for name, tensor in (("gate", gate), ("proj", proj)):
            self.register_buffer(name, tensor)
        self.register_buffer("gate_scale", gate_scale.float())
        self.register_buffer("proj_scale", proj_scale.float())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Gate and projection in floats."""
        return dequantize_rows(self.gate, self.gate_scale), self.proj * self.proj_scale


class Int8ModuleConvolution(ModuleConvolution):
    """`ModuleConvolution` whose kernel is read as int8, a scale an output, all taps alike."""

    scale: Tensor

    def __init__(self, layer: ModuleConvolution) -> None:
        nn.Module.__init__(self)
        self.S = layer.S
        kernel, scale = quantize_columns(layer.kernel)
        for name, tensor in (("kernel", kernel), ("scale", scale.float()), ("bias", layer.bias.detach())):
            self.register_buffer(name, tensor)

    def taps(self) -> Tensor:
        """The kernel in floats."""
        return self.kernel * self.scale


class QuantizedSparseFF(nn.Module):
    """`SparseFF` for one token a row: the controller in int8, the rows of both matrices quantised.

    A subclass keeps the rows in buffers, `_ROWS`, and computes with those that are chosen; `rows_of` another of the
    class are taken as they are, for a layer whose rows are the same.
    """

    quantization: Quantization
    b2: Tensor
    b1: Tensor | None
    _ROWS: tuple[str, ...]

    def __init__(self, layer: SparseFF, rows_of: QuantizedSparseFF | None = None) -> None:
        super().__init__()
        self.config, self.salt = layer.config, layer.salt
        self.n_units, self.d_model = layer.w1.shape
        if self.config.has_controller:
            self.controller = nn.Sequential(Int8Linear(layer.c1), Int8Linear(layer.c2, layer.c_bias))
        if self.config.controller == "oracle":
            self.all_w1 = LINEAR[self.quantization](layer.w1, layer.b1)
        for name, tensor in (("b2", layer.b2), ("b1", layer.b1)):
            self.register_buffer(name, None if tensor is None else tensor.detach())
        tensors = self._quantized_rows(layer) if rows_of is None else rows_of.row_tensors()
        for name, rows in zip(self._ROWS, tensors, strict=True):
            self.register_buffer(name, rows)

    @abstractmethod
    def _quantized_rows(self, layer: SparseFF) -> Iterable[Tensor]:
        """What the buffers `_ROWS` hold."""

    @abstractmethod
    def rows(self) -> tuple[Rows8, Rows8] | tuple[Rows4, Rows4]:
        """The rows of both matrices for the kernels."""

    @abstractmethod
    def hidden(self, x_TD: Tensor, row_TG: Tensor) -> Tensor:
        """The products with chosen rows of the first matrix, (T, G), before the bias."""

    @abstractmethod
    def sum_rows(self, h_TG: Tensor, row_TG: Tensor, plan: RowPlan) -> Tensor:
        """The weighted sum of the same rows of the second matrix, (T, D)."""

    @abstractmethod
    def bytes_of_rows(self) -> tuple[int, int]:
        """Of the first matrix and of the second."""

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> None:
        """Nothing is kept from token to token."""

    def weight_reads(self) -> list[Read]:
        """As of the layer itself, a row with its scales."""
        n, chooses_by_w1 = self.config.N, self.config.controller == "oracle"
        n_weights, (first_bytes, second_bytes) = self.n_units * self.d_model, self.bytes_of_rows()
        first = read_whole("feed-forward", self.all_w1 if chooses_by_w1 else self.b1)
        if not chooses_by_w1:
            of_rows = ((n_weights + first.weights) // n, (first_bytes + first.bytes) // n)
            first = Read("feed-forward", *of_rows, chosen=True)
        second = Read("feed-forward", n_weights // n, second_bytes // n, chosen=True)
        controller = read_whole("controller", self.controller if self.config.has_controller else None)
        return [controller, first, second, read_whole("feed-forward", self.b2)]

    def forward(self, x_BLD: Tensor, state: None = None, token_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model)."""
        x_TD, n = x_BLD.flatten(0, 1), self.config.N
        plan = shared_plan(len(x_TD), self.n_units // n, self.d_model, n, x_TD.device)
        index_TG, logits_TGN = self._choose(x_TD, None if token_BL is None else token_BL.flatten())
        row_TG = plan.rows(index_TG)
        hidden_TG = self.hidden(x_TD, row_TG)
        hidden_TG = (hidden_TG if self.b1 is None else hidden_TG + self.b1[row_TG]).relu()
        if self.config.multiply_by_controller and logits_TGN is not None:
            hidden_TG = hidden_TG * chosen_probability(logits_TGN, index_TG)
        return (self.sum_rows(hidden_TG, row_TG, plan) + self.b2).view_as(x_BLD)

    def _choose(self, x_TD: Tensor, token_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The units, (T, G), and the controller's logits where they decide."""
        config = self.config
        hashed = None
        if token_T is not None:
            hashed = hashed_units(token_T, self.n_units // config.N, config.N, self.salt)
        if config.controller == "token":
            assert hashed is not None
            return hashed, None
        scores = self.all_w1 if config.controller == "oracle" else self.controller
        logits_TGN = scores(x_TD).unflatten(-1, (-1, config.N))
        if config.token_bias:
            assert hashed is not None
            logits_TGN = with_token_bias(logits_TGN, hashed, config.token_bias)
        return choose_units(logits_TGN), logits_TGN

    def row_tensors(self) -> Iterator[Tensor]:
        """The buffers that hold the rows."""
        return (self.get_buffer(name) for name in self._ROWS)


class Int8SparseFF(QuantizedSparseFF):
    """Rows in int8, W2's packed with their scales."""

    quantization: Quantization = "int8"
    w1: Tensor
    scale: Tensor
    w2: Tensor
    _ROWS = ("w1", "scale", "w2")

    def _quantized_rows(self, layer: SparseFF) -> Iterable[Tensor]:
        return (*quantize_rows(layer.w1), pack_rows(*quantize_rows(layer.w2)))

    def bytes_of_rows(self) -> tuple[int, int]:
        """Of the first matrix with its scales and of the second."""
        return self.w1.nbytes + self.scale.nbytes, self.w2.nbytes

    def rows(self) -> tuple[Rows8, Rows8]:
        """The rows of both matrices for the kernels, W2's as they are packed."""
        packed_UP, width = self.w2, self.d_model
        scale_U = packed_UP[:, width : width + 4].contiguous().view(torch.float32).squeeze(1)
        return Rows8(self.w1, self.scale.float()), Rows8(packed_UP, scale_U)

    def hidden(self, x_TD: Tensor, row_TG: Tensor) -> Tensor:
        """The products with chosen rows of the first matrix, (T, G)."""
        return int8_rows_dot(x_TD, self.w1, self.scale, row_TG)

    def sum_rows(self, h_TG: Tensor, row_TG: Tensor, plan: RowPlan) -> Tensor:
        """The weighted sum of rows of the second matrix, (T, D)."""
        return int8_rows_sum(h_TG, self.w2, row_TG, plan)


class Int4SparseFF(QuantizedSparseFF):
    """Rows in int4, packed (U, P)."""

    quantization: Quantization = "int4"
    w1: Tensor
    w2: Tensor
    _ROWS = ("w1", "w2")

    def _quantized_rows(self, layer: SparseFF) -> Iterable[Tensor]:
        return (quantize_groups(layer.w1), quantize_groups(layer.w2))

    def bytes_of_rows(self) -> tuple[int, int]:
        """Of both matrices."""
        return self.w1.nbytes, self.w2.nbytes

    def rows(self) -> tuple[Rows4, Rows4]:
        """The rows of both matrices for the kernels."""
        return Rows4(self.w1, self.d_model), Rows4(self.w2, self.d_model)

    def hidden(self, x_TD: Tensor, row_TG: Tensor) -> Tensor:
        """The products with chosen rows of the first matrix, (T, G)."""
        return int4_rows_dot(x_TD, self.w1, row_TG)

    def sum_rows(self, h_TG: Tensor, row_TG: Tensor, plan: RowPlan) -> Tensor:
        """The weighted sum of rows of the second matrix, (T, D)."""
        return int4_rows_sum(h_TG, self.w2, row_TG, self.d_model)


SPARSE_FF: dict[Quantization, type[QuantizedSparseFF]] = {"int8": Int8SparseFF, "int4": Int4SparseFF}


def quantized(
    module: nn.Module, quantization: Quantization, *, rounds: bool = False, rows_of: nn.Module | None = None
) -> nn.Module:
    """A copy that shares all weights but those that it reads quantised; `rounds`: all linear parts are.

    `rows_of`: a copy made before of a module that is built alike, whose rows of sparse feed-forward layers it shares.
    """
    if isinstance(module, SparseFF):
        assert rows_of is None or isinstance(rows_of, QuantizedSparseFF)
        return SPARSE_FF[quantization](module, rows_of)
    if rounds and isinstance(module, nn.Linear):
        return LINEAR[quantization](module.weight, module.bias)
    if isinstance(module, Multiplicative):
        return Int8Multiplicative(module)
    if isinstance(module, ModuleConvolution):
        return Int8ModuleConvolution(module)
    copied = copy.copy(module)
    vars(copied).pop("forward", None)  # a block that recomputes holds one that is bound to it
    rounds = rounds or isinstance(module, ROUNDED)
    others: Mapping[str, nn.Module | None] = {} if rows_of is None else rows_of._modules
    copied._modules = {
        name: None if child is None else quantized(child, quantization, rounds=rounds, rows_of=others.get(name))
        for name, child in module._modules.items()
    }
    return copied
