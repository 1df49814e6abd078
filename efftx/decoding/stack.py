"""A model's stack prepared for decoding: the branches' steppers, and one set of caches a generation.

Shape suffixes: B batch, L tokens of a prompt, E encoder tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efftx.errors import UserError
from efftx.layers.cache import Cache, Place, no_lap
from efftx.layers.cross_attention import CrossAttentionStepper
from efftx.layers.matrix import Read
from efftx.models.block import Block, Branch, Context, reads_ids
from efftx.models.streams import Streams
from efftx.native.program import Normed, NotCompiledError, Program, Stream, run


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
        self.core = _stepper_of(branch.core, int8=int8)
        self._reads_ids = branch.reads is reads_ids
        self.beside = None if branch.beside is None else _stepper_of(branch.beside, int8=int8)

    def new_cache(self, batch: int, capacity: int, like: Tensor, context: Context) -> BranchCache:
        """Empty caches; cross-attention's holds the keys and values of the encoder's output."""
        if isinstance(self.core, CrossAttentionStepper):
            assert context.memory_BED is not None
            core = self.core.cache_of(context.memory_BED, context.memory_mask_BE)
        else:
            core = self.core.new_cache(batch, capacity, like)
        return BranchCache(core, None if self.beside is None else self.beside.new_cache(batch, capacity, like))

    def cache_at_random(self, batch: int, capacity: int, n: int, n_memory: int, like: Tensor) -> BranchCache:
        """Caches of random values for `n` tokens, and for `n_memory` of an encoder, for a timing."""
        core = (
            self.core.cache_at_random(batch, n_memory, like)
            if isinstance(self.core, CrossAttentionStepper)
            else self.core.new_cache(batch, capacity, like)
        )
        if core is not None and hasattr(core, "fill_at_random"):
            core.fill_at_random(n)
        return BranchCache(core, None if self.beside is None else self.beside.new_cache(batch, capacity, like))

    def prefill(self, x_BLD: Tensor, cache: BranchCache, n_B: Tensor | None, token_BL: Tensor | None = None) -> Tensor:
        """The branch over a prompt, (B, L, d_model)."""
        ids = (token_BL,) if self._reads_ids else ()
        y: Tensor = self.core.prefill(self.norm(x_BLD), cache.core, n_B, *ids)
        return y if self.beside is None else y + self.beside.prefill(x_BLD, cache.beside, n_B)

    def step(self, x_BD: Tensor, cache: BranchCache, place: Place) -> Tensor:
        """The branch for one token a row, (B, d_model)."""
        normed = torch.layer_norm(x_BD, *self._norm)
        place.lap("everything else")
        y: Tensor = self.core.step(normed, cache.core, place)
        return y if self.beside is None else y.add_(self.beside.step(x_BD, cache.beside, place))

    def compile(self, program: Program, i: int, x: Stream, y: Stream) -> None:
        """The branch for one token of one row as operations, branch `i` of its block: y += branch(x).

        Raises NotCompiledError where the core has none.
        """
        if not hasattr(self.core, "compile"):
            raise NotCompiledError(type(self.core).__name__)
        add_beside = None
        if self.beside is not None:  # it reads x itself, before anything is added to it
            program.enter(i, "beside")
            add_beside = self.beside.compile(program, x)
        program.enter(i, "core")
        _, weight, bias, eps, _ = self._norm
        self.core.compile(program, Normed(x, weight, bias, eps), y)
        if add_beside is not None:
            add_beside(y)

    def reads(self) -> list[Read]:
        """What a token reads of weights."""
        norm = _read_of(self.norm)
        return [norm, *self.core.reads(), *([] if self.beside is None else self.beside.reads())]


def _stepper_of(layer: Any, *, int8: bool) -> Any:
    """The layer for one token at a time; UserError, naming the method, for a mechanism that has no such form yet."""
    if not hasattr(layer, "stepper"):
        raise UserError(
            "not_decodable",
            f"{type(layer).__name__} cannot be decoded: it has no method `stepper`.",
            "Give it `stepper(*, int8=False)`, as efftx/layers/feedforward.py has it; training needs none.",
        )
    return layer.stepper(int8=int8)


class BranchCache(Cache):
    """The caches of a branch's core and of what stands beside it, where they keep anything."""

    def __init__(self, core: Any, beside: Any) -> None:
        self.core, self.beside = core, beside
        self.for_program = core is None or core.for_program

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        for cache in (self.core, self.beside):
            if cache is not None:
                cache.reorder(rows_B)


Caches = list[list[BranchCache]]
"""For every block of a stack one cache a branch."""


class BlockStepper:
    """A block's branches for one token a row, and for a single row their program, where they have one."""

    def __init__(self, branches: Sequence[BranchStepper], *, two_streams: bool) -> None:
        self.branches = list(branches)
        self.turns = two_streams and len(self.branches) % 2 == 1
        self.program = _program_of(self.branches, two_streams)

    def __iter__(self) -> Iterator[BranchStepper]:
        return iter(self.branches)

    def bind(self, pointers: tuple[int, ...], kept: Sequence[BranchCache], place: Place) -> Program | None:
        """The block's program for one row's streams, which lie there; None where it cannot run: `step` then."""
        if self.program is None or place.n_B is not None:
            return None
        for cache in kept:
            if not cache.for_program:
                return None
        self.program.bind(pointers, kept, place.n)
        return self.program

    def step(self, streams: Streams, kept: Sequence[BranchCache], place: Place) -> Streams:
        """The streams of one token a row, (B, d_model) each, after the block."""
        for branch, cache in zip(self.branches, kept, strict=True):
            y_BD = branch.step(streams[-1], cache, place).add_(streams[0])
            streams = (y_BD,) if len(streams) == 1 else (streams[1], y_BD)
        return streams


def step_blocks(
    blocks: Sequence[BlockStepper], streams: Streams, caches: Sequence[Sequence[BranchCache]], place: Place
) -> Streams:
    """The streams of one token a row, (B, d_model) each, after all blocks; those that have programs run in one call."""
    streams = tuple(stream.clone(memory_format=torch.contiguous_format) for stream in streams)  # programs write to them
    pointers = tuple(stream.data_ptr() for stream in streams)
    one_row = streams[0].shape[0] == 1
    due: dict[int, Program] = {}

    def run_due() -> None:
        if due:
            run(list(due.values()), None if place.lap is no_lap else place.lap)
            due.clear()

    for block, kept in zip(blocks, caches, strict=True):
        if id(block) in due:  # the same block once more would be bound twice
            run_due()
        program = block.bind(pointers, kept, place) if one_row else None
        if program is None:
            run_due()
            streams = block.step(streams, kept, place)
            pointers = tuple(stream.data_ptr() for stream in streams)
        else:
            due[id(block)] = program
            if block.turns:
                streams, pointers = streams[::-1], pointers[::-1]
    run_due()
    return streams


def _program_of(branches: Sequence[BranchStepper], two_streams: bool) -> Program | None:
    """The block for one token of one row; None where there are no kernels or a layer has no operations."""
    read, write = Stream(1 if two_streams else 0), Stream(0)
    try:
        program = Program()
        for i, branch in enumerate(branches):
            branch.compile(program, i, read, write)
            if two_streams:
                read, write = write, read
    except NotCompiledError:
        return None
    program.settle()
    return program


class StackStepper:
    """A stack of blocks for one token a row, over one residual stream or two."""

    def __init__(self, blocks: Iterable[nn.Module], *, int8: bool = False, two_streams: bool = False) -> None:
        self.blocks = [
            BlockStepper(
                [BranchStepper(branch, int8=int8) for branch in block.children() if isinstance(branch, Branch)],
                two_streams=two_streams,
            )
            for block in blocks
            if isinstance(block, Block)
        ]

    def new_caches(self, batch: int, capacity: int, like: Tensor, context: Context) -> Caches:
        """Empty caches for `capacity` tokens a row."""
        return [[branch.new_cache(batch, capacity, like, context) for branch in block] for block in self.blocks]

    def prefill(self, streams: Streams, caches: Caches, n_B: Tensor | None, token_BL: Tensor | None = None) -> Streams:
        """The streams, (B, L, d_model) each, after all blocks; row b has `n_B[b]` tokens, or all have L.

        `token_BL` are the token ids at these positions, where a branch chooses by them.
        """
        for block, kept in zip(self.blocks, caches, strict=True):
            for branch, cache in zip(block, kept, strict=True):
                streams = _advanced(streams, branch.prefill(streams[-1], cache, n_B, token_BL))
        return streams

    def step(self, streams: Streams, caches: Caches, place: Place) -> Streams:
        """The streams of one token a row, (B, d_model) each, after all blocks."""
        return step_blocks(self.blocks, streams, caches, place)

    def reads(self) -> list[Read]:
        """What a token reads of weights, block after block."""
        return [read for block in self.blocks for branch in block for read in branch.reads()]


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
