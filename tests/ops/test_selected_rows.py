"""Products with chosen rows are those of the loops, read no other row, and need no private kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.ops import selected_rows
from efftx.ops.selected_rows import (
    CUT_FROM,
    N_BAGS,
    PIECE,
    RowPlan,
    rows_dot,
    rows_dot_naive,
    rows_sum,
    rows_sum_naive,
)
from tests.tolerances import ROUNDING, assert_all_close, assert_close, values_and_gradients

# tokens, rows a token, width: whole and cut rows, one bag and several, a last bag that is not full.
SHAPES = [
    (1, 1, 1),
    (1, 97, 3),
    (2, 5, 300),
    (5, 2, 17),
    (3, 96, 64),
    (1, 65, 1024),
    (1, 97, 1024),
    (4, 9, 1024),
    (1, 9, 2048),
    (2, 17, 4096),
    (1, 33, 4097),
    (2, 8, 9216),
    (1, 3, 9216),
]


def tensors(n_tokens: int, n_rows: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Tokens, their weights for the rows, a matrix of 40 rows, and rows that repeat."""
    generator = torch.Generator().manual_seed(seed)
    x, h, w = (
        torch.randn(shape, dtype=dtype, generator=generator)
        for shape in ((n_tokens, width), (n_tokens, n_rows), (40, width))
    )
    return [x, h, w, torch.randint(0, 40, (n_tokens, n_rows), generator=generator)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_products_are_those_of_the_loops(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, h, w, row = tensors(*shape, dtype)
    plan = RowPlan.of(*shape)
    for given_plan in (plan, None):
        assert_close(rows_dot(x, w, row, given_plan), rows_dot_naive(x, w, row), ROUNDING, "dot")
        assert_close(rows_sum(h, w, row, given_plan), rows_sum_naive(h, w, row), ROUNDING, "sum")


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 97), st.one_of(st.integers(1, 300), st.just(CUT_FROM))),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_any_shape_gives_the_products_of_the_defining_sums(shape: tuple[int, int, int], seed: int) -> None:
    x, h, w, row = tensors(*shape, seed=seed)
    for actual, sums, first in ((rows_dot(x, w, row), "td,tgd->tg", x), (rows_sum(h, w, row), "tg,tgd->td", h)):
        # A sum may cancel, and its rounding is of what is summed.
        allowed = ROUNDING[w.dtype] * torch.einsum(sums, first.abs(), w[row].abs())
        assert bool(((actual - torch.einsum(sums, first, w[row])).abs() <= allowed).all())


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, CUT_FROM), (1, 70, 1024)])
def test_gradients_are_those_of_the_loops(shape: tuple[int, int, int]) -> None:
    x, h, w, row = tensors(*shape)
    for fast, naive, first in ((rows_dot, rows_dot_naive, x), (rows_sum, rows_sum_naive, h)):
        actual = values_and_gradients(lambda a, w, f=fast: f(a, w, row), first, w)
        expected = values_and_gradients(lambda a, w, f=naive: f(a, w, row), first, w)
        assert_all_close(actual, expected, ROUNDING, "values grad_first grad_w")


@pytest.mark.parametrize("width", [6, CUT_FROM])
def test_strides_change_nothing(width: int) -> None:
    contiguous = tensors(3, 4, width)
    views = [t.t().contiguous().t() for t in contiguous]
    assert not any(view.is_contiguous() for view in views)
    for i in range(4):
        x, h, w, row = [views[j] if j == i else t for j, t in enumerate(contiguous)]
        assert_close(rows_dot(x, w, row), rows_dot_naive(x, w, row), ROUNDING)
        assert_close(rows_sum(h, w, row), rows_sum_naive(h, w, row), ROUNDING)


@pytest.mark.parametrize("width", [5, CUT_FROM])
def test_rows_that_are_not_chosen_are_not_read(width: int) -> None:
    x, h, w, row = tensors(2, 3, width)
    others = torch.ones(40, dtype=torch.bool)
    others[row.flatten()] = False
    lost = w.masked_fill(others.unsqueeze(1), torch.nan)
    assert torch.equal(rows_dot(x, lost, row), rows_dot(x, w, row))
    assert torch.equal(rows_sum(h, lost, row), rows_sum(h, w, row))


def test_the_private_kernel_exists_and_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, w, row = tensors(2, 3, 4)
    kernel, calls = torch.ops.aten._embedding_bag_per_sample_weights_backward, []
    monkeypatch.setattr(selected_rows, "_dot_kernel", lambda *given: calls.append(1) or kernel(*given))
    assert_close(rows_dot(x, w, row), rows_dot_naive(x, w, row), ROUNDING)
    assert calls == [1]


def test_the_private_kernel_multiplies_the_rows_it_is_told() -> None:
    left, right = torch.tensor([[1.0, 2.0], [10.0, 20.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    indices, bags = torch.tensor([2, 0, 1, 2]), torch.tensor([1, 0, 1, 0])
    kernel = torch.ops.aten._embedding_bag_per_sample_weights_backward
    assert kernel(left, right, indices, torch.zeros(1, dtype=torch.int64), bags, 0).tolist() == [110, 1, 20, 11]


@pytest.mark.parametrize("width", [5, CUT_FROM])
def test_without_the_private_kernel_the_plain_formula_serves(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    x, _, w, row = tensors(2, 3, width)
    monkeypatch.setattr(selected_rows, "_dot_kernel", None)
    assert_close(rows_dot(x, w, row), rows_dot_naive(x, w, row), ROUNDING)


def test_half_precision_and_the_meta_device_take_the_plain_formula() -> None:
    x, h, w, row = tensors(2, 3, CUT_FROM)
    assert rows_dot(x.bfloat16(), w.bfloat16(), row).dtype == torch.bfloat16
    assert rows_sum(h.bfloat16(), w.bfloat16(), row).dtype == torch.bfloat16
    x, h, w, row = (t.to("meta") for t in (x, h, w, row))
    assert rows_dot(x, w, row).shape == (2, 3)
    assert rows_sum(h, w, row).shape == (2, CUT_FROM)


@pytest.mark.parametrize("shape", [(1, 97, 1024), (2, 9, CUT_FROM)])
def test_results_do_not_depend_on_the_number_of_threads(shape: tuple[int, int, int]) -> None:
    x, h, w, row = tensors(*shape, torch.float32)
    alone = rows_dot(x, w, row), rows_sum(h, w, row)
    torch.set_num_threads(2)
    assert torch.equal(rows_dot(x, w, row), alone[0])
    assert torch.equal(rows_sum(h, w, row), alone[1])


@pytest.mark.parametrize(
    ("shape", "n_pieces", "n_bags"),
    [
        ((1, 64, 1024), 1, 1),
        ((1, 96, 1024), 1, N_BAGS),
        ((4, 96, 1024), 1, 1),
        ((4, 256, CUT_FROM), CUT_FROM // PIECE, N_BAGS),
        ((1, 100, CUT_FROM - PIECE), 1, N_BAGS),
        ((1, 576, 9216), 9, N_BAGS),
        ((1, 576, 9217), 1, N_BAGS),
        ((1, 3, 2**15), 32, 3),
    ],
)
def test_long_rows_are_cut_and_many_rows_divided(shape: tuple[int, int, int], n_pieces: int, n_bags: int) -> None:
    plan = RowPlan.of(*shape)
    assert plan.piece.shape[0] == n_pieces
    assert plan.n_bags == n_bags


def test_rows_are_counted_from_the_start_of_their_block() -> None:
    index = torch.tensor([[0, 3, 1], [2, 2, 0]], dtype=torch.uint8)
    assert RowPlan.of(2, 3, 5, block=4).rows(index).tolist() == [[0, 7, 9], [2, 6, 8]]
    assert RowPlan.of(2, 3, 5).rows(index).tolist() == index.tolist()
    # 200 * 3 does not fit the type of the index.
    assert RowPlan.of(1, 4, 5, block=200).rows(torch.full((1, 4), 199, dtype=torch.uint8))[0, 3] == 799


def test_what_does_not_fit_is_refused_with_a_sentence() -> None:
    x, h, w, row = tensors(2, 3, 5)
    with pytest.raises(ValueError, match=r"need tokens \(2, 5\), not \(1, 5\)"):
        rows_dot(x[:1], w, row)
    with pytest.raises(ValueError, match=r"need tokens \(2, 3\), not \(2, 5\)"):
        rows_sum(x, w, row)
    for plan in (RowPlan.of(1, 3, 5), RowPlan.of(2, 4, 5), RowPlan.of(2, 3, 6)):
        with pytest.raises(ValueError, match=r"not \(2, 3\) of 5"):
            rows_dot(x, w, row, plan)
        with pytest.raises(ValueError, match=r"not \(2, 3\) of 5"):
            rows_sum(h, w, row, plan)
    with pytest.raises(ValueError, match="each must be at least 1"):
        RowPlan.of(1, 0, 5)


@pytest.mark.parametrize("outside", [-1, 40])
def test_a_sum_of_rows_outside_the_matrix_is_refused(outside: int) -> None:
    _, h, w, row = tensors(2, 3, 5)
    row[0, 0] = outside
    with pytest.raises(RuntimeError, match=f"to be {outside}|takes value {outside}"):
        rows_sum(h, w, row)
