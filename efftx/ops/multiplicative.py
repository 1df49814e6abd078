"""The multiplicative dense layer: a dense matrix whose weights are products of a gate and a shared projection.

Shape suffixes: T tokens (any number of leading dimensions), i inputs, S modules, m outputs of a module, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 32
"""Columns of a projection that stand together where it is laid out in blocks: two vectors of 16 numbers."""


def multiplicative(
    x_Ti: Tensor, gate_Si: Tensor, proj_im: Tensor, bias_O: Tensor | None = None, *, d_out: int | None = None
) -> Tensor:
    """y[s, m] = sum_i x[i] gate[s, i] proj[i, m] + bias, modules one after the other: (T, S m), or the first `d_out`.

    i (S + m) weights stand for a matrix of i S m, 81,920 for 1,048,576 at i = 1024, S = 16, m = 64 ("Sparse is Enough",
    section 3.2; authors' FactoredDense). Raises ValueError for shapes that do not fit.

    Both orders of the product cost the same multiplications, so that the smaller intermediate decides. From m tokens on
    the matrix gate x proj is formed once, i S m numbers, and multiplied: on a CPU hardly slower than a plain dense
    layer for thousands of tokens, where S gated copies of them take five to twenty times as long. Below m tokens the
    gated copies, T S i numbers, are smaller and faster, and a single token reads the weights of gate and proj alone.
    (Measured with one thread, at d_model 128 to 1024: the two are even between m and 2 m tokens.)
    """
    _check_shapes(x_Ti, gate_Si, proj_im, bias_O, d_out)
    x_ti = x_Ti.reshape(-1, x_Ti.shape[-1])
    if x_ti.shape[0] < proj_im.shape[1]:
        copies_ti = (x_ti.unsqueeze(1) * gate_Si).flatten(0, 1)
        y_tO = (copies_ti @ proj_im).view(x_ti.shape[0], gate_Si.shape[0] * proj_im.shape[1])[:, :d_out]
        # Under autocast the product is in half precision and the bias is not: the sum is to be what addmm gives.
        y_tO = y_tO if bias_O is None else y_tO + bias_O.to(y_tO.dtype)
    else:
        matrix_iO = effective_matrix(gate_Si, proj_im)[:, :d_out]
        y_tO = x_ti @ matrix_iO if bias_O is None else torch.addmm(bias_O, x_ti, matrix_iO)
    return y_tO.view(*x_Ti.shape[:-1], y_tO.shape[1])


def in_blocks(proj_im: Tensor) -> Tensor:
    """A copy of the projection as the kernel of a single token reads it, (n, i, COLUMNS), zeros after the last column.

    For few modules with many outputs.
    """
    surplus = -proj_im.shape[1] % COLUMNS
    return F.pad(proj_im, (0, surplus)).unflatten(1, (-1, COLUMNS)).transpose(0, 1).contiguous()


def effective_matrix(gate_Si: Tensor, proj_im: Tensor) -> Tensor:
    """The dense matrix (i, S m) that the two factors stand for: entry (i, s m + j) is gate[s, i] proj[i, j]."""
    return (gate_Si.t().unsqueeze(2) * proj_im.unsqueeze(1)).flatten(1)


def multiplicative_naive(
    x_Ti: Tensor, gate_Si: Tensor, proj_im: Tensor, bias_O: Tensor | None = None, *, d_out: int | None = None
) -> Tensor:
    """The same as the sum that defines it: the oracle."""
    y = torch.einsum("...i,si,im->...sm", x_Ti, gate_Si, proj_im).flatten(-2)[..., :d_out]
    return y if bias_O is None else y + bias_O


def permutation_weights(source_D: Tensor, S: int) -> tuple[Tensor, Tensor]:
    """Gate (S, D) and projection (D, D/S) of zeros and ones with which y[o] = x[source[o]], exactly.

    The gate sends each input to the module of its output, the projection to its place there: any permutation can be
    written so, which no block-diagonal layer of as many weights can ("Sparse is Enough", section 3.2, figure 4a).
    Raises ValueError for what is no permutation of D numbers and for an S that does not divide D.
    """
    d_model = source_D.numel()
    if source_D.dim() != 1 or not torch.equal(source_D.sort().values, torch.arange(d_model, device=source_D.device)):
        raise ValueError("The source must hold each of the numbers 0 .. D - 1 once.")
    if S < 1 or d_model % S:
        raise ValueError(f"{S} modules do not divide {d_model} outputs.")
    d_module = d_model // S
    output_D = torch.arange(d_model, device=source_D.device)
    gate_SD = torch.zeros(S, d_model, device=source_D.device)
    proj_Dm = torch.zeros(d_model, d_module, device=source_D.device)
    gate_SD[output_D // d_module, source_D] = 1.0
    proj_Dm[source_D, output_D % d_module] = 1.0
    return gate_SD, proj_Dm


def _check_shapes(x_Ti: Tensor, gate_Si: Tensor, proj_im: Tensor, bias_O: Tensor | None, d_out: int | None) -> None:
    if gate_Si.dim() != 2 or proj_im.dim() != 2 or not gate_Si.shape[1] == proj_im.shape[0] == x_Ti.shape[-1]:
        raise ValueError(
            f"Tokens of width {x_Ti.shape[-1]} need a gate (modules, width) and a projection (width, outputs of a "
            f"module), not {tuple(gate_Si.shape)} and {tuple(proj_im.shape)}."
        )
    n_outputs = gate_Si.shape[0] * proj_im.shape[1]
    if d_out is not None and not 0 < d_out <= n_outputs:
        raise ValueError(f"Of {n_outputs} outputs the first {d_out} cannot be taken.")
    if bias_O is not None and bias_O.shape != (d_out or n_outputs,):
        raise ValueError(f"{d_out or n_outputs} outputs have as many biases, not the shape {tuple(bias_O.shape)}.")
