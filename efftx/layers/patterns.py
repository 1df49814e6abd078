"""Patterns of attention: which keys a query may see, how to attend to them, and which cached ones a new token needs.

Shape suffixes: B batch, H heads, L length, d, v widths of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from efftx.errors import UserError, nearest
from efftx.layers.attention_settings import FixedConfig, FullConfig, LocalConfig, StridedConfig, in_layer
from efftx.layers.cache import KeyValueCache, SlotCache, from_the_start
from efftx.layers.cost import Heads, Held, Rows
from efftx.ops import key_sets
from efftx.ops.attention import full_attention
from efftx.ops.fixed import FixedUnion, OwnBlock, Summaries
from efftx.ops.flex import attend_flex, is_for
from efftx.ops.key_sets import Layout
from efftx.ops.local import local_attention
from efftx.ops.slots import Slots
from efftx.ops.strided import Column, StridedUnion, Window


class Softmax(NamedTuple):
    """How the heads weigh the values; `exclude_self` and `key_mask_BL` as in `ops.attention.full_attention`."""

    scale: float
    causal: bool = True
    exclude_self: bool = False
    key_mask_BL: Tensor | None = None  # noqa: N815
    dropout: float = 0.0


class KeySet(Protocol):
    """The keys of one head's queries: as an index set, as blocks of work, and as slots of a cache."""

    def sees(self, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """Whether queries may see keys; positions that broadcast."""
        ...

    def sees_others(self, query: Tensor) -> Tensor:
        """Whether a causal query sees another position than its own."""
        ...

    def layout(self, length: int, *, causal: bool = True, exclude_self: bool = False) -> key_sets.Layout:
        """The parts of a row of `length` tokens."""
        ...

    def cached(self, capacity: int) -> tuple[Slots, ...]:
        """How the keys are kept that tokens up to `capacity` may see."""
        ...


class Pattern(Protocol):
    """What softmax attention asks of a pattern.

    `in_order`: the cache keeps keys one behind the other, and a token sees the last of them without a gap. `n_sets`:
    the sets of keys that the heads take in turn; their number is to be a multiple of it.
    """

    in_order: bool
    n_sets: int

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLv: Tensor, how: Softmax) -> Tensor:
        """The heads' outputs (B, H, L, v)."""
        ...

    def sees(self, head: int, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """The index set of a head: whether queries may see keys; positions that broadcast."""
        ...

    def stores_scores(self, dropout: float, device: str) -> bool:
        """Whether training keeps every score: plain products compute them where no fused kernel drops weights."""
        ...

    def keys(self, length: int, *, causal: bool = True, exclude_self: bool = False, stored: bool = False) -> float:
        """Scores computed for a query in the mean over a row and the heads, masked and padded ones included.

        `stored`: by plain products, which skip none (`stores_scores`).
        """
        ...

    def draws(self, rows: Rows, heads: Heads, keys: float) -> float:
        """Numbers that dropout of the weights draws in a forward pass; `keys` as `keys` gives them."""
        ...

    def redraws(self) -> bool:
        """Whether the backward pass draws them again."""
        ...

    def held(self, rows: Rows, heads: Heads) -> Held:
        """Bytes of queries, keys, values, the heads' output and all between them, in training."""
        ...

    def new_cache(self, batch: int, n_heads: int, capacity: int, d: int, like: Tensor) -> KeyValueCache | SlotCache:
        """An empty cache of what causal tokens up to `capacity` may see, of the dtype and on the device of `like`."""
        ...

    def cached(self, capacity: int) -> float:
        """Keys that it keeps, the mean over the heads."""
        ...


class _KeepsAll:
    """Keys are cached one behind the other, all of them, though a token may see only the last."""

    in_order = True
    n_sets = 1

    def stores_scores(self, dropout: float, device: str) -> bool:
        """With dropout on a CPU, whose fused kernel has none."""
        return dropout > 0 and device == "cpu"

    def draws(self, rows: Rows, heads: Heads, keys: float) -> float:
        """One a score."""
        return rows.batch * rows.length * heads.n * keys

    def redraws(self) -> bool:
        """False: the backward pass draws nothing again."""
        return False

    def first(self, position: Any) -> Any:
        """The first key that the token at `position`, an int or a tensor of them, sees."""
        return from_the_start(position)

    def new_cache(self, batch: int, n_heads: int, capacity: int, d: int, like: Tensor) -> KeyValueCache:
        """Room for all keys."""
        return KeyValueCache(batch, n_heads, capacity, d, d, like, first=self.first)

    def cached(self, capacity: int) -> float:
        """As many keys as there is room for: all are kept."""
        return capacity


class Full(_KeepsAll):
    """A query sees every position or, if causal, those up to its own."""

    def __init__(self, config: FullConfig) -> None:
        self.query_block = config.query_block

    def stores_scores(self, dropout: float, device: str) -> bool:
        """As of PyTorch's kernel; by query block none."""
        return not self.query_block and super().stores_scores(dropout, device)

    def redraws(self) -> bool:
        """By query block, each of which is run again."""
        return self.query_block > 0

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLv: Tensor, how: Softmax) -> Tensor:
        """The heads' outputs (B, H, L, v), by query block where the config says so."""
        return full_attention(q_BHLd, k_BHLd, v_BHLv, query_block=self.query_block, **how._asdict())

    def sees(self, head: int, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """All, or those up to the query's own."""
        return key <= query if causal else (key == key) & (query == query)

    def keys(self, length: int, *, causal: bool = True, exclude_self: bool = False, stored: bool = False) -> float:
        """(L + 1) / 2, which the causal kernel does not skip; by query block the last position of each query's block.

        Without causality L; L too where all are stored, (L - 1)^2 / L where a token does not see itself.
        """
        if not causal:
            return length
        if stored:
            return (length - 1) ** 2 / length if exclude_self else length
        block = min(self.query_block, length)
        if not block:
            return (length + 1) / 2
        lasts = range(block, length + block, block)
        return sum(min(last, length) * (min(last, length) - last + block) for last in lasts) / length

    def held(self, rows: Rows, heads: Heads) -> Held:
        """Of queries, keys, values and the output; by query block also the scores of one block.

        Where queries and keys are shared, also the normalised key, and the output joined to the first token's or,
        without causality, a mask of its own.
        """
        w, shared = heads.width(rows), heads.share_qk
        masked = 0.0 if heads.causal else w  # the output with empty rows set to zero
        scores = float(rows.element_bytes * rows.batch * rows.length)
        if self.query_block:
            scores *= heads.n * min(self.query_block, rows.length)
            return (3 + shared) * w + masked, 5 * w + 3.0 * scores
        if heads.stored:
            scores *= heads.n * self.keys(rows.length, causal=heads.causal, exclude_self=shared, stored=True)
            return (4 + shared) * w + 3 * scores, scores + 2 * w
        bias = 0.0 if heads.causal or not shared else scores * rows.length
        return (5 if shared else 4) * w + masked + bias, 3 * w + rows.bytes_per_feature * heads.d_model


class Local(_KeepsAll):
    """A query sees its own chunk of positions, the one before and, unless causal, the one after."""

    def __init__(self, config: LocalConfig) -> None:
        self.chunk_len = config.chunk_len

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLv: Tensor, how: Softmax) -> Tensor:
        """The heads' outputs (B, H, L, v), chunk by chunk."""
        return local_attention(q_BHLd, k_BHLd, v_BHLv, chunk_len=self.chunk_len, **how._asdict())

    def sees(self, head: int, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """Chunks that differ by one at most."""
        near = (query // self.chunk_len - key // self.chunk_len).abs() <= 1
        return near & (key <= query) if causal else near

    def keys(self, length: int, *, causal: bool = True, exclude_self: bool = False, stored: bool = False) -> float:
        """Two chunks, or three without causality, for each of the padded length; L where the row is a single chunk."""
        m, n_chunks, window = self._chunks(length, causal)
        return window * m * n_chunks * m / length

    def held(self, rows: Rows, heads: Heads) -> Held:
        """Windows hold every key and value two or three times."""
        w, (m, n_chunks, window) = heads.width(rows), self._chunks(rows.length, heads.causal)
        # Without causality the output with empty rows set to zero, and a mask where a token does not see itself.
        masked = 0.0 if heads.causal else w
        scores = float(rows.element_bytes * rows.batch * heads.n * n_chunks * m * window * m)
        if heads.stored:
            own = (2 + 2 * window) * w
            return own + heads.share_qk * w + 3 * scores, max(scores + 3 * w, own)
        mask = scores * heads.share_qk * (not heads.causal)
        return (3 + 2 * window) * w + masked + mask, (2 + 2 * window) * w + rows.bytes_per_feature * heads.d_model

    def _chunks(self, length: int, causal: bool) -> tuple[int, int, int]:
        """The length of a row's chunks, their number, and how many of them a query's window holds."""
        m = min(self.chunk_len, length)
        n_chunks = -(-length // m)
        return m, n_chunks, 1 if n_chunks == 1 else 2 if causal else 3

    def first(self, position: Any) -> Any:
        """Where the chunk before that of `position` begins."""
        first = (position // self.chunk_len - 1) * self.chunk_len
        return first.clamp(min=0) if isinstance(first, Tensor) else max(0, first)


class ByHead:
    """Head h sees the set h mod the number of `sets`."""

    in_order = False

    def __init__(self, sets: Sequence[KeySet]) -> None:
        self.sets = tuple(sets)
        self.n_sets = len(self.sets)

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLv: Tensor, how: Softmax) -> Tensor:
        """The heads' outputs (B, H, L, v), each set's heads together; all at once where FlexAttention's kernel runs."""
        scale, causal, exclude_self, key_mask_BL, dropout = how
        if causal and not dropout and key_mask_BL is None and is_for(q_BHLd):
            sees = partial(self.sees_some, exclude_self=exclude_self)
            return attend_flex(q_BHLd, k_BHLd, v_BHLv, sees, key=(self.sets, exclude_self), scale=scale)
        outs, period = [], len(self.sets)
        for i, its in enumerate(self.sets):
            layout = its.layout(q_BHLd.shape[2], causal=causal, exclude_self=exclude_self)
            q, k, v = (x[:, i::period] for x in (q_BHLd, k_BHLd, v_BHLv))
            outs.append(
                key_sets.attend(q, k, v, layout, scale=scale, causal=causal, key_mask_BL=key_mask_BL, dropout=dropout)
            )
        return outs[0] if period == 1 else torch.stack(outs, 2).flatten(1, 2)

    def stores_scores(self, dropout: float, device: str) -> bool:
        """With dropout on every device."""
        return dropout > 0

    def draws(self, rows: Rows, heads: Heads, keys: float) -> float:
        """One a score; where a query may have no key, which sees itself then, also one a number of the values."""
        drawn = rows.length * keys
        for its in self.sets:
            layout = its.layout(rows.length, causal=heads.causal, exclude_self=heads.share_qk)
            if layout.may_be_empty or not heads.causal:
                drawn += layout.block_len * layout.n_blocks * heads.d_head / len(self.sets)
        return rows.batch * heads.n * drawn

    def redraws(self) -> bool:
        """False: the backward pass draws nothing again."""
        return False

    def sees(self, head: int, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """The index set of the head's own set."""
        return self.sets[head % len(self.sets)].sees(query, key, causal=causal)

    def sees_some(self, head: Tensor, query: Tensor, key: Tensor, *, exclude_self: bool) -> Tensor:
        """Whether causal queries see keys: themselves where they see no other, and else as `exclude_self` says.

        As `key_sets.attend` has it; of tensors alone, for FlexAttention.
        """
        own, sees_another = query == key, query != query
        for i, its in enumerate(self.sets):
            seen = its.sees(query, key) & ~own if exclude_self else its.sees(query, key)
            sees_another = sees_another | ((head % len(self.sets) == i) & (seen | (own & ~its.sees_others(query))))
        return sees_another

    def keys(self, length: int, *, causal: bool = True, exclude_self: bool = False, stored: bool = False) -> float:
        """What the parts of every set compute."""
        layouts = (its.layout(length, causal=causal, exclude_self=exclude_self) for its in self.sets)
        return fmean(layout.places if stored else layout.scores for layout in layouts) / length

    def held(self, rows: Rows, heads: Heads) -> Held:
        """Queries, keys, values, the output and its copy.

        Backward one set of keys at a time: all of them in blocks, their gradients, and those of one part; queries that
        lie in several blocks of a part's problem are copied.
        """
        w = heads.width(rows)
        layouts = [its.layout(rows.length, causal=heads.causal, exclude_self=heads.share_qk) for its in self.sets]
        copies = 3.5 if any(part.queries.copies for layout in layouts for part in layout.parts) else 0.0
        masked = 0.0 if heads.causal else w
        if heads.stored:
            return self._held_with_scores(rows, heads, layouts)
        return (5 + heads.share_qk) * w + masked, 3 * w + (8 + copies) * w / len(self.sets)

    def _held_with_scores(self, rows: Rows, heads: Heads, layouts: list[Layout]) -> Held:
        """Of plain products the output and, for every part, its queries, keys, values and four tensors of its scores.

        Backward one part at a time: two tensors of its scores, and gradients that are laid out by column.
        """
        w = heads.width(rows)
        saved, backward = (1.0 + heads.share_qk) * w, 0.0
        per_set = rows.element_bytes * rows.batch * heads.n / len(layouts)
        for layout in layouts:
            saved += w / len(layouts) * (layout.may_be_empty or not heads.causal)
            for part in layout.parts:
                (n_problems, n_queries), (_, n_keys) = part.queries.problems, part.keys.problems
                vectors = n_problems * (n_queries + 2 * n_keys)  # keys that problems share are copied for each
                saved += per_set * (vectors * heads.d_head + 4 * part.places)
                by_column = vectors * heads.d_head * (part.queries.layout == "columns")
                backward = max(backward, per_set * (by_column + 2 * part.places))
        return saved, 3 * w + backward

    def new_cache(self, batch: int, n_heads: int, capacity: int, d: int, like: Tensor) -> SlotCache:
        """What the sets' later tokens may still see."""
        return SlotCache([its.cached(capacity) for its in self.sets], batch, n_heads, d, like)

    def cached(self, capacity: int) -> float:
        """The slots of every set."""
        return fmean(sum(area.size for area in its.cached(capacity)) for its in self.sets)


def _local(config: LocalConfig, length: int, index: int) -> Pattern:
    return ByHead([Window(config.window)]) if config.window else Local(config)


def _strided(config: StridedConfig, length: int, index: int) -> Pattern:
    stride = config.stride_of(length)
    made: dict[str, Callable[[], KeySet]] = {
        "first": lambda: Window(stride),
        "second": lambda: Column(stride),
        "merged": lambda: StridedUnion(stride),
    }
    return ByHead([made[part]() for part in in_layer(config.mode, index)])


def _fixed(config: FixedConfig, length: int, index: int) -> Pattern:
    stride, c = config.stride_of(length), config.c_of(length)
    made: dict[str, Callable[[int], KeySet]] = {
        "first": lambda s: OwnBlock(stride),
        "second": lambda s: Summaries(stride, s, c),
        "merged": lambda s: FixedUnion(stride, s, c),
    }
    # Sub-blocks are counted from the end of the block, as in the authors' code.
    places = [stride - (i + 1) * c for i in range(config.sub_blocks)]
    return ByHead([made[part](s) for s in places for part in in_layer(config.mode, index)])


PATTERNS: dict[str, Callable[[Any, int, int], Pattern]] = {
    "full": lambda config, length, index: Full(config),
    "local": _local,
    "strided": _strided,
    "fixed": _fixed,
}
"""Every kind of softmax attention, by the name of its node of the configuration: the node, the length of the model's
rows, and how many layers of the kind the stack has before this one."""


def make_pattern(kind: str, config: Any, length: int, index: int = 0) -> Pattern:
    """The pattern of that kind; `config` is its node.

    Raises UserError for a kind that is none of `PATTERNS`, and for keys that rows of `length` tokens cannot have.
    """
    if kind not in PATTERNS:
        raise UserError("bad_value", f"No softmax attention is called '{kind}'.", nearest(kind, PATTERNS))
    config.check(kind, None, length)
    return PATTERNS[kind](config, length, index)
