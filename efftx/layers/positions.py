"""Position embeddings, added to the token embeddings."""

import math
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn


@dataclass
class PositionsConfig:
    """`kind`: axial, learned, sinusoidal or none.

    `axial_shape` the grid that the sequence is laid out on, row by row; `axial_dims` the width of each axis' table, in
    sum d_model; `max_len` rows of a learned table, 0 for the data's length.
    """

    kind: str = "learned"
    axial_shape: list[int] = field(default_factory=list)
    axial_dims: list[int] = field(default_factory=list)
    max_len: int = 0


class AxialPositions(nn.Module):
    """One table an axis of a grid, broadcast over the other axes and concatenated (Reformer; authors' code).

    Table i has shape (axial_shape[i], axial_dims[i]), Gaussian of deviation 1 at the start.
    """

    def __init__(self, shape: list[int], dims: list[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.tables = nn.ParameterList(torch.empty(n, d) for n, d in zip(shape, dims, strict=True))

    def reset_parameters(self) -> None:
        """Standard Gaussian tables."""
        for table in self.tables:
            nn.init.normal_(table)

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """The embeddings of positions 0 .. length - 1, (length, d_model): the same for every row of a batch."""
        axes = []
        for i, table in enumerate(self.tables):
            view = [1] * len(self.shape) + [table.shape[1]]
            view[i] = table.shape[0]
            axes.append(table.view(view).expand(*self.shape, table.shape[1]))
        return torch.cat(axes, dim=-1).reshape(prod(self.shape), -1)[:length]


class LearnedPositions(nn.Module):
    """One table of shape (max_len, d_model), Gaussian of deviation 1 at the start."""

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_len, d_model))

    def reset_parameters(self) -> None:
        """A standard Gaussian table."""
        nn.init.normal_(self.table)

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """The embeddings of positions 0 .. length - 1, (length, d_model): the same for every row of a batch."""
        return self.table[:length]


class SinusoidalPositions(nn.Module):
    """Sines of p * 10000^(-2j / d_model) in the first half of the features, cosines in the second (authors' code)."""

    frequency: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.register_buffer("frequency", torch.empty(d_model // 2), persistent=False)

    def reset_parameters(self) -> None:
        """Computes the frequencies."""
        exponent = torch.arange(0, self.d_model, 2, dtype=torch.float64, device=self.frequency.device) / self.d_model
        self.frequency.copy_(torch.exp(-math.log(10_000.0) * exponent))

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """The embeddings of positions 0 .. length - 1, (length, d_model): the same for every row of a batch."""
        angle = torch.arange(length, device=self.frequency.device)[:, None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def make_positions(config: PositionsConfig, d_model: int, length: int) -> nn.Module | None:
    """The position embedding that `config` names, for sequences of at most `length`; None for kind `none`."""
    match config.kind:
        case "axial":
            return AxialPositions(config.axial_shape, config.axial_dims)
        case "learned":
            return LearnedPositions(config.max_len or length, d_model)
        case "sinusoidal":
            return SinusoidalPositions(d_model)
        case "none":
            return None
    raise ValueError(f"No position embedding is called '{config.kind}'.")
