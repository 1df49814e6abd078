"""Position embeddings, added to the token embeddings.

Shape suffixes: B batch, L length, T table, D d_model, K bases, n digits, w features a digit.
"""

import math
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.settings import PositionsConfig, countable_positions
from efftx.ops.coupling import coupled_positions


class AxialPositions(nn.Module):
    """One table an axis of a grid, broadcast over the other axes and concatenated (Reformer; authors' code).

    Table i has shape (axial_shape[i], axial_dims[i]), Gaussian of deviation `std` at the start.
    """

    def __init__(self, shape: list[int], dims: list[int], std: float = 1.0) -> None:
        super().__init__()
        self.std = std
        self.shape = tuple(shape)
        self.tables = nn.ParameterList(torch.empty(n, d) for n, d in zip(shape, dims, strict=True))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gaussian tables."""
        for table in self.tables:
            nn.init.normal_(table, std=self.std)

    def active_parameters(self) -> int:
        """One row of each table."""
        return sum(table.shape[1] for table in self.tables)

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """The embeddings of positions 0 .. length - 1, (length, d_model): the same for every row of a batch."""
        axes = []
        for i, table in enumerate(self.tables):
            view = [1] * len(self.shape) + [table.shape[1]]
            view[i] = table.shape[0]
            axes.append(table.view(view).expand(*self.shape, table.shape[1]))
        return torch.cat(axes, dim=-1).reshape(prod(self.shape), -1)[:length]


class FactorizedPositions(nn.Module):
    """One table an axis of a grid, each d_model wide, added up (Sparse Transformer, section 5.3).

    Table i has shape (shape[i], d_model), Gaussian of deviation `std` / sqrt(number of axes) at the start.
    """

    def __init__(self, shape: list[int], d_model: int, std: float = 1.0) -> None:
        super().__init__()
        self.std = std / math.sqrt(len(shape))
        self.shape = tuple(shape)
        self.tables = nn.ParameterList(torch.empty(n, d_model) for n in shape)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gaussian tables."""
        for table in self.tables:
            nn.init.normal_(table, std=self.std)

    def active_parameters(self) -> int:
        """One row of each table."""
        return sum(table.shape[1] for table in self.tables)

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """The embeddings of positions 0 .. length - 1, (length, d_model): the same for every row of a batch."""
        total: Tensor | None = None
        for i, table in enumerate(self.tables):
            view = [1] * len(self.shape) + [table.shape[1]]
            view[i] = table.shape[0]
            total = table.view(view) if total is None else total + table.view(view)
        assert total is not None
        return total.reshape(prod(self.shape), -1)[:length]


class ShiftedPositions(nn.Module):
    """Positions that are added before the decoder's shift: place i gets that of token i - 1, which it reads.

    Place 0 gets a vector of its own, `std` its deviation at the start. (It is added to the embedding of the 0 that
    stands in front, where the authors' code puts the vector alone.)
    """

    def __init__(self, positions: nn.Module, d_model: int, std: float) -> None:
        super().__init__()
        self.positions, self.std = positions, std
        self.start = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Gaussian vector."""
        nn.init.normal_(self.start, std=self.std)

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """Those of places 0 .. length - 1, (length, d_model), or with the batch first where the positions have it."""
        rest: Tensor = self.positions(max(length - 1, 1), batch)
        start = self.start.expand(*rest.shape[:-2], 1, -1)
        return torch.cat([start, rest], dim=-2)[..., :length, :]


class LearnedPositions(nn.Module):
    """One table of shape (max_len, d_model), Gaussian of deviation `std` at the start."""

    def __init__(self, max_len: int, d_model: int, std: float = 1.0) -> None:
        super().__init__()
        self.std = std
        self.table = nn.Parameter(torch.empty(max_len, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Gaussian table."""
        nn.init.normal_(self.table, std=self.std)

    def active_parameters(self) -> int:
        """One row."""
        return self.table.shape[1]

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """The embeddings of positions 0 .. length - 1, (length, d_model): the same for every row of a batch."""
        return self.table[:length]


class CoupledPositions(LearnedPositions):
    """A learned table, read at a token's place since the last separator (Cho et al. 2024; see `ops.coupling`).

    One table serves encoder and decoder, so that a digit of the answer shares its position with those it is made of. In
    training all positions of a row start from a number drawn for the row, as far as the table goes: so each of its
    entries is trained by rows shorter than it. In evaluation they start from 0.
    """

    def __init__(self, max_len: int, d_model: int, separators: tuple[int, ...], std: float = 1.0) -> None:
        super().__init__(max_len, d_model, std)
        self.separators = separators

    def starts(self, batch: int, longest: int) -> Tensor | None:
        """In training the first position of each row, (B, 1), for rows of at most `longest` tokens; else None."""
        if not self.training:
            return None
        return torch.randint(self.table.shape[0] - longest, (batch, 1), device=self.table.device)

    def of_tokens(self, tokens_BL: Tensor, start_B1: Tensor | None = None) -> Tensor:
        """The embeddings at the positions of `tokens`, counted from `start`, (B, L, d_model)."""
        position_BL = coupled_positions(tokens_BL, self.separators)
        return F.embedding(position_BL if start_B1 is None else position_BL + start_B1, self.table)


class SinusoidalPositions(nn.Module):
    """Sines of p * 10000^(-2j / d_model) in the first half of the features, cosines in the second (authors' code)."""

    frequency: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.register_buffer("frequency", torch.empty(d_model // 2), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Computes the frequencies."""
        exponent = torch.arange(0, self.d_model, 2, dtype=torch.float64, device=self.frequency.device) / self.d_model
        self.frequency.copy_(torch.exp(-math.log(10_000.0) * exponent))

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """The embeddings of positions 0 .. length - 1, (length, d_model): the same for every row of a batch."""
        angle = torch.arange(length, device=self.frequency.device)[:, None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class DigitPositions(nn.Module):
    """Positions written as digits in several bases, each digit times a vector of its own (Terraformer; authors' code).

    Block i of the features, d_model / n_digits wide, is digit i (the least significant first) times row i of a base's
    weights; the bases are summed; `start_vec` is added at the first position, wherever it is counted from. Unseen
    positions have digits that were seen: this is what lets a model go on at a length it was not trained at.

    In training each row of the batch counts from 0 with the probability `start_from_zero`, else from a number uniform
    below min(bases)^n_digits - length, and each base of a row is left out with the probability `base_dropout`. (In the
    authors' code the bases of a row fall together, for all of them are drawn with one and the same key.)
    """

    def __init__(self, config: PositionsConfig, d_model: int) -> None:
        super().__init__()
        self.bases = list(config.bases)
        self.n_digits = config.n_digits
        self.start_from_zero = config.start_from_zero
        self.base_dropout = config.base_dropout
        self.base_weights = nn.Parameter(torch.empty(len(self.bases), self.n_digits, d_model // self.n_digits))
        self.start_vec = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform between -1e-4 and 1e-4, so that positions are nearly absent at first (authors' code)."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1e-4, 1e-4)

    def forward(self, length: int, batch: int = 1) -> Tensor:
        """Those of positions 0 .. length - 1, (length, d_model); in training (batch, length, d_model).

        Raises ValueError for a length that the digits cannot count to.
        """
        n_positions = countable_positions(self.bases, self.n_digits)
        if length >= n_positions:
            raise ValueError(
                f"{self.n_digits} digits in base {min(self.bases)} count below {n_positions}: too few for {length}."
            )
        device = self.start_vec.device
        position_BL = torch.arange(length, device=device).unsqueeze(0)
        kept_BK = None
        if self.training:
            start_B1 = torch.randint(n_positions - length, (batch, 1), device=device)
            start_B1 = start_B1 * (torch.rand(batch, 1, device=device) >= self.start_from_zero)
            position_BL = position_BL + start_B1
            kept_BK = torch.rand(batch, len(self.bases), device=device) >= self.base_dropout
        total_BLD = self._embed(position_BL, kept_BK)
        total_BLD = torch.cat([total_BLD[:, :1] + self.start_vec, total_BLD[:, 1:]], dim=1)
        return total_BLD if self.training else total_BLD.squeeze(0)

    def _embed(self, position_BL: Tensor, kept_BK: Tensor | None) -> Tensor:
        digits = []
        for base in self.bases:
            rest = position_BL
            for _ in range(self.n_digits):
                digits.append(rest % base)
                rest = rest // base
        digit_BLKn = torch.stack(digits, -1).unflatten(-1, (len(self.bases), self.n_digits)).to(self.start_vec.dtype)
        if kept_BK is not None:
            digit_BLKn = digit_BLKn * kept_BK[:, None, :, None]
        return torch.einsum("blkn,knw->blnw", digit_BLKn, self.base_weights).flatten(2)


def most_positions(config: PositionsConfig, length: int) -> int | None:
    """The longest sequence that the embedding made for `length` can serve; None where it has no end."""
    match config.kind:
        case "axial":
            return prod(config.axial_shape) + config.before_shift
        case "factorized":
            return (prod(config.axial_shape) if config.axial_shape else length) + config.before_shift
        case "learned":
            return (config.max_len or length) + config.before_shift
        case "coupled":
            return config.max_len - 1 if config.max_len else length
        case "digits":
            return countable_positions(config.bases, config.n_digits) - 1
    return None


def make_positions(
    config: PositionsConfig,
    d_model: int,
    length: int,
    std: float = 1.0,
    grid: list[int] | None = None,
    separators: tuple[int, ...] = (),
) -> nn.Module | None:
    """The position embedding that `config` names, for sequences of at most `length`; None for kind `none`.

    `std` is the deviation at which Gaussian tables start, `grid` that of factorized ones where the config has none,
    `separators` the tokens between numbers whose places are coupled.
    """
    match config.kind:
        case "axial":
            return AxialPositions(config.axial_shape, config.axial_dims, std)
        case "factorized":
            return FactorizedPositions(config.axial_shape or grid or [length], d_model, std)
        case "learned":
            return LearnedPositions(config.max_len or length, d_model, std)
        case "coupled":
            return CoupledPositions(config.max_len or length + 1, d_model, separators, std)
        case "sinusoidal":
            return SinusoidalPositions(d_model)
        case "digits":
            return DigitPositions(config, d_model)
        case "none":
            return None
    raise ValueError(f"No position embedding is called '{config.kind}'.")
