"""The SRU: the scan is the recurrence, forwards and backwards; and it is the authors'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops.sru import linear_recurrence, sru, sru_naive
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, values_and_gradients

D = 5


def inputs(length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, u and a state, with gates that are nearly closed, nearly open and between."""
    generator = torch.Generator().manual_seed(length)
    x, u, state = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((batch, length, D), (batch, length, 3 * D), (batch, D))
    )
    u[..., : 2 * D] *= 4.0
    return [x.to(dtype), u.to(dtype), state.to(dtype)]


def both(results: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat(results, dim=-1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100])
def test_it_gives_the_loops_values_and_gradients(length: int, batch: int) -> None:
    x, u, state = inputs(length, batch)
    for leaves in ((x, u), (x, u, state)):
        actual = values_and_gradients(lambda *given: both(sru(*given)), *leaves)
        expected = values_and_gradients(lambda *given: both(sru_naive(*given)), *leaves)
        names = ["values", "grad_x", "grad_u", "grad_state"][: len(leaves) + 1]
        assert_all_close(actual, expected, ROUNDING, " ".join(names))


@pytest.mark.parametrize("length", [1, 6, 11])
def test_the_gradients_are_the_finite_differences(length: int) -> None:
    x, u, state = (leaf.requires_grad_() for leaf in inputs(length))
    assert torch.autograd.gradcheck(lambda *given: both(sru(*given)), (x, u, state))


@given(length=st.integers(1, 70), cut=st.integers(0, 69))
@settings(max_examples=40)
def test_two_parts_with_the_state_between_are_one_whole(length: int, cut: int) -> None:
    x, u, state = inputs(length)
    cut = cut % length
    whole, states = sru(x, u, state)
    if cut:
        first, before = sru(x[:, :cut], u[:, :cut], state)
        second, after = sru(x[:, cut:], u[:, cut:], before[:, -1])
        assert_close(torch.cat([first, second], 1), whole, ROUNDING)
        assert_close(torch.cat([before, after], 1), states, ROUNDING)
    shorter, _ = sru(x[:, : cut + 1], u[:, : cut + 1], state)
    assert_close(shorter, whole[:, : cut + 1], ROUNDING)


def test_one_position_at_a_time_is_the_whole_sequence() -> None:
    x, u, _ = inputs(21)
    state = torch.zeros_like(x[:, 0])
    outputs, states = [], []
    for t in range(21):
        out, after = sru(x[:, t : t + 1], u[:, t : t + 1], state)
        state = after[:, 0]
        outputs.append(out)
        states.append(after)
    whole, all_states = sru(x, u)
    assert_close(torch.cat(outputs, 1), whole, ROUNDING)
    assert_close(torch.cat(states, 1), all_states, ROUNDING)


@given(st.lists(st.sampled_from([0.0, 1.0, 1e-30, 0.3, 1.0 - 2.0**-24]), min_size=1, max_size=40))
@settings(max_examples=60)
def test_factors_of_zero_and_one_are_exact(factors: list[float]) -> None:
    f = torch.tensor(factors, dtype=torch.float32).view(1, -1, 1).requires_grad_()
    v = torch.ones_like(f).requires_grad_()
    c = linear_recurrence(f, v)
    expected, last = [], 0.0
    for factor in f.detach().flatten().tolist():
        last = factor * last + 1.0
        expected.append(last)
    assert_close(c, torch.tensor(expected).view_as(c), ROUNDING)
    grad_f, grad_v = torch.autograd.grad(c.sum(), (f, v))
    assert bool(grad_f.isfinite().all())
    assert bool(grad_v.isfinite().all())


def test_a_gate_at_its_end_remembers_for_ever_or_not_at_all() -> None:
    length = 5000
    x = torch.zeros(1, length, 2)
    u = torch.randn(1, length, 6, generator=torch.Generator().manual_seed(0))
    u[:, :, 2:4] = torch.tensor([200.0, -200.0])
    u[:, 0, 2] = -200.0
    u.requires_grad_()
    _, states = sru(x, u)
    y = u.detach()[..., 4:]
    assert torch.equal(states[..., 0], y[:, :1, 0].expand(1, length))
    assert torch.equal(states[..., 1], y[..., 1])
    grad = torch.autograd.grad(states[:, -1].sum(), u)[0]
    assert grad[0, 0, 4] == 1.0
    assert not grad[0, 1:, 4].any()
    assert bool(grad.isfinite().all())


@given(length=st.integers(1, 64), scale=st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=40)
def test_a_state_is_a_weighted_mean_of_what_it_has_read(length: int, scale: float) -> None:
    x, u, state = inputs(length, dtype=torch.float32)
    u = torch.cat([u[..., : 2 * D] * scale, u[..., 2 * D :]], -1)
    _, states = sru(x, u, state)
    read = torch.cat([state.unsqueeze(1), u[..., 2 * D :]], 1)
    slack = 1e-5 * float(read.abs().max())
    assert bool((states <= read.cummax(1).values[:, 1:] + slack).all())
    assert bool((states >= read.cummin(1).values[:, 1:] - slack).all())


def test_inputs_may_be_views_with_any_strides() -> None:
    contiguous = inputs(9)
    views = [leaf.transpose(0, -1).contiguous().transpose(0, -1) for leaf in contiguous]
    assert not views[0].is_contiguous()
    actual = values_and_gradients(lambda *given: both(sru(*given)), *views)
    expected = values_and_gradients(lambda *given: both(sru_naive(*given)), *contiguous)
    assert_all_close(actual, expected, ROUNDING, "values grad_x grad_u grad_state")


def test_half_precision_keeps_its_states_in_float32() -> None:
    x, u, _ = inputs(50, dtype=torch.bfloat16)
    out, states = sru(x, u)
    assert out.dtype == torch.bfloat16
    assert states.dtype == torch.float32
    assert_close(states, sru_naive(x.float(), u.float())[1], ROUNDING)
    assert sru(x[:, :1], u[:, :1], states[:, 0])[0].dtype == torch.bfloat16


def test_it_takes_a_logarithmic_number_of_steps_and_needs_no_values() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counted = []
    for length in (256, 4096):
        x = torch.empty(1, length, D, device="meta", requires_grad=True)
        u = torch.empty(1, length, 3 * D, device="meta", requires_grad=True)
        with Count() as count:
            sru(x, u)[0].sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        counted.append(count.calls)
    assert counted[1] - counted[0] <= 200  # four more levels of a tree, twice; a loop would take thousands


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_gives_the_authors_outputs_and_gradients(golden, dtype: torch.dtype) -> None:
    arrays = golden("sru_a", dtype)
    x, kernel, bias = (arrays[name].requires_grad_() for name in ("x", "w.kernel", "w.bias"))
    y, _ = sru(x, x @ kernel + bias)
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    for name, leaf in (("grad_x", x), ("grad_w.kernel", kernel), ("grad_w.bias", bias)):
        assert_close(leaf.grad, arrays[name], GOLDEN, name)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, u, state = inputs(4)
    with pytest.raises(ValueError, match="three times its width"):
        sru(x, u[..., :-1])
    with pytest.raises(ValueError, match="one vector a row"):
        sru(x, u, state[:1])
    with pytest.raises(ValueError, match="one vector a row"):
        sru(x, u, state[:, :-1])
    with pytest.raises(ValueError, match="at least 1"):
        sru(x[:, :0], u[:, :0])
    with pytest.raises(ValueError, match="of one shape"):
        linear_recurrence(x, u)
