"""One layer of a Transformer: attention and feed-forward branches, each normalised before and added after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from efftx.layers.cache import Cache, Position
from efftx.layers.cost import RANDOM_STATE_BYTES, Cost, Read, Rows, cost_of, read_whole, reads_of
from efftx.layers.initialize import LAYER_NORM_EPS
from efftx.ops.recompute_state import RecomputeState
from efftx.ops.reversible import SubLayer, Tape, reversible_block


@dataclass(frozen=True)
class Context:
    """What the branches of a stack may read beside their own stream.

    `key_mask_BL` is True on real tokens (None: all are); `memory_BED` the encoder's output, `memory_mask_BE` likewise;
    `token_BL` the token ids at the stream's positions, where a branch chooses by them.
    """

    key_mask_BL: Tensor | None = None  # noqa: N815 - shape suffix
    memory_BED: Tensor | None = None  # noqa: N815
    memory_mask_BE: Tensor | None = None  # noqa: N815
    token_BL: Tensor | None = None  # noqa: N815


ALONE = Context()
# What a branch gives its core behind its own stream: `state`, or a field of the context.
TOKENS = ("state",)  # a core by position, or a recurrent one
IDS = ("state", "token_BL")  # a core by position that chooses by the token
KEYS = ("state", "key_mask_BL")  # self-attention
MEMORY = ("memory_BED", "memory_mask_BE")  # cross-attention


class Branch(nn.Module):
    """A residual branch: dropout(core(LayerNorm(x))) + beside(x), the second term where there is one (authors' SRU).

    `reads` names what the core is given; `kind` is the name of a self-attention's mechanism, as in `attention=[...]`.
    """

    def __init__(
        self,
        d_model: int,
        core: nn.Module,
        dropout: float,
        *,
        reads: tuple[str, ...],
        beside: nn.Module | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.core = core
        self.beside = beside
        self.dropout = dropout
        self.reads = reads
        self.kind = kind

    def forward(
        self,
        x_BLD: Tensor,
        state: RecomputeState | None = None,
        context: Context = ALONE,
        cache: BranchCache | None = None,
    ) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model); with `cache` a prompt, or one token a row."""
        kept = {} if cache is None or cache.core is None else {"cache": cache.core}
        read = [state if name == "state" else getattr(context, name) for name in self.reads]
        y = F.dropout(self.core(self.norm(x_BLD), *read, **kept), self.dropout, self.training)
        if self.beside is None:
            return y
        return y + (self.beside(x_BLD) if cache is None else self.beside(x_BLD, cache=cache.beside))

    def weight_reads(self) -> list[Read]:
        """The norm, and what the core and the layer beside it state."""
        beside = [] if self.beside is None else reads_of(self.beside)
        return [read_whole("everything else", self.norm), *reads_of(self.core), *beside]

    def cost(self, rows: Rows) -> Cost:
        """The core's and that of what stands beside it; the norm, dropout's mask, and a random state to run it again.

        Where dropout or a second term follows, all of the core is needed for the gradients, its output too.
        """
        core = cost_of(self.core, rows)
        beside = Cost() if self.beside is None else cost_of(self.beside, rows)
        work = {**core.work, **beside.work}
        if self.dropout or self.beside is not None:
            work = {name: replace(each, last=0.0) for name, each in work.items()}
        width = self.norm.normalized_shape[0]
        d, dropped = rows.bytes_per_feature * width, float(rows.batch * rows.length * width * (self.dropout > 0))
        return Cost(
            work,
            saved=d + (d if self.dropout else 0) + core.saved + beside.saved,
            backward=core.backward + beside.backward,
            choices=RANDOM_STATE_BYTES + core.choices + beside.choices,
            draws=dropped + core.draws + beside.draws,
            redrawn=dropped + core.redrawn + beside.redrawn,
            replayed=core.replayed + beside.replayed,
        )

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> BranchCache:
        """Empty caches for `capacity` tokens a row."""
        layers: list[Any] = [layer for layer in (self.core, self.beside) if layer is not None]
        return BranchCache(*(layer.new_cache(batch, capacity, like, position) for layer in layers))


class BranchCache(Cache):
    """The caches of a branch's core and of what stands beside it; None where they keep nothing."""

    def __init__(self, core: Any, beside: Any = None) -> None:
        self.core, self.beside = core, beside

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        for cache in (self.core, self.beside):
            if cache is not None:
                cache.reorder(rows_B)


class Block(nn.Module):
    """Named branches, run in their order over one stream (ordinary) or two (reversible)."""

    def __init__(self, **branches: Branch) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(
        self,
        streams: tuple[Tensor, ...],
        context: Context = ALONE,
        tape: Tape | None = None,
        states: Sequence[RecomputeState] | None = None,
        caches: Sequence[BranchCache] | None = None,
    ) -> tuple[Tensor, ...]:
        """One stream (B, L, d_model) in, one out; or two, in training with the `tape` of a reversible pass.

        `states`: one for each branch, where choices are given from outside; `caches` likewise, in decoding.
        """
        branches = self.branches()
        if tape is not None:
            a, b = streams
            return reversible_block([_as_sublayer(branch, context) for branch in branches], a, b, tape, states)
        for i, branch in enumerate(branches):
            state, cache = (None if per_branch is None else per_branch[i] for per_branch in (states, caches))
            y = streams[0] + branch(streams[-1], state, context, cache)
            streams = (y,) if len(streams) == 1 else (streams[1], y)
        return streams

    def weight_reads(self) -> list[Read]:
        """What one token of one row reads of all branches."""
        return [read for branch in self.branches() for read in branch.weight_reads()]

    def branches(self) -> list[Branch]:
        """The branches in their order."""
        return [branch for branch in self.children() if isinstance(branch, Branch)]


@torch.no_grad()
def scale_residual(blocks: Iterable[nn.Module]) -> None:
    """Divides the matrices that write to a stack's residual stream by sqrt(its branches), sqrt(2 N) of N plain layers.

    So the stream's variance does not grow with depth (GPT-2; Sparse Transformer). ValueError, naming the class, for a
    branch of which no module has `output_matrices`.
    """
    branches = [branch for block in blocks for branch in block.children() if isinstance(branch, Branch)]
    for branch in branches:
        say = [getattr(module, "output_matrices", None) for module in branch.modules()]
        last_matrices = [matrix for matrices in say if matrices is not None for matrix in matrices()]
        if all(matrices is None for matrices in say):
            raise ValueError(f"{type(branch.core).__name__} does not say by `output_matrices` what it writes with.")
        for matrix in last_matrices:
            matrix.div_(len(branches) ** 0.5)


def any_reads_ids(blocks: Iterable[nn.Module]) -> bool:
    """Whether a branch of these blocks chooses by the token, so that the context must hold the ids."""
    branches = (branch for block in blocks for branch in block.children())
    return any(isinstance(branch, Branch) and "token_BL" in branch.reads for branch in branches)


def _as_sublayer(branch: Branch, context: Context) -> tuple[SubLayer, Mapping[str, Tensor]]:
    """The branch as a function of explicit tensors: all that needs a gradient, the encoder's output among them."""
    tensors = dict(branch.named_parameters())
    if "memory_BED" not in branch.reads:
        return partial(_call, branch, context), tensors
    assert context.memory_BED is not None
    without_memory = replace(context, memory_BED=None)
    return partial(_call, branch, without_memory), {**tensors, "memory_BED": context.memory_BED}


def _call(branch: Branch, context: Context, tensors: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
    parameters = dict(tensors)
    if "memory_BED" in parameters:
        context = replace(context, memory_BED=parameters.pop("memory_BED"))
    y: Tensor = functional_call(branch, parameters, (x, state, context))
    return y
