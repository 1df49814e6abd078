"""Which cached keys a new token sees under the patterns that look back by the clock: where each key is kept.

A cache of S slots holds what later tokens may still see, laid out so that a token's keys lie side by side. Symbols as
in `ops.strided` and `ops.fixed`: `stride`, summaries s .. s + c - 1 of each block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Protocol


class Slots(Protocol):
    """A way to keep keys."""

    @property
    def size(self) -> int:
        """S, the number of slots."""
        ...

    def put(self, n: int) -> tuple[int, ...]:
        """The slots where the key of position n is written, over older ones that nothing sees any more."""
        ...

    def seen(self, n: int) -> tuple[int, int]:
        """First and end of the slots that position n sees once its own key is written."""
        ...

    def own(self, n: int) -> int | None:
        """Which of the slots that position n sees holds its own key; None where none does."""
        ...


@dataclass(frozen=True)
class Ring:
    """The last `size` keys, in no order: a window's."""

    size: int

    def put(self, n: int) -> tuple[int, ...]:
        """Over the oldest."""
        return (n % self.size,)

    def seen(self, n: int) -> tuple[int, int]:
        """All there are."""
        return 0, min(n + 1, self.size)

    def own(self, n: int) -> int | None:
        """Where it was put."""
        return n % self.size


@dataclass(frozen=True)
class Columns:
    """All keys up to `capacity`, those of equal remainder side by side; `with_own`: a token sees its own."""

    stride: int
    capacity: int
    with_own: bool = True

    @property
    def rows(self) -> int:
        """Keys of a column."""
        return ceil(self.capacity / self.stride)

    @property
    def size(self) -> int:
        """Whole columns."""
        return self.stride * self.rows

    def put(self, n: int) -> tuple[int, ...]:
        """Behind the key one stride earlier."""
        return (n % self.stride * self.rows + n // self.stride,)

    def seen(self, n: int) -> tuple[int, int]:
        """Its column so far."""
        (own,) = self.put(n)
        return own - n // self.stride, own + self.with_own

    def own(self, n: int) -> int | None:
        """The last of its column."""
        return self.put(n)[0] if self.with_own else None


@dataclass(frozen=True)
class Block:
    """The keys of a token's own block."""

    size: int

    def put(self, n: int) -> tuple[int, ...]:
        """Over the block before."""
        return (n % self.size,)

    def seen(self, n: int) -> tuple[int, int]:
        """The block so far."""
        return 0, n % self.size + 1

    def own(self, n: int) -> int | None:
        """The last so far."""
        return n % self.size


@dataclass(frozen=True)
class SummaryKeys:
    """The summaries of all blocks up to `capacity`, and no other key."""

    stride: int
    s: int
    c: int
    capacity: int

    @property
    def size(self) -> int:
        """c a block."""
        return ceil(self.capacity / self.stride) * self.c

    def put(self, n: int) -> tuple[int, ...]:
        """Behind the summary before; a key that is none is not kept."""
        offset = n % self.stride - self.s
        return (n // self.stride * self.c + offset,) if 0 <= offset < self.c else ()

    def seen(self, n: int) -> tuple[int, int]:
        """All so far."""
        return 0, n // self.stride * self.c + min(max(n % self.stride - self.s + 1, 0), self.c)

    def own(self, n: int) -> int | None:
        """The last so far, where the token is a summary."""
        return next(iter(self.put(n)), None)


@dataclass(frozen=True)
class SummariesAndBlock:
    """The summaries of all earlier blocks, the latest first, and behind them a token's own block.

    A summary is written twice: in its block, and where the tokens of later blocks see it.
    """

    stride: int
    s: int
    c: int
    capacity: int

    @property
    def _block(self) -> int:
        return ceil(self.capacity / self.stride) * self.c

    @property
    def size(self) -> int:
        """c a block, and one block."""
        return self._block + self.stride

    def put(self, n: int) -> tuple[int, ...]:
        """In its block, over the one before; a summary also in front of the summaries before it."""
        block, offset = divmod(n, self.stride)
        kept: tuple[int, ...] = (self._block + offset,)
        if 0 <= offset - self.s < self.c:
            kept += (self._block - 1 - (block * self.c + offset - self.s),)
        return kept

    def seen(self, n: int) -> tuple[int, int]:
        """From the latest summary of the block before, backwards, to its own key."""
        block, offset = divmod(n, self.stride)
        return self._block - block * self.c, self._block + offset + 1

    def own(self, n: int) -> int | None:
        """The last of its block so far."""
        return self._block + n % self.stride
