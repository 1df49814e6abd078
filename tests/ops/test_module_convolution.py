"""Convolution over length and modules: the fast form and the loops are one function; and it is the authors'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops.module_convolution import module_convolution, module_convolution_naive
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, values_and_gradients

NAMES = "values grad_x grad_kernel grad_bias"
KERNELS = [(1, 1), (3, 1), (1, 3), (3, 3), (2, 5), (4, 3)]


def inputs(
    length: int, n_modules: int, positions: int, neighbours: int, *, batch: int = 2, m: int = 3, n: int = 2
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length * 100 + n_modules)
    shapes = [(batch, length, n_modules, m), (positions, neighbours, m, n), (n,)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.mark.parametrize(("positions", "neighbours"), KERNELS)
@pytest.mark.parametrize("n_modules", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_it_gives_the_naive_values_and_gradients(length: int, n_modules: int, positions: int, neighbours: int) -> None:
    leaves = inputs(length, n_modules, positions, neighbours)
    actual = values_and_gradients(module_convolution, *leaves)
    expected = values_and_gradients(module_convolution_naive, *leaves)
    assert actual[0].shape == (2, length, n_modules, 2)
    assert_all_close(actual, expected, ROUNDING, NAMES)


def test_a_batch_of_one_and_strided_inputs_change_nothing() -> None:
    leaves = inputs(6, 4, 3, 3, batch=1)
    x, kernel, bias = leaves
    strided_x = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    strided_kernel = kernel.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided_x.is_contiguous()
    assert not strided_kernel.is_contiguous()
    actual = values_and_gradients(module_convolution, strided_x, strided_kernel, bias)
    assert_all_close(actual, values_and_gradients(module_convolution_naive, *leaves), ROUNDING, NAMES)


def test_gradcheck() -> None:
    leaves = [leaf.requires_grad_() for leaf in inputs(4, 3, 3, 3)]
    assert torch.autograd.gradcheck(module_convolution, leaves)


@settings(max_examples=40)
@given(
    length=st.integers(1, 12),
    n_modules=st.integers(1, 6),
    kernel=st.sampled_from(KERNELS),
    place=st.integers(0, 11),
    module=st.integers(0, 5),
)
def test_an_input_reaches_the_next_positions_and_the_modules_around_it_and_nothing_else(
    length: int, n_modules: int, kernel: tuple[int, int], place: int, module: int
) -> None:
    place, module = place % length, module % n_modules
    positions, neighbours = kernel
    x, weight, bias = inputs(length, n_modules, positions, neighbours)
    other = x.clone()
    other[:, place, module] += 1.0
    changed = (module_convolution(other, weight, bias) - module_convolution(x, weight, bias)).abs().amax((0, 3)) > 1e-9
    expected = [
        [0 <= t - place < positions and abs(s - module) <= neighbours // 2 for s in range(n_modules)]
        for t in range(length)
    ]
    assert changed.tolist() == expected


def test_nothing_is_copied_into_another_layout() -> None:
    x, kernel, bias = (leaf.float() for leaf in inputs(20, 4, 3, 3, m=8, n=8))
    y = module_convolution(x, kernel, bias)
    assert y.stride()[1:] == (4 * 8, 8, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype: torch.dtype) -> None:
    leaves = inputs(9, 4, 3, 3)
    y = module_convolution(*(leaf.to(dtype) for leaf in leaves))
    assert y.dtype == dtype
    expected = module_convolution(*(leaf.to(dtype).double() for leaf in leaves))
    assert (y.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_it_runs_on_the_meta_device() -> None:
    leaves = [leaf.to("meta").requires_grad_() for leaf in inputs(5, 4, 3, 3)]
    out = module_convolution(*leaves)
    out.sum().backward()
    assert out.shape == (2, 5, 4, 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kernel_FKmn": torch.zeros(3, 2, 3, 2)}, "odd number of modules"),
        ({"kernel_FKmn": torch.zeros(3, 3, 2)}, "kernel must have the shape"),
        ({"x_BLSm": torch.zeros(2, 5, 4, 2)}, r"input of the shape \(batch, length, modules, 3\)"),
        ({"x_BLSm": torch.zeros(2, 0, 4, 3)}, "at least one token"),
        ({"bias_n": torch.zeros(3)}, "2 outputs have as many biases"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_a_sentence(changes: dict[str, Tensor], says: str) -> None:
    given_ = dict(zip(("x_BLSm", "kernel_FKmn", "bias_n"), inputs(5, 4, 3, 3), strict=True)) | changes
    with pytest.raises(ValueError, match=says):
        module_convolution(**given_)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "n_modules"), [("conv_dense_k1_len3", 8), ("conv_dense_k3_len3", 4)])
def test_it_gives_the_authors_outputs_and_gradients(golden, name: str, n_modules: int, dtype: torch.dtype) -> None:
    arrays = golden(name, dtype)
    leaves = {key: arrays[key].requires_grad_() for key in ("x", "w.kernel", "w.bias")}
    x, kernel, bias = leaves.values()
    y = module_convolution(x.unflatten(-1, (n_modules, -1)), kernel, bias).flatten(2)
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    for key, leaf in leaves.items():
        assert_close(leaf.grad, arrays[f"grad_{key}"], GOLDEN, f"grad_{key}")
