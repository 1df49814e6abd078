"""Cross-attention as a layer: queries from the decoder, keys and values from the encoder's output.

Shape suffixes: B batch, L tokens of the decoder, E tokens of the encoder, D d_model, H heads, d width of a head.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from efftx.layers.initialize import glorot_
from efftx.layers.projections import DenseQuery, split_heads
from efftx.layers.sparse_qkv import SparseQuery
from efftx.ops.attention import full_attention


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
        self.scale = 1.0 / math.sqrt(d_head)
        self.attention_dropout = attention_dropout

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases; the query starts itself."""
        glorot_(self.k)
        glorot_(self.v)

    def forward(self, x_BLD: Tensor, memory_BED: Tensor, memory_mask_BE: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `memory_mask_BE` is True on the encoder's real tokens.

        A row whose encoder tokens are all padding reads zeros.
        """
        out_BHLd = full_attention(
            self.query(x_BLD),
            split_heads(self.k(memory_BED), self.query.n_heads),
            split_heads(self.v(memory_BED), self.query.n_heads),
            scale=self.scale,
            causal=False,
            key_mask_BL=memory_mask_BE,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return self.query.output(out_BHLd)
