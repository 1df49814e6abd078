"""Where a head that reads pictures looks: near, along its row, along its column (Sparse Transformers, figure 2).

A row of tokens is a picture, row by row, red, green and blue of each pixel after one another. A decoder's place i
predicts token i and reads token i - 1: the key of place j is of the pixel that holds token j - 1, and place 0 has none.
Shape suffixes: B batch, H heads, L places, D d_model, S pixels of a picture's side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from efftx.layers.attention import SoftmaxAttention
from efftx.ops.attention import unit_key

NEAR = 2
"""Pixels in either direction that count as near."""


def attention_weights(layer: SoftmaxAttention, x_BLD: Tensor) -> Tensor:
    """The weights (B, H, L, L) that a causal layer gives to the keys of what it reads, 0 where it sees none."""
    q_BHLd, k_BHLd, _ = layer.project(x_BLD)
    shares_qk = k_BHLd is None
    k_BHLd = unit_key(q_BHLd) if k_BHLd is None else k_BHLd
    scores_BHLL = layer.scale * q_BHLd @ k_BHLd.transpose(-1, -2)
    length, n_heads = x_BLD.shape[1], q_BHLd.shape[1]
    place_L = torch.arange(length, device=x_BLD.device)
    seen_HLL = torch.stack([layer.pattern.sees(h, place_L[:, None], place_L[None, :]) for h in range(n_heads)])
    own_LL = place_L[:, None] == place_L[None, :]
    if shares_qk:
        seen_HLL = seen_HLL & ~own_LL
    # For want of others a query sees itself.
    seen_HLL = seen_HLL | (own_LL & ~seen_HLL.any(-1, keepdim=True))
    return scores_BHLL.masked_fill(~seen_HLL, -torch.inf).softmax(-1)


def uniform_weights(length: int) -> Tensor:
    """Those of one head that looks at every place up to its own alike, (1, 1, L, L)."""
    seen_LL = torch.ones(length, length).tril()
    return (seen_LL / seen_LL.sum(-1, keepdim=True))[None, None]


def map_scores(weights_BHLL: Tensor) -> dict[str, Tensor]:
    """How each head spreads its weights over the pixels before the one that is predicted, in %, (H,).

    `local` is the share on pixels at most `NEAR` rows and columns away, the own one among them; `row` the share on the
    same row and `column` that on the same column, both farther away than that, so that the three exclude one another.
    Shares are of all weight that falls on pixels: what falls on place 0 is left out. `keys` is the perplexity of a
    query's weights, place 0 among them, over the number of places that it sees, in the mean over the queries: 100
    where they are all alike, the less the fewer of them count. ValueError where a row is no square picture.
    """
    length = weights_BHLL.shape[-1]
    side = math.isqrt(length // 3)
    if 3 * side * side != length:
        raise ValueError(f"{length} places are no square picture of three colours.")
    token_T = torch.arange(length, device=weights_BHLL.device)
    row_T, column_T = token_T // 3 // side, token_T // 3 % side
    # Queries predict tokens 1, 2, ...; keys read tokens 0, 1, ...
    down_LL = (row_T[1:, None] - row_T[None, :-1]).abs()
    across_LL = (column_T[1:, None] - column_T[None, :-1]).abs()
    local_LL = (down_LL <= NEAR) & (across_LL <= NEAR)
    where = {"local": local_LL, "row": (down_LL == 0) & ~local_LL, "column": (across_LL == 0) & ~local_LL}
    on_pixels_BHLL = weights_BHLL[..., 1:, 1:].double()
    total_H = on_pixels_BHLL.sum((0, 2, 3))
    shares = {name: 100 * (on_pixels_BHLL * of_LL).sum((0, 2, 3)) / total_H for name, of_LL in where.items()}
    entropy_BHL = torch.special.entr(weights_BHLL.double()).sum(-1)
    return {**shares, "keys": 100 * (entropy_BHL.exp() / (token_T + 1)).mean((0, 2))}


def seen_from(weights_BHLL: Tensor, place: int) -> Tensor:
    """The weight (H, S, S) of each pixel, its colours in sum, for the query at `place`; the mean over the pictures."""
    _, heads, length, _ = weights_BHLL.shape
    side = math.isqrt(length // 3)
    of_tokens_HL = weights_BHLL[:, :, place, 1:].mean(0)
    whole_HL = torch.nn.functional.pad(of_tokens_HL, (0, 1))
    return whole_HL.reshape(heads, side, side, 3).sum(-1)
