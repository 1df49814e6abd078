"""LSH attention as a layer: projections and hashing around `ops.lsh`."""

from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.projections import DenseQKV
from efftx.layers.sparse_qkv import SparseQKV
from efftx.ops.attention import full_attention, unit_key
from efftx.ops.lsh import auto_buckets, hash_vectors, lsh_attention, make_rotations
from efftx.ops.replay import Replay, choose


@dataclass
class LSHConfig:
    """Keys of LSH attention (Reformer, section 2).

    `n_hashes` rounds; `n_buckets` one even number or a list of even factors, empty for the authors' rule (two buckets a
    chunk); `chunk_len` queries a chunk, which see their own chunk, the one before and, unless causal, the one after.
    The paper's equations forbid attention across buckets and count a pair found in several rounds once; the authors'
    later code does neither. Sequences of at most `full_below` tokens attend in full and hash nothing (Terraformer:
    hashing pays on long inputs only).
    """

    n_hashes: int = 2
    n_buckets: list[int] = field(default_factory=list)
    chunk_len: int = 64
    attend_across_buckets: bool = False
    allow_duplicates: bool = False
    full_below: int = 0


class LSHAttention(nn.Module):
    """Shared-QK attention within hash buckets. Rotations are drawn anew at every call, a head and an example.

    Raises ValueError for projections with keys of their own.
    """

    def __init__(
        self, config: LSHConfig, projections: DenseQKV | SparseQKV, *, attention_dropout: float, causal: bool = True
    ) -> None:
        super().__init__()
        if not projections.share_qk:
            raise ValueError("Hash attention takes projections that share queries and keys.")
        self.causal = causal
        self.config = config
        self.project = projections
        self.attention_dropout = attention_dropout

    def forward(self, x_BLD: Tensor, replay: Replay | None = None, key_mask_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `replay` keeps the buckets: a second call hashes nothing.

        `key_mask_BL` is True on real tokens; padding stands at the end, and is sorted into a bucket of its own.
        """
        config = self.config
        qk, _, v = self.project(x_BLD)
        if x_BLD.shape[1] <= config.full_below:
            return self.project.output(self._attend_in_full(qk, v, key_mask_BL))
        n_buckets = config.n_buckets or auto_buckets(x_BLD.shape[1], config.chunk_len)
        bucket = choose(replay, "buckets", lambda: self._hash(qk.detach(), n_buckets))
        out = lsh_attention(
            qk,
            v,
            bucket,
            n_buckets_total=prod(n_buckets),
            chunk_len=config.chunk_len,
            causal=self.causal,
            key_mask_BL=key_mask_BL,
            attend_across_buckets=config.attend_across_buckets,
            allow_duplicates=config.allow_duplicates,
            dropout_mask_mK=self._dropout_mask(qk),
        )
        return self.project.output(out)

    def _attend_in_full(self, qk_BHLd: Tensor, v_BHLd: Tensor, key_mask_BL: Tensor | None) -> Tensor:
        return full_attention(
            qk_BHLd,
            unit_key(qk_BHLd),
            v_BHLd,
            scale=1.0,
            causal=self.causal,
            # Causality hides padding at the end from every real token already.
            key_mask_BL=None if self.causal else key_mask_BL,
            exclude_self=True,
            dropout=self.attention_dropout if self.training else 0.0,
        )

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
        n_window = 2 if self.causal else 3
        kept = torch.ones(self.config.chunk_len, n_window * self.config.chunk_len, device=like.device, dtype=like.dtype)
        return F.dropout(kept, self.attention_dropout)
