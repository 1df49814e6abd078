"""Convolution over length and modules: one small kernel for every position and every module.

Shape suffixes: B batch, L length, S modules, m inputs of a module, n its outputs, F positions and K modules of the
kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def module_convolution(x_BLSm: Tensor, kernel_FKmn: Tensor, bias_n: Tensor) -> Tensor:
    """y[t, s] = bias + sum_ij x[t - (F - 1) + i, s - (K - 1)/2 + j] kernel[i, j], of shape (B, L, S, n).

    Causal along the length, symmetric along the modules, zeros outside; any L >= 1 ("Sparse is Enough", section 3.2;
    authors' LocallyConvDense). Raises ValueError for an even K and for shapes that do not fit.

    It is PyTorch's convolution on the tensor as it lies in memory, channels last: nothing is copied in or out, and on a
    CPU it takes a third to a tenth of the time of shifted views and one matrix product.
    """
    _check_shapes(x_BLSm, kernel_FKmn, bias_n)
    # Zeros on both sides of the length, and the outputs that see the later ones cut off: cheaper than a padded copy.
    padding = (kernel_FKmn.shape[0] - 1, kernel_FKmn.shape[1] // 2)
    y_BnLS = F.conv2d(x_BLSm.permute(0, 3, 1, 2), kernel_FKmn.permute(3, 2, 0, 1), bias_n, padding=padding)
    return y_BnLS.permute(0, 2, 3, 1)[:, : x_BLSm.shape[1]]


def module_convolution_naive(x_BLSm: Tensor, kernel_FKmn: Tensor, bias_n: Tensor) -> Tensor:
    """The same, position after position, module after module, tap after tap: the oracle."""
    _, length, n_modules, _ = x_BLSm.shape
    n_positions, n_neighbours = kernel_FKmn.shape[:2]
    rows = []
    for t in range(length):
        for s in range(n_modules):
            y_Bn = bias_n.expand(x_BLSm.shape[0], -1)
            for i in range(n_positions):
                for j in range(n_neighbours):
                    position, module = t - (n_positions - 1) + i, s - (n_neighbours - 1) // 2 + j
                    if position >= 0 and 0 <= module < n_modules:
                        y_Bn = y_Bn + x_BLSm[:, position, module] @ kernel_FKmn[i, j]
            rows.append(y_Bn)
    return torch.stack(rows, 1).unflatten(1, (length, n_modules))


def _check_shapes(x_BLSm: Tensor, kernel_FKmn: Tensor, bias_n: Tensor) -> None:
    if kernel_FKmn.dim() != 4 or 0 in kernel_FKmn.shape or kernel_FKmn.shape[1] % 2 == 0:
        raise ValueError(
            "The kernel must have the shape (positions, modules, inputs, outputs) with an odd number of modules, but "
            f"it has the shape {tuple(kernel_FKmn.shape)}."
        )
    if x_BLSm.dim() != 4 or 0 in x_BLSm.shape or x_BLSm.shape[3] != kernel_FKmn.shape[2]:
        raise ValueError(
            f"The kernel takes an input of the shape (batch, length, modules, {kernel_FKmn.shape[2]}) with at least "
            f"one token, but it has the shape {tuple(x_BLSm.shape)}."
        )
    if bias_n.shape != kernel_FKmn.shape[3:]:
        raise ValueError(f"{kernel_FKmn.shape[3]} outputs have as many biases, not the shape {tuple(bias_n.shape)}.")
