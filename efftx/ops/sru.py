"""The simple recurrent unit: gates from each position alone, and one elementwise recurrence over the length.

Shape suffixes: B batch, L length, D units, E = 3D the gates' pre-activations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HIGHWAY_SCALE = math.sqrt(3.0)


def sru(x_BLD: Tensor, u_BLE: Tensor, state_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The outputs of an SRU layer and its states, each (B, L, D) (Terraformer's recurrence; authors' code).

    `u_BLE` is a linear map of the input `x_BLD`, three parts of D in the order r, f, y. r and f pass a sigmoid; the
    state is c_t = f c_{t-1} + (1 - f) y, the output r c + sqrt(3) (1 - r) x: no activation on c, and a factor that the
    SRU's own paper does not have at this place. `state_BD` is c before the first position, zero if None. Half precision
    is computed in float32 and the states stay there, for 1 - f would be lost. Raises ValueError for shapes that do not
    fit.
    """
    _check_shapes(x_BLD, u_BLE, state_BD)
    r, f, y = _gates(u_BLE)
    c_BLD = linear_recurrence(f, (1.0 - f) * y, state_BD)
    return _highway(r, c_BLD, x_BLD), c_BLD


def sru_naive(x_BLD: Tensor, u_BLE: Tensor, state_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same, position after position: the oracle."""
    d = x_BLD.shape[-1]
    c = torch.zeros_like(x_BLD[:, 0]) if state_BD is None else state_BD
    outputs, states = [], []
    for x, u in zip(x_BLD.unbind(1), u_BLE.unbind(1), strict=True):
        r, f, y = u[:, :d].sigmoid(), u[:, d : 2 * d].sigmoid(), u[:, 2 * d :]
        c = f * c + (1 - f) * y
        outputs.append(r * c + math.sqrt(3) * (1 - r) * x)
        states.append(c)
    return torch.stack(outputs, 1), torch.stack(states, 1)


def linear_recurrence(f_BLD: Tensor, v_BLD: Tensor, state_BD: Tensor | None = None) -> Tensor:
    """c_t = f_t c_{t-1} + v_t for all t, (B, L, D), in about 2 log2(L) steps over whole tensors.

    c before the first position is `state_BD`, zero if None. Only products and sums: exact zeros and ones in f are as
    good as any. The backward pass is the same recurrence from the end. Raises ValueError for shapes that do not fit and
    for L = 0.
    """
    if f_BLD.shape != v_BLD.shape or f_BLD.dim() != 3 or f_BLD.shape[1] == 0:
        raise ValueError(
            "The recurrence takes factors and summands of one shape (batch, length, units) with a length of at least 1,"
            f" not {tuple(f_BLD.shape)} and {tuple(v_BLD.shape)}."
        )
    c_BLD: Tensor = _LinearRecurrence.apply(f_BLD, v_BLD, state_BD)
    return c_BLD


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f_BLD: Tensor, v_BLD: Tensor, state_BD: Tensor | None) -> Tensor:
        if state_BD is not None:
            first = torch.addcmul(v_BLD[:, :1], f_BLD[:, :1], state_BD.unsqueeze(1))
            v_BLD = torch.cat([first, v_BLD[:, 1:]], dim=1)
        c_BLD = _scan(f_BLD, v_BLD)
        ctx.save_for_backward(f_BLD, c_BLD, state_BD)
        return c_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor | None, ...]:
        f_BLD, c_BLD, state_BD = ctx.saved_tensors
        # The gradient of a state is its own and f_{t+1} times the next one's: read from the end, the same recurrence.
        f_next = torch.cat([f_BLD[:, 1:], torch.zeros_like(f_BLD[:, :1])], dim=1)
        grad_v = _scan(f_next.flip(1), grad_BLD.flip(1)).flip(1)
        before = torch.zeros_like(c_BLD[:, 0]) if state_BD is None else state_BD
        grad_f = grad_v * torch.cat([before.unsqueeze(1), c_BLD[:, :-1]], dim=1)
        return grad_f, grad_v, None if state_BD is None else f_BLD[:, 0] * grad_v[:, 0]


def _scan(f_BLD: Tensor, v_BLD: Tensor) -> Tensor:
    """The recurrence from zero: neighbours are joined to half the length, and the places between filled in after."""
    length = v_BLD.shape[1]
    if length == 1:
        return v_BLD.clone()
    even = slice(0, length - length % 2, 2)
    f_odd, v_odd = f_BLD[:, 1::2], v_BLD[:, 1::2]
    c_odd = _scan(f_odd * f_BLD[:, even], torch.addcmul(v_odd, f_odd, v_BLD[:, even]))
    c_BLD = torch.empty_like(v_BLD)
    c_BLD[:, 0] = v_BLD[:, 0]
    c_BLD[:, 1::2] = c_odd
    c_BLD[:, 2::2] = torch.addcmul(v_BLD[:, 2::2], f_BLD[:, 2::2], c_odd[:, : (length - 1) // 2])
    return c_BLD


def _gates(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r, f, y = u.to(torch.promote_types(u.dtype, torch.float32)).chunk(3, dim=-1)
    return r.sigmoid(), f.sigmoid(), y


def _highway(r: Tensor, c: Tensor, x: Tensor) -> Tensor:
    return (r * c + HIGHWAY_SCALE * (1.0 - r) * x).to(x.dtype)


def _check_shapes(x: Tensor, u: Tensor, state_BD: Tensor | None) -> None:
    if u.shape != (*x.shape[:-1], 3 * x.shape[-1]):
        raise ValueError(
            f"The gates of an input of shape {tuple(x.shape)} have three times its width, not {tuple(u.shape)}."
        )
    if state_BD is not None and state_BD.shape != (x.shape[0], x.shape[-1]):
        raise ValueError(
            f"The state before an input of shape {tuple(x.shape)} has one vector a row, not {tuple(state_BD.shape)}."
        )
