"""Language models that count: unigram, bigram and trigram tables, interpolated, as trivial answers to beat.

Absolute discounting (Ney, Essen and Kneser 1994): with c(h w) the count of token w after context h, N(h) that of h and
T(h) how many different tokens follow it,

    P_k(w | h) = (max(c(h w) - D_k, 0) + D_k T(h) P_{k-1}(w | h')) / N(h)

where h' lacks the oldest token of h and P_0 is uniform; a context that was never seen has P_{k-1}. The discounts D_k
are chosen on validation tokens, one order after the other; an order with which validation is no better, as where almost
every context is new, is left out: P_k = P_{k-1}.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]

DISCOUNTS = (0.01, 0.02, *(i / 20 for i in range(1, 20)), 0.98)
"""What D_k is chosen from."""
HIGHEST_ORDER = 3


@dataclass(frozen=True)
class _Counts:
    """One order's table: sorted keys of (context, token) and of contexts, and what was counted of each."""

    grams: NDArray[np.uint64]
    gram_counts: NDArray[np.int64]
    contexts: NDArray[np.uint64]
    context_counts: NDArray[np.int64]
    followers: NDArray[np.int64]


@dataclass(frozen=True)
class _TargetCounts:
    """What the table of one order says of each target: c(h w), N(h) and T(h), as float64."""

    gram: NDArray[np.float64]
    context: NDArray[np.float64]
    followers: NDArray[np.float64]


class NGram:
    """An n-gram model of tokens 0 to `vocab_size` - 1; `vocab_size` itself marks a row's beginning and is no target.

    `train` is one array of tokens; contexts never reach over a mark that stands `order` - 1 times before a row (see
    `marked`). `valid` chooses the discounts.
    """

    def __init__(self, train: Tokens, valid: Tokens, vocab_size: int, order: int) -> None:
        if not 1 <= order <= HIGHEST_ORDER:
            raise ValueError(f"an n-gram model has an order from 1 to {HIGHEST_ORDER}, not {order}")
        self.vocab_size, self.order = vocab_size, order
        self._tables = [self._count(train, k) for k in range(1, order + 1)]
        self.discounts: list[float | None] = []
        of_orders, lower = self._look_up(valid), np.full(len(self._targets(valid)), 1.0 / vocab_size)
        for k in range(order):
            without = (float(-np.log(lower).sum()), None)
            tried = [(float(-np.log(_interpolated(of_orders[k], d, lower)).sum()), d) for d in DISCOUNTS]
            self.discounts.append(min(without, *tried, key=lambda one: one[0])[1])
            lower = _interpolated(of_orders[k], self.discounts[k], lower)

    def probabilities(self, tokens: Tokens) -> NDArray[np.float64]:
        """P of every token of `tokens` that is no mark, after the `order` - 1 tokens before it."""
        probability = np.full(len(self._targets(tokens)), 1.0 / self.vocab_size)
        for of_order, discount in zip(self._look_up(tokens), self.discounts, strict=True):
            probability = _interpolated(of_order, discount, probability)
        return probability

    def nats(self, tokens: Tokens, counts: NDArray[np.bool_] | None = None) -> float:
        """The mean of -ln P over the tokens that are no mark; `counts` says which of these count."""
        losses = -np.log(self.probabilities(tokens))
        return float(losses.mean() if counts is None else losses[counts].mean())

    def _targets(self, tokens: Tokens) -> NDArray[np.int64]:
        return np.flatnonzero(tokens != self.vocab_size)

    def _keys(self, tokens: Tokens, k: int) -> NDArray[np.uint64]:
        """The key of each target with the k - 1 tokens before it; marks stand for what is before the first token."""
        base = np.uint64(self.vocab_size + 1)
        padded = np.concatenate([np.full(k - 1, self.vocab_size), tokens]).astype(np.uint64)
        keys = np.zeros(len(tokens), np.uint64)
        for back in range(k - 1, -1, -1):
            start = k - 1 - back
            keys = keys * base + padded[start : start + len(tokens)]
        return keys[self._targets(tokens)]

    def _count(self, tokens: Tokens, k: int) -> _Counts:
        # The first k - 1 tokens have no whole context: what stands before a text is not known.
        unknown = int((self._targets(tokens) < k - 1).sum())
        grams, gram_counts = np.unique(self._keys(tokens, k)[unknown:], return_counts=True)
        contexts, first, followers = np.unique(self._contexts(grams), return_index=True, return_counts=True)
        return _Counts(grams, gram_counts, contexts, np.add.reduceat(gram_counts, first), followers)

    def _contexts(self, grams: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return grams // np.uint64(self.vocab_size + 1)

    def _look_up(self, tokens: Tokens) -> list[_TargetCounts]:
        of_orders = []
        for k, table in enumerate(self._tables, 1):
            keys = self._keys(tokens, k)
            contexts = self._contexts(keys)
            of_orders.append(
                _TargetCounts(
                    _at(table.grams, table.gram_counts, keys),
                    _at(table.contexts, table.context_counts, contexts),
                    _at(table.contexts, table.followers, contexts),
                )
            )
        return of_orders


def marked(rows: Iterable[Sequence[int] | Tokens], vocab_size: int, order: int) -> Tokens:
    """Rows as one array, `order` - 1 marks before each, so that no context reaches into the row before."""
    mark = np.full(order - 1, vocab_size, dtype=np.int64)
    parts = [part for row in rows for part in (mark, np.asarray(row, dtype=np.int64))]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _at(keys: NDArray[np.uint64], values: NDArray[np.int64], wanted: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The value of each wanted key, 0 where it is none of the sorted `keys`."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0).astype(np.float64)


def _interpolated(counts: _TargetCounts, discount: float | None, lower: NDArray[np.float64]) -> NDArray[np.float64]:
    if discount is None:
        return lower
    seen = counts.context > 0
    total = np.where(seen, counts.context, 1.0)
    higher = (np.maximum(counts.gram - discount, 0.0) + discount * counts.followers * lower) / total
    return np.where(seen, higher, lower)
