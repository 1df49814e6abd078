"""Attention over fixed neighbourhoods as layers: projections around `ops.patterns`."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from efftx.layers.attention import SoftmaxStepper
from efftx.layers.projections import DenseQKV
from efftx.layers.settings import LocalConfig
from efftx.layers.sparse_qkv import SparseQKV
from efftx.ops.attention import unit_key
from efftx.ops.patterns import local_attention
from efftx.ops.replay import Replay


class LocalAttention(nn.Module):
    """Multi-head attention over the query's own chunk, the one before it and, unless causal, the one after it."""

    def __init__(
        self,
        config: LocalConfig,
        projections: DenseQKV | SparseQKV,
        *,
        d_head: int,
        attention_dropout: float,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.chunk_len = config.chunk_len
        self.project = projections
        self.d_head = d_head
        self.scale = 1.0 if projections.share_qk else 1.0 / math.sqrt(d_head)
        self.attention_dropout = attention_dropout

    def forward(self, x_BLD: Tensor, replay: Replay | None = None, key_mask_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `key_mask_BL` is True on real tokens; padding stands at the end."""
        q, k, v = self.project(x_BLD)
        return self.project.output(self.attend(q, k, v, key_mask_BL))

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor | None, v_BHLd: Tensor, key_mask_BL: Tensor | None) -> Tensor:
        """The heads' outputs (B, H, L, d); keys are the queries at unit length where there are none."""
        return local_attention(
            q_BHLd,
            unit_key(q_BHLd) if k_BHLd is None else k_BHLd,
            v_BHLd,
            scale=self.scale,
            chunk_len=self.chunk_len,
            causal=self.causal,
            # Causality hides padding at the end from every real token already.
            key_mask_BL=None if self.causal else key_mask_BL,
            exclude_self=k_BHLd is None,
            dropout=self.attention_dropout if self.training else 0.0,
        )

    def stepper(self, *, int8: bool = False) -> SoftmaxStepper:
        """The layer for decoding: a token sees its own chunk's earlier tokens and the chunk before."""
        return SoftmaxStepper(self, first=self._first_seen, int8=int8)

    def _first_seen(self, position: Any) -> Any:
        """Where the chunk before that of `position` begins; a position is an int or a tensor of them."""
        first = (position // self.chunk_len - 1) * self.chunk_len
        return first.clamp(min=0) if isinstance(first, Tensor) else max(0, first)
