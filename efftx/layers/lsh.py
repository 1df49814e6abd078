"""LSH attention as a layer: projections and hashing around `ops.lsh`."""

from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.projections import DenseQKV
from efftx.ops.lsh import auto_buckets, hash_vectors, lsh_attention, make_rotations
from efftx.ops.replay import Replay, choose


@dataclass
class LSHConfig:
    """Keys of LSH attention (Reformer, section 2).

    `n_hashes` rounds; `n_buckets` one even number or a list of even factors, empty for the authors' rule (two buckets a
    chunk); `chunk_len` queries a chunk, which see their own chunk and the one before. The paper's equations forbid
    attention across buckets and count a pair found in several rounds once; the authors' later code does neither.
    """

    n_hashes: int = 2
    n_buckets: list[int] = field(default_factory=list)
    chunk_len: int = 64
    attend_across_buckets: bool = False
    allow_duplicates: bool = False


class LSHAttention(nn.Module):
    """Causal shared-QK attention within hash buckets. Rotations are drawn anew at every call, a head and an example."""

    def __init__(self, config: LSHConfig, projections: DenseQKV, *, attention_dropout: float) -> None:
        super().__init__()
        self.config = config
        self.project = projections
        self.attention_dropout = attention_dropout

    def forward(self, x_BLD: Tensor, replay: Replay | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `replay` keeps the buckets: a second call hashes nothing."""
        config = self.config
        qk, _, v = self.project(x_BLD)
        n_buckets = config.n_buckets or auto_buckets(x_BLD.shape[1], config.chunk_len)
        bucket = choose(replay, "buckets", lambda: self._hash(qk.detach(), n_buckets))
        out = lsh_attention(
            qk,
            v,
            bucket,
            n_buckets_total=prod(n_buckets),
            chunk_len=config.chunk_len,
            attend_across_buckets=config.attend_across_buckets,
            allow_duplicates=config.allow_duplicates,
            dropout_mask_mK=self._dropout_mask(qk),
        )
        return self.project.output(out)

    def _hash(self, qk_BHLd: Tensor, n_buckets: list[int]) -> Tensor:
        batch, heads, _, d_head = qk_BHLd.shape
        rotations = make_rotations(
            batch, heads, d_head, self.config.n_hashes, n_buckets, device=qk_BHLd.device, dtype=qk_BHLd.dtype
        )
        return hash_vectors(qk_BHLd, rotations, n_buckets)

    def _dropout_mask(self, like: Tensor) -> Tensor | None:
        """One mask of kept attention weights for all chunks, heads and rounds, as in the authors' code."""
        if not self.training or not self.attention_dropout:
            return None
        kept = torch.ones(self.config.chunk_len, 2 * self.config.chunk_len, device=like.device, dtype=like.dtype)
        return F.dropout(kept, self.attention_dropout)
