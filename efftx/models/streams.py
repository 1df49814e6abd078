"""How a sequence runs through a stack of blocks: as one residual stream, or as two without stored activations."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from efftx.layers.settings import ReversibleConfig
from efftx.models.block import BranchCache, Context
from efftx.ops.recompute_state import RecomputeState
from efftx.ops.reversible import Tape

Streams = tuple[Tensor, ...]
"""One residual stream (B, L, d_model), or the two of a reversible stack."""
RecomputeStates = Sequence[Sequence[RecomputeState]]
"""For every block of a stack one state for each of its branches."""


def run_blocks(
    blocks: Iterable[nn.Module],
    streams: Streams,
    context: Context,
    states: RecomputeStates | None = None,
    caches: Sequence[Sequence[BranchCache]] | None = None,
) -> Streams:
    """The streams, (B, L, d_model) each, after all blocks; two run reversibly, on a tape of their own.

    With `caches`, one a branch of every block, a prompt is read or one token a row.
    """
    tape = Tape() if len(streams) == 2 and caches is None else None
    for i, block in enumerate(blocks):
        state, kept = (None if per_block is None else per_block[i] for per_block in (states, caches))
        streams = block(streams, context, tape, state, kept)
    return streams


def split(x_BLD: Tensor, reversible: ReversibleConfig) -> Streams:
    """The streams that a stack starts with: `x` alone, or twice."""
    return (x_BLD, x_BLD) if reversible.enabled else (x_BLD,)


def merge(streams: Streams, how: str = "mean") -> Tensor:
    """One tensor of the streams: (B, L, d_model), or 2 d_model wide where two are concatenated."""
    if len(streams) == 1:
        return streams[0]
    return torch.cat(streams, dim=-1) if how == "concat" else (streams[0] + streams[1]) / 2


def merged_width(d_model: int, reversible: ReversibleConfig) -> int:
    """The width of what `merge` gives."""
    return d_model * (2 if reversible.enabled and reversible.merge == "concat" else 1)
