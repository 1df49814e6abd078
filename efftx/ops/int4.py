"""Weight-only int4: symmetric, one scale a group of 64 inputs, 4.25 bits a weight in place of float32's 32.

A weight is q[o, i] scale[o, i // 64] with q in -7 .. 7. A row is packed for the kernels of `native`: whole units of 128
inputs, of each unit 64 bytes, byte i of them holding q + 8 of input i in its lower and of input 64 + i in its upper
half; then the row's scales, bfloat16. The operations here are the plain forms, in float32: what the kernels are
compared with, and what decodes, slowly, where there are none.

Shape suffixes: T tokens, O outputs (rows), I inputs, U rows of a matrix of which G a token are chosen, D their width,
P bytes of a packed row, N groups of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 7
GROUP, UNIT = 64, 128
_ZERO = 8


def in_units(width: int) -> int:
    """`width` inputs, and the zeros that fill their last unit."""
    return -(-width // UNIT) * UNIT


def packed_bytes(width: int) -> int:
    """Bytes of a packed row of `width` weights."""
    return in_units(width) // 2 + 2 * in_units(width) // GROUP


def quantize_groups(w_OI: Tensor) -> Tensor:
    """Rows of weights packed in int4: (O, P) uint8.

    A weight is at most half a scale off (and float32's rounding), where the scale is the largest |w| of its group over
    7, rounded to bfloat16 before q is chosen. A group of zeros stays zero. Raises ValueError for weights that are not
    finite.
    """
    w_OI = w_OI.detach().float()
    if not bool(w_OI.isfinite().all()):
        raise ValueError("Weights that are infinite or no numbers cannot be quantised.")
    n_rows, width = w_OI.shape
    w_ONG = F.pad(w_OI, (0, in_units(width) - width)).view(n_rows, -1, GROUP)
    tiny = torch.finfo(torch.bfloat16).tiny
    scale_ON = (w_ONG.abs().amax(2) / LARGEST).bfloat16().clamp(min=tiny)
    q_ONG = (w_ONG / scale_ON.float().unsqueeze(2)).round_().to(torch.int8)
    lower, upper = (q_ONG + _ZERO).to(torch.uint8).view(n_rows, -1, 2, GROUP).unbind(2)
    return torch.cat([(lower | upper << 4).view(n_rows, -1), scale_ON.view(torch.uint8).view(n_rows, -1)], 1)


def dequantize_groups(packed_OP: Tensor, width: int) -> Tensor:
    """The weights (O, I) of packed rows of `width`, in float32.

    Raises ValueError for rows of other bytes: all widths of the same units of 128 have as many.
    """
    if packed_OP.shape[1] != packed_bytes(width):
        raise ValueError(f"Rows of {width} weights take {packed_bytes(width)} bytes, not {packed_OP.shape[1]}.")
    n_rows, whole = packed_OP.shape[0], in_units(width)
    both = packed_OP[:, : whole // 2].view(n_rows, -1, 1, GROUP)
    scale_ON = packed_OP[:, whole // 2 :].contiguous().view(torch.bfloat16).float()
    q_ONG = torch.cat([both & 15, both >> 4], 2).view(n_rows, -1, GROUP).float() - _ZERO
    return (q_ONG * scale_ON.unsqueeze(2)).view(n_rows, whole)[:, :width]


def int4_linear(x_TI: Tensor, packed_OP: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x w^T + bias with the dequantised matrix, in float32: (.., O), in the type of x.

    Raises ValueError for rows that are not of as many units of 128 as x.
    """
    w_OI = dequantize_groups(packed_OP, x_TI.shape[-1])
    return F.linear(x_TI.float(), w_OI, None if bias_O is None else bias_O.float()).to(x_TI.dtype)


def int4_rows_dot(x_TD: Tensor, packed_UP: Tensor, row_TG: Tensor) -> Tensor:
    """y[t, g] = sum_d x[t, d] w[row[t, g], d]: (T, G), in the type of x; only the chosen rows are dequantised.

    Raises ValueError for shapes that do not fit, IndexError for a row outside the matrix.
    """
    if x_TD.dim() != 2 or len(x_TD) != len(row_TG):
        raise ValueError(f"Rows {tuple(row_TG.shape)} need as many tokens (T, D), not {tuple(x_TD.shape)}.")
    parts = [_chosen(packed_UP, row_G, len(x_D)) @ x_D.float() for x_D, row_G in zip(x_TD, row_TG, strict=True)]
    return torch.stack(parts).to(x_TD.dtype)


def int4_rows_sum(h_TG: Tensor, packed_UP: Tensor, row_TG: Tensor, width: int) -> Tensor:
    """y[t] = sum_g h[t, g] w[row[t, g]]: (T, D), in the type of h; only the chosen rows are dequantised.

    Raises ValueError for shapes that do not fit, IndexError for a row outside the matrix.
    """
    if h_TG.shape != row_TG.shape:
        raise ValueError(f"One weight a chosen row, {tuple(row_TG.shape)}, not {tuple(h_TG.shape)}.")
    parts = [h_G.float() @ _chosen(packed_UP, row_G, width) for h_G, row_G in zip(h_TG, row_TG, strict=True)]
    return torch.stack(parts).to(h_TG.dtype)


def _chosen(packed_UP: Tensor, row_G: Tensor, width: int) -> Tensor:
    """The rows of one token, in float32: those of all tokens at once would take the memory of many matrices."""
    return dequantize_groups(packed_UP.index_select(0, row_G), width)
