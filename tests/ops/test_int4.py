"""int4 weights lie within half a step of the weights, and the operations are those of the dequantised matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops.int4 import (
    GROUP,
    UNIT,
    dequantize_groups,
    int4_linear,
    int4_rows_dot,
    int4_rows_sum,
    packed_bytes,
    quantize_groups,
)
from tests.tolerances import ROUNDING, relative_error

# tokens, chosen rows, width
SHAPES = [(1, 1, 1), (1, 9, 31), (2, 5, 128), (3, 7, 129), (2, 40, 1000)]


def tensors(n_tokens: int, n_rows: int, width: int) -> list[Tensor]:
    """Tokens, weights for rows, a matrix of 40 rows whose sizes differ a thousandfold, and rows that repeat."""
    generator = torch.Generator().manual_seed(0)
    x, h, w = (
        torch.randn(shape, generator=generator) for shape in ((n_tokens, width), (n_tokens, n_rows), (40, width))
    )
    w *= torch.logspace(-2, 1, 40).unsqueeze(1)
    return [x, h, w, torch.randint(0, 40, (n_tokens, n_rows), generator=generator)]


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 300)),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_a_weight_is_at_most_half_a_step_of_its_group_away(shape: tuple[int, int], size: float, seed: int) -> None:
    w = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    back = dequantize_groups(quantize_groups(w), shape[1])
    for start in range(0, shape[1], GROUP):
        group = w[:, start : start + GROUP].double()
        step = group.abs().amax(1, keepdim=True) / 7 * (1 + 2.0**-8)
        assert bool(((group - back[:, start : start + GROUP].double()).abs() <= 0.50001 * step).all())


def test_the_fifteen_numbers_come_back_as_they_are() -> None:
    w = torch.arange(-7.0, 8.0).repeat(3, 20)
    assert torch.equal(dequantize_groups(quantize_groups(w), w.shape[1]), w)


def test_where_a_weight_lies_in_a_packed_row() -> None:
    w = torch.zeros(1, 130)
    w[0, 64 + 5], w[0, 129] = 7.0, -7.0
    packed = quantize_groups(w)[0]
    both = packed[:UNIT]
    assert int(both[5]) == 0xF8, "the upper half of the sixth byte, eight more"
    assert int(both[64 + 1]) == 0x81, "the lower half of the second unit's second byte"
    assert [i for i, byte in enumerate(both.tolist()) if byte != 0x88] == [5, 65]
    assert [bool(scale == 1) for scale in packed[UNIT:].view(torch.bfloat16)] == [False, True, True, False]
    assert packed.numel() == packed_bytes(130) == 2 * (64 + 4)


def test_a_group_of_zeros_stays_zero_and_another_beside_it_keeps_its_digits() -> None:
    w = torch.zeros(2, 2 * GROUP)
    w[1, GROUP:] = 1e-20
    back = dequantize_groups(quantize_groups(w), 2 * GROUP)
    assert bool((back[1, GROUP:] / 1e-20 - 1).abs().max() <= 2.0**-8)
    assert bool((back[w == 0] == 0).all())


@pytest.mark.parametrize("strange", [torch.inf, torch.nan])
def test_what_is_no_number_is_refused(strange: float) -> None:
    with pytest.raises(ValueError, match="cannot be quantised"):
        quantize_groups(torch.tensor([[1.0, strange]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_operations_are_those_of_the_dequantised_matrix(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, h, w, row = tensors(*shape)
    packed = quantize_groups(w)
    w = dequantize_groups(packed, shape[2])
    x, h, bias = x.to(dtype), h.to(dtype), torch.linspace(-1, 1, 40)
    products = int4_linear(x, packed, bias), int4_rows_dot(x, packed, row), int4_rows_sum(h, packed, row, shape[2])
    expected = (
        x.float() @ w.t() + bias,
        (w[row] * x.float()[:, None]).sum(-1),
        (w[row] * h.float()[..., None]).sum(1),
    )
    for found, right in zip(products, expected, strict=True):
        assert found.dtype == dtype
        assert relative_error(found.float(), right) <= (2.0**-8 if dtype is torch.bfloat16 else ROUNDING[dtype])


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, h, w, row = tensors(2, 5, 64)
    packed = quantize_groups(w)
    with pytest.raises(ValueError, match="take 136 bytes, not 68"):
        int4_linear(torch.ones(1, 200), packed)
    with pytest.raises(ValueError, match="as many tokens"):
        int4_rows_dot(x[:1], packed, row)
    with pytest.raises(ValueError, match="One weight a chosen row"):
        int4_rows_sum(h[:, :3], packed, row, 64)
    for outside in (-1, 40):
        with pytest.raises(IndexError):
            int4_rows_dot(x, packed, torch.full_like(row, outside))
