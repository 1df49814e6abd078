"""Position-wise layers computed one slice of the sequence at a time (Reformer, section 3, "Chunking").

The wide intermediate values (the feed-forward's hidden units, the logits) exist for one slice only, in the forward and
in the backward pass. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from efftx.ops.recompute_state import Choose, RecomputeState, autocast_of, choose

PositionWise = Callable[..., tuple[Tensor, ...]]
"""A function of explicit parameters that treats every position alike: (parameters by name, *slices) -> tensors."""

ChoosingPositionWise = Callable[..., tuple[Tensor, ...]]
"""The same with discrete choices, made through `choose`: (parameters by name, choose, *slices) -> tensors."""


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: ChoosingPositionWise,
        outer: RecomputeState | None,
        names: tuple[str, ...],
        chunk_len: int,
        n_inputs: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs, parameters = tensors[:n_inputs], dict(zip(names, tensors[n_inputs:], strict=True))
        ctx.function, ctx.names, ctx.chunk_len, ctx.n_inputs = function, names, chunk_len, n_inputs
        ctx.state = RecomputeState()
        ctx.autocast = autocast_of(inputs[0])
        ctx.save_for_backward(*tensors)
        with ctx.state.random_state(inputs[0].device):
            slices = zip(*(x.split(chunk_len, dim=1) for x in inputs), strict=True)
            parts = [function(parameters, _choose_in(i, ctx.state, outer), *xs) for i, xs in enumerate(slices)]
        outputs = tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*(y for y in outputs if not y.is_floating_point()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: a recomputed block rebuilds them for each reading
        inputs, parameters = saved[: ctx.n_inputs], saved[ctx.n_inputs :]
        leaves = tuple(
            p.detach().requires_grad_(need)
            for p, need in zip(parameters, ctx.needs_input_grad[5 + ctx.n_inputs :], strict=True)
        )
        input_needs = ctx.needs_input_grad[5 : 5 + ctx.n_inputs]
        input_grads: list[list[Tensor]] = [[] for _ in inputs]
        sums: list[Tensor | None] = [None] * len(leaves)
        with ctx.state.random_state(inputs[0].device):
            slices = zip(*(x.split(ctx.chunk_len, dim=1) for x in inputs), strict=True)
            slice_grads = zip(*(g.split(ctx.chunk_len, dim=1) for g in grad_outputs), strict=True)
            for i, (xs, gs) in enumerate(zip(slices, slice_grads, strict=True)):
                with torch.enable_grad(), ctx.autocast():
                    read = tuple(x.detach().requires_grad_(need) for x, need in zip(xs, input_needs, strict=True))
                    by_name = dict(zip(ctx.names, leaves, strict=True))
                    ys = ctx.function(by_name, _choose_in(i, ctx.state, None), *read)
                    pairs = [(y, g) for y, g in zip(ys, gs, strict=True) if y.requires_grad]
                    wanted = [t for t in (*read, *leaves) if t.requires_grad]
                    of_wanted = iter(
                        torch.autograd.grad([y for y, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
                    )
                for kept, x in zip(input_grads, read, strict=True):
                    if x.requires_grad:
                        g = next(of_wanted)
                        kept.append(torch.zeros_like(x) if g is None else g)
                for p, leaf in enumerate(leaves):
                    if leaf.requires_grad and (g := next(of_wanted)) is not None:
                        # The first may share memory with what came in, or be expanded: never add to it in place.
                        total = sums[p]
                        sums[p] = g.clone() if total is None else total.add_(g)
        return (None, None, None, None, None, *(torch.cat(g, dim=1) if g else None for g in input_grads), *sums)


def chunked(
    function: PositionWise, parameters: Mapping[str, Tensor], inputs: Sequence[Tensor], chunk_len: int
) -> tuple[Tensor, ...]:
    """`function(parameters, *inputs)` over slices of `chunk_len` positions (dimension 1), its results joined again.

    Equal to the unsliced call to rounding. Random numbers of the forward pass are replayed in the backward pass. Every
    tensor that needs a gradient must be an input or a parameter. Raises ValueError for a slice shorter than one.
    """

    def without_choices(parameters: Mapping[str, Tensor], choose: Choose, *slices: Tensor) -> tuple[Tensor, ...]:
        return function(parameters, *slices)

    return chunked_with_choices(without_choices, parameters, inputs, chunk_len, None)


def chunked_with_choices(
    function: ChoosingPositionWise,
    parameters: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    chunk_len: int,
    state: RecomputeState | None,
) -> tuple[Tensor, ...]:
    """`chunked` for a function that makes discrete choices, `function(parameters, choose, *slices)`.

    What slice i chooses under a name is played back in the backward pass, and it is kept in `state`, as "i.name", for
    another run of the whole: in a reversible block every slice runs three times and chooses once.
    """
    if chunk_len < 1:
        raise ValueError(f"A slice holds at least one position, not {chunk_len}.")
    tensors = (*inputs, *parameters.values())
    return _Chunked.apply(function, state, tuple(parameters), chunk_len, len(inputs), *tensors)


def _choose_in(i: int, own: RecomputeState, outer: RecomputeState | None) -> Choose:
    """Choices of slice i, made through both states: each then knows the random state that follows a choice."""

    def choose_in_slice(name: str, make: Callable[[], Tensor]) -> Tensor:
        return own.choose(f"{i}.{name}", lambda: choose(outer, f"{i}.{name}", make))

    return choose_in_slice
