"""LSH attention as a layer: projections and hashing around `ops.lsh`.

Shape suffixes: B batch, L length, D d_model, H heads, d width of a head, R rounds, n half the sum of bucket factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.attention import AttentionCache, attention_cost, heads_of, pattern_cost
from efftx.layers.attention_settings import FullConfig, LSHConfig
from efftx.layers.cache import KeyValueCache, Position
from efftx.layers.cost import RANDOM_STATE_BYTES, Cost, Heads, Held, Read, Rows, Work
from efftx.layers.patterns import Full
from efftx.layers.projections import DenseQKV
from efftx.layers.sparse_qkv import SparseQKV
from efftx.ops.attention import full_attention, unit_key
from efftx.ops.lsh import lsh_attention
from efftx.ops.lsh_cache import BucketTable, candidates, empty_table, fill, insert, lsh_attention_step
from efftx.ops.lsh_hashing import auto_buckets, hash_vectors, make_rotations
from efftx.ops.lsh_runs import tile_scores
from efftx.ops.recompute_state import RecomputeState, choose

_HASHED_AT_ONCE = 4096
_BUCKET_BYTES, _PLACE_BYTES, _CODE_BYTES = 8, 4, 2
_IN_FULL = Full(FullConfig())
"""How rows of at most `full_below` tokens attend."""


class LSHAttention(nn.Module):
    """Shared-QK attention within hash buckets. A hash is drawn anew at every call, a head and an example.

    Under `rotations_shared` all examples of a call get the same one. `length`: the tokens of the model's rows, by
    which the automatic number of buckets and `full_below` go; None: those of the rows at hand. Raises ValueError for
    projections with keys of their own.
    """

    def __init__(
        self,
        config: LSHConfig,
        projections: DenseQKV | SparseQKV,
        *,
        attention_dropout: float = 0.0,
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

    def forward(
        self,
        x_BLD: Tensor,
        state: RecomputeState | None = None,
        key_mask_BL: Tensor | None = None,
        cache: AttentionCache | LSHCache | None = None,
    ) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). `state` keeps the buckets: a second call hashes nothing.

        `key_mask_BL` is True on real tokens; padding stands at the end, and is sorted into a bucket of its own. With
        `cache` it is a prompt, or one token a row, which attends to the last 2 chunk_len tokens of its bucket in every
        round, and to none of other buckets. That is not what the pass over whole rows does to the last bit: there later
        tokens move the borders of the chunks, and, in the authors' later form, a chunk is seen across buckets.
        """
        if cache is not None:
            qk, _, v = self.project(x_BLD, cache.projections)
            return self.project.output(cache.attend(self, qk, None, v), cache.projections)
        qk, _, v = self.project(x_BLD)
        n_buckets = self.buckets_for(x_BLD.shape[1])
        if not n_buckets:
            return self.project.output(self.attend(qk, None, v, key_mask_BL))
        if self.causal and self.config.padding_in_chunks:
            key_mask_BL = None
        # On a GPU the answer would have to be waited for.
        if key_mask_BL is not None and key_mask_BL.device.type == "cpu" and bool(key_mask_BL.all()):
            key_mask_BL = None
        bucket = choose(state, "buckets", lambda: self._draw_hash(qk, n_buckets)(qk.detach()))
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

    def _draw_hash(self, like_BHLd: Tensor, n_buckets: Sequence[int]) -> Hash:
        """A fresh hash for sequences like those given: one an example and head, or a head under `rotations_shared`."""
        return draw_hash(self.config, n_buckets, like_BHLd, n_drawn=1 if self.shares_rotations else len(like_BHLd))

    def _dropout_mask(self, like: Tensor) -> Tensor | None:
        """One mask of kept attention weights for all chunks, heads and rounds, as in the authors' code."""
        if not self.training or not self.attention_dropout:
            return None
        m = self.config.chunk_len
        # In half precision 1 / (1 - dropout) would be rounded, and the mean of the weights with it.
        dtype = torch.promote_types(like.dtype, torch.float32)
        kept = torch.ones(m, self._most_chunks * m, device=like.device, dtype=dtype)
        return F.dropout(kept, self.attention_dropout)

    def keys(self, length: int) -> float:
        """Scores computed for a query in the mean, padded and masked ones included, all rounds together: R 2 m.

        3 m a round in an encoder, and m where there is one chunk in all; (L + 1) / 2 where short rows attend in full.
        """
        if not self.buckets_for(length):
            return _IN_FULL.keys(length, causal=self.causal)
        n_hashes, m, padded = self.config.n_hashes, self.config.chunk_len, self._padded(length)
        return n_hashes * self._window(length) * m * padded / length

    def keys_of_token(self, n: int) -> int:
        """Earlier tokens that the token behind `n` others attends to at most: two chunks a round."""
        return min(n, self.config.n_hashes * 2 * self.config.chunk_len) if self.buckets_for(n) else n

    def weight_reads(self) -> list[Read]:
        """All of the projections."""
        return self.project.weight_reads()

    def cost(self, rows: Rows) -> Cost:
        """Projections, hashing, which never runs backward, scores and weighted values; see `ops.lsh`.

        A reversible stack keeps the buckets and where drawing the rotations left the random state. One mask of dropout
        serves all chunks of a call.
        """
        project, length, n_buckets = self.project, rows.length, self.buckets_for(rows.length)
        if not n_buckets:
            return pattern_cost(_IN_FULL, project, rows, causal=self.causal, dropout=self.attention_dropout)
        heads, m = heads_of(project, causal=self.causal), self.config.chunk_len
        columns = sum(n_buckets) if self.config.hashing == "angular" else 0
        flops = length * float(heads.n * heads.d_head * columns * self.config.n_hashes)
        hashing = {"hashing": Work(flops, backward=0.0, reversed=0.0, gathered=True)}
        dropped = float(self._most_chunks * m * m * (self.attention_dropout > 0))
        cost = attention_cost(project, rows, self.keys(length), self._held(rows, heads), hashing, draws=dropped)
        hashed = heads.d_head * columns // 2 if columns else length
        drawn = float(rows.batch * heads.n * self.config.n_hashes * hashed)
        buckets = _BUCKET_BYTES * rows.batch * length * heads.n * self.config.n_hashes
        work = {**cost.work, "attention_scores": replace(cost.work["attention_scores"], gathered=True)}
        choices = RANDOM_STATE_BYTES + buckets
        return replace(cost, work=work, choices=choices, draws=dropped + drawn, replayed=drawn)

    def _padded(self, length: int) -> int:
        return ceil(length / self.config.chunk_len) * self.config.chunk_len

    @property
    def _most_chunks(self) -> int:
        """Chunks that a chunk sees in a long row."""
        return 2 if self.causal else 3

    def _window(self, length: int) -> int:
        """Chunks that a chunk sees, itself among them: fewer where there are fewer in all."""
        return min(self._most_chunks, max(1, self.config.n_hashes * self._padded(length) // self.config.chunk_len))

    def _held(self, rows: Rows, heads: Heads) -> Held:
        """Queries, values, the output, once more for its projection, and sorted places; backward a group of sequences
        and a tile of their scores at a time.
        """
        w, sequences, d_head = heads.width(rows), rows.batch * heads.n, heads.d_head
        m, length, rounds = self.config.chunk_len, self._padded(rows.length), self.config.n_hashes
        chunks, window = rounds * length // m, self._window(rows.length)
        size, tile = rows.element_bytes, tile_scores(rows.device)
        saved = float(2 * _PLACE_BYTES * sequences * rounds * length + size * sequences * length)
        group = min(sequences, max(1, tile // ((chunks + window - 1) * window * m * m)))
        entries = group * (chunks + window - 1) * m
        windows = entries // m - window + 1
        per_tile = min(windows, max(1, tile // (m * m * window)))
        scores = per_tile * m * m * window
        counted = not self.config.allow_duplicates and rounds > 1
        group_rows = group * length * 4 * d_head
        tile_rows = (per_tile + window - 1) * m * 4 * d_head
        # Row and gradient buffers, gradients summed over rounds, a tile's scores, gradients and divisors; the codes.
        floats = 2 * group_rows + tile_rows + (3 * d_head + 6) * entries + (3 if counted else 2) * scores
        integers = _BUCKET_BYTES * 6 * group * rounds * length
        integers += _CODE_BYTES * 2 * (scores + (rounds - 1) * entries) if counted else 0
        # Both gradients, and the incoming one.
        return 4 * w + saved, 3 * w + float(size * floats + integers)

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> AttentionCache | LSHCache:
        """Room for `capacity` tokens a row; the rotations are drawn from PyTorch's random state.

        They are drawn once, the same for all rows, so that equal rows go on alike.
        """
        n_heads, config, n_buckets = self.project.n_heads, self.config, self.buckets_for(capacity)
        kv = KeyValueCache(batch, n_heads, capacity, self.d_head, self.d_head, like)
        if not n_buckets:
            return AttentionCache(kv, self.project.new_cache(batch, position), position)
        n_places = min(2 * config.chunk_len, capacity)
        table = empty_table(batch, n_heads, config.n_hashes, prod(n_buckets), n_places, device=like.device)
        drawn = draw_hash(config, n_buckets, kv.k_BHTd, n_drawn=1)
        return LSHCache(kv, self.project.new_cache(batch, position), position, drawn, table, n_buckets)


class AngularHash:
    """Vectors (B, H, L, d) -> buckets (B, H, R, L) int64 under one draw of rotations, without the round's offset."""

    def __init__(self, rotations_BHdRn: Tensor, n_buckets: Sequence[int]) -> None:
        self.rotations_BHdRn, self.n_buckets = rotations_BHdRn, n_buckets

    def __call__(self, x_BHLd: Tensor) -> Tensor:
        """The buckets."""
        return hash_vectors(x_BHLd, self.rotations_BHdRn, self.n_buckets)

    def tensors(self) -> list[Tensor]:
        """The rotations."""
        return [self.rotations_BHdRn]


class RandomHash:
    """As `AngularHash`, of buckets that are drawn anew for every vector; the same for all examples where `shared`."""

    def __init__(self, n_hashes: int, n_buckets: int, *, shared: bool) -> None:
        self.n_hashes, self.n_buckets, self.shared = n_hashes, n_buckets, shared

    def __call__(self, x_BHLd: Tensor) -> Tensor:
        """The buckets."""
        batch, heads, length, _ = x_BHLd.shape
        shape = (1 if self.shared else batch, heads, self.n_hashes, length)
        return torch.randint(self.n_buckets, shape, device=x_BHLd.device).expand(batch, -1, -1, -1)

    def tensors(self) -> list[Tensor]:
        """An empty list: it has no rotations."""
        return []


Hash = AngularHash | RandomHash


def draw_hash(config: LSHConfig, n_buckets: Sequence[int], like_BHLd: Tensor, *, n_drawn: int) -> Hash:
    """A fresh hash for sequences of the shape, dtype and device of `like_BHLd`; `n_drawn` of 1 serves all examples."""
    batch, heads, _, d_head = like_BHLd.shape
    if config.hashing == "random":
        return RandomHash(config.n_hashes, prod(n_buckets), shared=n_drawn < batch)
    rotations_BHdRn = make_rotations(
        (n_drawn, heads, d_head), config.n_hashes, n_buckets, device=like_BHLd.device, dtype=like_BHLd.dtype
    )
    return AngularHash(rotations_BHdRn.expand(batch, -1, -1, -1, -1), n_buckets)


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


class LSHCache(AttentionCache):
    """Keys, values, the hash of one generation, and which recent tokens each bucket holds.

    `n_buckets`: the factors of the number of buckets, as in `hash_vectors`.
    """

    kv: KeyValueCache

    def __init__(
        self,
        kv: KeyValueCache,
        projections: Any,
        position: Position,
        hash_vectors: Hash,
        table: BucketTable,
        n_buckets: Sequence[int],
    ) -> None:
        super().__init__(kv, projections, position)
        self.hash_vectors = hash_vectors
        self.table = table
        self.n_buckets = n_buckets

    def buckets_of(self, qk_BHLd: Tensor) -> Tensor:
        """The buckets (B, H, R, L) of queries or keys under this generation's hash."""
        # A part at a time: the projections of all rounds are many times as large as the vectors.
        parts = qk_BHLd.split(_HASHED_AT_ONCE, dim=2)
        return torch.cat([self.hash_vectors(part) for part in parts], -1)

    def attend(self, layer: Any, q_BHLd: Tensor, k_BHLd: Tensor | None, v_BHLd: Tensor) -> Tensor:
        """The heads' outputs (B, H, L, d) of a prompt, or of one token a row."""
        position, bucket_BHRL = self.position, self.buckets_of(q_BHLd)
        if not position.n:
            self.kv.fill(unit_key(q_BHLd), v_BHLd)
            fill(self.table, bucket_BHRL, position.own_B)
            # What stands behind a shorter row's end would move the borders of its chunks if sorted among its own.
            place_L, own_B = torch.arange(q_BHLd.shape[2], device=q_BHLd.device), position.own_B
            own_BL = None if own_B is None else place_L < own_B[:, None]
            whole: Tensor = layer.attend_in_buckets(q_BHLd, v_BHLd, bucket_BHRL, self.n_buckets, own_BL)
            return whole
        q_BHd, bucket_BHR = q_BHLd.squeeze(2), bucket_BHRL.squeeze(3)
        self.kv.write(position, unit_key(q_BHd), v_BHLd.squeeze(2))
        place = position.n if position.n_B is None else position.n_B
        out_BHd = lsh_attention_step(
            q_BHd,
            self.kv.k_BHTd,
            self.kv.v_BHTv,
            candidates(self.table, bucket_BHR),
            place,
            allow_duplicates=layer.config.allow_duplicates,
        )
        insert(self.table, bucket_BHR, place)
        return out_BHd.unsqueeze(2)

    def fill_at_random(self, n: int) -> None:
        """Fill the cache with random unit keys and random values for `n` tokens, in their buckets, for a timing."""
        k_BHLd, v_BHLv = self.kv.k_BHTd[:, :, :n], self.kv.v_BHTv[:, :, :n]
        k_BHLd.copy_(unit_key(k_BHLd.normal_()))
        v_BHLv.normal_()
        fill(self.table, self.buckets_of(k_BHLd))

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        super().reorder(rows_B)
        for kept in self.table:  # the hash is the same for all rows
            kept.copy_(kept.index_select(0, rows_B))
