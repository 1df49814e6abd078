"""Attention under any index set, and whether factors of attention reach every position: oracles of the patterns.

An index set says which keys a query may see (Sparse Transformer, section 4). Legend: B batch, H heads (or 1), L length,
d width of queries and keys, v of values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Sees = Callable[[Tensor, Tensor], Tensor]
"""Whether a query may see a key, of positions that broadcast: int64 twice to bool."""


def is_earlier(query: Tensor, key: Tensor) -> Tensor:
    """A key before the query."""
    return key < query


def is_not_later(query: Tensor, key: Tensor) -> Tensor:
    """A key before the query, or at its place."""
    return key <= query


def is_later(query: Tensor, key: Tensor) -> Tensor:
    """A key behind the query."""
    return key > query


def is_another(query: Tensor, key: Tensor) -> Tensor:
    """A key at another place than the query's."""
    return key != query


def index_set(sees: Sees, length: int, device: torch.device | None = None) -> Tensor:
    """The set of a row of `length` tokens as a matrix (L, L), True where query i may see key j."""
    position = torch.arange(length, device=device)
    return sees(position[:, None], position[None, :])


def attention_naive(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLv: Tensor,
    *,
    seen_HLL: Tensor,
    scale: float,
    exclude_self: bool = False,
    key_mask_BL: Tensor | None = None,
) -> Tensor:
    """Softmax attention under an index set with the whole score matrix, (B, H, L, v): the oracle of every pattern.

    A query sees itself where it may see no other key; with `exclude_self` only there. `key_mask_BL` is False on keys
    that nothing may see, and a query that is left with none gets zeros.
    """
    own_LL = torch.eye(q_BHLd.shape[2], dtype=torch.bool, device=q_BHLd.device)
    real_B11L = torch.ones_like(own_LL[None, None, :1]) if key_mask_BL is None else key_mask_BL[:, None, None]
    seen = seen_HLL & real_B11L
    if exclude_self:
        seen = seen & ~own_LL
    seen = seen | (own_LL & real_B11L & ~seen.any(-1, keepdim=True))
    scores = (q_BHLd @ k_BHLd.transpose(-1, -2) * scale).masked_fill(~seen, -1e9)
    return torch.where(seen.any(-1, keepdim=True), scores.softmax(-1) @ v_BHLv, 0.0)


def unreachable(factors: Sequence[Tensor]) -> Tensor:
    """The pairs that attention of these factors, one layer after the other, does not connect: (L, L) bool.

    Entry i, j is True where position i never hears of an earlier j, the residual path counting as a step that stays
    (Sparse Transformer, section 4.2: a factorisation is valid where there is none). `factors` are index sets (L, L),
    the first layer's first; a head that merges several is their union.
    """
    length = factors[0].shape[0]
    self_only = torch.eye(length, dtype=torch.bool, device=factors[0].device)
    reached = self_only
    for seen in factors:
        # The layer adds to what i has heard what every key that i sees had heard before.
        reached = ((seen | self_only).float() @ reached.float()) > 0
    return self_only.new_ones(length, length).tril() & ~reached
