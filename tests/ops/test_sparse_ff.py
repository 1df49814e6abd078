"""The sparse feed-forward is the authors', equals its loops in values and gradients, and has the paper's properties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from efftx.ops.sparse_ff import (
    UnitWeights,
    choice_statistics,
    choose_units,
    chosen_probability,
    controller_logits,
    hashed_units,
    hashed_units_naive,
    sparse_ff_masked,
    sparse_ff_naive,
    sparse_ff_selected,
    training_hidden,
    training_mask,
    with_token_bias,
)
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, values_and_gradients

LAYOUTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "controller.m1": ("c1", lambda m_DR: m_DR.t()),
    "controller.m2": ("c2", lambda m_RGN: m_RGN.flatten(1).t()),
    "controller.mb": ("c_bias", lambda b_GN: b_GN.flatten()),
    "main.w1": ("w1", lambda w_DGN: w_DGN.flatten(1).t()),
    "main.w2": ("w2", lambda w_NGD: w_NGD.transpose(0, 1).flatten(0, 1)),
    "main.b2": ("b2", lambda b_D: b_D),
}
"""Names and axis orders of the authors' arrays, and the parameter that each becomes."""
WEIGHTS = ["c1", "c2", "c_bias", "w1", "w2", "b2"]
NAMES = "values grad_x " + " ".join(f"grad_{name}" for name in WEIGHTS)
FILES = {"sparse_ff_a": (8, False), "sparse_ff_b": (4, True)}
FORMS = {"masked": sparse_ff_masked, "selected": sparse_ff_selected}
KINDS = {"evaluation": None, "hard": True, "soft": False}


def fast(
    x: Tensor,
    *weights: Tensor,
    n: int,
    hard: bool | None = None,
    uniform: Tensor | None = None,
    temperature: float = 0.0,
    multiply: bool = False,
    form: str = "masked",
    mask_after: bool = False,
    named: Tensor | None = None,
    token_bias: float = 0.0,
) -> Tensor:
    """The ops put together, under the arguments of the oracle; a seventh weight is b1."""
    c1, c2, bias, w1, w2, b2, *first = weights
    b1 = first[0] if first else None
    logits = controller_logits(x, c1, c2, bias, n)
    if named is not None:
        logits = with_token_bias(logits, named, token_bias)
    index = choose_units(logits, uniform, temperature)
    if hard is None:
        factor = chosen_probability(logits, index) if multiply else None
        return FORMS[form](x, UnitWeights(w1, w2, b2, b1), index, n, factor)
    factor = chosen_probability(logits.detach(), index) if multiply and hard else None
    hidden = training_hidden(x, w1, training_mask(logits, index, torch.tensor(hard)), factor, b1, mask_after=mask_after)
    return F.linear(hidden, w2.t(), b2)


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


def tensors(tokens: int, d_model: int, rank: int, blocks: int, n: int, seed: int = 0) -> list[Tensor]:
    """An input, then the weights in the order of `WEIGHTS`.

    Logits are about 1 large: where a softmax is nearly 0 or 1, its gradient is a difference of equal numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    units = blocks * n
    shapes = ((tokens, d_model), (rank, d_model), (units, rank), (units,), (units, d_model), (units, d_model))
    found = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in (*shapes, (d_model,))]
    for factor, scale in ((1, d_model**-0.5), (2, 0.5 * rank**-0.5), (3, 0.5)):
        found[factor] *= scale
    return found


def with_first_bias(leaves: list[Tensor]) -> list[Tensor]:
    """A bias b1 after the weights, so large that it turns units on and off."""
    generator = torch.Generator().manual_seed(9)
    return [*leaves, torch.randn(leaves[3].shape, dtype=torch.float64, generator=generator)]


def expected_values(leaves: list[Tensor], options: dict[str, object]) -> list[Tensor]:
    """Values and gradients of the loops; a softmax over one unit is 1, so that its gradients are 0 but for rounding."""
    found = values_and_gradients(lambda *leaves: naive(*leaves, **options), *leaves)
    return [*found[:2], *(torch.zeros_like(g) for g in found[2:5]), *found[5:]] if options["n"] == 1 else found


def uniform_numbers(tokens: int, blocks: int, n: int) -> Tensor:
    return torch.rand(tokens, blocks, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


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
    tokens=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    n_blocks=st.integers(1, 6),
    n=st.integers(1, 300),
    salt=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_hash_of_a_token_is_that_of_pythons_integers(tokens: list[int], n_blocks: int, n: int, salt: int) -> None:
    assert hashed_units(torch.tensor(tokens), n_blocks, n, salt).tolist() == hashed_units_naive(
        tokens, n_blocks, n, salt
    )


def test_the_hash_spreads_tokens_evenly_and_differs_by_block_and_salt() -> None:
    index = hashed_units(torch.arange(32_000).view(2, -1), 8, 16, salt=0)
    assert index.shape == (2, 16_000, 8)
    assert index.dtype == torch.uint8
    counts = torch.stack([torch.bincount(block.flatten().int(), minlength=16) for block in index.unbind(-1)])
    # Binomial: 2000 expected, and 6 deviations of 43 around it.
    assert int((counts - 2000).abs().max()) < 6 * 43.3
    pairs = [(index[..., 0], index[..., 1]), (index, hashed_units(torch.arange(32_000).view(2, -1), 8, 16, salt=1))]
    for one, other in pairs:
        assert float((one == other).double().mean()) == pytest.approx(1 / 16, abs=0.01)


@given(
    shape=st.tuples(st.integers(1, 6), *(st.integers(1, 5) for _ in range(4))),
    kind=st.sampled_from(list(KINDS)),
    multiply=st.booleans(),
    temperature=st.sampled_from([0.0, 0.1, 3.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
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


def test_a_hard_mask_is_exactly_one_unit_a_block_and_a_soft_one_is_the_softmax() -> None:
    logits = 30 * torch.randn(50, 6, 7, generator=torch.Generator().manual_seed(0))
    index = choose_units(logits)
    hard = training_mask(logits, index, torch.tensor(True))
    assert torch.equal(hard, F.one_hot(logits.argmax(-1), 7).float())
    assert_close(training_mask(logits, index, torch.tensor(False)), logits.softmax(-1), ROUNDING)


@pytest.mark.parametrize("hard", [True, None], ids=["training", "evaluation"])
def test_exactly_one_unit_of_every_block_is_active(hard: bool | None) -> None:
    x, c1, c2, bias, w1, _, _ = tensors(9, 5, 3, 4, 6)
    x, w1 = x.abs() + 0.1, w1.abs() + 0.1
    if hard is None:
        # The identity as W2 shows the hidden units.
        index = choose_units(controller_logits(x, c1, c2, bias, 6))
        eye = torch.eye(24, dtype=torch.float64)
        hidden = sparse_ff_masked(x, UnitWeights(w1, eye, torch.zeros(24, dtype=torch.float64)), index, 6)
    else:
        logits = controller_logits(x, c1, c2, bias, 6)
        hidden = training_hidden(x, w1, training_mask(logits, choose_units(logits), torch.tensor(hard)))
    assert torch.equal((hidden != 0).view(9, 4, 6).sum(-1), torch.ones(9, 4, dtype=torch.int64))


@pytest.mark.parametrize("kind", [*KINDS, "selected"])
def test_blocks_of_one_unit_are_the_dense_layer_without_a_first_bias(kind: str) -> None:
    x, *controller, w1, w2, b2 = tensors(5, 4, 2, 6, 1)
    form = "selected" if kind == "selected" else "masked"
    y = fast(x, *controller, w1, w2, b2, n=1, hard=KINDS.get(kind), multiply=True, form=form)
    assert_close(y, F.relu(x @ w1.T) @ w2 + b2, ROUNDING)


def test_a_mask_that_is_always_on_gives_the_dense_hidden_units() -> None:
    x, *_, w1, _, _ = tensors(5, 4, 2, 3, 4)
    ones = torch.ones(5, 3, 4, dtype=torch.float64)
    assert_close(training_hidden(x, w1, ones), F.relu(x @ w1.T), ROUNDING)


def test_the_straight_through_gradient_is_that_of_the_softmax() -> None:
    logits = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = choose_units(logits)

    def mask(hard: bool) -> Callable[[Tensor], Tensor]:
        return lambda logits: training_mask(logits, index, torch.tensor(hard))

    for hard in (True, False):
        _, grad = values_and_gradients(mask(hard), logits)
        _, expected = values_and_gradients(lambda logits: logits.softmax(-1), logits)
        assert_close(grad, expected, ROUNDING)
    assert torch.autograd.gradcheck(mask(False), logits.requires_grad_())


def test_the_controller_learns_only_from_chosen_units_with_positive_input() -> None:
    x, *_ = tensors(6, 4, 2, 1, 3)
    logits = torch.zeros(6, 1, 3, dtype=torch.float64, requires_grad=True)
    index = torch.zeros(6, 1, dtype=torch.uint8)
    w1 = torch.stack([x[0], x[1], x[2]])
    training_hidden(x, w1, training_mask(logits, index, torch.tensor(True))).sum().backward()
    positive = (x @ w1[0]).relu()
    # One block of three units at equal logits, unit 0 chosen: the mask's gradient is (relu(x w1[0]), 0, 0).
    expected = positive[:, None, None] * torch.tensor([2 / 9, -1 / 9, -1 / 9], dtype=torch.float64)
    assert_close(logits.grad, expected, ROUNDING)


def test_without_temperature_the_noise_moves_no_choice() -> None:
    logits = torch.randn(40, 5, 6, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(choose_units(logits, uniform, 0.0), logits.argmax(-1))
    assert not torch.equal(choose_units(logits, uniform, 1.0), logits.argmax(-1))


def test_at_temperature_one_units_are_chosen_with_their_softmax_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    draws = 40_000
    index = choose_units(logits.expand(draws, 1, 4), torch.rand(draws, 1, 4, generator=generator), 1.0)
    share = torch.bincount(index.flatten(), minlength=4) / draws
    assert float((share - logits.softmax(-1)).abs().max()) < 4 * 0.5 / draws**0.5


def test_the_noise_is_finite_at_the_ends_of_the_uniform_numbers() -> None:
    logits = torch.tensor([[[3.0, 2.0, 1.0]]])
    ends = torch.tensor([[[0.0, 1.0, 1.0]]])
    # g(1e-6) is -2.63 and g(1 - 1e-6) is about 13.8: the authors' limits of the noise.
    assert choose_units(logits, ends, 1.0).item() == 1
    assert choose_units(logits, ends, 0.01).item() == 0
    assert choose_units(logits, ends, 0.99 / (13.8 + 2.63)).item() == 0
    assert choose_units(logits, ends, 1.01 / (13.8 + 2.63)).item() == 1


def test_of_equal_logits_the_first_is_chosen() -> None:
    logits = torch.tensor([[[1.0, 5.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0]]])
    assert choose_units(logits).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("n", "dtype"),
    [(1, torch.uint8), (256, torch.uint8), (257, torch.int16), (2**15, torch.int16), (40000, torch.int32)],
)
def test_choices_take_the_smallest_type_that_holds_them(n: int, dtype: torch.dtype) -> None:
    logits = torch.arange(n, dtype=torch.float32).view(1, 1, n)
    index = choose_units(logits)
    assert index.dtype == dtype
    assert index.item() == n - 1


def test_logits_that_are_not_numbers_give_a_result_that_is_none() -> None:
    x, *weights = tensors(3, 5, 3, 4, 3)
    weights[0] = weights[0] * torch.nan
    for form in FORMS:
        assert bool(fast(x, *weights, n=3, multiply=True, form=form).isnan().any())
    for hard in (True, False):
        assert bool(fast(x, *weights, n=3, multiply=True, hard=hard).isnan().any())


def test_the_selected_form_multiplies_and_reads_nothing_but_the_chosen_rows() -> None:
    x, c1, c2, bias, w1, w2, b2 = tensors(2, 16, 3, 8, 32)
    index = choose_units(controller_logits(x, c1, c2, bias, 32))
    weights = UnitWeights(w1, w2, b2)
    expected = sparse_ff_masked(x, weights, index, 32)
    chosen = torch.zeros(256, dtype=torch.bool)
    chosen[(index.long() + 32 * torch.arange(8)).flatten()] = True
    for weight in (w1, w2):
        weight[~chosen] = torch.nan
    with FlopCounterMode(display=False) as counter:
        actual = sparse_ff_selected(x, weights, index, 32)
    assert_close(actual, expected, ROUNDING)
    assert counter.get_total_flops() <= 2 * 2 * 8 * 16 * 2
    with FlopCounterMode(display=False) as counter:
        sparse_ff_masked(x, weights, index, 32)
    assert counter.get_total_flops() == 2 * 2 * 256 * 16 * 2


def test_statistics_count_agreement_and_choices() -> None:
    quiet = torch.tensor([[[0, 2], [0, 1]], [[0, 2], [3, 2]]], dtype=torch.uint8)
    noisy = torch.tensor([[[0, 2], [1, 1]], [[0, 2], [3, 0]]], dtype=torch.uint8)
    agreement, n_chosen = choice_statistics(quiet, noisy, 4)
    assert agreement.item() == 0.75
    assert n_chosen.tolist() == [[3, 0, 0, 1], [0, 1, 3, 0]]


@pytest.mark.parametrize("kind", [*KINDS, "selected"])
def test_half_precision_stays_half_and_chooses_in_single(kind: str) -> None:
    leaves = [t.bfloat16() for t in tensors(6, 8, 3, 4, 16)]
    uniform = uniform_numbers(6, 4, 16).float()
    uniform[..., 0] = 1.0
    options = {"n": 16, "hard": KINDS.get(kind), "form": "selected" if kind == "selected" else "masked"}
    y = fast(*leaves, multiply=True, uniform=uniform, temperature=1.0, **options)
    assert y.dtype == torch.bfloat16
    assert bool(y.isfinite().all())
    logits = torch.zeros(6, 4, 16, dtype=torch.bfloat16)
    assert torch.equal(choose_units(logits, uniform, 0.1), choose_units(logits.float(), uniform, 0.1))


@pytest.mark.parametrize("kind", [*KINDS, "selected"])
def test_it_runs_on_the_meta_device(kind: str) -> None:
    x, *weights = (torch.empty_like(t, device="meta").requires_grad_() for t in tensors(6, 8, 3, 4, 16))
    logits = controller_logits(x, *weights[:3], 16)
    index = choose_units(logits, torch.empty_like(logits), 0.1)
    w1, w2, b2 = weights[3:]
    if kind in ("hard", "soft"):
        coin = torch.empty((), dtype=torch.bool, device="meta")
        y = F.linear(training_hidden(x, w1, training_mask(logits, index, coin)), w2.t(), b2)
    else:
        form = FORMS["selected" if kind == "selected" else "masked"]
        y = form(x, UnitWeights(w1, w2, b2), index, 16, chosen_probability(logits, index))
    y.sum().backward()
    assert y.shape == x.shape
    assert w1.grad is not None


def test_shapes_that_do_not_fit_are_refused_with_a_sentence() -> None:
    x, c1, c2, bias, w1, w2, b2 = tensors(6, 8, 3, 4, 5)
    logits = controller_logits(x, c1, c2, bias, 5)
    index = choose_units(logits)
    coin = torch.tensor(True)
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"Blocks of {n} units do not divide 20"):
            controller_logits(x, c1, c2, bias, n)
    with pytest.raises(ValueError, match="uniform numbers must have the shape of the logits"):
        choose_units(logits, torch.rand(6, 4, 1), 0.1)
    for wrong in (index[:5], index[:, :3]):
        with pytest.raises(ValueError, match="One choice a token and block"):
            training_mask(logits, wrong, coin)
        with pytest.raises(ValueError, match="One choice a token and block"):
            chosen_probability(logits, wrong)
    with pytest.raises(ValueError, match="One mask a token"):
        training_hidden(x[:5], w1, torch.ones(6, 4, 5))
    with pytest.raises(ValueError, match="one row for each of 20 hidden units, not 19"):
        training_hidden(x, w1[1:], torch.ones(6, 4, 5))
    for form in FORMS.values():
        with pytest.raises(ValueError, match="One choice a token and block"):
            form(x, UnitWeights(w1, w2, b2), index[:5], 5)
        with pytest.raises(ValueError, match="one row for each of 24 hidden units, not 20"):
            form(x, UnitWeights(w1, w2, b2), index, 6)
        with pytest.raises(ValueError, match="one row for each of 20 hidden units, not 19"):
            form(x, UnitWeights(w1, w2[1:], b2), index, 5)
