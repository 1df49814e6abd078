"""Sparse feed-forward: values and gradients are those of the loops, and the authors' own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops.sparse_ff import (
    UnitWeights,
    choose_units,
    controller_logits,
    hashed_units,
    sparse_ff_naive,
    training_hidden,
    training_mask,
    with_token_bias,
)
from tests.ops.sparse_ff_forms import FILES, FORMS, KINDS, LAYOUTS, WEIGHTS, fast, tensors, uniform_numbers
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, values_and_gradients

NAMES = "values grad_x " + " ".join(f"grad_{name}" for name in WEIGHTS)


def naive(
    x: Tensor,
    *weights: Tensor,
    n: int,
    hard: bool | None = None,
    uniform: Tensor | None = None,
    temperature: float = 0.0,
    multiply: bool = False,
    mask_after: bool = False,
    named: Tensor | None = None,
    token_bias: float = 0.0,
) -> Tensor:
    options = {"hard": hard, "uniform_TGN": uniform, "temperature": temperature, "multiply_by_controller": multiply}
    options |= {"mask_after": mask_after, "index_TG": named, "token_bias": token_bias}
    c1, c2, bias, *of_units = weights
    return sparse_ff_naive(x, (c1, c2, bias), UnitWeights(*of_units), n, **options)


def with_first_bias(leaves: list[Tensor]) -> list[Tensor]:
    """A bias b1 after the weights, so large that it turns units on and off."""
    generator = torch.Generator().manual_seed(9)
    return [*leaves, torch.randn(leaves[3].shape, dtype=torch.float64, generator=generator)]


def expected_values(leaves: list[Tensor], options: dict[str, object]) -> list[Tensor]:
    """Values and gradients of the loops; a softmax over one unit is 1, so that its gradients are 0 but for rounding."""
    found = values_and_gradients(lambda *leaves: naive(*leaves, **options), *leaves)
    return [*found[:2], *(torch.zeros_like(g) for g in found[2:5]), *found[5:]] if options["n"] == 1 else found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["eval", "eval, selected", "eval, naive", "train_quant", "train_soft", "train, naive"])
@pytest.mark.parametrize("file", FILES)
def test_it_gives_the_authors_outputs_and_gradients(golden, file: str, mode: str, dtype: torch.dtype) -> None:
    arrays, (n, multiply) = golden(file, dtype), FILES[file]
    key = {"eval, selected": "eval", "eval, naive": "eval", "train, naive": "train_quant"}.get(mode, mode)
    x = arrays["x"].flatten(0, 1).requires_grad_()
    weights = [layout(arrays[f"w.{name}"]).detach().requires_grad_() for name, (_, layout) in LAYOUTS.items()]
    options = {"n": n, "multiply": multiply}
    if key != "eval":
        uniform = arrays[f"{key}.gumbel_uniform"]
        options |= {"hard": key == "train_quant", "uniform": uniform, "temperature": 0.1}
    if "selected" in mode:
        options["form"] = "selected"
    y = (naive if "naive" in mode else fast)(x, *weights, **options)
    expected = arrays[{"eval": "y_eval"}.get(key, f"{key}.y")].flatten(0, 1)
    assert_close(y, expected, GOLDEN, "y")
    if "selected" in mode:
        assert_close(y, arrays["y_predict"].flatten(0, 1), GOLDEN, "y_predict")
    y.backward(arrays["eval.grad_out"].flatten(0, 1))
    assert_close(x.grad, arrays[f"{key}.grad_x"].flatten(0, 1), GOLDEN, "grad_x")
    for (name, (_, layout)), weight in zip(LAYOUTS.items(), weights, strict=True):
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert_close(grad, layout(arrays[f"{key}.grad_w.{name}"]), GOLDEN, name)


@pytest.mark.parametrize("file", FILES)
def test_it_chooses_the_authors_units(golden, file: str) -> None:
    arrays = golden(file)
    c1, c2, bias = (layout(arrays[f"w.{name}"]) for name, (_, layout) in list(LAYOUTS.items())[:3])
    logits = controller_logits(arrays["x"].flatten(0, 1), c1, c2, bias, FILES[file][0])
    assert torch.equal(choose_units(logits).int(), arrays["mask_index"])


# tokens, d_model, rank, blocks, units a block
SHAPES = {
    "usual": (7, 5, 3, 4, 3),
    "one_token": (1, 5, 3, 4, 3),
    "one_block": (4, 5, 2, 1, 6),
    "one_unit_a_block": (4, 5, 2, 6, 1),
    "one_unit": (3, 5, 1, 1, 1),
    "width_one": (3, 1, 1, 2, 2),
}


@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_loops(shape: str, kind: str, multiply: bool) -> None:
    leaves, (tokens, _, _, blocks, n) = tensors(*SHAPES[shape]), SHAPES[shape]
    options = {"n": n, "hard": KINDS[kind], "multiply": multiply}
    if kind != "evaluation":
        options |= {"uniform": uniform_numbers(tokens, blocks, n), "temperature": 2.0}
    expected = expected_values(leaves, options)
    for form in FORMS if kind == "evaluation" else ["masked"]:
        actual = values_and_gradients(lambda *leaves, form=form: fast(*leaves, form=form, **options), *leaves)
        assert_all_close(actual, expected, ROUNDING, NAMES)


PRINTED = {"mask_after": (True, False), "first_bias": (False, True), "paper": (True, True)}
"""The other forms: whether the mask comes after the ReLU, and whether there is a first bias."""


@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("printed", PRINTED)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_papers_form_has_the_values_and_gradients_of_the_loops(
    shape: str, printed: str, kind: str, multiply: bool
) -> None:
    leaves, (tokens, _, _, blocks, n), (after, biased) = tensors(*SHAPES[shape]), SHAPES[shape], PRINTED[printed]
    leaves = with_first_bias(leaves) if biased else leaves
    options = {"n": n, "hard": KINDS[kind], "multiply": multiply, "mask_after": after}
    if kind != "evaluation":
        options |= {"uniform": uniform_numbers(tokens, blocks, n), "temperature": 2.0}
    expected = expected_values(leaves, options)
    for form in FORMS if kind == "evaluation" else ["masked"]:
        actual = values_and_gradients(lambda *leaves, form=form: fast(*leaves, form=form, **options), *leaves)
        assert_all_close(actual, expected, ROUNDING, f"{NAMES} grad_b1" if biased else NAMES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_bias", [0.5, 3.0])
def test_a_bias_at_the_tokens_units_has_the_values_and_gradients_of_the_loops(token_bias: float, kind: str) -> None:
    leaves = tensors(9, 5, 3, 4, 6)
    named = hashed_units(torch.arange(9), 4, 6, salt=1)
    options = {"n": 6, "hard": KINDS[kind], "multiply": True, "named": named, "token_bias": token_bias}
    if kind != "evaluation":
        options |= {"uniform": uniform_numbers(9, 4, 6), "temperature": 1.0}
    expected = expected_values(leaves, options)
    for form in FORMS if kind == "evaluation" else ["masked"]:
        actual = values_and_gradients(lambda *leaves, form=form: fast(*leaves, form=form, **options), *leaves)
        assert_all_close(actual, expected, ROUNDING, NAMES)


def test_a_bias_moves_choices_from_the_learned_ones_to_the_hashes() -> None:
    logits = torch.randn(500, 4, 8, generator=torch.Generator().manual_seed(0))
    named = hashed_units(torch.arange(500), 4, 8, salt=0)
    shares = [(choose_units(with_token_bias(logits, named, b)) == named).float().mean() for b in (0.0, 1.0, 2.0, 100.0)]
    assert float(shares[0]) == pytest.approx(1 / 8, abs=0.04)
    assert shares == sorted(shares)
    assert float(shares[-1]) == 1.0
    assert len(set(map(float, shares))) == 4


@pytest.mark.parametrize("hard", [True, False])
def test_the_mask_after_the_relu_gives_the_same_values_and_the_controller_other_gradients(hard: bool) -> None:
    leaves = tensors(7, 5, 3, 4, 3)
    before, after = (
        values_and_gradients(lambda *leaves, on=on: fast(*leaves, n=3, hard=hard, mask_after=on), *leaves)
        for on in (False, True)
    )
    assert_close(after[0], before[0], ROUNDING)
    assert_close(after[5], before[5], ROUNDING, "w1")
    # A soft mask is above 0 everywhere, so that its place changes nothing.
    differ = float((after[3] - before[3]).abs().max()) > 0.01
    assert differ == hard


def test_after_the_relu_the_controller_learns_from_every_unit_above_zero() -> None:
    x, *_ = tensors(6, 4, 2, 1, 3)
    logits = torch.zeros(6, 1, 3, dtype=torch.float64, requires_grad=True)
    index = torch.zeros(6, 1, dtype=torch.uint8)
    w1 = torch.stack([x[0], x[1], x[2]])
    training_hidden(x, w1, training_mask(logits, index, torch.tensor(True)), mask_after=True).sum().backward()
    # The mask's gradient is relu(x W1) of all three units; through a softmax of thirds, what each has above the mean.
    positive = (x @ w1.T).relu()
    assert_close(logits.grad, ((positive - positive.mean(-1, keepdim=True)) / 3).unsqueeze(1), ROUNDING)


@given(
    shape=st.tuples(st.integers(1, 6), *(st.integers(1, 5) for _ in range(4))),
    kind=st.sampled_from(list(KINDS)),
    multiply=st.booleans(),
    temperature=st.sampled_from([0.0, 0.1, 3.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_any_shape_gives_the_loops_values_and_gradients(
    shape: tuple[int, ...], kind: str, multiply: bool, temperature: float, seed: int
) -> None:
    leaves = tensors(*shape, seed=seed)
    uniform = uniform_numbers(shape[0], *shape[3:])
    options = {
        "n": shape[4],
        "hard": KINDS[kind],
        "uniform": uniform,
        "temperature": temperature,
        "multiply": multiply,
    }
    expected = expected_values(leaves, options)
    for form in FORMS:
        actual = values_and_gradients(lambda *leaves, form=form: fast(*leaves, form=form, **options), *leaves)
        assert_all_close(actual, expected, ROUNDING, NAMES)


@pytest.mark.parametrize("kind", [*KINDS, "selected"])
def test_leading_dimensions_and_strides_change_nothing(kind: str) -> None:
    flat, *weights = tensors(12, 5, 3, 4, 3)
    options = {
        "n": 3,
        "hard": KINDS.get(kind),
        "multiply": True,
        "form": "selected" if kind == "selected" else "masked",
    }
    expected = fast(flat, *weights, **options)
    view = flat.view(3, 4, 5).transpose(0, 1).contiguous().transpose(0, 1)
    assert not view.is_contiguous()
    strided = [w.t().contiguous().t() for w in weights]
    assert_close(fast(view, *strided, **options).flatten(0, 1), expected, ROUNDING)
