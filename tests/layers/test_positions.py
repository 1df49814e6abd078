"""Position embeddings are the authors'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efftx.errors import UserError
from efftx.layers.initialize import materialize
from efftx.layers.positions import (
    AxialPositions,
    DigitPositions,
    LearnedPositions,
    PositionsConfig,
    SinusoidalPositions,
    make_positions,
    most_positions,
)
from efftx.layers.settings import check_positions, off_the_grid
from tests.tolerances import GOLDEN, ROUNDING, assert_all_close, assert_close, values_and_gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_axial_positions_give_the_authors_outputs_and_gradients(golden, dtype: torch.dtype) -> None:
    arrays = golden("axial_position_2d", dtype)
    positions = AxialPositions([8, 8], [24, 8]).to(dtype)
    with torch.no_grad():
        for i, table in enumerate(positions.tables):
            table.copy_(arrays[f"w.axis{i}"].reshape(8, -1))
    y = arrays["x"] + positions(64)
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    for i, table in enumerate(positions.tables):
        assert_close(table.grad, arrays[f"grad_w.axis{i}"].reshape(8, -1), GOLDEN, f"grad_w.axis{i}")


def test_a_place_of_the_grid_joins_its_row_and_its_column() -> None:
    positions = AxialPositions([3, 4], [2, 5])
    positions.reset_parameters()
    row, column = positions.tables
    embeddings = positions(12)
    assert embeddings.shape == (12, 7)
    assert torch.equal(embeddings[7], torch.cat([row[1], column[3]]))
    assert torch.equal(positions(5), embeddings[:5])


def test_three_axes_count_in_row_major_order() -> None:
    positions = AxialPositions([2, 3, 4], [1, 2, 3])
    positions.reset_parameters()
    expected = torch.cat([positions.tables[0][1], positions.tables[1][2], positions.tables[2][3]])
    assert torch.equal(positions(24)[1 * 12 + 2 * 4 + 3], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sinusoidal_positions_are_the_authors(golden, dtype: torch.dtype) -> None:
    positions = SinusoidalPositions(32).to(dtype)
    positions.reset_parameters()
    assert_close(positions(40), golden("fixed_base_position_a", dtype)["sincos"], GOLDEN)


def test_sinusoidal_positions_have_sines_first_then_cosines() -> None:
    positions = SinusoidalPositions(4).double()
    positions.reset_parameters()
    p = torch.arange(6, dtype=torch.float64)[:, None]
    angle = p * torch.tensor([1.0, 0.01], dtype=torch.float64)
    assert_close(positions(6), torch.cat([angle.sin(), angle.cos()], dim=1), ROUNDING)


def test_a_learned_table_gives_its_first_rows() -> None:
    positions = LearnedPositions(9, 4)
    positions.reset_parameters()
    assert torch.equal(positions(3), positions.table[:3])


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (PositionsConfig(kind="axial", axial_shape=[4, 8], axial_dims=[6, 10]), [(4, 6), (8, 10)]),
        (PositionsConfig(kind="learned"), [(32, 16)]),
        (PositionsConfig(kind="learned", max_len=50), [(50, 16)]),
        (PositionsConfig(kind="coupled"), [(33, 16)]),
        (PositionsConfig(kind="coupled", max_len=50), [(50, 16)]),
        (PositionsConfig(kind="sinusoidal"), []),
        (PositionsConfig(kind="digits"), [(4, 8, 2), (16,)]),
    ],
)
def test_each_kind_has_the_tables_it_names(config: PositionsConfig, shapes: list[tuple[int, ...]]) -> None:
    positions = make_positions(config, 16, 32)
    assert positions is not None
    assert [tuple(p.shape) for p in positions.parameters()] == shapes
    positions.eval()
    assert positions(20).shape == positions(20, batch=3).shape == (20, 16)


def test_no_positions_are_no_module_and_an_unknown_kind_is_refused() -> None:
    assert make_positions(PositionsConfig(kind="none"), 16, 32) is None
    with pytest.raises(ValueError, match="'spiral'"):
        make_positions(PositionsConfig(kind="spiral"), 16, 32)


def digits(seed: int = 0, d_model: int = 32, **keys) -> DigitPositions:
    """In float64, with weights that are not tiny, so that differences show."""
    own = DigitPositions(PositionsConfig(kind="digits", **keys), d_model).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return own


def digits_naive(base_weights: Tensor, start_vec: Tensor, positions: list[int], bases: list[int]) -> Tensor:
    """The definition, number by number, with Python's integers."""
    rows = []
    for place, position in enumerate(positions):
        blocks = []
        for i in range(base_weights.shape[1]):
            blocks.append(sum((position // base**i) % base * base_weights[k, i] for k, base in enumerate(bases)))
        rows.append(torch.cat(blocks) + (start_vec if place == 0 else 0))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_digit_positions_give_the_authors_outputs(golden, dtype: torch.dtype) -> None:
    arrays = golden("fixed_base_position_a", dtype)
    positions = DigitPositions(PositionsConfig(kind="digits"), 32).to(dtype).eval()
    positions.load_state_dict({"base_weights": arrays["w.base_weights"], "start_vec": arrays["w.start_vec"].flatten()})
    assert_close(arrays["x"] + positions(40), arrays["y"], GOLDEN, "y")


@pytest.mark.parametrize("length", [1, 2, 12, 40])
def test_digit_positions_are_the_definition_with_its_gradients(length: int) -> None:
    own = digits(bases=[3, 2, 7], n_digits=4).eval()
    leaves = (own.base_weights.detach(), own.start_vec.detach())

    def fast(base_weights: Tensor, start_vec: Tensor) -> Tensor:
        return torch.func.functional_call(own, {"base_weights": base_weights, "start_vec": start_vec}, (length,))

    def naive(base_weights: Tensor, start_vec: Tensor) -> Tensor:
        return digits_naive(base_weights, start_vec, list(range(length)), own.bases)

    if length < 16:
        actual, expected = values_and_gradients(fast, *leaves), values_and_gradients(naive, *leaves)
        assert_all_close(actual, expected, ROUNDING, "values grad_base_weights grad_start_vec")
    else:
        with pytest.raises(ValueError, match="count below 16: too few for"):
            fast(*leaves)


def read_starts(own: DigitPositions, embedded_BLD: Tensor) -> list[int]:
    """Which position each row begins with, read from its own digits in the one base there is."""
    (base,) = own.bases
    first_BnW = (embedded_BLD[:, 0] - own.start_vec).unflatten(1, (own.n_digits, -1))
    digit_Bn = (first_BnW[..., 0] / own.base_weights[0, :, 0]).round().long()
    return [sum(int(d) * base**i for i, d in enumerate(row)) for row in digit_Bn]


@given(seed=st.integers(0, 10**6), length=st.integers(1, 30))
@settings(max_examples=25)
def test_in_training_a_row_counts_on_from_wherever_it_starts(seed: int, length: int) -> None:
    own = digits(bases=[11], base_dropout=0.0)
    torch.manual_seed(seed)
    embedded = own(length, batch=3)
    assert embedded.shape == (3, length, 32)
    for row, start in zip(embedded, read_starts(own, embedded), strict=True):
        assert start == 0 or start + length < 11**8
        expected = digits_naive(own.base_weights, own.start_vec, list(range(start, start + length)), own.bases)
        assert_close(row, expected, ROUNDING)


def test_half_of_the_rows_start_from_zero_and_the_others_anywhere() -> None:
    own = digits(bases=[11], base_dropout=0.0)
    torch.manual_seed(0)
    starts = torch.tensor(read_starts(own, own(1, batch=4000))).double()
    assert abs(float((starts == 0).double().mean()) - 0.5) < 0.03
    elsewhere = starts[starts > 0] / 11**8
    assert abs(float(elsewhere.mean()) - 0.5) < 0.03
    assert abs(float(elsewhere.std()) - 1 / 12**0.5) < 0.02
    own.start_from_zero = 1.0
    assert read_starts(own, own(5, batch=50)) == [0] * 50
    own.start_from_zero = 0.0
    assert min(read_starts(own, own(5, batch=50))) > 0


def test_a_base_of_a_row_is_left_out_by_its_own_chance() -> None:
    own = digits(d_model=8, start_from_zero=0.0, base_dropout=0.25)
    with torch.no_grad():
        # Digit 0 of base k alone shows, at a decimal place of its own, and the start is no matter.
        own.base_weights.zero_()
        own.base_weights[:, 0] = torch.tensor([1.0, 100.0, 1e4, 1e6], dtype=torch.float64)[:, None]
        own.start_vec.zero_()
    torch.manual_seed(0)
    seen_BL = own(40, batch=3000)[..., 0].round().long()
    kept = torch.stack([(seen_BL // 100**k % 100).any(1) for k in range(4)], 1).double()
    assert bool(((kept.mean(0) - 0.75).abs() < 0.03).all())
    assert abs(float(torch.corrcoef(kept.T)[0, 1])) < 0.06
    own.base_dropout = 1.0
    assert not own(40, batch=3).any()


def test_digits_outside_training_neither_start_elsewhere_nor_lose_a_base() -> None:
    own = digits(start_from_zero=0.0, base_dropout=1.0).eval()
    expected = digits_naive(own.base_weights, own.start_vec, list(range(25)), own.bases)
    assert_close(own(25, batch=4), expected, ROUNDING)


def test_the_start_is_marked_also_where_it_is_not_position_zero() -> None:
    own = digits(start_from_zero=0.0, base_dropout=1.0)
    embedded = own(6, batch=2)
    assert torch.equal(embedded[:, 0], own.start_vec.expand(2, -1))
    assert not embedded[:, 1:].any()


def test_digits_start_nearly_absent_and_need_no_values() -> None:
    config = PositionsConfig(kind="digits")
    with torch.device("meta"):
        own = DigitPositions(config, 256)
    assert own(300, batch=2).shape == (2, 300, 256)
    materialize(own, torch.device("cpu"), 0)
    for parameter in own.parameters():
        assert 0.95e-4 < float(parameter.detach().abs().max()) <= 1e-4


@pytest.mark.parametrize(
    ("keys", "d_model", "length", "says"),
    [
        ({"bases": []}, 32, 8, "positions.bases"),
        ({"bases": [11, 1]}, 32, 8, "positions.bases"),
        ({"n_digits": 0}, 32, 8, "positions.n_digits"),
        ({"n_digits": 5}, 32, 8, "d_model=32"),
        ({"bases": [3, 2], "n_digits": 4}, 32, 16, "count below 16"),
        ({"start_from_zero": 1.5}, 32, 8, "positions.start_from_zero"),
        ({"base_dropout": -0.1}, 32, 8, "positions.base_dropout"),
    ],
)
def test_impossible_digits_are_refused_by_name(keys: dict, d_model: int, length: int, says: str) -> None:
    with pytest.raises(UserError) as raised:
        check_positions(PositionsConfig(kind="digits", **keys), d_model, length)
    assert raised.value.kind == "bad_value"
    assert says in raised.value.message


def test_possible_digits_and_what_is_no_digits_pass() -> None:
    check_positions(PositionsConfig(kind="digits"), 256, 16_384)
    check_positions(PositionsConfig(kind="digits", bases=[3, 2], n_digits=4), 32, 15)
    check_positions(PositionsConfig(kind="learned", n_digits=5), 32, 8)
    huge = digits(n_digits=32)
    assert huge(9, batch=2).shape == (2, 9, 32)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (PositionsConfig("axial", axial_shape=[3, 4], axial_dims=[4, 4]), 12),
        (PositionsConfig("learned"), 6),
        (PositionsConfig("learned", max_len=9), 9),
        (PositionsConfig("digits", bases=[3, 2], n_digits=4), 15),
    ],
)
def test_the_longest_sequence_has_as_many_positions_and_one_more_is_too_many(
    config: PositionsConfig, most: int
) -> None:
    positions = make_positions(config, 8, length=6)
    assert positions is not None
    materialize(positions.eval(), torch.device("cpu"), 0)
    assert most_positions(config, 6) == most
    assert positions(most).shape[0] == most
    try:
        assert positions(most + 1).shape[0] == most
    except ValueError:
        assert config.kind == "digits"


@pytest.mark.parametrize("kind", ["sinusoidal", "none"])
def test_other_positions_have_no_end(kind: str) -> None:
    assert most_positions(PositionsConfig(kind), 6) is None


@pytest.mark.parametrize(
    ("kind", "grid", "told"),
    [
        ("axial", [32, 32], "[16,48]"),
        ("axial", [16, 48], None),
        ("axial", [4, 4, 48], None),
        ("axial", [16, 16, 3], None),
        ("factorized", [16, 3, 17], "[16,16,3]"),
        ("factorized", [32, 32], "[16,16,3]"),
        ("factorized", [], None),
        ("learned", [32, 32], None),
    ],
)
def test_a_grid_that_is_not_the_pictures_is_told_with_one_that_is(kind: str, grid: list[int], told: str | None) -> None:
    note = off_the_grid(PositionsConfig(kind, axial_shape=grid), 16)
    assert (note is None) == (told is None)
    assert told is None or (note is not None and f"rows of 48 bytes: {told} would" in note)
    assert off_the_grid(PositionsConfig(kind, axial_shape=grid), None) is None
