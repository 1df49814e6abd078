"""A model's stack prepared for decoding: the branches' steppers, and one set of caches a generation.

Shape suffixes: B batch, L tokens of a prompt, E encoder tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efftx.layers.cache import Cache, Place
from efftx.layers.cross_attention import CrossAttentionStepper
from efftx.layers.matrix import Read
from efftx.models.block import Block, Branch, Context
from efftx.models.streams import Streams


class BranchStepper:
    """A residual branch for one token a row: norm, core, and what stands beside the core."""

    def __init__(self, branch: Branch, *, int8: bool) -> None:
        self.norm = branch.norm
        # The module's own call costs as much as the norm itself where a token takes microseconds.
        self._norm = (
            branch.norm.normalized_shape,
            branch.norm.weight.detach(),
            branch.norm.bias.detach(),
            branch.norm.eps,
            False,
        )
        core: Any = branch.core
        self.core = core.stepper(int8=int8)
        beside: Any = branch.beside
        self.beside = None if beside is None else beside.stepper(int8=int8)

    def new_cache(self, batch: int, capacity: int, like: Tensor, context: Context) -> BranchCache:
        """Empty caches; cross-attention's holds the keys and values of the encoder's output."""
        if isinstance(self.core, CrossAttentionStepper):
            assert context.memory_BED is not None
            core = self.core.cache_of(context.memory_BED, context.memory_mask_BE)
        else:
            core = self.core.new_cache(batch, capacity, like)
        return BranchCache(core, None if self.beside is None else self.beside.new_cache(batch, capacity, like))

    def cache_at_random(self, batch: int, capacity: int, n: int, n_memory: int, like: Tensor) -> BranchCache:
        """Caches as they might be after `n` tokens, behind an encoder of `n_memory`: what a timing wants."""
        core = (
            self.core.cache_at_random(batch, n_memory, like)
            if isinstance(self.core, CrossAttentionStepper)
            else self.core.new_cache(batch, capacity, like)
        )
        if core is not None and hasattr(core, "fill_at_random"):
            core.fill_at_random(n)
        return BranchCache(core, None if self.beside is None else self.beside.new_cache(batch, capacity, like))

    def prefill(self, x_BLD: Tensor, cache: BranchCache, n_B: Tensor | None) -> Tensor:
        """The branch over a prompt, (B, L, d_model)."""
        y: Tensor = self.core.prefill(self.norm(x_BLD), cache.core, n_B)
        return y if self.beside is None else y + self.beside.prefill(x_BLD, cache.beside, n_B)

    def step(self, x_BD: Tensor, cache: BranchCache, place: Place) -> Tensor:
        """The branch for one token a row, (B, d_model)."""
        normed = torch.layer_norm(x_BD, *self._norm)
        place.lap("everything else")
        y: Tensor = self.core.step(normed, cache.core, place)
        return y if self.beside is None else y.add_(self.beside.step(x_BD, cache.beside, place))

    def reads(self) -> list[Read]:
        """What a token reads of weights."""
        norm = _read_of(self.norm)
        return [norm, *self.core.reads(), *([] if self.beside is None else self.beside.reads())]


class BranchCache(Cache):
    """The caches of a branch's core and of what stands beside it, where they keep anything."""

    def __init__(self, core: Any, beside: Any) -> None:
        self.core, self.beside = core, beside

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        for cache in (self.core, self.beside):
            if cache is not None:
                cache.reorder(rows_B)


Caches = list[list[BranchCache]]
"""For every block of a stack one cache a branch."""


class StackStepper:
    """A stack of blocks for one token a row, over one residual stream or two."""

    def __init__(self, blocks: Iterable[nn.Module], *, int8: bool = False) -> None:
        self.blocks = [
            [BranchStepper(branch, int8=int8) for branch in block.children() if isinstance(branch, Branch)]
            for block in blocks
            if isinstance(block, Block)
        ]

    def new_caches(self, batch: int, capacity: int, like: Tensor, context: Context) -> Caches:
        """Empty caches for `capacity` tokens a row."""
        return [[branch.new_cache(batch, capacity, like, context) for branch in block] for block in self.blocks]

    def prefill(self, streams: Streams, caches: Caches, n_B: Tensor | None) -> Streams:
        """The streams, (B, L, d_model) each, after all blocks; row b has `n_B[b]` tokens, or all have L."""
        for block, kept in zip(self.blocks, caches, strict=True):
            for branch, cache in zip(block, kept, strict=True):
                streams = _advanced(streams, branch.prefill(streams[-1], cache, n_B))
        return streams

    def step(self, streams: Streams, caches: Caches, place: Place) -> Streams:
        """The streams of one token a row, (B, d_model) each, after all blocks."""
        for block, kept in zip(self.blocks, caches, strict=True):
            streams = step_block(block, streams, kept, place)
        return streams

    def reads(self) -> list[Read]:
        """What a token reads of weights, block after block."""
        return [read for block in self.blocks for branch in block for read in branch.reads()]


def step_block(block: Sequence[BranchStepper], streams: Streams, kept: Sequence[BranchCache], place: Place) -> Streams:
    """The streams of one token a row, (B, d_model) each, after one block with its caches."""
    for branch, cache in zip(block, kept, strict=True):
        y_BD = branch.step(streams[-1], cache, place).add_(streams[0])
        streams = (y_BD,) if len(streams) == 1 else (streams[1], y_BD)
    return streams


def reorder(caches: Caches, rows_B: Tensor) -> None:
    """Row i of every cache goes on as what row `rows_B[i]` was."""
    for kept in caches:
        for cache in kept:
            cache.reorder(rows_B)


def sum_by_component(reads: Sequence[Read]) -> dict[str, Read]:
    """The reads of one token added up by component."""
    total: dict[str, Read] = {}
    for read in reads:
        before = total.get(read.component, Read(read.component, 0, 0))
        total[read.component] = Read(read.component, before.weights + read.weights, before.bytes + read.bytes)
    return total


def _advanced(streams: Streams, branch: Tensor) -> Streams:
    """Added to the one stream; or to the first of two, which then change places (a reversible half-residual)."""
    if len(streams) == 1:
        return (streams[0] + branch,)
    return streams[1], streams[0] + branch


def _read_of(module: nn.Module) -> Read:
    weights = list(module.parameters())
    return Read("everything else", sum(w.numel() for w in weights), sum(w.nbytes for w in weights))
