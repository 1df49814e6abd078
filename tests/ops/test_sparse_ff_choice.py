"""Sparse feed-forward: which unit of a block is chosen, and what the controller learns from it."""

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
    sparse_ff_selected,
    training_hidden,
    training_mask,
)
from tests.ops.sparse_ff_forms import FORMS, KINDS, fast, tensors, uniform_numbers
from tests.tolerances import ROUNDING, assert_close, values_and_gradients


@given(
    tokens=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    n_blocks=st.integers(1, 6),
    n=st.integers(1, 300),
    salt=st.integers(0, 1000),
)
@settings(max_examples=60)
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
