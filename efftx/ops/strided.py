"""The strided pattern (Sparse Transformer, section 4.3): the last l positions, and every l-th one before.

Its two factors are `Window` (A1) and `Column` (A2); `StridedUnion` is both in one head, a key that is in both counted
once. Symbols: l the stride, n blocks of l in a row. A causal query i sees in A1 the positions i - l + 1 .. i, l of them
as in the authors' code (the paper's formula gives l + 1), and in A2 those j <= i with (i - j) mod l = 0. Without
causality both are mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from torch import Tensor

from efftx.ops.key_sets import Cut, Layout, Part
from efftx.ops.patterns import is_another, is_earlier, is_later
from efftx.ops.slots import Columns, Ring, Slots


@dataclass(frozen=True)
class Window:
    """The last `stride` positions, a query's own among them; without causality also as many after it."""

    stride: int

    def sees(self, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """The index set."""
        distance = query - key
        return (distance < self.stride) & ((distance >= 0) if causal else (distance > -self.stride))

    def sees_others(self, query: Tensor) -> Tensor:
        """Whether a causal query sees another position than its own."""
        return (query > 0) & (self.stride > 1)

    def layout(self, length: int, *, causal: bool = True, exclude_self: bool = False) -> Layout:
        """A query's own block, and of the one before what is not too far back."""
        stride, n = _blocks(self.stride, length)
        return Layout(stride, n, window_parts(stride, n, causal, exclude_self), may_be_empty=exclude_self)

    def cached(self, capacity: int) -> tuple[Slots, ...]:
        """A ring."""
        return (Ring(min(self.stride, capacity)),)


@dataclass(frozen=True)
class Column:
    """Every `stride`-th position before a query, and its own; without causality also after it."""

    stride: int

    def sees(self, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """The index set."""
        seen = (query - key) % self.stride == 0
        return seen & (key <= query) if causal else seen

    def sees_others(self, query: Tensor) -> Tensor:
        """Whether a causal query sees another position than its own."""
        return query >= self.stride

    def layout(self, length: int, *, causal: bool = True, exclude_self: bool = False) -> Layout:
        """Positions of equal remainder are dense problems, one behind the other's stride."""
        stride, n = _blocks(self.stride, length)
        if exclude_self:
            return Layout(stride, n, _others_of_column(stride, n, causal), may_be_empty=True)
        everything = Cut(0, n, 0, stride, "columns")
        return Layout(stride, n, (Part(everything, everything, causal=causal),))

    def cached(self, capacity: int) -> tuple[Slots, ...]:
        """All keys, by column."""
        return (Columns(self.stride, capacity),)


@dataclass(frozen=True)
class StridedUnion:
    """`Window` and `Column` in one head. They share a query's own position and no other."""

    stride: int

    def sees(self, query: Tensor, key: Tensor, *, causal: bool = True) -> Tensor:
        """The index set."""
        window, column = Window(self.stride), Column(self.stride)
        return window.sees(query, key, causal=causal) | column.sees(query, key, causal=causal)

    def sees_others(self, query: Tensor) -> Tensor:
        """Whether a causal query sees another position than its own."""
        return query > 0

    def layout(self, length: int, *, causal: bool = True, exclude_self: bool = False) -> Layout:
        """The window, and the rest of the column."""
        stride, n = _blocks(self.stride, length)
        parts = window_parts(stride, n, causal, exclude_self) + _others_of_column(stride, n, causal)
        return Layout(stride, n, parts, may_be_empty=exclude_self)

    def cached(self, capacity: int) -> tuple[Slots, ...]:
        """The window's ring, and all keys by column."""
        return *Window(self.stride).cached(capacity), Columns(self.stride, capacity, with_own=False)


def _blocks(stride: int, length: int) -> tuple[int, int]:
    """Block length and number: a stride beyond the row sees what one of the row's length sees."""
    stride = max(1, min(stride, length))
    return stride, ceil(length / stride)


def window_parts(stride: int, n: int, causal: bool, exclude_self: bool) -> tuple[Part, ...]:
    """Own block, the positions of the block before that are fewer than l back, and unless causal those after."""
    parts = [*own_block(stride, n, causal, exclude_self)]
    if n > 1 and stride > 1:
        later, earlier = Cut(1, n, 0, stride), Cut(0, n - 1, 0, stride)
        parts.append(Part(later, earlier, sees=is_later))
        if not causal:
            parts.append(Part(earlier, later, sees=is_earlier))
    return tuple(parts)


def own_block(stride: int, n: int, causal: bool, exclude_self: bool) -> tuple[Part, ...]:
    """A query's own block, up to its own position where causal."""
    everything = Cut(0, n, 0, stride)
    if not exclude_self:
        return (Part(everything, everything, causal=causal),)
    if not causal:
        return (Part(everything, everything, sees=is_another),)
    # The keys before a query are the causal problem of the queries against the keys one place earlier.
    return (Part(Cut(0, n, 1, stride), Cut(0, n, 0, stride - 1), causal=True),) if stride > 1 else ()


def _others_of_column(stride: int, n: int, causal: bool) -> tuple[Part, ...]:
    """The column without a query's own position."""
    if n == 1:
        return ()
    if causal:
        return (Part(Cut(1, n, 0, stride, "columns"), Cut(0, n - 1, 0, stride, "columns"), causal=True),)
    everything = Cut(0, n, 0, stride, "columns")
    return (Part(everything, everything, sees=is_another),)
