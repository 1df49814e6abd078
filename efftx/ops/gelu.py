"""GELU as x sigmoid(1.702 x) (Sparse Transformer, section 5.4), with a backward pass that keeps the input alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLOPE = 1.702
_PIECE = 1 << 18
"""Elements that a core's cache holds through the seven steps of the backward pass, which so reads memory once."""


def gelu_sigmoid(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), any shape; value and gradient have the bits of the plain formula's.

    Autograd would keep the sigmoid beside the input, and fill a new tensor with every step of the backward pass.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return gelu_sigmoid_naive(x)
    y: Tensor = _GeluSigmoid.apply(x)
    return y


def gelu_sigmoid_naive(x: Tensor) -> Tensor:
    """The same as the formula says it: the oracle."""
    return x * torch.sigmoid(SLOPE * x)


class _GeluSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x * SLOPE).sigmoid_().mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if x.device.type != "cpu" or not (x.is_contiguous() and grad.is_contiguous()):
            return _gradient(x, grad, torch.empty_like(x))
        out = torch.empty_like(x)
        for pieces in zip(*(tensor.view(-1).split(_PIECE) for tensor in (x, grad, out)), strict=True):
            _gradient(*pieces)
        return out


def _gradient(x: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """d/dx = s + 1.702 x s (1 - s) with s the sigmoid, times `grad`, in the order in which autograd rounds it."""
    s = (x * SLOPE).sigmoid_()
    torch.mul(grad, x, out=out)
    torch.ops.aten.sigmoid_backward.grad_input(out, s, grad_input=out)
    return out.mul_(SLOPE).add_(s.mul_(grad))
