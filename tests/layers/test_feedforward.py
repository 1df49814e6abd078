"""The feed-forward layer: its formula, and slices that change nothing."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from efftx.errors import UserError
from efftx.layers import settings
from efftx.layers.feedforward import ACTIVATIONS, FeedForward
from efftx.ops.recompute_state import RecomputeState
from tests.tolerances import ROUNDING, assert_close


def layer(chunk_len: int, dropout: float = 0.0, activation: str = "relu") -> FeedForward:
    torch.manual_seed(0)
    return FeedForward(6, 10, activation=activation, dropout=dropout, chunk_len=chunk_len).double()


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", lambda x: x.clamp(min=0)), ("gelu", tanh_gelu), ("gelu_sigmoid", lambda x: x / (1 + (-1.702 * x).exp()))],
)
def test_it_is_two_linear_layers_around_the_activation(activation: str, function) -> None:
    own = layer(0, activation=activation)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    w1, w2 = own.layers.w1, own.layers.w2
    expected = function(x @ w1.weight.T + w1.bias) @ w2.weight.T + w2.bias
    assert_close(own(x), expected, ROUNDING)
    assert_close(pickle.loads(pickle.dumps(own))(x), own(x), ROUNDING)
    assert set(ACTIVATIONS) == set(settings.ACTIVATIONS) == {"relu", "gelu", "gelu_sigmoid"}


@pytest.mark.parametrize(("word", "hint"), [("swish", "relu"), ("gleu", "'gelu'")])
def test_an_unknown_activation_is_refused_with_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"activation={word} is not known") as told:
        layer(0, activation=word)
    assert hint in told.value.hint


@pytest.mark.parametrize("chunk_len", [1, 4, 11, 12, 100])
def test_slices_change_neither_values_nor_gradients(chunk_len: int) -> None:
    results = []
    for own in (layer(0), layer(chunk_len)):
        x = torch.linspace(-2, 2, 2 * 11 * 6, dtype=torch.float64).view(2, 11, 6).requires_grad_()
        y = own(x)
        y.square().sum().backward()
        results.append({"y": y, "x": x.grad, **{name: p.grad for name, p in own.named_parameters()}})
    for name, expected in results[0].items():
        assert_close(results[1][name], expected, ROUNDING, name)


@pytest.mark.parametrize("chunk_len", [0, 4])
def test_dropout_is_for_training_only(chunk_len: int) -> None:
    own = layer(chunk_len, dropout=0.5)
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    assert not torch.equal(own(x), own(x))
    own.eval()
    assert torch.equal(own(x), own(x))
    assert_close(own(x), layer(0)(x), ROUNDING)


@pytest.mark.parametrize("chunk_len", [0, 4])
def test_it_makes_no_choice_that_would_have_to_be_replayed(chunk_len: int) -> None:
    own = layer(chunk_len)
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    state = RecomputeState()
    assert torch.equal(own(x, state), own(x))
    assert not state.choices
