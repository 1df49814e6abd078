"""Slice by slice is the same as at once: values, gradients, and dropout in the backward pass."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops.chunking import chunked, chunked_with_choices
from efftx.ops.recompute_state import Choose, RecomputeState
from tests.tolerances import ROUNDING, assert_all_close, values_and_gradients

NAMES = "values grad_x grad_w1 grad_b grad_w2"


def tensors(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, length, 5), (7, 5), (7,), (3, 7))
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def two_layers(parameters: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    return (F.linear(F.relu(F.linear(x, parameters["w1"], parameters["b"])), parameters["w2"]),)


def at_once(x: Tensor, w1: Tensor, b: Tensor, w2: Tensor) -> Tensor:
    return two_layers({"w1": w1, "b": b, "w2": w2}, x)[0]


def by_slices(chunk_len: int):
    def call(x: Tensor, w1: Tensor, b: Tensor, w2: Tensor) -> Tensor:
        return chunked(two_layers, {"w1": w1, "b": b, "w2": w2}, (x,), chunk_len)[0]

    return call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk_len", [1, 3, 4, 12, 1000])
@pytest.mark.parametrize("length", [1, 8, 12, 13])
def test_slices_give_the_values_and_gradients_of_the_whole(length: int, chunk_len: int, dtype: torch.dtype) -> None:
    leaves = tensors(length, dtype)
    actual = values_and_gradients(by_slices(chunk_len), *leaves)
    assert_all_close(actual, values_and_gradients(at_once, *leaves), ROUNDING, NAMES)


@given(length=st.integers(1, 30), chunk_len=st.integers(1, 35))
@settings(max_examples=30)
def test_any_slice_gives_the_values_and_gradients_of_the_whole(length: int, chunk_len: int) -> None:
    leaves = tensors(length)
    actual = values_and_gradients(by_slices(chunk_len), *leaves)
    assert_all_close(actual, values_and_gradients(at_once, *leaves), ROUNDING, NAMES)


def test_inputs_may_be_views_with_any_strides() -> None:
    x, *parameters = tensors(6)
    view = x.transpose(0, 1).contiguous().transpose(0, 1)
    actual = values_and_gradients(by_slices(4), view, *parameters)
    assert_all_close(actual, values_and_gradients(at_once, x, *parameters), ROUNDING, NAMES)


def losses(parameters: Mapping[str, Tensor], h: Tensor, gain: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    logits = F.linear(h * gain, parameters["w"])
    nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    return nll, logits.argmax(-1), logits.argmax(-1) == target, logits.square().mean(-1)


@pytest.mark.parametrize("chunk_len", [1, 4, 9, 50])
def test_several_inputs_and_results_some_of_them_whole_numbers(chunk_len: int) -> None:
    generator = torch.Generator().manual_seed(0)
    h, gain = (torch.randn(2, 9, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    weight = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 6, (2, 9), generator=generator)

    def sums(function):
        def call(h: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
            nll, _, _, size = function(h, gain, weight)
            return nll + 0.3 * size

        return call

    def sliced(h: Tensor, gain: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return chunked(losses, {"w": weight}, (h, gain, target), chunk_len)

    def whole(h: Tensor, gain: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return losses({"w": weight}, h, gain, target)

    actual, expected = (values_and_gradients(sums(f), h, gain, weight) for f in (sliced, whole))
    assert_all_close(actual, expected, ROUNDING, "values grad_h grad_gain grad_w")
    for got, wanted in list(zip(sliced(h, gain, weight), whole(h, gain, weight), strict=True))[1:3]:
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, w1, b, w2 = tensors(6)
    w1.requires_grad_()
    out = chunked(two_layers, {"w1": w1, "b": b, "w2": w2}, (x,), 4)[0]
    out.sum().backward()
    assert w1.grad is not None
    assert x.grad is None
    assert b.grad is None
    with torch.no_grad():
        assert not chunked(two_layers, {"w1": w1, "b": b, "w2": w2}, (x,), 4)[0].requires_grad


def shifted(parameters: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    return (x + parameters["p"],)


def scaled(parameters: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    return (x * parameters["p"].sum(),)


@pytest.mark.parametrize("function", [shifted, scaled])
def test_gradients_that_share_memory_add_up_and_leave_what_came_in(function) -> None:
    x, p = (torch.randn(1, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 1))
    grad_out = torch.randn(1, 4, 3, dtype=torch.float64)
    before = grad_out.clone()
    actual = torch.autograd.grad(chunked(function, {"p": p}, (x,), 1)[0], [x, p], grad_out)
    expected = torch.autograd.grad(function({"p": p}, x)[0], [x, p], before)
    assert torch.equal(grad_out, before)
    assert_all_close(actual, expected, ROUNDING, "grad_x grad_p")


def dropped(parameters: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    return (F.linear(F.dropout(F.linear(x, parameters["w1"], parameters["b"]), 0.5), parameters["w2"]),)


def test_dropout_in_the_backward_pass_is_that_of_the_forward_pass() -> None:
    leaves = tensors(10)

    def drawn(function):
        def call(x: Tensor, w1: Tensor, b: Tensor, w2: Tensor) -> Tensor:
            torch.manual_seed(9)
            out = function({"w1": w1, "b": b, "w2": w2}, x)
            torch.rand(5)
            return out

        return call

    def stored(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return torch.cat([dropped(parameters, piece)[0] for piece in x.split(3, dim=1)], dim=1)

    def sliced(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return chunked(dropped, parameters, (x,), 3)[0]

    actual, expected = (values_and_gradients(drawn(f), *leaves) for f in (sliced, stored))
    assert_all_close(actual, expected, ROUNDING, NAMES)


def gated(parameters: Mapping[str, Tensor], choose: Choose, x: Tensor) -> tuple[Tensor, ...]:
    """Drops out, opens gates by noise and by the sign of what it reads, and drops out again."""
    wide = F.dropout(F.linear(x, parameters["w1"], parameters["b"]), 0.3)
    gate = choose("gate", lambda: wide + torch.randn_like(wide) > 0)
    return (F.linear(F.dropout(wide * gate, 0.3), parameters["w2"]),)


def test_choices_are_made_once_a_slice_and_dropout_behind_them_is_that_of_the_forward_pass() -> None:
    leaves = tensors(10)

    def stored(x: Tensor, w1: Tensor, b: Tensor, w2: Tensor) -> Tensor:
        torch.manual_seed(9)
        pieces = x.split(3, dim=1)
        return torch.cat([gated({"w1": w1, "b": b, "w2": w2}, lambda _, make: make(), p)[0] for p in pieces], dim=1)

    state = RecomputeState()

    def sliced(x: Tensor, w1: Tensor, b: Tensor, w2: Tensor) -> Tensor:
        torch.manual_seed(9)
        out = chunked_with_choices(gated, {"w1": w1, "b": b, "w2": w2}, (x,), 3, state)[0]
        torch.rand(5)
        return out

    expected = values_and_gradients(stored, *leaves)
    assert_all_close(values_and_gradients(sliced, *leaves), expected, ROUNDING, NAMES)
    assert list(state.choices) == ["0.gate", "1.gate", "2.gate", "3.gate"]
    assert [choice.shape[1] for choice in state.choices.values()] == [3, 3, 3, 1]


def test_choices_given_from_outside_are_played_back_in_both_passes() -> None:
    leaves = tensors(5)
    opened = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.5

    def by_gate(parameters: Mapping[str, Tensor], choose: Choose, x: Tensor) -> tuple[Tensor, ...]:
        wide = F.linear(x, parameters["w1"], parameters["b"])
        gate = choose("gate", lambda: pytest.fail("made again"))
        return (F.linear(wide * gate, parameters["w2"]),)

    def whole(x: Tensor, w1: Tensor, b: Tensor, w2: Tensor) -> Tensor:
        return by_gate({"w1": w1, "b": b, "w2": w2}, lambda *_: opened, x)[0]

    def sliced(x: Tensor, w1: Tensor, b: Tensor, w2: Tensor) -> Tensor:
        given = RecomputeState({"0.gate": opened[:, :3], "1.gate": opened[:, 3:]})
        return chunked_with_choices(by_gate, {"w1": w1, "b": b, "w2": w2}, (x,), 3, given)[0]

    actual, expected = (values_and_gradients(f, *leaves) for f in (sliced, whole))
    assert_all_close(actual, expected, ROUNDING, NAMES)


def test_without_a_replay_the_backward_pass_still_takes_the_choices_of_the_forward_pass() -> None:
    x, w1, b, w2 = (t.requires_grad_() for t in tensors(7))
    made: list[int] = []

    def counted(parameters: Mapping[str, Tensor], choose: Choose, x: Tensor) -> tuple[Tensor, ...]:
        wide = F.linear(x, parameters["w1"], parameters["b"])
        gate = choose("gate", lambda: (made.append(x.shape[1]), wide > 0)[1])
        return (F.linear(wide * gate, parameters["w2"]),)

    out = chunked_with_choices(counted, {"w1": w1, "b": b, "w2": w2}, (x,), 3, None)[0]
    out.sum().backward()
    assert made == [3, 3, 1]


def test_the_wide_values_exist_for_one_slice_only() -> None:
    seen: list[tuple[int, ...]] = []

    def watched(parameters: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
        seen.append(tuple(x.shape))
        return two_layers(parameters, x)

    x, w1, b, w2 = (t.requires_grad_() for t in tensors(8))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = chunked(watched, {"w1": w1, "b": b, "w2": w2}, (x,), 3)[0]
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in (x, w1, b, w2)}
    out.sum().backward()
    assert seen == [(2, 3, 5), (2, 3, 5), (2, 2, 5)] * 2


@pytest.mark.parametrize("chunk_len", [0, -2])
def test_an_empty_slice_is_refused(chunk_len: int) -> None:
    x, w1, b, w2 = tensors(4)
    with pytest.raises(ValueError, match="at least one position"):
        chunked(two_layers, {"w1": w1, "b": b, "w2": w2}, (x,), chunk_len)


def test_inputs_of_different_lengths_are_refused() -> None:
    def add(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (x + y,)

    with pytest.raises(ValueError, match=r"shorter|longer"):
        chunked(add, {}, (torch.zeros(1, 6, 2), torch.zeros(1, 3, 2)), 2)
