from __future__ import annotations

import pytest
import torch

from efftx.bench.memory_tracker import MemoryTracker
from efftx.ops.gelu import gelu_sigmoid, gelu_sigmoid_naive


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
# The last is cut in three pieces, the third of them short.
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 33, 65), (0, 4), (2, 700, 401)])
@pytest.mark.parametrize("transposed", [False, True])
def test_value_and_gradient_are_the_plain_formula_s_bit_for_bit(
    dtype: torch.dtype, shape: tuple[int, ...], transposed: bool
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 4).to(dtype)
    x = x.transpose(0, -1) if transposed else x
    grad = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    got, expected = [], []
    for function, into in ((gelu_sigmoid, got), (gelu_sigmoid_naive, expected)):
        given = x.clone().requires_grad_()
        y = function(given)
        y.backward(grad)
        assert given.grad is not None
        into += [y.detach(), given.grad]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(gelu_sigmoid(x), got[0])


def test_gradients_are_those_of_finite_differences_and_neither_argument_changes() -> None:
    x = torch.linspace(-3, 3, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gelu_sigmoid, (x,))
    before, grad = x.detach().clone(), torch.ones(11, dtype=torch.float64)
    gelu_sigmoid(x).backward(grad)
    assert torch.equal(x.detach(), before)
    assert torch.equal(grad, torch.ones_like(grad))


def test_only_the_output_is_new_between_the_passes() -> None:
    x = torch.randn(1000, requires_grad=True)
    with MemoryTracker() as live:
        y = gelu_sigmoid(x)
        assert live.bytes_now() == y.untyped_storage().nbytes()
