"""Full attention as a layer: projections around `ops.attention`."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from efftx.layers.projections import DenseQKV
from efftx.layers.sparse_qkv import SparseQKV
from efftx.ops.attention import full_attention, unit_key
from efftx.ops.replay import Replay


@dataclass
class FullConfig:
    """`query_block`: queries whose scores exist at a time; 0 is PyTorch's fused kernel, which keeps none."""

    query_block: int = 0


class FullAttention(nn.Module):
    """Multi-head attention over all positions, or the earlier ones; with `share_qk` the paper's shared-QK form."""

    def __init__(
        self,
        config: FullConfig,
        projections: DenseQKV | SparseQKV,
        *,
        d_head: int,
        attention_dropout: float,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.query_block = config.query_block
        self.project = projections
        self.scale = 1.0 if projections.share_qk else 1.0 / math.sqrt(d_head)
        self.attention_dropout = attention_dropout

    def forward(self, x_BLD: Tensor, replay: Replay | None = None, key_mask_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `key_mask_BL` is True on real tokens; padding stands at the end."""
        q, k, v = self.project(x_BLD)
        out = full_attention(
            q,
            unit_key(q) if k is None else k,
            v,
            scale=self.scale,
            causal=self.causal,
            # Causality hides padding at the end from every real token already, in the fused kernel and without a mask.
            key_mask_BL=None if self.causal else key_mask_BL,
            exclude_self=k is None,
            query_block=self.query_block,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return self.project.output(out)
