"""The convolution over modules starts as the authors' does and gives its outputs."""

from __future__ import annotations

import pytest
import torch

from efftx.layers.cache import Position, RecentInputs
from efftx.layers.initialize import materialize
from efftx.layers.module_convolution import ModuleConvolution
from tests.tolerances import GOLDEN, ROUNDING, assert_close


def test_it_starts_as_the_authors_does() -> None:
    with torch.device("meta"):
        layer = ModuleConvolution(4, 32, F=3, n_modules=5, d_module_in=64)
    materialize(layer, torch.device("cpu"), seed=0)
    assert layer.kernel.shape == (3, 5, 64, 32)
    layer.requires_grad_(False)
    bound = (6 / (3 * 5 * (64 + 32))) ** 0.5
    assert 0.99 * bound < float(layer.kernel.abs().max()) <= bound
    assert abs(float(layer.kernel.std()) - bound / 3**0.5) < 0.01 * bound
    assert 0 < float(layer.bias.abs().max()) < 1e-5


def test_modules_may_become_wider_or_narrower() -> None:
    layer = ModuleConvolution(4, 2, F=3, n_modules=1, d_module_in=5)
    layer.reset_parameters()
    assert layer(torch.randn(2, 7, 20)).shape == (2, 7, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "S"), [("conv_dense_k1_len3", 8), ("conv_dense_k3_len3", 4)])
def test_it_gives_the_authors_outputs_and_gradients(golden, name: str, S: int, dtype: torch.dtype) -> None:
    arrays = golden(name, dtype)
    n_positions, n_modules, _, d_module = arrays["w.kernel"].shape
    layer = ModuleConvolution(S, d_module, F=n_positions, n_modules=n_modules).to(dtype)
    layer.load_state_dict({key: arrays[f"w.{key}"] for key in ("kernel", "bias")})
    x = arrays["x"].requires_grad_()
    y = layer(x)
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    for key, parameter in layer.named_parameters():
        assert_close(parameter.grad, arrays[f"grad_w.{key}"], GOLDEN, key)


@pytest.mark.parametrize("lengths", [(1, 1), (7, 7), (2, 5)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (3, 3), (5, 5)], ids=str)
def test_position_by_position_after_a_prompt_is_the_whole(shape: tuple[int, int], lengths: tuple[int, int]) -> None:
    (F, n_modules), n_steps = shape, RecentInputs.SPARE + 9  # more than the buffer has room for
    torch.manual_seed(0)
    layer = ModuleConvolution(4, 3, F=F, n_modules=n_modules, d_module_in=2).double()
    layer.reset_parameters()
    x_BLE = torch.randn(2, max(lengths) + n_steps, 8, dtype=torch.float64)
    own_B, rows = torch.tensor(lengths), torch.arange(2)
    with torch.no_grad():
        whole = layer(x_BLE)
        position = Position(own_B=own_B)
        recent = RecentInputs(2, F, 4, 2, 2, layer.kernel, position)  # room for a kernel that sees five modules
        prompt = x_BLE[:, : max(lengths)]
        recent.keep(prompt)
        assert_close(layer(prompt, recent), whole[:, : max(lengths)], ROUNDING)
        position.end_prompt(own_B)
        for i in range(n_steps):
            x_B1E = x_BLE[rows, own_B + i][:, None]
            recent.keep(x_B1E)
            assert_close(layer(x_B1E, recent)[:, 0], whole[rows, own_B + i], ROUNDING, f"step {i}")
            position.advance()
