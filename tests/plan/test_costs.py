"""What a token reads of a model: all but the units that are not chosen and the tables' other rows."""

from __future__ import annotations

import pytest

from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.layers.settings import CONTROLLERS, rank_of
from efftx.plan import costs, plan


def test_what_a_token_reads_of_a_dense_model_is_all_but_the_tables_other_rows() -> None:
    config = compose(["model=transformer", "data=stdlib", "size=smoke", "positions.kind=learned"])
    found = costs(config)
    d, rows = config.d_model, config.data.length
    assert found["active_parameters"] == found["parameters"] - (256 - 1) * d - (rows - 1) * d
    assert found["controller_share"] == 0.0
    assert found["parameters"] == plan(config)["parameters"]
    assert found["flops_per_token"] == plan(config)["flops_per_token"]


def test_a_tied_embedding_is_read_whole_by_the_head() -> None:
    words = ["model=transformer", "data=stdlib", "size=smoke", "tie_embeddings=true", "positions.kind=sinusoidal"]
    found = costs(compose(words))
    assert found["active_parameters"] == found["parameters"]


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_a_token_reads_one_unit_a_block_and_what_chooses_it(kind: str) -> None:
    words = ["model=transformer", "data=stdlib", "size=smoke", "sparse_ff.N=4", f"sparse_ff.controller={kind}"]
    config = compose([*words, *(["sparse_ff.form=paper"] if kind == "learned" else [])])
    found, d, f = costs(config), config.d_model, config.d_ff
    rank = rank_of(config.sparse_ff, d, f)
    has_b1 = config.sparse_ff.first_bias
    unread = (f - f // 4) * (d if kind == "oracle" else d + d + has_b1)  # rows of W1, W2 and b1; the oracle reads W1
    tables = (256 - 1) * d + _position_rows(config)
    assert found["parameters"] - found["active_parameters"] == config.n_layers * unread + tables
    controller = config.n_layers * (rank * d + f * rank + f) if kind in ("learned", "frozen") else 0
    assert found["controller_share"] == pytest.approx(100.0 * controller / found["parameters"])


def _position_rows(config: Config) -> int:
    """Parameters of the positions that one token does not read."""
    if config.positions.kind == "learned":
        return (config.data.length - 1) * config.d_model
    if config.positions.kind == "factorized":
        return sum(n - 1 for n in config.positions.axial_shape) * config.d_model
    if config.positions.kind == "axial":
        return sum((n - 1) * d for n, d in zip(config.positions.axial_shape, config.positions.axial_dims, strict=True))
    return 0


@pytest.mark.parametrize("words", ["positions.kind=axial", "positions.kind=factorized positions.axial_shape=[8,8]"])
def test_of_positions_on_a_grid_one_row_of_each_table_is_read(words: str) -> None:
    config = compose(["model=reformer", "data=stdlib", "size=smoke", *words.split()])
    found = costs(config)
    assert found["parameters"] - found["active_parameters"] == (256 - 1) * config.d_model + _position_rows(config)
    assert _position_rows(config) > 0
