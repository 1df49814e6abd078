"""Weight-only int8: symmetric, one scale an output row, so that a decoding step reads a quarter of the bytes.

A weight is q[o, i] scale[o]. Layouts are made once, at load: `quantize_rows` for products with rows, `pack_rows` of its
result for sums of rows. The results are those of the naive twins up to bfloat16 (products) or float32 (sums).

Shape suffixes: T tokens, O outputs (rows), I inputs, U rows of a matrix of which G a token are chosen, D their width,
P bytes of a packed row (D + 8).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.ops.selected_rows import RowPlan

LARGEST = 127
_SCALE_AND_BIAS = 8
"""Bytes behind the values of a packed row: two float32 numbers."""

_WHOLE_VECTORS = 16
"""The kernel of products crashes for some widths that this does not divide (300, with 2 rows)."""

# Private: (x, q, scale) -> x (q scale)^T. Tests compare it with the plain formula, which is used where it is missing.
_product_kernel = getattr(torch.ops.aten, "_weight_int8pack_mm", None)
_sum_kernel = getattr(torch.ops.quantized, "embedding_bag_byte_rowwise_offsets", None)


def quantize_rows(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 numbers q (O, I) in -127 .. 127 and the scales (O) in bfloat16, with w about q scale.

    |w - q scale| is at most scale / 2 (and float32's rounding), where scale is the largest |w| of the row over 127,
    rounded to bfloat16 before q is chosen: the kernels take it without a further error. A row of zeros stays zero.
    Raises ValueError for weights that are not finite.
    """
    largest_O = w_OI.detach().float().abs().amax(1)
    if not bool(largest_O.isfinite().all()):
        raise ValueError("Weights that are infinite or no numbers cannot be quantised.")
    # The smallest normal number where a row is 0, or so near to it that its scale would lose its digits.
    scale_O = (largest_O / LARGEST).bfloat16().clamp(min=torch.finfo(torch.bfloat16).tiny)
    return (w_OI.detach().float() / scale_O.float().unsqueeze(1)).round_().to(torch.int8), scale_O


def dequantize_rows(q_OI: Tensor, scale_O: Tensor) -> Tensor:
    """The weights (O, I) that the int8 numbers stand for, in float32."""
    return q_OI.float() * scale_O.float().unsqueeze(1)


def quantize_columns(w_IO: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, of weights (.., I, O): q of that shape, and one scale (O) for all numbers of an output."""
    q_OI, scale_O = quantize_rows(w_IO.flatten(0, -2).t())
    return q_OI.t().reshape(w_IO.shape), scale_O


def int8_linear(x_TI: Tensor, q_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x (q scale)^T + bias: (T, O), in the type of x.

    On a CPU x and the product are rounded to bfloat16: an error of at most 2^-8 sum_i |x_i w_oi| and 2^-8 of the
    output. Elsewhere, and for widths that 16 does not divide, the product is in float32. An inference form: the
    rounded product has no gradient. Raises ValueError for widths that differ.

    Faster than float32 for a few tokens at a time, and no longer at T = 32. With activations in float32 the kernel
    takes many times as long.
    """
    if x_TI.shape[-1] != q_OI.shape[1]:
        raise ValueError(f"Rows of {q_OI.shape[1]} inputs need tokens of that width, not {x_TI.shape[-1]}.")
    y_TO = _product(x_TI, q_OI, scale_O)
    # A bias of more digits is added in its own type: rounding it first would be a second error.
    return y_TO if bias_O is None else (y_TO + bias_O).to(x_TI.dtype)


def int8_linear_naive(x_TI: Tensor, q_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """The product with the dequantised matrix in float32: the oracle."""
    bias_O = None if bias_O is None else bias_O.float()
    return F.linear(x_TI.float(), dequantize_rows(q_OI, scale_O), bias_O).to(x_TI.dtype)


def int8_rows_dot(x_TD: Tensor, q_UD: Tensor, scale_U: Tensor, row_TG: Tensor) -> Tensor:
    """y[t, g] = sum_d x[t, d] q[row[t, g], d] scale[row[t, g]]: (T, G), in the type of x, with `int8_linear`'s error.

    The chosen int8 rows are copied, token by token. A row outside the matrix raises IndexError. Measured at T = 1 on
    two shared cores: 96 rows of 1024 15 us, 128 of 2048 32, 256 of 4096 115, 256 of 9216 246: no gain on float32
    (`rows_dot`) where the rows lie in the cache; not measured with a matrix far beyond it.
    """
    if x_TD.shape != (row_TG.shape[0], q_UD.shape[1]):
        raise ValueError(
            f"Rows {tuple(row_TG.shape)} of {q_UD.shape[1]} values need tokens {(row_TG.shape[0], q_UD.shape[1])}, "
            f"not {tuple(x_TD.shape)}."
        )
    parts = [
        _product(x_TD[t : t + 1], q_UD.index_select(0, row_G), scale_U.index_select(0, row_G))
        for t, row_G in enumerate(row_TG.unbind())
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def int8_rows_dot_naive(x_TD: Tensor, q_UD: Tensor, scale_U: Tensor, row_TG: Tensor) -> Tensor:
    """`int8_rows_dot` from the dequantised matrix: the oracle."""
    w_UD = dequantize_rows(q_UD, scale_U)
    return torch.stack([w_UD[row_G] @ x_D.float() for x_D, row_G in zip(x_TD, row_TG, strict=True)]).to(x_TD.dtype)


def pack_rows(q_UD: Tensor, scale_U: Tensor) -> Tensor:
    """Rows for `int8_rows_sum`, (U, D + 8) bytes: q + 128, then scale and -128 scale, two float32 numbers."""
    scale_U1 = scale_U.float().unsqueeze(1)
    numbers_U2 = torch.cat([scale_U1, -128 * scale_U1], 1)
    return torch.cat([(q_UD.short() + 128).to(torch.uint8), numbers_U2.view(torch.uint8)], 1)


def int8_rows_sum(h_TG: Tensor, packed_UP: Tensor, row_TG: Tensor, plan: RowPlan | None = None) -> Tensor:
    """y[t] = sum_g h[t, g] q[row[t, g]] scale[row[t, g]]: (T, D), in the type of h, added in float32.

    `packed_UP` is of `pack_rows`, `row_TG` int64, the `plan` one for rows of D values. A row outside the matrix raises
    RuntimeError or IndexError, shapes that do not fit ValueError. Measured at T = 1 on two shared cores, in 1 bag, in
    8 bags, and as the product with copied, dequantised rows: 96 rows of 1024 21, 16 and 37 us; 256 of 4096 151, 91 and
    349; 256 of 9216 328, 184 and 629. Not measured with a matrix far beyond the cache.
    """
    width = packed_UP.shape[1] - _SCALE_AND_BIAS
    if h_TG.shape != row_TG.shape:
        raise ValueError(f"One weight a chosen row, {tuple(row_TG.shape)}, not {tuple(h_TG.shape)}.")
    if plan is None:
        plan = RowPlan.of(row_TG.shape[0], row_TG.shape[1], width, device=row_TG.device)
    plan.check(row_TG, width)
    if _sum_kernel is None or packed_UP.device.type != "cpu":
        return _unpacked_sum(h_TG, packed_UP, row_TG)
    weights_S = h_TG.reshape(-1).float()
    sums_BD: Tensor = _sum_kernel(packed_UP, row_TG.reshape(-1), plan.start, mode=0, per_sample_weights=weights_S)
    sums_TD = sums_BD if plan.n_bags == 1 else sums_BD.view(-1, plan.n_bags, width).sum(1)
    return sums_TD.to(h_TG.dtype)


def int8_rows_sum_naive(h_TG: Tensor, q_UD: Tensor, scale_U: Tensor, row_TG: Tensor) -> Tensor:
    """`int8_rows_sum` from the dequantised matrix: the oracle."""
    w_UD = dequantize_rows(q_UD, scale_U)
    return torch.stack([h_G.float() @ w_UD[row_G] for h_G, row_G in zip(h_TG, row_TG, strict=True)]).to(h_TG.dtype)


def _product(x_TI: Tensor, q_OI: Tensor, scale_O: Tensor) -> Tensor:
    if _product_kernel is None or x_TI.device.type != "cpu" or x_TI.shape[-1] % _WHOLE_VECTORS:
        return int8_linear_naive(x_TI, q_OI, scale_O)
    x_SI = x_TI.reshape(-1, x_TI.shape[-1]).to(torch.bfloat16).contiguous()
    y_SO: Tensor = _product_kernel(x_SI, q_OI.contiguous(), scale_O)
    return y_SO.to(x_TI.dtype).view(*x_TI.shape[:-1], -1)


def _unpacked_sum(h_TG: Tensor, packed_UP: Tensor, row_TG: Tensor) -> Tensor:
    chosen_TGP = F.embedding(row_TG, packed_UP)
    bytes_TGD, numbers = chosen_TGP[..., :-_SCALE_AND_BIAS], chosen_TGP[..., -_SCALE_AND_BIAS:]
    scale_TG1 = numbers.clone(memory_format=torch.contiguous_format).view(torch.float32)[..., :1]
    rows_TGD = (bytes_TGD.float() - 128) * scale_TG1
    return torch.matmul(h_TG.float().unsqueeze(1), rows_TGD).squeeze(1).to(h_TG.dtype)
