"""The fixed pattern (Sparse Transformer, section 4.3): a query's own block, and a summary of every block before.

Its two factors are `OwnBlock` (A1) and `Summaries` (A2); `FixedUnion` is both in one head. Symbols: l the stride, which
is a block's length; c the summaries of a block; s the offset of the first of them, l - c in the paper (whose formula
has one remainder too many, l, which never occurs). A causal query sees no key later than itself. Without causality it
sees its whole block and the summaries of all blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from torch import Tensor

from efftx.ops.key_sets import Cut, Layout, Part
from efftx.ops.patterns import is_another, is_earlier, is_not_later
from efftx.ops.slots import Block, Slots, SummariesAndBlock, SummaryKeys
from efftx.ops.strided import own_block


@dataclass(frozen=True)
class OwnBlock:
    """The positions of a query's own block of `stride`."""

    stride: int

    def sees(self, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """The index set."""
        seen = query // self.stride == key // self.stride
        return seen & (key <= query) if causal else seen

    def sees_others(self, query: Tensor) -> Tensor:
        """Whether a causal query sees another position than its own."""
        return query % self.stride > 0

    def layout(self, length: int, *, causal: bool = True, exclude_self: bool = False) -> Layout:
        """A dense problem a block."""
        n = ceil(length / self.stride)
        return Layout(self.stride, n, own_block(self.stride, n, causal, exclude_self), may_be_empty=exclude_self)

    def cached(self, capacity: int) -> tuple[Slots, ...]:
        """One block."""
        return (Block(self.stride),)


@dataclass(frozen=True)
class Summaries:
    """The positions s .. s + c - 1 of every block. A query that sees none of them sees itself."""

    stride: int
    s: int
    c: int

    def sees(self, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """The index set, without the self that stands in for an empty one."""
        offset = key % self.stride
        seen = (offset >= self.s) & (offset < self.s + self.c) & (query == query)
        return seen & (key <= query) if causal else seen

    def sees_others(self, query: Tensor) -> Tensor:
        """Whether a causal query sees another position than its own."""
        return query > self.s

    def layout(self, length: int, *, causal: bool = True, exclude_self: bool = False) -> Layout:
        """The summaries of a query's own block, and those of the others."""
        n = ceil(length / self.stride)
        if not causal:
            return Layout(self.stride, n, _all_summaries(self, n, exclude_self), may_be_empty=True)
        queries, keys = Cut(0, n, self.s, self.stride), Cut(0, n, self.s, self.s + self.c)
        own = Part(queries, keys, sees=is_earlier if exclude_self else is_not_later)
        return Layout(self.stride, n, (own, *_earlier_summaries(self, n)), may_be_empty=True)

    def cached(self, capacity: int) -> tuple[Slots, ...]:
        """The summaries alone."""
        return (SummaryKeys(self.stride, self.s, self.c, capacity),)


@dataclass(frozen=True)
class FixedUnion:
    """`OwnBlock` and `Summaries` in one head; a summary of a query's own block counts once."""

    stride: int
    s: int
    c: int

    @property
    def _summaries(self) -> Summaries:
        return Summaries(self.stride, self.s, self.c)

    def sees(self, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """The index set."""
        own = OwnBlock(self.stride).sees(query, key, causal=causal)
        return own | self._summaries.sees(query, key, causal=causal)

    def sees_others(self, query: Tensor) -> Tensor:
        """Whether a causal query sees another position than its own."""
        return OwnBlock(self.stride).sees_others(query) | self._summaries.sees_others(query)

    def layout(self, length: int, *, causal: bool = True, exclude_self: bool = False) -> Layout:
        """The own block, and the summaries of the other blocks; unless causal, the others' are joined to its own."""
        n = ceil(length / self.stride)
        if causal:
            parts = own_block(self.stride, n, causal, exclude_self) + _earlier_summaries(self._summaries, n)
            return Layout(self.stride, n, parts, may_be_empty=exclude_self)
        parts = _all_summaries(self._summaries, n, exclude_self)
        for first, end in ((0, self.s), (self.s + self.c, self.stride)):
            if first < end:
                sees = _differs_by(first) if exclude_self else None
                parts += (Part(Cut(0, n, 0, self.stride), Cut(0, n, first, end), sees=sees),)
        return Layout(self.stride, n, parts, may_be_empty=exclude_self)

    def cached(self, capacity: int) -> tuple[Slots, ...]:
        """The summaries and one block, side by side."""
        return (SummariesAndBlock(self.stride, self.s, self.c, capacity),)


def _earlier_summaries(summaries: Summaries, n: int) -> tuple[Part, ...]:
    """The summaries of the blocks before a query's own.

    c queries a block, and as many summaries: with the summaries one block behind, the places of both in a row of
    blocks are those of a square causal problem, which the kernel runs without a mask. It hides, of the block just
    before, the summaries whose offset among the c exceeds the query's: they are a part of their own.
    """
    if n == 1:
        return ()
    stride, s, c = summaries.stride, summaries.s, summaries.c
    keys = Cut(0, n - 1, s, s + c, "joined")
    square = Part(Cut(1, n, 0, stride, "groups", c), keys, causal=True)
    if c == 1:
        return (square,)
    return square, Part(Cut(1, n, 0, stride), Cut(0, n - 1, s, s + c), sees=_later_of(c))


def _all_summaries(summaries: Summaries, n: int, exclude_self: bool) -> tuple[Part, ...]:
    """The summaries of all blocks, for every query."""
    stride, s, c = summaries.stride, summaries.s, summaries.c
    keys = Cut(0, n, s, s + c, "joined")
    if not exclude_self:
        return (Part(Cut(0, n, 0, stride, "joined"), keys),)
    others = [Part(Cut(0, n, first, end, "joined"), keys) for first, end in ((0, s), (s + c, stride)) if first < end]
    return (*others, Part(keys, keys, sees=is_another))


def _later_of(c: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda query, key: key > query % c


def _differs_by(first: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda query, key: key + first != query
