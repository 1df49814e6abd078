"""The multiplicative layer: both orders of its product and the defining sum are one; and it is the authors'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from efftx.bench.memory_tracker import MemoryTracker
from efftx.ops.multiplicative import effective_matrix, multiplicative, multiplicative_naive, permutation_weights
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, relative_error, values_and_gradients

NAMES = "values grad_x grad_gate grad_proj grad_bias"


def weights(tokens: tuple[int, ...], d_in: int, S: int, d_module: int, d_out: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(tokens) + d_in)
    shapes = [(*tokens, d_in), (S, d_in), (d_in, d_module), (d_out or S * d_module,)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.mark.parametrize("tokens", [(), (0,), (0, 3), (1,), (2, 1), (3,), (2, 2), (4,), (2, 3, 5)])
@pytest.mark.parametrize(("d_in", "S", "d_module"), [(6, 3, 4), (5, 1, 3), (4, 4, 1), (7, 2, 40)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_gives_the_naive_values_and_gradients(
    tokens: tuple[int, ...], d_in: int, S: int, d_module: int, with_bias: bool
) -> None:
    leaves = weights(tokens, d_in, S, d_module)[: 4 if with_bias else 3]
    actual = values_and_gradients(multiplicative, *leaves)
    expected = values_and_gradients(multiplicative_naive, *leaves)
    names = NAMES if with_bias else NAMES.removesuffix(" grad_bias")
    assert actual[0].shape == (*tokens, S * d_module)
    assert_all_close(actual, expected, ROUNDING, names)


@pytest.mark.parametrize("tokens", [(1,), (2, 50)])
@pytest.mark.parametrize("d_out", [9, 11, 12])
def test_surplus_outputs_are_cut_off(tokens: tuple[int, ...], d_out: int) -> None:
    leaves = weights(tokens, 5, 4, 3, d_out)
    actual = values_and_gradients(lambda *given: multiplicative(*given, d_out=d_out), *leaves)
    expected = values_and_gradients(lambda *given: multiplicative_naive(*given, d_out=d_out), *leaves)
    assert_all_close(actual, expected, ROUNDING, NAMES)
    x, gate, proj, bias = leaves
    whole = multiplicative(x, gate, proj)[..., :d_out] + bias
    assert_close(actual[0], whole, ROUNDING)


@settings(max_examples=40)
@given(
    n_tokens=st.integers(1, 30),
    d_in=st.integers(1, 9),
    S=st.integers(1, 5),
    d_module=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_module_s_is_a_dense_layer_on_inputs_weighted_by_its_gate(
    n_tokens: int, d_in: int, S: int, d_module: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x, gate, proj, _ = weights((n_tokens,), d_in, S, d_module)
    modules = multiplicative(x, gate, proj).unflatten(-1, (S, d_module))
    for s in range(S):
        assert_close(modules[:, s], (x * gate[s]) @ proj, ROUNDING)
    assert_close(modules.flatten(1), x @ effective_matrix(gate, proj), ROUNDING)


@pytest.mark.parametrize("n_tokens", [2, 40])
def test_inputs_may_be_views_with_any_strides(n_tokens: int) -> None:
    contiguous = weights((n_tokens, 3), 6, 2, 5)
    views = [tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for tensor in contiguous]
    views[0] = contiguous[0].transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(view.is_contiguous() for view in views[:3])
    assert_close(multiplicative(*views), multiplicative_naive(*contiguous), ROUNDING)


@pytest.mark.parametrize("n_tokens", [3, 40])
def test_gradcheck(n_tokens: int) -> None:
    leaves = [leaf.requires_grad_() for leaf in weights((n_tokens,), 3, 2, 4)]
    assert torch.autograd.gradcheck(multiplicative, leaves)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), S=st.integers(1, 6), d_module=st.integers(1, 6), n_tokens=st.sampled_from([1, 9]))
def test_any_permutation_can_be_set_by_hand_and_is_exact(seed: int, S: int, d_module: int, n_tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    d_model = S * d_module
    source = torch.randperm(d_model, generator=generator)
    gate, proj = permutation_weights(source, S)
    x = torch.randn(n_tokens, d_model, generator=generator)
    assert torch.equal(multiplicative(x, gate, proj), x[:, source])
    assert torch.equal(effective_matrix(gate, proj), torch.eye(d_model)[:, source])


@pytest.mark.parametrize(
    ("source", "S", "says"),
    [([0, 1, 1, 3], 2, "each of the numbers"), ([0, 1, 2, 4], 2, "each of the numbers"), ([3, 1, 0, 2], 3, "divide")],
)
def test_what_is_no_permutation_is_refused(source: list[int], S: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        permutation_weights(torch.tensor(source), S)


@pytest.mark.parametrize("n_tokens", [1, 4, 64])
def test_no_form_computes_more_than_the_dense_product(n_tokens: int) -> None:
    x, gate, proj, bias = weights((n_tokens,), 16, 4, 8)
    with FlopCounterMode(display=False) as counter:
        multiplicative(x, gate, proj, bias)
    assert counter.get_total_flops() == 2 * n_tokens * 16 * 4 * 8


def test_one_token_never_forms_the_matrix_and_many_tokens_never_the_gated_copies() -> None:
    def peak_numbers(n_tokens: int) -> int:
        leaves = weights((n_tokens,), 64, 16, 4)
        with MemoryTracker() as live:
            multiplicative(*leaves)
        return live.peak_bytes() // 8

    copies_of_a_token, matrix, outputs = 16 * 64, 64 * 64, 64
    assert peak_numbers(1) <= copies_of_a_token + 2 * outputs < matrix
    assert peak_numbers(512) <= matrix + 512 * outputs < 512 * copies_of_a_token


@pytest.mark.parametrize("n_tokens", [1, 64])
def test_half_precision_and_autocast_give_half_precision(n_tokens: int) -> None:
    leaves = [leaf.float() for leaf in weights((n_tokens,), 16, 4, 8)]
    expected = multiplicative_naive(*leaves)
    in_half = multiplicative(*(leaf.bfloat16() for leaf in leaves))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        casted = multiplicative(*leaves)
    for actual in (in_half, casted):
        assert actual.dtype == torch.bfloat16
        assert relative_error(actual.float(), expected) < 4 * torch.finfo(torch.bfloat16).eps


def test_it_runs_on_the_meta_device() -> None:
    for n_tokens in (1, 50):
        leaves = [leaf.to("meta").requires_grad_() for leaf in weights((n_tokens,), 6, 2, 4, 7)]
        out = multiplicative(*leaves, d_out=7)
        out.sum().backward()
        assert out.shape == (n_tokens, 7)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_Ti": torch.zeros(3, 5)}, "Tokens of width 5 need a gate"),
        ({"gate_Si": torch.zeros(2, 7)}, "need a gate"),
        ({"proj_im": torch.zeros(6)}, "need a gate"),
        ({"bias_O": torch.zeros(7)}, "8 outputs have as many biases"),
        ({"d_out": 7, "bias_O": torch.zeros(8)}, "7 outputs have as many biases"),
        ({"d_out": 9}, "the first 9 cannot be taken"),
        ({"d_out": 0}, "the first 0 cannot be taken"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_a_sentence(changes: dict[str, object], says: str) -> None:
    given_ = {"x_Ti": torch.zeros(3, 6), "gate_Si": torch.zeros(2, 6), "proj_im": torch.zeros(6, 4), **changes}
    with pytest.raises(ValueError, match=says):
        multiplicative(**given_)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["mult_dense_a", "mult_dense_nobias"])
def test_it_gives_the_authors_outputs_and_gradients(golden, name: str, dtype: torch.dtype) -> None:
    arrays = golden(name, dtype)
    leaves = {key: arrays[key].requires_grad_() for key in ("x", "w.gate", "w.proj", "w.bias") if key in arrays}
    y = multiplicative(*leaves.values())
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    for key, leaf in leaves.items():
        assert_close(leaf.grad, arrays[f"grad_{key}"], GOLDEN, f"grad_{key}")
    # Three tokens at a time take the other order of the product.
    few = torch.cat([multiplicative(part, *list(leaves.values())[1:]) for part in leaves["x"].flatten(0, 1).split(3)])
    assert_close(few.view_as(y), arrays["y"], GOLDEN, "y, few tokens")
