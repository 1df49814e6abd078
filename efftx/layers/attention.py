"""Softmax attention as a layer: projections around a pattern, which says what a query may see.

Shape suffixes: B batch, L length, D d_model, H heads, d width of a head.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from efftx.layers.cache import Cache, KeyValueCache, Place, SlotCache
from efftx.layers.matrix import Read
from efftx.layers.patterns import Pattern
from efftx.layers.projections import DenseQKV
from efftx.layers.sparse_qkv import SparseQKV
from efftx.native.program import Normed, NotCompiledError, Program, Stream, buffer
from efftx.ops.attention import unit_key
from efftx.ops.replay import Replay


class SoftmaxAttention(nn.Module):
    """Multi-head attention over what `pattern` lets a query see; with shared projections the paper's shared-QK form."""

    def __init__(
        self,
        pattern: Pattern,
        projections: DenseQKV | SparseQKV,
        *,
        d_head: int,
        attention_dropout: float,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.pattern = pattern
        self.project = projections
        self.d_head = d_head
        self.scale = 1.0 if projections.share_qk else 1.0 / math.sqrt(projections.d_qk)
        self.attention_dropout = attention_dropout

    def forward(self, x_BLD: Tensor, replay: Replay | None = None, key_mask_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `key_mask_BL` is True on real tokens; padding stands at the end."""
        q, k, v = self.project(x_BLD)
        return self.project.output(self.attend(q, k, v, key_mask_BL))

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor | None, v_BHLd: Tensor, key_mask_BL: Tensor | None) -> Tensor:
        """The heads' outputs (B, H, L, d); keys are the queries at unit length where there are none."""
        return self.pattern.attend(
            q_BHLd,
            unit_key(q_BHLd) if k_BHLd is None else k_BHLd,
            v_BHLd,
            scale=self.scale,
            causal=self.causal,
            # Causality hides padding at the end from every real token already, and needs no mask for it.
            key_mask_BL=None if self.causal else key_mask_BL,
            exclude_self=k_BHLd is None,
            dropout=self.attention_dropout if self.training else 0.0,
        )

    def stepper(self, *, int8: bool = False) -> SoftmaxStepper:
        """The layer for decoding: a token sees what the pattern lets it see of the tokens before it."""
        return SoftmaxStepper(self, self.pattern, int8=int8)


class AttentionCache(Cache):
    """Keys and values, and what the projections keep."""

    def __init__(self, kv: KeyValueCache | SlotCache, projections: Any) -> None:
        self.kv = kv
        self.projections = projections
        self.for_program = kv.for_program

    def fill_at_random(self, n: int) -> None:
        """Fill the cache with random keys and values for `n` tokens, for a timing."""
        self.kv.fill_at_random(n)

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        self.kv.reorder(rows_B)
        if self.projections is not None:
            self.projections.reorder(rows_B)


class SoftmaxStepper:
    """Causal softmax attention for one token a row, over the cached keys that `pattern` lets it see.

    `layer` is the layer itself, with `project`, `scale`, `attend`; weights are laid out here, once.
    """

    def __init__(self, layer: Any, pattern: Pattern, *, int8: bool) -> None:
        self._layer, self._pattern = layer, pattern
        self.projections = layer.project.stepper(int8=int8)
        self._scale, self._shared = layer.scale, layer.project.share_qk

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> AttentionCache:
        """Room for `capacity` tokens a row, of the dtype and on the device of `like`."""
        kv = self._pattern.new_cache(batch, self.projections.n_heads, capacity, self._layer.d_head, like)
        return AttentionCache(kv, self.projections.new_state(batch))

    def prefill(self, x_BLD: Tensor, cache: AttentionCache, n_B: Tensor | None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model) of a prompt from position 0, kept in `cache`; row b has n_B[b] tokens."""
        q, k, v = self.projections.prefill(x_BLD, cache.projections, n_B)
        cache.kv.fill(unit_key(q) if k is None else k, v, n_B)
        out: Tensor = self.projections.output_of_prompt(self._layer.attend(q, k, v, None), cache.projections, n_B)
        return out

    def step(self, x_BD: Tensor, cache: AttentionCache, place: Place) -> Tensor:
        """(B, d_model) -> (B, d_model) of the token at `place`."""
        q, k, v = self.projections.step(x_BD, cache.projections)
        place.lap("QKV")
        cache.kv.write(place, unit_key(q) if k is None else k, v)
        out = cache.kv.attend(q, place, scale=self._scale, exclude_self=self._shared)
        place.lap("attention")
        y: Tensor = self.projections.output(out, cache.projections, place)
        return y

    def compile(self, program: Program, x: Normed, y: Stream) -> None:
        """One token of one row as operations; raises NotCompiledError where projections or pattern are none."""
        if not self._pattern.in_order:
            raise NotCompiledError("Keys that are not kept in their order.")
        d_model, n_heads = x.weight.numel(), self.projections.n_heads
        q, k, v = self.projections.compile(program, x)
        last = self.projections.compile_output
        heads: Tensor | Stream = y if last is None else buffer("heads", n_heads * self._layer.d_head)
        if last is None and n_heads * self._layer.d_head != d_model:
            raise NotCompiledError("Heads that are not the model's width.")
        put = program.attend(q, (k, v), n_heads, heads, scale=self._scale, adds=last is None)
        shared = self._shared

        def bind(cache: AttentionCache, n: int) -> None:
            assert isinstance(cache.kv, KeyValueCache)
            start = cache.kv.first(n)
            put(cache.kv.k_BHTd, cache.kv.v_BHTv, n, start, max(n, start + 1) if shared else n + 1)

        program.each_step(bind)
        if last is not None:
            last(program, heads, y)

    def reads(self) -> list[Read]:
        """What a token reads of weights."""
        found: list[Read] = self.projections.reads()
        return found
