"""The multiplicative layer: gate, projection and bias around `ops.multiplicative`."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from efftx.layers.matrix import Read
from efftx.native.program import NotCompiledError, Program, Stream, run
from efftx.ops.multiplicative import in_blocks, multiplicative, multiplicative_step

GATE_DEVIATION = 0.5
BIAS_DEVIATION = 1e-6
BLOCKS_FROM, BLOCKS_MODULES = 1024, 8
"""Outputs a module from which, and modules up to which, decoding lays the projection out in blocks of columns."""


class Multiplicative(nn.Module):
    """A dense layer whose matrix is the product of a gate (S, d_in) and a projection (d_in, d_out / S).

    With `round_up` S need not divide d_out: the layer counts up to the next multiple of S and leaves the surplus out.
    Raises ValueError where S does not divide d_out otherwise, and where so many modules leave the last without output.
    """

    def __init__(self, d_in: int, d_out: int, S: int, *, bias: bool = True, round_up: bool = False) -> None:
        super().__init__()
        if S < 1 or (d_out % S and not round_up):
            raise ValueError(f"{S} modules do not divide {d_out} outputs.")
        d_module = -(-d_out // S)
        if (S - 1) * d_module >= d_out:
            raise ValueError(f"Of {S} modules with {d_module} outputs each the last has none of {d_out}.")
        self.d_out = d_out
        self.gate = nn.Parameter(torch.empty(S, d_in))
        self.proj = nn.Parameter(torch.empty(d_in, d_module))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def reset_parameters(self) -> None:
        """A Gaussian gate of deviation 0.5, a Glorot-uniform projection, biases of deviation 1e-6 (authors' code)."""
        nn.init.normal_(self.gate, std=GATE_DEVIATION)
        nn.init.xavier_uniform_(self.proj)
        if self.bias is not None:
            nn.init.normal_(self.bias, std=BIAS_DEVIATION)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(.., d_in) -> (.., d_out)."""
        return multiplicative(x_BLD, self.gate, self.proj, self.bias, d_out=self.d_out)

    def stepper(self) -> MultiplicativeStepper:
        """The layer for a few tokens at a time."""
        return MultiplicativeStepper(self)


class MultiplicativeStepper:
    """`Multiplicative` for one token a row; gate and projection are read once, in float.

    A projection to many outputs is kept in a layout of its own beside the layer's, which it does not hold on to.
    """

    def __init__(self, layer: Multiplicative) -> None:
        self._gate, self._proj = layer.gate.detach(), layer.proj.detach()
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._d_out = layer.d_out
        n_modules, self._d_module = self._gate.shape[0], self._proj.shape[1]
        if self._d_module >= BLOCKS_FROM and n_modules <= BLOCKS_MODULES and self._proj.device.type == "cpu":
            self._proj = in_blocks(self._proj)
        self._program: Program | None = None
        if self._proj.dim() == 3:
            self._made = torch.empty(1, n_modules * self._d_module)
            with suppress(NotCompiledError):
                program = Program()
                program.blocked_product(Stream(0), self._gate, self._proj, self._d_module, self._made)
                program.settle()
                self._program = program

    def __call__(self, x_BI: Tensor) -> Tensor:
        """(B, d_in) -> (B, d_out)."""
        if self._program is not None and x_BI.shape[0] == 1:
            x_BI = x_BI.contiguous()
            self._program.bind((x_BI.data_ptr(),), [], 0)
            run([self._program])
            y = self._made[:, : self._d_out]
            return y.clone() if self._bias is None else y + self._bias
        y = multiplicative_step(x_BI, self._gate, self._proj, d_module=self._d_module)
        y = y if y.shape[1] == self._d_out else y[:, : self._d_out]
        return y if self._bias is None else y.add_(self._bias)

    def read(self, component: str) -> Read:
        """All weights."""
        weights = [t for t in (self._gate, self._proj, self._bias) if t is not None]
        return Read(component, sum(t.numel() for t in weights), sum(t.nbytes for t in weights))
