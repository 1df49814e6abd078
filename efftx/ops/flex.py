"""Index sets through PyTorch's FlexAttention: on a GPU, blocks of 128 by 128 scores that hold no key are skipped.

Legend: B batch, H heads, L length, d width of queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

HeadSees = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Whether a head's query may see a key: head, query and key, int64, to bool."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_WIDTH = 16


def is_for(q_BHLd: Tensor) -> bool:
    """Whether the compiled kernel takes these queries: on a GPU, of its dtypes, and of a width that it has."""
    d = q_BHLd.shape[-1]
    return q_BHLd.device.type == "cuda" and q_BHLd.dtype in DTYPES and d >= LEAST_WIDTH and d & (d - 1) == 0


def attend_flex(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLd: Tensor,
    sees: HeadSees,
    *,
    key: Hashable,
    scale: float,
    compiled: bool = True,
) -> Tensor:
    """Softmax attention of every query over what its head sees, no query's set empty: (B, H, L, d).

    `key` names the set: masks of equal keys, lengths and heads are made once. `compiled` false is the same by plain
    products, for a look at the numbers without a GPU.
    """
    heads, length = q_BHLd.shape[1], q_BHLd.shape[2]
    mask = _mask(_Named(key, sees), heads, length, str(q_BHLd.device), compiled)
    call: Any = _compiled() if compiled else flex_attention
    out: Tensor = call(q_BHLd, k_BHLd.to(q_BHLd.dtype), v_BHLd.to(q_BHLd.dtype), block_mask=mask, scale=scale)
    return out


class _Named:
    """A function that is told from others by a key."""

    def __init__(self, key: Hashable, sees: HeadSees) -> None:
        self.key, self.sees = key, sees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=64)
def _mask(named: _Named, heads: int, length: int, device: str, compiled: bool) -> BlockMask:
    """Which blocks of the score matrix hold a key, and which hold nothing else."""

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return named.sees(head, query, key)

    # Compiled, the whole matrix of a long row never exists.
    return create_block_mask(mask_mod, None, heads, length, length, device=device, _compile=compiled)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)
