"""The multiplicative layer has few weights, starts as the authors' does, and gives its outputs."""

from __future__ import annotations

import pytest
import torch

from efftx.layers.initialize import materialize
from efftx.layers.multiplicative import Multiplicative
from efftx.ops.multiplicative import multiplicative, permutation_weights
from tests.tolerances import GOLDEN, ROUNDING, assert_close


@pytest.mark.parametrize(("d_model", "S"), [(32, 4), (1024, 16), (12, 1), (12, 12)])
def test_it_has_d_model_times_modules_and_their_width_weights(d_model: int, S: int) -> None:
    n_weights = d_model * (S + d_model // S)
    with torch.device("meta"):
        assert sum(p.numel() for p in Multiplicative(d_model, d_model, S, bias=False).parameters()) == n_weights
        assert sum(p.numel() for p in Multiplicative(d_model, d_model, S).parameters()) == n_weights + d_model


def test_it_starts_as_the_authors_does() -> None:
    with torch.device("meta"):
        layer = Multiplicative(1024, 512, 16)
    materialize(layer, torch.device("cpu"), seed=0)
    assert layer.bias is not None
    layer.requires_grad_(False)
    assert abs(float(layer.gate.std()) - 0.5) < 0.02
    bound = (6 / (1024 + 32)) ** 0.5
    assert 0.99 * bound < float(layer.proj.abs().max()) <= bound
    assert abs(float(layer.proj.std()) - bound / 3**0.5) < 0.01 * bound
    assert 0 < float(layer.bias.abs().max()) < 1e-5


def test_a_layer_set_by_hand_is_a_permutation() -> None:
    source = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    layer = Multiplicative(24, 24, 4, bias=False)
    gate, proj = permutation_weights(source, 4)
    layer.load_state_dict({"gate": gate, "proj": proj})
    for n_tokens in (1, 50):
        x = torch.randn(n_tokens, 24)
        assert torch.equal(layer(x), x[:, source])


@pytest.mark.parametrize("d_out", [13, 15, 16])
def test_outputs_can_be_counted_up_to_a_multiple_and_cut(d_out: int) -> None:
    torch.manual_seed(0)
    layer = Multiplicative(6, d_out, 4, round_up=True).double()
    layer.reset_parameters()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    assert layer.proj.shape == (6, 4)
    assert layer.bias is not None
    expected = multiplicative(x, layer.gate, layer.proj)[..., :d_out] + layer.bias
    assert_close(layer(x), expected, ROUNDING)


@pytest.mark.parametrize(
    ("d_out", "S", "round_up", "says"),
    [
        (13, 4, False, "4 modules do not divide 13 outputs"),
        (13, 0, True, "0 modules"),
        (5, 4, True, "Of 4 modules with 2 outputs each the last has none of 5"),
        (6, 4, True, "the last has none of 6"),
    ],
)
def test_modules_that_do_not_fit_are_refused(d_out: int, S: int, round_up: bool, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Multiplicative(6, d_out, S, round_up=round_up)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["mult_dense_a", "mult_dense_nobias"])
def test_it_gives_the_authors_outputs_and_gradients(golden, name: str, dtype: torch.dtype) -> None:
    arrays = golden(name, dtype)
    S, d_in = arrays["w.gate"].shape
    layer = Multiplicative(d_in, arrays["y"].shape[-1], S, bias="w.bias" in arrays).to(dtype)
    layer.load_state_dict({key: arrays[f"w.{key}"] for key in layer.state_dict()})
    x = arrays["x"].requires_grad_()
    y = layer(x)
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    for key, parameter in layer.named_parameters():
        assert_close(parameter.grad, arrays[f"grad_w.{key}"], GOLDEN, key)
