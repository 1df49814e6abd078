"""Softmax attention as a layer: projections around a pattern, which says what a query may see.

Shape suffixes: B batch, L length, D d_model, H heads, d width of a head.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from efftx.errors import UserError
from efftx.layers.cache import Cache, KeyValueCache, Position, SlotCache
from efftx.layers.cost import SCORE_BACKWARD, STORED_SCORE_BACKWARD, Cost, Heads, Held, Read, Rows, Work
from efftx.layers.patterns import Pattern, Softmax
from efftx.layers.projections import DenseQKV
from efftx.layers.sparse_qkv import SparseQKV
from efftx.ops.attention import unit_key
from efftx.ops.recompute_state import RecomputeState


class SoftmaxAttention(nn.Module):
    """Multi-head attention over what `pattern` lets a query see; with shared projections the paper's shared-QK form.

    Raises UserError for heads that cannot take the pattern's sets of keys in turn.
    """

    def __init__(
        self,
        pattern: Pattern,
        projections: DenseQKV | SparseQKV,
        *,
        d_head: int,
        attention_dropout: float = 0.0,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if projections.n_heads % pattern.n_sets:
            raise UserError(
                "bad_value",
                f"n_heads={projections.n_heads} is not divisible by {pattern.n_sets}, the sets of keys that the heads "
                "take in turn.",
                f"Take n_heads divisible by {pattern.n_sets}.",
            )
        self.causal = causal
        self.pattern = pattern
        self.project = projections
        self.d_head = d_head
        self.scale = 1.0 if projections.share_qk else 1.0 / math.sqrt(projections.d_qk)
        self.attention_dropout = attention_dropout

    def forward(
        self,
        x_BLD: Tensor,
        state: RecomputeState | None = None,
        key_mask_BL: Tensor | None = None,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `key_mask_BL` is True on real tokens; padding stands at the end.

        With `cache` it is a prompt, or one token a row that sees what the pattern lets it see of those before it.
        """
        kept = None if cache is None else cache.projections
        q, k, v = self.project(x_BLD, kept)
        heads = self.attend(q, k, v, key_mask_BL) if cache is None else cache.attend(self, q, k, v)
        return self.project.output(heads, kept)

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor | None, v_BHLd: Tensor, key_mask_BL: Tensor | None) -> Tensor:
        """The heads' outputs (B, H, L, d); keys are the queries at unit length where there are none."""
        how = Softmax(
            self.scale,
            self.causal,
            exclude_self=k_BHLd is None,
            # Causality hides padding at the end from every real token already, and needs no mask for it.
            key_mask_BL=None if self.causal else key_mask_BL,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return self.pattern.attend(q_BHLd, unit_key(q_BHLd) if k_BHLd is None else k_BHLd, v_BHLd, how)

    def keys(self, length: int) -> float:
        """Scores computed for a query in the mean over a row of `length` tokens, masked and padded ones included."""
        return self.pattern.keys(length, causal=self.causal, exclude_self=self.project.share_qk)

    def keys_of_token(self, n: int) -> int:
        """Earlier tokens that the token behind `n` others attends to, of the head with the most."""
        query, earlier = torch.tensor(n), torch.arange(n)
        return max(int(self.pattern.sees(head, query, earlier).sum()) for head in range(self.project.n_heads))

    def weight_reads(self) -> list[Read]:
        """All of the projections."""
        return self.project.weight_reads()

    def cost(self, rows: Rows) -> Cost:
        """Projections, scores and weighted values."""
        return pattern_cost(self.pattern, self.project, rows, causal=self.causal, dropout=self.attention_dropout)

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> AttentionCache:
        """Room for `capacity` tokens a row, of the dtype and on the device of `like`."""
        kv = self.pattern.new_cache(batch, self.project.n_heads, capacity, self.d_head, like)
        return AttentionCache(kv, self.project.new_cache(batch, position), position)


def heads_of(project: DenseQKV | SparseQKV, *, causal: bool, stored: bool = False) -> Heads:
    """The heads of a layer with these projections."""
    return Heads(project.n_heads, project.d_head, project.d_model, causal, project.share_qk, stored)


def pattern_cost(pattern: Pattern, project: DenseQKV | SparseQKV, rows: Rows, *, causal: bool, dropout: float) -> Cost:
    """The cost of projections around a pattern, with `dropout` of its weights."""
    stored = pattern.stores_scores(dropout, rows.device)
    heads = heads_of(project, causal=causal, stored=stored)
    keys = pattern.keys(rows.length, causal=causal, exclude_self=project.share_qk, stored=stored)
    draws = pattern.draws(rows, heads, keys) if dropout > 0 else 0.0
    cost = attention_cost(project, rows, keys, pattern.held(rows, heads), draws=draws, stored=stored)
    return replace(cost, draws=draws * (1 + pattern.redraws()))


def attention_cost(
    project: DenseQKV | SparseQKV,
    rows: Rows,
    keys: float,
    held: Held,
    hashing: dict[str, Work] | None = None,
    *,
    draws: float = 0.0,
    stored: bool = False,
) -> Cost:
    """The cost of projections around scores of `keys` keys a query, whose bytes are `held`; with LSH its hashing.

    `draws`: numbers that dropout of the weights draws. `stored`: plain products compute the scores.
    """
    length, (saved, backward) = rows.length, held
    scores = 4.0 * project.n_heads * project.d_head * keys
    work = {
        "attention_projections": Work(length * project.flops(length)),
        "attention_scores": Work(length * scores, STORED_SCORE_BACKWARD if stored else SCORE_BACKWARD),
        **(hashing or {}),
    }
    return Cost(work, project.saved(rows) + saved, backward, draws=draws, redrawn=draws)


class AttentionCache(Cache):
    """Keys and values of the tokens so far, and what the projections keep."""

    def __init__(self, kv: KeyValueCache | SlotCache, projections: Any, position: Position) -> None:
        self.kv, self.projections, self.position = kv, projections, position

    def attend(self, layer: Any, q_BHLd: Tensor, k_BHLd: Tensor | None, v_BHLd: Tensor) -> Tensor:
        """The heads' outputs (B, H, L, d) of a prompt, by the layer's own `attend`, or of one token a row."""
        key_BHLd = unit_key(q_BHLd) if k_BHLd is None else k_BHLd
        if not self.position.n:
            self.kv.fill(key_BHLd, v_BHLd, self.position.own_B)
            whole: Tensor = layer.attend(q_BHLd, k_BHLd, v_BHLd, None)
            return whole
        self.kv.write(self.position, key_BHLd.squeeze(2), v_BHLd.squeeze(2))
        return self.kv.attend(q_BHLd.squeeze(2), self.position, scale=layer.scale, exclude_self=k_BHLd is None)

    def fill_at_random(self, n: int) -> None:
        """Fill the cache with random keys and values for `n` tokens, for a timing."""
        self.kv.fill_at_random(n)

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        self.kv.reorder(rows_B)
        if self.projections is not None:
            self.projections.reorder(rows_B)
