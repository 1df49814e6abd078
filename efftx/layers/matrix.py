"""Dense matrices as decoding reads them: laid out once, in float or as int8 with a scale a row.

Shape suffixes: B rows of a batch, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.native.program import NotCompiledError, Program, Source, Stream
from efftx.ops.int8 import int8_linear, quantize_rows

NARROW = 128
"""With fewer inputs a row of weights is too short to be read fast: such a matrix is kept transposed."""


class Read(NamedTuple):
    """What one token of one row reads for a part of the model: numbers and bytes of weights."""

    component: str
    weights: int
    bytes: int


class Matrix(Protocol):
    """A product with weights that were laid out at load; `product` is the same by a shorter way."""

    product: Callable[[Tensor], Tensor]

    def __call__(self, x_BI: Tensor, /) -> Tensor:
        """(B, I) -> (B, O)."""
        ...

    def compile(self, program: Program, x: Source, y: Tensor | Stream, component: str, *, adds: bool = False) -> None:
        """The product of one row as an operation, y = or += W x + b; raises NotCompiledError where there is none."""
        ...

    def read(self, component: str) -> Read:
        """What a product reads, bias included."""
        ...


class FloatMatrix:
    """x W^T + b with `weight_OI` as it is, or transposed where it has few inputs (`NARROW`)."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.weight, self.bias = weight_OI.detach(), None if bias_O is None else bias_O.detach()
        self.by_columns = self.weight.shape[1] < NARROW < self.weight.shape[0]
        if self.by_columns:
            self.weight = self.weight.t().contiguous()
        # A call without a frame of Python: between the reads of large matrices every frame and object is cold.
        self.product: Callable[[Tensor], Tensor]
        if not self.by_columns:
            self.product = partial(F.linear, weight=self.weight, bias=self.bias)
        elif self.bias is None:
            self.product = partial(torch.mm, mat2=self.weight)
        else:
            self.product = partial(torch.addmm, self.bias, mat2=self.weight)

    def __call__(self, x_BI: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        return self.product(x_BI)

    def compile(self, program: Program, x: Source, y: Tensor | Stream, component: str, *, adds: bool = False) -> None:
        """The product as an operation; raises NotCompiledError for a transposed matrix."""
        if self.by_columns:
            raise NotCompiledError("A matrix of narrow rows.")
        program.matvec(x, self.weight, self.bias, y, component, adds=adds)

    def read(self, component: str) -> Read:
        """All weights, in their own precision."""
        n_weights = self.weight.numel() + (0 if self.bias is None else self.bias.numel())
        return Read(component, n_weights, n_weights * self.weight.element_size())


class Int8Matrix:
    """The same product with int8 weights and a scale for every output; activations are rounded to bfloat16."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.weight, self.scale = quantize_rows(weight_OI.detach())
        self.bias = None if bias_O is None else bias_O.detach()
        self.product: Callable[[Tensor], Tensor] = self.__call__

    def __call__(self, x_BI: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        return int8_linear(x_BI, self.weight, self.scale, self.bias)

    def compile(self, program: Program, x: Source, y: Tensor | Stream, component: str, *, adds: bool = False) -> None:
        """Raises NotCompiledError."""
        raise NotCompiledError("An int8 matrix.")

    def read(self, component: str) -> Read:
        """A byte a weight, the scales and the bias."""
        others = [self.scale, *([] if self.bias is None else [self.bias])]
        n_bytes = self.weight.numel() + sum(t.numel() * t.element_size() for t in others)
        return Read(component, self.weight.numel() + sum(t.numel() for t in others), n_bytes)


def matrix_of(linear: nn.Linear, *, int8: bool = False) -> Matrix:
    """A linear layer's product."""
    return (Int8Matrix if int8 else FloatMatrix)(linear.weight, linear.bias)


def joined(linears: Sequence[nn.Linear], *, int8: bool = False) -> Matrix:
    """Several linear layers of one input as a single product, their outputs one after the other.

    The layers' own weights become views of the joined ones, so that nothing is kept twice.
    """
    if len(linears) == 1:
        return matrix_of(linears[0], int8=int8)
    with torch.no_grad():
        weight_OI = torch.cat([linear.weight for linear in linears])
        biased = linears[0].bias is not None
        bias_O = torch.cat([linear.bias for linear in linears]) if biased else None
        if int8:
            return Int8Matrix(weight_OI, bias_O)
        first = 0
        for linear in linears:
            last = first + linear.out_features
            linear.weight.data = weight_OI[first:last]
            if bias_O is not None:
                linear.bias.data = bias_O[first:last]
            first = last
    return FloatMatrix(weight_OI, bias_O)
