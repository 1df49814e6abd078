"""Attention over fixed neighbourhoods of positions: `local`, the own chunk and its neighbours.

Legend: B batch, H heads, L length, d width of queries and keys, v of values; the length is cut in n chunks of m, K
keys in a window; N batch times heads, or 1.
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
    causal: bool = True,
    exclude_self: bool = False,
    key_mask_BL: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention to a query's own chunk of positions, the one before and, unless causal, the one after: (B, H, L, v).

    Any L >= 1: the last chunk is padded inside, and a row shorter than a chunk is one of its own length; the first has
    none before it and the last none after it (the authors' chunks wrap around, so that their encoder's first and last
    chunk see each other). `exclude_self` and `key_mask_BL` as in full attention: a query that may see no key gets
    zeros. A causal query has chunk_len + 1 keys at least, 2 chunk_len at most, but for the first chunk. Raises
    ValueError for chunk_len < 1. (The authors' enwik8 stack, [local, local, lsh, local]; the paper's text does not
    mention it.)
    """
    if chunk_len < 1:
        raise ValueError(f"A chunk holds at least one position, not {chunk_len}.")
    batch, heads, length, _ = q_BHLd.shape
    chunk_len = max(1, min(chunk_len, length))
    n_chunks = -(-length // chunk_len)
    pad = n_chunks * chunk_len - length

    def chunks(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, pad)).reshape(batch * heads, n_chunks, chunk_len, x.shape[-1])

    def windows(x: Tensor) -> Tensor:
        chunked = chunks(x)
        if n_chunks == 1:
            return chunked
        before = F.pad(chunked, (0, 0, 0, 0, 1, 0))[:, :-1]
        if causal:
            return torch.cat([before, chunked], dim=2)
        return torch.cat([before, chunked, F.pad(chunked, (0, 0, 0, 0, 0, 1))[:, 1:]], dim=2)

    seen_BnmK = _seen(length, chunk_len, causal, exclude_self, key_mask_BL, q_BHLd.device)
    if key_mask_BL is None:
        mask_NnmK = seen_BnmK
    else:
        sees_a_key_Bnm1 = seen_BnmK.any(-1, keepdim=True)
        mask_NnmK = (seen_BnmK | ~sees_a_key_Bnm1).repeat_interleave(heads, 0)
    out_Nnmv = F.scaled_dot_product_attention(
        chunks(q_BHLd), windows(k_BHLd), windows(v_BHLv), attn_mask=mask_NnmK, scale=scale, dropout_p=dropout
    )
    out = out_Nnmv.unflatten(0, (batch, heads))
    if key_mask_BL is not None:
        out = out.masked_fill(~sees_a_key_Bnm1[:, None], 0.0)
    return out.flatten(2, 3)[:, :, :length]


def local_attention_naive(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLv: Tensor,
    *,
    scale: float,
    chunk_len: int,
    causal: bool = True,
    exclude_self: bool = False,
    key_mask_BL: Tensor | None = None,
) -> Tensor:
    """The same attention with the whole score matrix: the oracle."""
    position = torch.arange(q_BHLd.shape[2], device=q_BHLd.device)
    query, key = position[:, None], position[None, :]
    seen = (query // chunk_len - key // chunk_len).abs() <= 1
    if causal:
        seen = seen & (key <= query)
    if key_mask_BL is not None:
        seen = seen & key_mask_BL[:, None, None, :]
    scores = q_BHLd @ k_BHLd.transpose(-1, -2) * scale
    if exclude_self:
        scores = scores - 1e5 * (query == key).to(scores.dtype)
    out = scores.masked_fill(~seen, -1e9).softmax(-1) @ v_BHLv
    return torch.where(seen.any(-1, keepdim=True), out, 0.0)


def _seen(
    length: int,
    chunk_len: int,
    causal: bool,
    exclude_self: bool,
    key_mask_BL: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Which keys of a window its queries may see, (B or 1, n, m or 1, K): itself, if excluded, for want of others."""
    real_BL = torch.ones(1, length, dtype=torch.bool, device=device) if key_mask_BL is None else key_mask_BL
    n_chunks = -(-length // chunk_len)
    n_before = int(n_chunks > 1)
    n_after = n_before * (not causal)
    n_window = n_before + 1 + n_after
    last = n_chunks * chunk_len - length + n_after * chunk_len
    padded_BE = F.pad(real_BL, (n_before * chunk_len, last))
    seen_BnmK = padded_BE.unfold(1, n_window * chunk_len, chunk_len)[:, :, None]
    query_m1 = torch.arange(chunk_len, device=device)[:, None] + n_before * chunk_len
    key_1K = torch.arange(n_window * chunk_len, device=device)[None, :]
    if causal:
        seen_BnmK = seen_BnmK & (key_1K <= query_m1)
    if exclude_self:
        others_BnmK = seen_BnmK & (key_1K != query_m1)
        seen_BnmK = torch.where(others_BnmK.any(-1, keepdim=True), others_BnmK, seen_BnmK)
    return seen_BnmK
