"""How far two results may lie apart, a dtype: written once, each with its reason, and never loosened.

Every error here is relative: the largest absolute difference over the largest absolute value expected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ROUNDING = {torch.float64: 1e-13, torch.float32: 5e-6}
"""Two orders of the same sums, a few layers deep: tens to hundreds of units in the last place."""

ROUNDED_INPUTS = {torch.float32: 2e-4}
"""Products of quantised weights round inputs to half a step of 2^-15 of the largest of 512 or 64: several layers."""

GOLDEN = {torch.float64: 5e-6, torch.float32: 1e-5}
"""Against stored float32 results of the authors' code, most of them computed in float32: theirs is the larger error."""

REBUILT_GRADIENT = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Gradients from inputs rebuilt by subtraction through 12 layers: the roundings of all layers above add up."""

TF32 = {torch.float64: 5e-3}
"""A GPU's matrix products of float32 may keep ten bits of each factor: against float64 a few units of 2^-10."""

CHECKPOINT_LOGITS = 1e-4
"""Logits of trained weights, about 10 to 20 large, in float32: the authors' own run differs from float64 by 3e-5."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest absolute difference over the largest absolute value of `expected`; the shapes must agree."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} where {tuple(expected.shape)} is expected"
    if expected.numel() == 0:
        return 0.0
    largest = float(expected.detach().abs().max())
    difference = float((actual.detach() - expected.detach()).abs().max())
    return difference / largest if largest else difference


def assert_close(
    actual: Tensor | None, expected: Tensor | None, tolerances: dict[torch.dtype, float], what: str = ""
) -> None:
    """Both absent, or a relative error within the tolerance of the expected dtype."""
    assert (actual is None) == (expected is None), f"{what}: one of the two has no value"
    if actual is None or expected is None:
        return
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} where {expected.dtype} is expected"
    error, allowed = relative_error(actual, expected), tolerances[expected.dtype]
    assert error <= allowed, f"{what}: relative error {error:.2e}, allowed {allowed:.0e}"


def values_and_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """The result of `function(*leaves)`, and the gradients of its product with a fixed random cotangent."""
    own = [leaf.detach().requires_grad_() for leaf in leaves]
    out = function(*own)
    cotangent = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(7))
    grads = torch.autograd.grad(out, own, cotangent, allow_unused=True)
    zeros = (torch.zeros_like(leaf) for leaf in own)
    return [out.detach(), *(zero if grad is None else grad for grad, zero in zip(grads, zeros, strict=True))]


def assert_all_close(
    actual: Sequence[Tensor], expected: Sequence[Tensor], tolerances: dict[torch.dtype, float], names: str
) -> None:
    """Pairwise `assert_close`; `names` are the results' names, separated by blanks."""
    for name, a, e in zip(names.split(), actual, expected, strict=True):
        assert_close(a, e, tolerances, name)
