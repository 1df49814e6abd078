"""Terraformer's recurrent path: its formula, the authors' layer, their first weights."""

from __future__ import annotations

import math

import pytest
import torch

from efftx.layers.initialize import materialize
from efftx.layers.sru import SRU, SRUBranch, SRUConfig
from efftx.ops.recompute_state import RecomputeState
from efftx.ops.sru import sru_naive
from tests.tolerances import GOLDEN, ROUNDING, assert_close


def branch(n_layers: int = 2, d: int = 4) -> SRUBranch:
    with torch.device("meta"):
        own = SRUBranch(6, SRUConfig(n_layers, d)).double()
    materialize(own, torch.device("cpu"), 0)
    return own


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_layer_gives_the_authors_outputs_and_gradients(golden, dtype: torch.dtype) -> None:
    arrays = golden("sru_a", dtype)
    own = SRU(32).to(dtype)
    own.load_state_dict({"kernel": arrays["w.kernel"], "bias": arrays["w.bias"]})
    x = arrays["x"].requires_grad_()
    y, _ = own(x)
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    assert_close(own.kernel.grad, arrays["grad_w.kernel"], GOLDEN, "grad_w.kernel")
    assert_close(own.bias.grad, arrays["grad_w.bias"], GOLDEN, "grad_w.bias")


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_branch_normalises_narrows_recurs_and_widens(n_layers: int) -> None:
    own = branch(n_layers)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(torch.linspace(-0.3, 0.4, parameter.numel(), dtype=torch.float64).view_as(parameter))
    x = torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    centred = x - x.mean(-1, keepdim=True)
    normal = centred / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt() * own.norm.weight + own.norm.bias
    hidden = normal @ own.into.weight.T + own.into.bias
    for layer in own.layers:
        hidden, _ = sru_naive(hidden, hidden @ layer.kernel + layer.bias)
    assert_close(own(x), hidden @ own.out.weight.T + own.out.bias, ROUNDING)


def test_a_position_reads_itself_and_what_came_before() -> None:
    own = branch()
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    other = x.clone()
    other[:, 4] += torch.arange(6.0)
    changed = (own(x) != own(other)).any(-1)[0]
    assert changed.tolist() == [place >= 4 for place in range(9)]


def test_its_layers_can_go_on_from_a_state() -> None:
    own = SRU(4)
    own.reset_parameters()
    x = torch.randn(2, 8, 4)
    whole, states = own(x)
    rest, _ = own(x[:, 5:], states[:, 4])
    assert_close(rest, whole[:, 5:], ROUNDING)
    one, _ = own(x[:, 5:6], states[:, 4])
    assert_close(one, whole[:, 5:6], ROUNDING)


def test_the_names_of_its_weights_are_those_the_authors_weights_map_to() -> None:
    shapes = {name: tuple(p.shape) for name, p in branch(n_layers=2).named_parameters()}
    assert shapes == {
        "norm.weight": (6,),
        "norm.bias": (6,),
        "into.weight": (4, 6),
        "into.bias": (4,),
        "layers.0.kernel": (4, 12),
        "layers.0.bias": (12,),
        "layers.1.kernel": (4, 12),
        "layers.1.bias": (12,),
        "out.weight": (6, 4),
        "out.bias": (6,),
    }


def test_its_first_weights_are_the_authors() -> None:
    with torch.device("meta"):
        own = SRUBranch(200, SRUConfig(1, 100))
    materialize(own, torch.device("cpu"), 0)
    for weight, fans in ((own.into.weight, 300), (own.layers[0].kernel, 400), (own.out.weight, 300)):
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < float(weight.detach().abs().max()) <= bound
    for bias in (own.into.bias, own.layers[0].bias, own.out.bias):
        assert 0.7e-6 < float(bias.detach().std()) < 1.3e-6
    assert bool((own.norm.weight == 1).all())


def test_it_makes_no_choice_that_would_have_to_be_replayed() -> None:
    own, state = branch(), RecomputeState()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    assert torch.equal(own(x, state), own(x))
    assert not state.choices


def test_none_is_the_default() -> None:
    assert SRUConfig().n_layers == 0
    assert SRUConfig().d == 32
