"""First weights: drawn from the seed alone, nothing left undrawn, tied weights still one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from efftx.config.compose import compose
from efftx.errors import UserError
from efftx.layers.initialize import glorot_, materialize, on_meta
from efftx.layers.positions import LearnedPositions
from efftx.models.build import build_model

CPU = torch.device("cpu")


def test_glorot_weights_fill_their_interval_and_biases_are_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 200)
    glorot_(layer)
    bound = math.sqrt(6 / 300)
    assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert abs(float(layer.weight.detach().std()) - bound / math.sqrt(3)) < 0.02 * bound
    assert not layer.bias.any()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = LearnedPositions(3, 2), LearnedPositions(3, 2)
        self.second.table = self.first.table


def made_on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with on_meta():
        return make()


def test_one_seed_gives_one_set_of_weights_and_moves_no_random_state() -> None:
    drawn: list[Tensor] = []
    for seed in (3, 3, 4):
        state = torch.get_rng_state()
        module = made_on_meta(lambda: LearnedPositions(5, 4))
        materialize(module, CPU, seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(module.get_parameter("table"))
        torch.rand(7)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_tied_weight_is_one_parameter_afterwards() -> None:
    module = made_on_meta(Pair)
    materialize(module, CPU, 0)
    assert module.get_parameter("first.table") is module.get_parameter("second.table")
    assert len(list(module.parameters())) == 1


class Forgotten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2))


class ForgottenLinear(nn.Module):
    """Its linear layers, in lists and one behind the other, are its own to start."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 3))])


class HalfStarted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.register_buffer("table", torch.empty(3))

    def reset_parameters(self) -> None:
        glorot_(self.linear)


@pytest.mark.parametrize(
    ("module", "weight"),
    [(Forgotten, "weight"), (ForgottenLinear, r"layers\.0\.0\.weight"), (HalfStarted, "table")],
)
def test_a_module_that_leaves_a_weight_unset_is_told_of_the_method(module: type[nn.Module], weight: str) -> None:
    with pytest.raises(UserError, match=f"{module.__name__} leaves its weight '{weight}'") as caught:
        materialize(made_on_meta(module), CPU, 0)
    assert "reset_parameters(self)" in caught.value.hint


def test_the_module_named_is_the_one_that_lacks_the_method() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ForgottenLinear()

    with pytest.raises(UserError, match=r"ForgottenLinear leaves its weight 'inner\.layers\.0\.0\.weight'"):
        materialize(made_on_meta(Around), CPU, 0)


class Operators(TorchDispatchMode):
    """The names of the operators that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Drawn(nn.Module):
    """Weights from every draw in place that the layers use."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.weights = nn.ParameterList([torch.empty(4, 4) for _ in range(3)])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        normal, uniform, glorot = self.weights
        nn.init.normal_(normal, std=0.5)
        nn.init.uniform_(uniform, 1.0, 2.0)
        nn.init.xavier_uniform_(glorot)
        glorot_(self.linear)


def test_on_meta_nothing_is_drawn_and_what_is_made_there_starts_with_the_values_of_its_draws() -> None:
    with Operators() as run:
        module = made_on_meta(Drawn)
    assert "empty" in run.names
    assert not run.names & {"normal_", "uniform_", "normal", "uniform", "rand", "randn"}
    assert all(parameter.is_meta for parameter in module.parameters())
    materialize(module, CPU, 3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = Drawn()
        torch.manual_seed(3)
        expected.reset_parameters()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name


@pytest.mark.parametrize("weights", [0.0, 0.125])
def test_the_random_numbers_of_another_device_give_the_same_weights_wherever_they_lie(weights: float) -> None:
    """`cpu:0` stands for a GPU: what is drawn there is copied to where the weights are."""
    words = ["model=terraformer", "data=c4", "size=smoke", f"init.weights={weights}", "sparse_ff.N=0", "sparse_qkv.S=0"]
    config = compose(words)
    plain = build_model(config, 356, CPU)
    drawn: list[torch.device] = []
    empty_like = torch.empty_like

    def counted(like: Tensor, device: torch.device | None = None, **how: Any) -> Tensor:
        if device is not None:
            drawn.append(device)
        return empty_like(like, device=device, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "empty_like", counted)
        copied = build_model(config, 356, CPU, drawn_on=torch.device("cpu:0"))
    assert drawn
    for (name, one), other in zip(plain.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, other), name
