"""int8 weights lie within half a step of the weights, and their products are those of the dequantised matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops import int8
from efftx.ops.int8 import (
    dequantize_rows,
    int8_linear,
    int8_linear_naive,
    int8_rows_dot,
    int8_rows_dot_naive,
    int8_rows_sum,
    int8_rows_sum_naive,
    pack_rows,
    quantize_rows,
)
from efftx.ops.selected_rows import RowPlan
from tests.tolerances import ROUNDING, assert_close

BFLOAT16 = 2.0**-8
"""The relative error of a number rounded to bfloat16."""
# tokens, rows (or outputs), width
SHAPES = [
    (1, 1, 1),
    (1, 97, 3),
    (2, 5, 300),
    (5, 2, 17),
    (1, 96, 1024),
    (3, 33, 31),
    (5, 7, 48),
    (2, 9, 4096),
    (1, 8, 9216),
]


def tensors(n_tokens: int, n_rows: int, width: int, seed: int = 0) -> list[Tensor]:
    """Tokens, weights for rows, a matrix of 40 rows whose sizes differ a thousandfold, and rows that repeat."""
    generator = torch.Generator().manual_seed(seed)
    x, h, w = (
        torch.randn(shape, generator=generator) for shape in ((n_tokens, width), (n_tokens, n_rows), (40, width))
    )
    w *= torch.logspace(-2, 1, 40).unsqueeze(1)
    return [x, h, w, torch.randint(0, 40, (n_tokens, n_rows), generator=generator)]


def assert_within_bfloat16(actual: Tensor, expected: Tensor, absolute: Tensor) -> None:
    """Both lie no further apart than two roundings to bfloat16: of x, against sum |x w|, and of the result."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    # A hundredth more for the terms of second order and for float32.
    assert bool(((actual - expected).abs() <= 1.01 * BFLOAT16 * (absolute + expected.abs())).all())


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 300)),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_a_weight_is_at_most_half_a_step_away(shape: tuple[int, int], scale: float, seed: int) -> None:
    w = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    q, step = quantize_rows(w)
    assert q.dtype == torch.int8
    assert step.dtype == torch.bfloat16
    assert bool(((w.double() - dequantize_rows(q, step)).abs() <= 0.50001 * step.double().unsqueeze(1)).all())
    assert torch.equal(q.short().abs().amax(1) >= 126, torch.ones(shape[0], dtype=torch.bool))
    ratio = step.double() / (w.double().abs().amax(1) / 127)
    assert bool((abs(ratio - 1) <= 1.001 * BFLOAT16).all())


def test_the_largest_weight_is_127_steps_whichever_way_its_scale_is_rounded() -> None:
    w = torch.linspace(1, 2, 1000).unsqueeze(1) * torch.tensor([1.0, -1.0])
    q, step = quantize_rows(w)
    assert torch.equal((w.double() / step.double().unsqueeze(1)).round().to(torch.int64), q.long())
    assert int(q.max()) == 127
    assert int(q.min()) == -127


def test_a_row_of_zeros_stays_zero_and_divides_by_nothing() -> None:
    w = torch.tensor([[0.0, -0.0], [1.0, -2.0], [1e-44, 0.0]])
    q, scale = quantize_rows(w)
    assert bool((scale > 0).all())
    assert q[0].tolist() == [0, 0]
    x = torch.ones(1, 2)
    assert int8_linear(x, q, scale)[0, [0, 2]].tolist() == [0, 0]
    assert int8_rows_sum(x, pack_rows(q, scale), torch.tensor([[0, 2]])).tolist() == [[0, 0]]


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="cannot be quantised"):
        quantize_rows(torch.tensor([[1.0, bad], [1.0, 2.0]]))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_the_dequantised_one_within_bfloat16(shape: tuple[int, int, int], with_bias: bool) -> None:
    x, _, w, _ = tensors(*shape)
    q, scale = quantize_rows(w)
    bias = torch.linspace(-1, 1, 40) if with_bias else None
    absolute = int8_linear_naive(x.abs(), q.abs(), scale)
    actual, expected = int8_linear(x, q, scale, bias), int8_linear_naive(x, q, scale, bias)
    assert_within_bfloat16(actual, expected, absolute + (0 if bias is None else bias.abs()))


@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_chosen_rows_are_the_dequantised_ones(shape: tuple[int, int, int]) -> None:
    x, h, w, row = tensors(*shape)
    q, scale = quantize_rows(w)
    absolute = int8_rows_dot_naive(x.abs(), q.abs(), scale, row)
    assert_within_bfloat16(int8_rows_dot(x, q, scale, row), int8_rows_dot_naive(x, q, scale, row), absolute)
    for plan in (RowPlan.of(*shape), None):
        actual = int8_rows_sum(h, pack_rows(q, scale), row, plan)
        assert_close(actual, int8_rows_sum_naive(h, q, scale, row), ROUNDING)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 97), st.integers(1, 300)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_any_shape_gives_the_dequantised_products(shape: tuple[int, int, int], seed: int) -> None:
    x, h, w, row = tensors(*shape, seed=seed)
    q, scale = quantize_rows(w)
    absolute = int8_rows_dot_naive(x.abs(), q.abs(), scale, row)
    assert_within_bfloat16(int8_rows_dot(x, q, scale, row), int8_rows_dot_naive(x, q, scale, row), absolute)
    products = h.unsqueeze(-1).double() * dequantize_rows(q, scale).double()[row]
    error = (int8_rows_sum(h, pack_rows(q, scale), row) - products.sum(1)).abs()
    assert bool((error <= 5e-6 * products.abs().sum(1).max()).all())


def test_leading_dimensions_strides_and_half_precision_are_kept() -> None:
    x, h, w, row = tensors(6, 4, 16)
    q, scale = quantize_rows(w)
    expected = int8_linear(x, q, scale)
    assert torch.equal(int8_linear(x.view(2, 3, 16), q, scale), expected.view(2, 3, 40))
    assert torch.equal(int8_linear(x.t().contiguous().t(), q.t().contiguous().t(), scale), expected)
    dots, sums = int8_rows_dot(x, q, scale, row), int8_rows_sum(h, pack_rows(q, scale), row)
    strided = [t.t().contiguous().t() for t in (x, q, row, h)]
    assert torch.equal(int8_rows_dot(strided[0], strided[1], scale, strided[2]), dots)
    assert torch.equal(int8_rows_sum(strided[3], pack_rows(strided[1], scale), strided[2]), sums)
    assert torch.equal(int8_linear(x.bfloat16(), q, scale), expected.bfloat16())
    assert int8_rows_dot(x.bfloat16(), q, scale, row).dtype == torch.bfloat16
    assert int8_rows_sum(h.bfloat16(), pack_rows(q, scale), row).dtype == torch.bfloat16


@pytest.mark.parametrize("width", [16, 17])
@pytest.mark.parametrize("of_bias", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_is_in_the_type_of_the_tokens_whatever_the_biass(
    of_x: torch.dtype, of_bias: torch.dtype, width: int
) -> None:
    x, _, w, _ = tensors(3, 4, width)
    x, bias = x.to(of_x), torch.linspace(-1, 1, 40).to(of_bias)
    q, scale = quantize_rows(w)
    found, expected = int8_linear(x, q, scale, bias), int8_linear_naive(x, q, scale, bias)
    assert found.dtype == expected.dtype == of_x
    absolute = int8_linear_naive(x.abs().float(), q.abs(), scale) + bias.float().abs()
    assert bool(((found - expected).float().abs() <= 3 * BFLOAT16 * (absolute + expected.float().abs())).all())


def test_the_private_kernels_exist_and_multiply_as_they_should() -> None:
    x, q = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1, -2, 3], [-127, 0, 127]], dtype=torch.int8)
    scale, wide = torch.tensor([2.0, 0.5]), (0, 13)
    product = torch.ops.aten._weight_int8pack_mm(F.pad(x, wide).bfloat16(), F.pad(q, wide), scale.bfloat16())
    assert product.tolist() == [[12.0, 127.0]]
    sums = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        pack_rows(q, scale), torch.tensor([1, 0]), torch.tensor([0]), mode=0, per_sample_weights=torch.tensor([2.0, 1])
    )
    assert sums.tolist() == [[-125.0, -4.0, 133.0]]


def exact(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """x (q scale)^T in float64."""
    return x.double() @ (q.double() * scale.double()[:, None]).T


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] % 16])
def test_widths_that_16_does_not_divide_are_multiplied_in_float32(shape: tuple[int, int, int]) -> None:
    x, _, w, _ = tensors(*shape)
    q, scale = quantize_rows(w)
    bias = torch.linspace(-1, 1, len(w))
    assert_close(int8_linear(x, q, scale), exact(x, q, scale).float(), ROUNDING)
    assert_close(int8_linear(x, q, scale, bias), (exact(x, q, scale) + bias).float(), ROUNDING)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_the_kernels_the_plain_formulas_serve(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    x, h, w, row = tensors(*shape)
    q, scale = quantize_rows(w)
    monkeypatch.setattr(int8, "_product_kernel", None)
    monkeypatch.setattr(int8, "_sum_kernel", None)
    assert_close(int8_linear(x, q, scale), exact(x, q, scale).float(), ROUNDING)
    assert_close(int8_rows_dot(x, q, scale, row), int8_rows_dot_naive(x, q, scale, row), ROUNDING)
    assert_close(int8_rows_sum(h, pack_rows(q, scale), row), int8_rows_sum_naive(h, q, scale, row), ROUNDING)


def test_what_does_not_fit_is_refused_with_a_sentence() -> None:
    x, h, w, row = tensors(2, 3, 5)
    q, scale = quantize_rows(w)
    with pytest.raises(ValueError, match="Rows of 5 inputs need tokens of that width, not 4"):
        int8_linear(x[:, :4], q, scale)
    with pytest.raises(ValueError, match=r"need tokens \(2, 5\), not \(1, 5\)"):
        int8_rows_dot(x[:1], q, scale, row)
    with pytest.raises(ValueError, match="One weight a chosen row"):
        int8_rows_sum(h[:, :2], pack_rows(q, scale), row)
    with pytest.raises(ValueError, match=r"not \(2, 3\) of 5"):
        int8_rows_sum(h, pack_rows(q, scale), row, RowPlan.of(2, 3, 6))


@pytest.mark.parametrize("outside", [-1, 40])
def test_rows_outside_the_matrix_are_refused(outside: int) -> None:
    x, h, w, row = tensors(2, 3, 5)
    q, scale = quantize_rows(w)
    row[0, 0] = outside
    with pytest.raises(IndexError):
        int8_rows_dot(x, q, scale, row)
    with pytest.raises(RuntimeError):
        int8_rows_sum(h, pack_rows(q, scale), row)
