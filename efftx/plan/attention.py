"""What one attention layer computes and holds, counted from its shapes.

A multiplication with its addition is two FLOPs; only matrix products are counted, as PyTorch's own counter does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from efftx.config.schema import Config
from efftx.layers.attention_settings import FullConfig
from efftx.layers.patterns import PATTERNS, Full, Pattern, make_pattern
from efftx.layers.sparse_qkv_maps import SparseQKVConfig
from efftx.ops.lsh_hashing import auto_buckets
from efftx.plan.projections import query_flops, sparse_qkv_flops

SCORE_BACKWARD = 2.5
"""Backward over forward FLOPs of scores and weighted values: no kernel here stores scores, so that a backward pass
makes them again (one product) and forms the gradients of weights, values, queries and keys (four)."""


@dataclass(frozen=True)
class AttentionShape:
    """One attention layer at one length. `pattern` is that of softmax attention; `chunk_len`, `n_hashes` and
    `n_buckets` (factors) are of `lsh`, which always shares queries and keys; `memory_length` tokens of the encoder are
    read by `cross` alone. `sparse` are sparse projections, None dense ones."""

    kind: str
    length: int
    d_model: int
    n_heads: int
    d_head: int
    share_qk: bool = True
    pattern: Pattern | None = None
    chunk_len: int = 0
    n_hashes: int = 0
    n_buckets: tuple[int, ...] = ()
    causal: bool = True
    memory_length: int = 0
    sparse: SparseQKVConfig | None = None
    d_qk: int | None = None

    @property
    def width(self) -> int:
        """Width of all heads together."""
        return self.n_heads * self.d_head

    @property
    def padded_length(self) -> int:
        """The length in whole chunks, or as it is where nothing is cut into chunks."""
        return ceil(self.length / self.chunk_len) * self.chunk_len if self.chunk_len else self.length

    @property
    def window(self) -> int:
        """Chunks that a chunk of hash attention sees, itself among them: fewer where there are fewer in all."""
        most = 2 if self.causal else 3
        return min(most, max(1, self.n_hashes * self.padded_length // self.chunk_len))

    @property
    def keys(self) -> float:
        """Scores computed for a query in the mean, masked and padded ones included, all rounds together.

        Softmax attention: what its pattern says. lsh: n_hashes 2 m, for each of the padded L (m where there is one
        chunk in all; 3 m in an encoder). cross: the encoder's E.
        """
        if self.kind == "cross":
            return self.memory_length
        if self.pattern is not None:
            return self.pattern.keys(self.length, causal=self.causal, exclude_self=self.share_qk)
        if self.kind != "lsh":
            return 0.0  # a mechanism of one's own
        return self.n_hashes * self.window * self.chunk_len * self.padded_length / self.length

    @property
    def dense_keys(self) -> float:
        """Keys that a causal query sees in the mean: (L + 1) / 2."""
        return (self.length + 1) / 2

    @property
    def projection_flops(self) -> float:
        """Forward FLOPs a token of q (with k, unless shared), v and the output: 2 d_model width each.

        Sparse ones: `plan.projections`. Cross-attention makes k and v once for each of the encoder's tokens.
        """
        dense = 2.0 * self.d_model * self.width
        if self.kind == "cross":
            own = 2 * dense if self.sparse is None else query_flops(self.sparse, self.d_model, self.length)
            return own + 2 * dense * self.memory_length / self.length
        if self.sparse is not None:
            return sparse_qkv_flops(self.sparse, self.d_model, self.length, share_qk=self.share_qk)
        if self.d_qk is not None:
            return 4.0 * self.d_model * (self.n_heads * self.d_qk + self.width)
        return dense * (3 if self.share_qk else 4)

    @property
    def score_flops(self) -> float:
        """Forward FLOPs a token of q k^T and of the weighted values: 4 d_head a key and head."""
        return 4.0 * self.width * self.keys

    @property
    def hashing_flops(self) -> float:
        """FLOPs a token of the rotations: 2 d_head (sum of the factors / 2) a head and round. Never run backward."""
        return float(self.width * sum(self.n_buckets) * self.n_hashes)

    def flops_of_scores(self, *, backward: bool) -> float:
        """FLOPs of scores and weighted values for one row of L tokens, forward or forward and backward."""
        return self.length * self.score_flops * (1 + SCORE_BACKWARD if backward else 1)

    def flops(self, *, backward: bool) -> float:
        """FLOPs of the whole layer for one row of L tokens, forward or forward and backward."""
        projections = self.projection_flops * (3 if backward else 1)
        return self.length * (projections + self.hashing_flops) + self.flops_of_scores(backward=backward)


def shape_of_layer(config: Config, kind: str, length: int, index: int = 0, *, causal: bool = True) -> AttentionShape:
    """The shape of one of the config's self-attention layers over `length` tokens, behind `index` of its kind.

    Hash attention of at most `lsh.full_below` tokens is full attention that shares queries and keys.
    """
    lsh = config.lsh
    hashed = kind == "lsh" and length > lsh.full_below
    pattern: Pattern | None = Full(FullConfig()) if kind == "lsh" else None
    if kind in PATTERNS:
        pattern = make_pattern(kind, getattr(config, kind), length, index)
    return AttentionShape(
        kind="full" if kind == "lsh" and not hashed else kind,
        length=length,
        d_model=config.d_model,
        n_heads=config.n_heads,
        d_head=config.width_of_head,
        share_qk=config.share_qk or kind == "lsh",
        pattern=None if hashed else pattern,
        chunk_len=lsh.chunk_len if hashed else 0,
        n_hashes=lsh.n_hashes if hashed else 0,
        n_buckets=tuple(lsh.n_buckets or auto_buckets(length, lsh.chunk_len)) if hashed else (),
        causal=causal,
        d_qk=config.d_qk,
        sparse=config.sparse_qkv if config.sparse_qkv.S and (causal or config.sparse_qkv.encoder) else None,
    )


def shape_of_cross_attention(config: Config, length: int, memory_length: int) -> AttentionShape:
    """The shape of the decoder's attention to the encoder's output."""
    return AttentionShape(
        kind="cross",
        length=length,
        d_model=config.d_model,
        n_heads=config.n_heads,
        d_head=config.width_of_head,
        share_qk=False,
        causal=False,
        memory_length=memory_length,
        sparse=config.sparse_qkv if config.sparse_qkv.S and config.sparse_qkv.cross == "query" else None,
    )
