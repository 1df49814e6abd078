"""Position embeddings are the authors'."""

from __future__ import annotations

import pytest
import torch

from efftx.layers.positions import (
    AxialPositions,
    LearnedPositions,
    PositionsConfig,
    SinusoidalPositions,
    make_positions,
)
from tests.tolerances import GOLDEN, ROUNDING, assert_close


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
        (PositionsConfig(kind="sinusoidal"), []),
    ],
)
def test_each_kind_has_the_tables_it_names(config: PositionsConfig, shapes: list[tuple[int, ...]]) -> None:
    positions = make_positions(config, 16, 32)
    assert positions is not None
    assert [tuple(p.shape) for p in positions.parameters()] == shapes
    assert positions(20).shape == (20, 16)


def test_no_positions_are_no_module_and_an_unknown_kind_is_refused() -> None:
    assert make_positions(PositionsConfig(kind="none"), 16, 32) is None
    with pytest.raises(ValueError, match="'spiral'"):
        make_positions(PositionsConfig(kind="spiral"), 16, 32)
