"""LSH attention as a layer: projections and hashing around `ops.lsh`.

Shape suffixes: B batch, L length, D d_model, H heads, d width of a head, R rounds, n half the sum of bucket factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.attention import AttentionCache, SoftmaxStepper
from efftx.layers.cache import Cache, KeyValueCache, Place
from efftx.layers.matrix import Read
from efftx.layers.patterns import Full
from efftx.layers.projections import DenseQKV
from efftx.layers.settings import FullConfig, LSHConfig
from efftx.layers.sparse_qkv import SparseQKV
from efftx.native.program import Normed, Program, Stream
from efftx.ops.attention import full_attention, unit_key
from efftx.ops.lsh import auto_buckets, hash_vectors, lsh_attention, make_rotations
from efftx.ops.lsh_cache import BucketTable, candidates, empty_table, fill, insert, lsh_attention_step
from efftx.ops.replay import Replay, choose

_HASHED_AT_ONCE = 4096


class LSHAttention(nn.Module):
    """Shared-QK attention within hash buckets. Rotations are drawn anew at every call, a head and an example.

    Under `rotations_shared` all examples of a call get the same ones. `length`: the tokens of the model's rows, by
    which the automatic number of buckets and `full_below` go; None: those of the rows at hand. Raises ValueError for
    projections with keys of their own.
    """

    def __init__(
        self,
        config: LSHConfig,
        projections: DenseQKV | SparseQKV,
        *,
        attention_dropout: float,
        causal: bool = True,
        length: int | None = None,
    ) -> None:
        super().__init__()
        if not projections.share_qk:
            raise ValueError("Hash attention takes projections that share queries and keys.")
        self.scale, self.d_head = 1.0, projections.d_head
        self.causal = causal
        self.config = config
        self.project = projections
        self.attention_dropout = attention_dropout
        self.length = length
        self.shares_rotations = False

    def forward(self, x_BLD: Tensor, replay: Replay | None = None, key_mask_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `replay` keeps the buckets: a second call hashes nothing.

        `key_mask_BL` is True on real tokens; padding stands at the end, and is sorted into a bucket of its own.
        """
        qk, _, v = self.project(x_BLD)
        n_buckets = self.buckets_for(x_BLD.shape[1])
        if not n_buckets:
            return self.project.output(self.attend(qk, None, v, key_mask_BL))
        if self.causal and self.config.padding_in_chunks:
            key_mask_BL = None
        # On a GPU the answer would have to be waited for.
        if key_mask_BL is not None and key_mask_BL.device.type == "cpu" and bool(key_mask_BL.all()):
            key_mask_BL = None
        bucket = choose(replay, "buckets", lambda: self._hash(qk.detach(), n_buckets))
        keep_places = self.config.padding_in_chunks
        return self.project.output(self.attend_in_buckets(qk, v, bucket, n_buckets, key_mask_BL, keep_places))

    def buckets_for(self, length: int) -> list[int]:
        """Factors of the number of buckets in rows of `length` tokens; none where such rows attend in full."""
        config, length = self.config, self.length or length
        if length <= config.full_below:
            return []
        return config.n_buckets or auto_buckets(length, config.chunk_len)

    def attend_in_buckets(
        self,
        qk: Tensor,
        v: Tensor,
        bucket: Tensor,
        n_buckets: Sequence[int],
        key_mask_BL: Tensor | None = None,
        padding_keeps_places: bool = False,
    ) -> Tensor:
        """The heads' outputs (B, H, L, d) of shared queries and keys in given buckets; see `ops.lsh`."""
        config = self.config
        return lsh_attention(
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
            padding_keeps_places=padding_keeps_places,
        )

    def attend(self, qk_BHLd: Tensor, k: None, v_BHLd: Tensor, key_mask_BL: Tensor | None) -> Tensor:
        """The heads' outputs (B, H, L, d) in full attention, as for short sequences."""
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
        n_drawn = 1 if self.shares_rotations else batch
        rotations = make_rotations(
            n_drawn, heads, d_head, self.config.n_hashes, n_buckets, device=qk_BHLd.device, dtype=qk_BHLd.dtype
        )
        return hash_vectors(qk_BHLd, rotations.expand(batch, -1, -1, -1, -1), n_buckets)

    def _dropout_mask(self, like: Tensor) -> Tensor | None:
        """One mask of kept attention weights for all chunks, heads and rounds, as in the authors' code."""
        if not self.training or not self.attention_dropout:
            return None
        n_window = 2 if self.causal else 3
        kept = torch.ones(self.config.chunk_len, n_window * self.config.chunk_len, device=like.device, dtype=like.dtype)
        return F.dropout(kept, self.attention_dropout)

    def stepper(self, *, int8: bool = False) -> LSHStepper:
        """The layer for decoding: a token sees the recent tokens of its buckets."""
        return LSHStepper(self, int8=int8)


@contextmanager
def rotations_shared(model: nn.Module) -> Iterator[None]:
    """Hash attention in `model` hashes all examples of a call by the same rotations: equal rows come out alike."""
    layers = [layer for layer in model.modules() if isinstance(layer, LSHAttention)]
    for layer in layers:
        layer.shares_rotations = True
    try:
        yield
    finally:
        for layer in layers:
            layer.shares_rotations = False


class LSHCache(Cache):
    """Keys, values, the rotations of one generation, and which recent tokens each bucket holds.

    `n_buckets`: the factors of the number of buckets, as in `hash_vectors`.
    """

    for_program = False

    def __init__(
        self,
        kv: KeyValueCache,
        projections: Any,
        rotations_BHdRn: Tensor,
        table: BucketTable,
        n_buckets: Sequence[int],
    ) -> None:
        self.kv, self.projections = kv, projections
        self.rotations_BHdRn = rotations_BHdRn
        self.table = table
        self.n_buckets = n_buckets

    def buckets_of(self, qk_BHLd: Tensor) -> Tensor:
        """The buckets (B, H, R, L) of queries or keys under this generation's rotations."""
        # A part at a time: the projections of all rounds are many times as large as the vectors.
        parts = qk_BHLd.split(_HASHED_AT_ONCE, dim=2)
        return torch.cat([hash_vectors(part, self.rotations_BHdRn, self.n_buckets) for part in parts], -1)

    def fill_at_random(self, n: int) -> None:
        """Fill the cache with random unit keys and random values for `n` tokens, in their buckets, for a timing."""
        k_BHLd, v_BHLv = self.kv.k_BHTd[:, :, :n], self.kv.v_BHTv[:, :, :n]
        k_BHLd.copy_(unit_key(k_BHLd.normal_()))
        v_BHLv.normal_()
        fill(self.table, self.buckets_of(k_BHLd))

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        self.kv.reorder(rows_B)
        if self.projections is not None:
            self.projections.reorder(rows_B)
        for kept in self.table:  # the rotations are the same for all rows
            kept.copy_(kept.index_select(0, rows_B))


class LSHStepper:
    """`LSHAttention` for one token a row.

    The number of buckets is that of training (`buckets_for`). The rotations are drawn once a generation, the same for
    all its rows, so that equal rows go on alike. A token attends to the last 2 chunk_len tokens of its bucket in every
    round, and to none of other buckets. That is not what the pass over whole rows does to the last bit: there later
    tokens move the borders of the chunks, and, in the authors' later form, a chunk is seen across buckets. Rows of at
    most `full_below` tokens hash nothing.
    """

    def __init__(self, layer: LSHAttention, *, int8: bool) -> None:
        self._layer = layer
        self._in_full = SoftmaxStepper(layer, Full(FullConfig()), int8=int8)
        self._projections: Any = self._in_full.projections

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> AttentionCache | LSHCache:
        """Room for `capacity` tokens a row; the rotations are drawn from PyTorch's random state."""
        layer, config = self._layer, self._layer.config
        n_buckets = layer.buckets_for(capacity)
        if not n_buckets:
            return self._in_full.new_cache(batch, capacity, like)
        n_heads = self._projections.n_heads
        rotations = make_rotations(
            1, n_heads, layer.d_head, config.n_hashes, n_buckets, device=like.device, dtype=like.dtype
        ).repeat(batch, 1, 1, 1, 1)
        table = empty_table(
            batch, n_heads, config.n_hashes, prod(n_buckets), min(2 * config.chunk_len, capacity), device=like.device
        )
        kv = KeyValueCache(batch, n_heads, capacity, layer.d_head, layer.d_head, like)
        return LSHCache(kv, self._projections.new_state(batch), rotations, table, n_buckets)

    def prefill(self, x_BLD: Tensor, cache: AttentionCache | LSHCache, n_B: Tensor | None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model) of a prompt from position 0, kept in `cache`; row b has n_B[b] tokens."""
        if isinstance(cache, AttentionCache):
            return self._in_full.prefill(x_BLD, cache, n_B)
        qk, _, v = self._projections.prefill(x_BLD, cache.projections, n_B)
        bucket_BHRL = cache.buckets_of(qk)
        cache.kv.fill(unit_key(qk), v)
        fill(cache.table, bucket_BHRL, n_B)
        # What stands behind a shorter row's end would move the borders of its chunks if it were sorted among its own.
        own_BL = None if n_B is None else torch.arange(x_BLD.shape[1], device=n_B.device) < n_B[:, None]
        out = self._layer.attend_in_buckets(qk, v, bucket_BHRL, cache.n_buckets, own_BL)
        y_BLD: Tensor = self._projections.output_of_prompt(out, cache.projections, n_B)
        return y_BLD

    def step(self, x_BD: Tensor, cache: AttentionCache | LSHCache, place: Place) -> Tensor:
        """(B, d_model) -> (B, d_model) of the token at `place`."""
        if isinstance(cache, AttentionCache):
            return self._in_full.step(x_BD, cache, place)
        q_BHd, _, v_BHd = self._projections.step(x_BD, cache.projections)
        place.lap("QKV")
        cache.kv.write(place, unit_key(q_BHd), v_BHd)
        bucket_BHR = cache.buckets_of(q_BHd.unsqueeze(2)).squeeze(3)
        own = place.n if place.n_B is None else place.n_B
        out = lsh_attention_step(
            q_BHd,
            cache.kv.k_BHTd,
            cache.kv.v_BHTv,
            candidates(cache.table, bucket_BHR),
            own,
            allow_duplicates=self._layer.config.allow_duplicates,
        )
        insert(cache.table, bucket_BHR, own)
        place.lap("attention")
        y_BD: Tensor = self._projections.output(out, cache.projections, place)
        return y_BD

    def compile(self, program: Program, x: Normed, y: Stream) -> None:
        """One token of one row as operations, for a capacity that hashes nothing."""
        self._in_full.compile(program, x, y)

    def reads(self) -> list[Read]:
        """What a token reads of weights; the rotations are not among them."""
        found: list[Read] = self._projections.reads()
        return found
