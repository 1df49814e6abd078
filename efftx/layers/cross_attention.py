"""Cross-attention as a layer: queries from the decoder, keys and values from the encoder's output.

Shape suffixes: B batch, L tokens of the decoder, E tokens of the encoder, D d_model, H heads, d width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from efftx.layers.cache import Cache, Position
from efftx.layers.cost import SCORE_BACKWARD, STORED_SCORE_BACKWARD, Cost, Read, Rows, Work, linear_flops
from efftx.layers.initialize import glorot_
from efftx.layers.projections import DenseQuery, split_heads
from efftx.layers.sparse_qkv import ConvolutionCache, SparseQuery
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
        self.d_head = d_head
        self.scale = 1.0 / math.sqrt(d_head)
        self.attention_dropout = attention_dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases; the query starts itself."""
        glorot_(self.k)
        glorot_(self.v)

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream where the query has no output projection: the values."""
        return [self.v.weight] if isinstance(self.query, SparseQuery) else []

    def forward(
        self,
        x_BLD: Tensor,
        memory_BED: Tensor | None,
        memory_mask_BE: Tensor | None = None,
        cache: CrossCache | None = None,
    ) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `memory_mask_BE` is True on the encoder's real tokens.

        A row whose encoder tokens are all padding reads zeros. With `cache` the encoder's output is read once, and need
        not be given any more.
        """
        if cache is None:
            assert memory_BED is not None
            return self.query.output(self.attend(self.query(x_BLD), *self.of_memory(memory_BED), memory_mask_BE))
        if cache.is_empty:
            assert memory_BED is not None
            cache.fill(*self.of_memory(memory_BED), memory_mask_BE)
        q_BHLd = self.query(x_BLD, cache.query)
        return self.query.output(self.attend(q_BHLd, cache.k_BHEd, cache.v_BHEd, cache.mask_BE))

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

    def weight_reads(self) -> list[Read]:
        """The query's: keys and values of the encoder's output are made once a sequence."""
        return self.query.weight_reads()

    def cost(self, rows: Rows) -> Cost:
        """Of queries and scores for the decoder's tokens, and of keys and values for the encoder's."""
        length, width = rows.length, self.query.n_heads * self.d_head
        of_memory = (linear_flops(self.k) + linear_flops(self.v)) * rows.memory_length
        scores, stored = 4.0 * length * width * rows.memory_length, self.attention_dropout > 0 and rows.device == "cpu"
        work = {
            "attention_projections": Work(length * self.query.flops(length) + of_memory),
            "attention_scores": Work(scores, STORED_SCORE_BACKWARD if stored else SCORE_BACKWARD),
        }
        w, memory = rows.bytes_per_feature * width, rows.bytes_per_feature * width * rows.memory_length / length
        # The output once more with the rows that read nothing set to zero; the gradients of the encoder's output.
        draws = float(rows.batch * length * self.query.n_heads * rows.memory_length * (self.attention_dropout > 0))
        saved, backward = self.query.saved(rows) + 3 * w + 2 * memory, 3 * w + 4 * memory
        if stored:
            kept = rows.bytes_per_feature * self.query.n_heads * rows.memory_length
            saved, backward = saved - w + 3 * kept, max(backward, kept + 2 * w)
        return Cost(work, saved, backward, draws=draws, redrawn=draws)

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> CrossCache:
        """Nothing yet: the first call with it makes the keys and values of the encoder's output."""
        return CrossCache(self.query.new_cache(batch, position), like.dtype)


class CrossCache(Cache):
    """Keys and values of the encoder's output (B, H, E, d), which of them are real (B, E), and what the query keeps."""

    k_BHEd: Tensor  # noqa: N815
    v_BHEd: Tensor  # noqa: N815

    def __init__(self, query: ConvolutionCache | None, dtype: torch.dtype) -> None:
        self.query, self.dtype = query, dtype
        self.is_empty = True
        self.mask_BE: Tensor | None = None

    def fill(self, k_BHEd: Tensor, v_BHEd: Tensor, mask_BE: Tensor | None) -> None:
        """Keeps what is read of the encoder in all further calls, in the type of the weights, as other caches do."""
        self.is_empty = False
        self.k_BHEd, self.v_BHEd = k_BHEd.to(self.dtype).contiguous(), v_BHEd.to(self.dtype).contiguous()
        # A copy: every layer is given the same mask, and each cache moves its rows in place.
        self.mask_BE = None if mask_BE is None or mask_BE.all() else mask_BE.clone()

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        super().reorder(rows_B)
        if self.query is not None:
            self.query.reorder(rows_B)
