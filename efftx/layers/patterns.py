"""Attention over fixed neighbourhoods as layers: projections around `ops.patterns`."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from efftx.layers.projections import DenseQKV
from efftx.layers.sparse_qkv import SparseQKV
from efftx.ops.attention import unit_key
from efftx.ops.patterns import local_attention
from efftx.ops.replay import Replay


@dataclass
class LocalConfig:
    """`chunk_len`: positions in a chunk; a query sees its own, the one before and, unless causal, the one after."""

    chunk_len: int = 128


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
        self.scale = 1.0 if projections.share_qk else 1.0 / math.sqrt(d_head)
        self.attention_dropout = attention_dropout

    def forward(self, x_BLD: Tensor, replay: Replay | None = None, key_mask_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `key_mask_BL` is True on real tokens; padding stands at the end."""
        q, k, v = self.project(x_BLD)
        out = local_attention(
            q,
            unit_key(q) if k is None else k,
            v,
            scale=self.scale,
            chunk_len=self.chunk_len,
            causal=self.causal,
            # Causality hides padding at the end from every real token already.
            key_mask_BL=None if self.causal else key_mask_BL,
            exclude_self=k is None,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return self.project.output(out)
