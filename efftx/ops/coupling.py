"""Position coupling: tokens of the same place in their numbers share a position (Cho et al. 2024, "Position Coupling").

Shape suffixes: B batch, L length.
"""

import torch
from torch import Tensor


def coupled_positions(tokens_BL: Tensor, separators: tuple[int, ...]) -> Tensor:
    """Tokens since the last separator, int64 (B, L): 0 for a separator, 1 for the token after it and for a row's first.

    So the i-th digits of two numbers with a separator between them have the position i both.
    """
    place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
    before_BL = torch.where(is_separator(tokens_BL, separators), place_L, -1)
    return place_L - before_BL.cummax(dim=1).values


def is_separator(tokens: Tensor, separators: tuple[int, ...]) -> Tensor:
    """Whether each token is one of `separators`, bool in the shape of `tokens`."""
    return torch.isin(tokens, torch.tensor(separators, device=tokens.device))
