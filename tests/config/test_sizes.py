"""The width of the feed-forward layers under each rule, and the sizes that the authors' models have."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from efftx.config.compose import compose
from efftx.config.sizes import unequal
from efftx.errors import UserError
from efftx.models.build import build_on_meta, d_ff_of, dense_parameters

PIECES = 32_000
PAPER = ("model=scaling", "data=stdlib", "size=paper")
DENSE = ("sparse_ff.N=0", "sparse_qkv.S=0")


def size(*overrides: str) -> int:
    return sum(p.numel() for p in build_on_meta(compose(overrides), PIECES).parameters())


def test_the_dense_model_of_24_and_24_layers_has_the_weights_that_the_sheet_counts() -> None:
    model = build_on_meta(compose([*PAPER, *DENSE]), PIECES)
    positions = (model.encoder_positions, model.positions)
    tables = {id(p) for module in positions for p in module.parameters()}
    matrices = [p for p in model.parameters() if p.dim() > 1 and id(p) not in tables]
    assert sum(p.numel() for p in matrices) == 770_179_072


@pytest.mark.parametrize(
    ("overrides", "share"), [(("sparse_ff.N=0",), 0.01), (("sparse_qkv.S=0",), 0.02), ((), 0.05)], ids=str
)
def test_the_authors_sizes_are_a_little_larger_than_dense(overrides: tuple[str, ...], share: float) -> None:
    assert size(*PAPER, *overrides) / size(*PAPER, *DENSE) - 1 == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("sparse_ff.N=0",),
        ("sparse_qkv.S=0",),
        ("sparse_loss.S=4",),
        ("sparse_ff.form=paper",),
        ("sparse_ff.controller=frozen",),
        ("sparse_ff.controller=oracle",),
        ("sparse_ff.controller=token",),
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_equal_is_within_one_percent_of_the_dense_model(scale: str, overrides: tuple[str, ...]) -> None:
    words = ("model=scaling", "data=stdlib", f"size={scale}", *(("sparse_ff.N=16",) if scale == "cpu" else ()))
    assert size(*words, *overrides, "d_ff_rule=equal") == pytest.approx(size(*words, *DENSE), rel=0.01)


def test_equal_keeps_d_ff_divisible_by_n() -> None:
    config = compose([*PAPER, "d_ff_rule=equal", "sparse_ff.N=48"])
    assert d_ff_of(config, PIECES) % 48 == 0


def test_equal_without_a_sparse_part_is_the_given_width() -> None:
    config = dataclasses.replace(compose([*PAPER, *DENSE]), d_ff_rule="equal")
    assert d_ff_of(config, PIECES) == 4096


COARSE = ("model=scaling", "data=stdlib", "size=cpu", "sparse_ff.N=512", "n_layers=12", "n_encoder_layers=12")


def test_a_step_too_coarse_for_one_percent_takes_the_nearest_size() -> None:
    config = compose(COARSE)
    given = [dataclasses.replace(config, d_ff=d_ff, d_ff_rule="given") for d_ff in range(512, 4096, 512)]
    off = {
        other.d_ff: abs(sum(p.numel() for p in build_on_meta(other, 100).parameters()) - dense_parameters(config, 100))
        for other in given
    }
    assert d_ff_of(config, 100) == min(off, key=lambda d_ff: off[d_ff])


def test_a_block_larger_than_the_dense_width_is_one_block() -> None:
    config = compose(["model=scaling", "data=stdlib", "size=smoke", "d_ff_rule=equal", "sparse_ff.N=256"])
    assert d_ff_of(config, 100) == 256


@pytest.mark.parametrize(("n_parameters", "told"), [(1011, "+1.1%"), (989, "-1.1%"), (1009, None), (991, None)])
def test_the_difference_is_told_above_one_percent(n_parameters: int, told: str | None) -> None:
    note = unequal(compose(COARSE), n_parameters, 1000)
    assert note is None if told is None else told in note and "sparse_ff.N=512" in note


def test_a_given_width_is_not_compared() -> None:
    assert unequal(compose([*COARSE, "d_ff_rule=given", "d_ff=2048"]), 2000, 1000) is None


def test_the_authors_name_no_width_for_other_models() -> None:
    with pytest.raises(UserError, match="they name no d_ff"):
        compose([*PAPER, "d_model=512"])
    with pytest.raises(UserError, match="they name no d_ff"):
        d_ff_of(dataclasses.replace(compose(PAPER), d_model=512), PIECES)


def test_the_width_that_a_rule_gives_is_the_models() -> None:
    config = compose([*PAPER])
    model = build_on_meta(config, PIECES)
    assert model.blocks[0].feedforward.core.w1.shape == (6144, 1024)
    assert all(p.device == torch.device("meta") for p in model.parameters())
