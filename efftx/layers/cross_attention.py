"""Cross-attention as a layer: queries from the decoder, keys and values from the encoder's output.

Shape suffixes: B batch, L tokens of the decoder, E tokens of the encoder, D d_model, H heads, d width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from efftx.layers.cache import Cache, Place
from efftx.layers.initialize import glorot_
from efftx.layers.matrix import Read
from efftx.layers.projections import DenseQuery, split_heads
from efftx.layers.sparse_qkv import SparseQuery
from efftx.native.program import Normed, Program, Stream, buffer
from efftx.ops.attention import attention_step, full_attention


class CrossAttention(nn.Module):
    """Multi-head attention of every decoder token over all real tokens of the encoder's output.

    The query may be dense, with a dense output projection, or sparse, with none; keys and values are dense, and made
    once a sequence.
    """

    def __init__(
        self, query: DenseQuery | SparseQuery, d_model: int, *, d_head: int, bias: bool, attention_dropout: float
    ) -> None:
        super().__init__()
        self.query = query
        self.k = nn.Linear(d_model, query.n_heads * d_head, bias=bias)
        self.v = nn.Linear(d_model, query.n_heads * d_head, bias=bias)
        self.d_head = d_head
        self.scale = 1.0 / math.sqrt(d_head)
        self.attention_dropout = attention_dropout

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases; the query starts itself."""
        glorot_(self.k)
        glorot_(self.v)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream where the query has no output projection: the values."""
        return [self.v.weight] if isinstance(self.query, SparseQuery) else []

    def forward(self, x_BLD: Tensor, memory_BED: Tensor, memory_mask_BE: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `memory_mask_BE` is True on the encoder's real tokens.

        A row whose encoder tokens are all padding reads zeros.
        """
        return self.query.output(self.attend(self.query(x_BLD), *self.of_memory(memory_BED), memory_mask_BE))

    def of_memory(self, memory_BED: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's output, (B, H, E, d) each."""
        k_BHEd, v_BHEd = (split_heads(layer(memory_BED), self.query.n_heads) for layer in (self.k, self.v))
        return k_BHEd, v_BHEd

    def attend(self, q_BHLd: Tensor, k_BHEd: Tensor, v_BHEd: Tensor, memory_mask_BE: Tensor | None) -> Tensor:
        """The heads' outputs, (B, H, L, d)."""
        return full_attention(
            q_BHLd,
            k_BHEd,
            v_BHEd,
            scale=self.scale,
            causal=False,
            key_mask_BL=memory_mask_BE,
            dropout=self.attention_dropout if self.training else 0.0,
        )

    def stepper(self, *, int8: bool = False) -> CrossAttentionStepper:
        """The layer for one token of the decoder at a time."""
        return CrossAttentionStepper(self, int8=int8)


class CrossCache(Cache):
    """Keys and values of the encoder's output, made once a sequence, and what the query keeps."""

    def __init__(self, k_BHEd: Tensor, v_BHEd: Tensor, mask_BE: Tensor | None, query: Any) -> None:
        self.k_BHEd, self.v_BHEd = k_BHEd, v_BHEd
        # A row of nothing but padding reads zeros; so that the softmax has something to see, it sees it all.
        empty_B1 = None if mask_BE is None else ~mask_BE.any(1, keepdim=True)
        self.mask_BE = mask_BE
        self.seen_BE = None if mask_BE is None or empty_B1 is None or mask_BE.all() else mask_BE | empty_B1
        self.empty_B111 = empty_B1[:, :, None, None] if empty_B1 is not None and empty_B1.any() else None
        self.query = query
        self.for_program = self.seen_BE is None and self.empty_B111 is None

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        super().reorder(rows_B)
        if self.query is not None:
            self.query.reorder(rows_B)


class CrossAttentionStepper:
    """`CrossAttention` for one token a row: query and output projection; keys and values come from the cache."""

    def __init__(self, layer: CrossAttention, *, int8: bool) -> None:
        self._layer, self._scale = layer, layer.scale
        self._query = layer.query.stepper(int8=int8)

    def cache_of(self, memory_BED: Tensor, mask_BE: Tensor | None) -> CrossCache:
        """What is kept of the encoder's output; `mask_BE` is True on its real tokens."""
        k_BHEd, v_BHEd = (t.contiguous() for t in self._layer.of_memory(memory_BED))
        return CrossCache(k_BHEd, v_BHEd, mask_BE, self._query.new_state(memory_BED.shape[0]))

    def cache_at_random(self, batch: int, n_memory: int, like: Tensor) -> CrossCache:
        """A cache of random keys and values for `n_memory` tokens of an encoder, for a timing."""
        shape = (batch, self._layer.query.n_heads, n_memory, self._layer.d_head)
        return CrossCache(
            torch.randn(shape, dtype=like.dtype, device=like.device),
            torch.randn(shape, dtype=like.dtype, device=like.device),
            None,
            self._query.new_state(batch),
        )

    def prefill(self, x_BLD: Tensor, cache: CrossCache, n_B: Tensor | None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model) of a prompt."""
        q_BHLd = self._query.prefill(x_BLD, cache.query, n_B)
        out_BHLd = self._layer.attend(q_BHLd, cache.k_BHEd, cache.v_BHEd, cache.mask_BE)
        return self._query.output_of_prompt(out_BHLd, cache.query, n_B)

    def step(self, x_BD: Tensor, cache: CrossCache, place: Place) -> Tensor:
        """(B, d_model) -> (B, d_model)."""
        q_BH1d = self._query.step(x_BD, cache.query)
        place.lap("QKV")
        out = attention_step(q_BH1d, cache.k_BHEd, cache.v_BHEd, scale=self._scale, seen_BT=cache.seen_BE)
        if cache.empty_B111 is not None:
            out = out.masked_fill(cache.empty_B111, 0.0)
        place.lap("attention")
        return self._query.output(out, cache.query, place)

    def compile(self, program: Program, x: Normed, y: Stream) -> None:
        """One token of one row as operations; raises NotCompiledError where the query is none."""
        q, last = self._query.compile(program, x), self._query.compile_output
        n_heads = self._query.n_heads
        heads: Tensor | Stream = y if last is None else buffer("heads", q.numel())
        put = program.attend(q, None, n_heads, heads, scale=self._scale, adds=last is None)

        def bind(cache: CrossCache, n: int) -> None:
            put(cache.k_BHEd, cache.v_BHEd, 0, 0, cache.k_BHEd.shape[2])

        program.each_step(bind)
        if last is not None:
            last(program, heads, y)

    def reads(self) -> list[Read]:
        """What a token reads of weights."""
        return self._query.reads()
