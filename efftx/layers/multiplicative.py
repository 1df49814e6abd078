"""The multiplicative layer: gate, projection and bias around `ops.multiplicative`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efftx.layers.initialize import BIAS_DEVIATION
from efftx.ops.multiplicative import multiplicative

GATE_DEVIATION = 0.5


class Multiplicative(nn.Module):
    """A dense layer whose matrix is the product of a gate (S, d_in) and a projection (d_in, d_out / S).

    With `round_up` S need not divide d_out: the layer counts up to the next multiple of S and leaves the surplus out.
    Raises ValueError where S does not divide d_out otherwise, and where so many modules leave the last without output.
    """

    gate: Tensor
    proj: Tensor
    bias: Tensor | None

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
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Gaussian gate of deviation 0.5, a Glorot-uniform projection, biases of deviation 1e-6 (authors' code)."""
        nn.init.normal_(self.gate, std=GATE_DEVIATION)
        nn.init.xavier_uniform_(self.proj)
        if self.bias is not None:
            nn.init.normal_(self.bias, std=BIAS_DEVIATION)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(.., d_in) -> (.., d_out)."""
        return multiplicative(x_BLD, *self.factors(), self.bias, d_out=self.d_out)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Gate and projection in floats, however they are kept."""
        return self.gate, self.proj

    def flops(self, length: int) -> float:
        """Forward FLOPs a token: the factors are multiplied out, or the tokens copied, at the same cost."""
        return 2.0 * self.gate.shape[1] * self.d_out
