"""Full softmax attention, with separate or shared queries and keys (Reformer, sections 2 and 3).

Legend: B batch, H heads, L length, d width of a head's queries and keys, v width of its values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SELF_PENALTY = 1e5
"""Taken from a token's score for itself under shared queries and keys: it attends to itself only for want of others."""


def unit_key(q: Tensor, eps: float = 1e-6) -> Tensor:
    """Keys of unit length made from queries (shared-QK attention), same shape (..., d).

    As in the authors' code the length is a root mean square with `eps` inside the root, so a zero query gives a zero
    key. Scores q . k then need no further 1/sqrt(d): the query's own length is a learned temperature.
    """
    return q * (torch.rsqrt(q.square().mean(-1, keepdim=True) + eps) / math.sqrt(q.shape[-1]))


def full_attention(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLv: Tensor,
    *,
    scale: float,
    causal: bool = True,
    exclude_self: bool = False,
    key_mask_BL: Tensor | None = None,
    query_block: int = 0,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of every query over all keys it may see, shape (B, H, L, v).

    Neither `causal` nor `exclude_self`: there may be any number of keys. Otherwise there is one for each query.
    `exclude_self` lets a token attend to itself only where it may see no other key (shared-QK attention);
    `key_mask_BL` is False on keys that nothing may see; a query that may see no key at all gets zeros. With
    `query_block` 0 it is PyTorch's fused kernel; otherwise the scores of that many queries at a time are computed,
    used, and computed again in the backward pass: memory linear in L (Reformer's memory-efficient baseline; keys later
    than the block are skipped, not masked).
    """
    visible = _Visible(causal, exclude_self, key_mask_BL)
    if key_mask_BL is not None:
        out = _masked(q_BHLd, k_BHLd, v_BHLv, scale, visible, query_block, dropout)
        return out.masked_fill(~_sees_a_key(key_mask_BL, causal), 0.0)
    if query_block:
        return _by_query_block(q_BHLd, k_BHLd, v_BHLv, scale, visible, query_block, dropout)
    if causal and exclude_self:
        # A strictly lower triangular mask is the causal mask of the queries against the keys one place earlier; the
        # first token has only itself.
        rest = F.scaled_dot_product_attention(
            q_BHLd[:, :, 1:], k_BHLd[:, :, :-1], v_BHLv[:, :, :-1], is_causal=True, scale=scale, dropout_p=dropout
        )
        return torch.cat([v_BHLv[:, :, :1], rest], dim=2)
    if not exclude_self:
        return F.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLv, is_causal=causal, scale=scale, dropout_p=dropout)
    length = q_BHLd.shape[2]
    bias = visible.bias(0, length, length, q_BHLd)
    return F.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLv, attn_mask=bias, scale=scale, dropout_p=dropout)


def attention_step(
    q_BH1d: Tensor, k_BHTd: Tensor, v_BHTv: Tensor, *, scale: float, seen_BT: Tensor | None = None
) -> Tensor:
    """Softmax attention of one query a row and head over the T keys it may see, (B, H, 1, v): a step of decoding.

    `seen_BT` is True on the keys that a row's query sees, at least one of them; None: it sees all.
    """
    mask = None if seen_BT is None else seen_BT[:, None, None]
    return F.scaled_dot_product_attention(q_BH1d, k_BHTd, v_BHTv, attn_mask=mask, scale=scale)


def full_attention_naive(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLv: Tensor,
    *,
    scale: float,
    causal: bool = True,
    exclude_self: bool = False,
    key_mask_BL: Tensor | None = None,
) -> Tensor:
    """The same attention with the whole score matrix and the authors' subtracted constants: the oracle."""
    scores = q_BHLd @ k_BHLd.transpose(-1, -2) * scale
    query = torch.arange(q_BHLd.shape[2], device=q_BHLd.device)[:, None]
    key = torch.arange(k_BHLd.shape[2], device=q_BHLd.device)[None, :]
    if causal:
        scores = scores - 1e9 * (key > query).to(scores.dtype)
    if key_mask_BL is not None:
        scores = scores - 1e9 * (~key_mask_BL)[:, None, None, :].to(scores.dtype)
    if exclude_self:
        scores = scores - SELF_PENALTY * (key == query).to(scores.dtype)
    out = scores.softmax(-1) @ v_BHLv
    if key_mask_BL is None:
        return out
    seen = key_mask_BL[:, None, :] & ((key <= query) | (not causal))
    return torch.where(seen.any(-1)[:, None, :, None], out, 0.0)


class _Visible(NamedTuple):
    """Which keys a query may see; the arguments are those of `full_attention`."""

    causal: bool
    exclude_self: bool
    key_mask: Tensor | None

    def bias(self, first: int, n_queries: int, n_keys: int, like: Tensor) -> Tensor | None:
        """What is added to the scores of queries first .. first + n_queries against the first n_keys keys.

        None where nothing is hidden.
        """
        if not self.causal and not self.exclude_self and self.key_mask is None:
            return None
        query = torch.arange(first, first + n_queries, device=like.device)[:, None]
        key = torch.arange(n_keys, device=like.device)[None, :]
        hidden = (key > query) if self.causal else torch.zeros_like(key > query)
        hidden = hidden[None, None]
        if self.key_mask is not None:
            hidden = hidden | ~self.key_mask[:, None, None, :n_keys]
        bias = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        # Finite and far below the self penalty, so that a row with nothing but itself still finds itself; float16 ends
        # at 65504, before either constant, and the score that is added must not pass that end: -inf alone is NaN.
        largest = torch.finfo(like.dtype).max
        if self.exclude_self:
            bias = bias.masked_fill(query == key, -min(SELF_PENALTY, largest / 2))
        return bias.masked_fill(hidden, -min(1e4 * SELF_PENALTY, 0.75 * largest))


def _masked(
    q: Tensor, k: Tensor, v: Tensor, scale: float, visible: _Visible, query_block: int, dropout: float
) -> Tensor:
    """The forms with a key mask; what they give a query without any key is undefined, but finite."""
    if query_block:
        return _by_query_block(q, k, v, scale, visible, query_block, dropout)
    length, key_mask = q.shape[2], visible.key_mask
    if visible.causal or visible.exclude_self:
        bias = visible.bias(0, length, length, q)
    else:
        assert key_mask is not None, "what these forms are for"
        # One row of the mask for all queries; a sequence of nothing but padding sees it all, so that no row is empty.
        bias = (key_mask | ~key_mask.any(-1, keepdim=True))[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, dropout_p=dropout)


def _sees_a_key(key_mask_BL: Tensor, causal: bool) -> Tensor:
    """Whether a query may see any key, to be broadcast over (B, H, L, v)."""
    seen = key_mask_BL.cumsum(-1) > 0 if causal else key_mask_BL.any(-1, keepdim=True)
    return seen[:, None, :, None]


def _attend_block(
    q: Tensor, k: Tensor, v: Tensor, first: int, visible: _Visible, scale: float, dropout: float
) -> Tensor:
    # The bias is as large as the scores: it is made here, so that the backward pass makes it again and keeps neither.
    bias = visible.bias(first, q.shape[2], k.shape[2], q)
    scores = q @ k.transpose(-1, -2) * scale
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    return F.dropout(weights, dropout, training=dropout > 0) @ v


def _by_query_block(
    q: Tensor, k: Tensor, v: Tensor, scale: float, visible: _Visible, query_block: int, dropout: float
) -> Tensor:
    if query_block < 1:
        raise ValueError(f"A block holds at least one query, not {query_block}.")
    length, n_all = q.shape[2], k.shape[2]
    parts = []
    for first in range(0, length, query_block):
        last = min(first + query_block, length)
        n_keys = last if visible.causal else n_all
        block = (q[:, :, first:last], k[:, :, :n_keys], v[:, :, :n_keys], first, visible)
        parts.append(
            checkpoint(_attend_block, *block, scale, dropout, use_reentrant=False, preserve_rng_state=dropout > 0)
        )
    return torch.cat(parts, dim=2)
