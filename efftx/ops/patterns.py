"""Attention over fixed neighbourhoods of positions. So far: `local`, own chunk and the one before it.

Legend: B batch, H heads, L length, d width of queries and keys, v of values; the length is cut in n chunks of m.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_attention(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLv: Tensor,
    *,
    scale: float,
    chunk_len: int,
    exclude_self: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention to a query's own chunk of positions and the chunk before it, shape (B, H, L, v).

    Any L >= 1: the last chunk is padded inside. `exclude_self` as in full attention. A query has chunk_len + 1 keys at
    least, 2 chunk_len at most, but for the first chunk. Raises ValueError for chunk_len < 1. (The authors' enwik8
    stack, [local, local, lsh, local]; the paper's text does not mention it.)
    """
    if chunk_len < 1:
        raise ValueError(f"A chunk holds at least one position, not {chunk_len}.")
    batch, heads, length, _ = q_BHLd.shape
    n_chunks = -(-length // chunk_len)
    pad = n_chunks * chunk_len - length

    def chunks(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, pad)).reshape(batch * heads, n_chunks, chunk_len, x.shape[-1])

    def windows(x: Tensor) -> Tensor:
        own = chunks(x)
        return torch.cat([F.pad(own, (0, 0, 0, 0, 1, 0))[:, :-1], own], dim=2)

    query = torch.arange(chunk_len, device=q_BHLd.device)[:, None] + chunk_len
    key = torch.arange(2 * chunk_len, device=q_BHLd.device)[None, :]
    seen_nmK = ((key < query) if exclude_self else (key <= query)).repeat(n_chunks, 1, 1)
    seen_nmK[0, :, :chunk_len] = False
    if exclude_self:
        seen_nmK[0, 0, chunk_len] = True
    out = F.scaled_dot_product_attention(
        chunks(q_BHLd), windows(k_BHLd), windows(v_BHLv), attn_mask=seen_nmK[None], scale=scale, dropout_p=dropout
    )
    return out.reshape(batch, heads, n_chunks * chunk_len, -1)[:, :, :length]


def local_attention_naive(
    q_BHLd: Tensor, k_BHLd: Tensor, v_BHLv: Tensor, *, scale: float, chunk_len: int, exclude_self: bool = False
) -> Tensor:
    """The same attention with the whole score matrix: the oracle."""
    position = torch.arange(q_BHLd.shape[2], device=q_BHLd.device)
    query, key = position[:, None], position[None, :]
    seen = (key <= query) & (query // chunk_len - key // chunk_len <= 1)
    scores = q_BHLd @ k_BHLd.transpose(-1, -2) * scale
    if exclude_self:
        scores = scores - 1e5 * (query == key).to(scores.dtype)
    return scores.masked_fill(~seen, -1e9).softmax(-1) @ v_BHLv
