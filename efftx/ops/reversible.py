"""Reversible residual blocks: gradients without stored activations (Reformer, section 3; Gomez et al. 2017).

A block runs its sub-layers f_1 .. f_n over a pair of streams. Each is half a residual step and a swap:
(a, b) -> (b, a + f(b)). With two sub-layers that is y1 = x1 + Attention(x2), y2 = x2 + FeedForward(y1).

Legend: a, b the two streams, (batch, length, d_model) each; g_a the gradient of a loss for a.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efftx.ops.recompute_state import RecomputeState, autocast_of

SubLayer = Callable[[Mapping[str, Tensor], Tensor, RecomputeState], Tensor]
"""A residual branch as a function of explicit parameters: (parameters by name, input, state) -> output."""


class Tape:
    """The outputs of one block: the topmost not yet undone. One tape lives as long as one forward pass's graph."""

    def __init__(self) -> None:
        self._pair: tuple[Tensor, Tensor] | None = None
        self._depth = 0
        self.states: list[RecomputeState] = []

    def push(self, pair: tuple[Tensor, Tensor]) -> int:
        """Notes that a block was run; gives its depth in the stack, counted from 1."""
        self._pair, self._depth = pair, self._depth + 1
        return self._depth

    def pop(self, depth: int) -> tuple[Tensor, Tensor]:
        """The outputs of the block at `depth`, which must be the topmost one."""
        if self._pair is None or depth != self._depth:
            raise RuntimeError(
                f"The reversible block {depth} cannot rebuild its inputs: the tape holds block {self._depth}. "
                "A reversible stack is run backward once, from its last block to its first; run it forward again."
            )
        return self._pair

    def undo(self, pair: tuple[Tensor, Tensor]) -> None:
        """Replaces the topmost outputs by that block's inputs, the outputs of the block below."""
        self._pair, self._depth = pair, self._depth - 1
        if self._depth == 0:
            self._pair = None

    def nbytes(self) -> int:
        """Bytes kept for replaying random numbers and discrete choices, the only thing that grows with depth."""
        return sum(state.nbytes() for state in self.states)


class _Call(NamedTuple):
    """One sub-layer of a block, the names of its parameters, and what is to be replayed."""

    function: SubLayer
    names: tuple[str, ...]
    state: RecomputeState


def _run(call: _Call, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    with call.state.random_state(x.device):
        return call.function(dict(zip(call.names, parameters, strict=True)), x, call.state)


def _split(calls: Sequence[_Call], parameters: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    parts, start = [], 0
    for call in calls:
        parts.append(tuple(parameters[start : start + len(call.names)]))
        start += len(call.names)
    return parts


class _ReversibleBlock(torch.autograd.Function):
    """Saves the parameters and no activation; the backward pass rebuilds the inputs from the tape."""

    @staticmethod
    def forward(
        ctx: Any, calls: list[_Call], tape: Tape, a: Tensor, b: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        for call, weights in zip(calls, _split(calls, parameters), strict=True):
            a, b = b, a + _run(call, weights, b)
        # The outputs become inputs of the graph above; the tape needs tensors that carry no graph of their own.
        ctx.depth = tape.push((a.detach(), b.detach()))
        ctx.calls, ctx.tape = calls, tape
        ctx.autocast = autocast_of(a)
        ctx.save_for_backward(*parameters)
        return a, b

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        g_a, g_b = grad_outputs
        a, b = ctx.tape.pop(ctx.depth)
        parameters = _split(ctx.calls, ctx.saved_tensors)
        grads: list[tuple[Tensor | None, ...]] = []
        for call, weights in zip(reversed(ctx.calls), reversed(parameters), strict=True):
            # Undo the swap: `a` is the stream the sub-layer read, `b` the one it was added to.
            with torch.enable_grad(), ctx.autocast():
                read = a.detach().requires_grad_()
                leaves = tuple(p.detach().requires_grad_(p.requires_grad) for p in weights)
                branch = _run(call, leaves, read)
                wanted = (read, *(leaf for leaf in leaves if leaf.requires_grad))
                of_wanted = torch.autograd.grad(branch, wanted, g_b, allow_unused=True) if branch.requires_grad else ()
                remaining = iter(of_wanted or [None] * len(wanted))  # a branch may depend on nothing that is wanted
            g_read = next(remaining)
            grads.append(tuple(next(remaining) if leaf.requires_grad else None for leaf in leaves))
            a, b = b - branch.detach(), a
            g_a, g_b = g_b, g_a if g_read is None else g_a + g_read
        ctx.tape.undo((a, b))
        return (None, None, g_a, g_b, *(g for own_grads in reversed(grads) for g in own_grads))


def reversible_block(
    sublayers: Sequence[tuple[SubLayer, Mapping[str, Tensor]]],
    a: Tensor,
    b: Tensor,
    tape: Tape,
    states: Sequence[RecomputeState] | None = None,
) -> tuple[Tensor, Tensor]:
    """One reversible block over the streams (a, b), storing no activation.

    `sublayers` are pairs of a function and its parameters by name; every tensor that needs a gradient must be among
    the parameters, since the function is called again with detached ones in the backward pass. `tape` is shared by the
    blocks of one forward pass, called in order. `states`, one a sub-layer, hold choices that are given from outside.
    Shapes: a, b and both results (batch, length, d_model). Raises RuntimeError when run backward out of order.
    """
    of_sublayers = [RecomputeState() for _ in sublayers] if states is None else list(states)
    tape.states.extend(of_sublayers)
    calls = [_Call(f, tuple(p), r) for (f, p), r in zip(sublayers, of_sublayers, strict=True)]
    y = _ReversibleBlock.apply(calls, tape, a, b, *(t for _, p in sublayers for t in p.values()))
    return y[0], y[1]


def reversible_block_naive(
    sublayers: Sequence[tuple[SubLayer, Mapping[str, Tensor]]],
    a: Tensor,
    b: Tensor,
    states: Sequence[RecomputeState] | None = None,
) -> tuple[Tensor, Tensor]:
    """The same block under ordinary automatic differentiation, every activation stored: the oracle."""
    of_sublayers = [RecomputeState() for _ in sublayers] if states is None else states
    for (function, parameters), state in zip(sublayers, of_sublayers, strict=True):
        a, b = b, a + function(parameters, b, state)
    return a, b
