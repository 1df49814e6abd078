"""The trained items of the Sparse Transformer's paper: what their rows are, at which size."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.plan import plan
from efftx.reproduce.measures.parameters import model_size
from efftx.study.experiments import load_experiments

EXPERIMENTS = load_experiments()


def config_of(item: str, row: str, size: str) -> Config:
    return compose(EXPERIMENTS[item].row_overrides(row, size))


@pytest.mark.parametrize(("size", "length", "stride", "c"), [("paper", 12_288, 128, 32), ("cpu", 512, 32, 8)])
def test_on_text_table_2_has_the_strides_that_go_with_its_rows(size: str, length: int, stride: int, c: int) -> None:
    fixed, strided = (config_of("sparse/table2", f"text, {kind}", size) for kind in ("fixed", "strided"))
    assert fixed.data.length == strided.data.length == length
    assert (fixed.fixed.stride_of(length), fixed.fixed.c_of(length)) == (stride, c)
    assert strided.strided.stride_of(length) == stride


@pytest.mark.parametrize(("size", "side"), [("paper", 32), ("cpu", 16)])
def test_on_pictures_a_stride_of_table_2_is_a_row_of_pixels(size: str, side: int) -> None:
    for kind in ("fixed", "strided"):
        config = config_of("sparse/table2", f"pictures, {kind}", size)
        assert config.data.length == 3 * side**2
        assert getattr(config, kind).stride == 3 * side


@pytest.mark.parametrize("size", ["paper", "cpu"])
@pytest.mark.parametrize("data", ["text", "pictures"])
def test_the_rows_of_table_2_differ_in_their_attention_alone(data: str, size: str) -> None:
    def but_attention(kind: str) -> set[str]:
        words = EXPERIMENTS["sparse/table2"].row_overrides(f"{data}, {kind}", size)
        return {word for word in words if not word.startswith(("attention=", f"{kind}."))}

    assert but_attention("dense") == but_attention("fixed") == but_attention("strided")


@pytest.mark.parametrize(
    ("row", "matrices", "parameters"),
    [
        # Per layer 2 d (d qk) + 2 d^2 + 2 d^2 ff: the sheet's 58.7M, 94.4M and 151.0M.
        ("CIFAR-10, strided", 128 * (2 * 256 * 128 + 2 * 256**2 + 2 * 256 * 512), 59_197_184),
        ("enwik8, fixed", 30 * (4 * 512**2 + 2 * 512 * 2048), 94_950_144),
        ("ImageNet64, strided", 48 * (4 * 512**2 + 2 * 512 * 2048), 151_645_440),
    ],
)
def test_table_1_counts_the_papers_three_models(row: str, matrices: int, parameters: int) -> None:
    e = EXPERIMENTS["sparse/table1_parameters"]
    found = model_size({**e.parameters["paper"], "columns": {"": {}}}, 0, row, e.rows[row].parameters)["metrics"][""]
    assert (found["matrices"], found["total"]) == (matrices, parameters)
    assert found["rest"] == parameters - matrices


def test_table_1_shows_runs_of_table_2() -> None:
    one, two = (EXPERIMENTS[f"sparse/table{n}"] for n in (1, 2))
    assert one.sweep == two.sweep
    for size in ("paper", "cpu"):
        for row, same in (("CIFAR-10, strided", "pictures, strided"), ("enwik8, fixed", "text, fixed")):
            assert set(one.row_overrides(row, size)) == set(two.row_overrides(same, size))


def test_table_3_evaluates_the_fixed_model_of_table_2() -> None:
    two, three = EXPERIMENTS["sparse/table2"], EXPERIMENTS["sparse/table3"]
    assert three.sweep == two.sweep
    for size in ("paper", "cpu"):
        assert config_of("sparse/table3", "fixed", size) == config_of("sparse/table2", "text, fixed", size)


@pytest.mark.parametrize("size", ["paper", "cpu", "smoke"])
def test_a_column_of_table_3_is_that_part_of_the_row(size: str) -> None:
    e = EXPERIMENTS["sparse/table3"]
    for column in e.columns_of("fixed", size):
        if "/" not in column:
            continue
        config = compose(e.column_overrides("fixed", column, size))
        wanted = config.data.length * Fraction(column)
        assert config.evaluation.min_context == (wanted if size != "smoke" else int(wanted))


def fits(config: Config, depth: int, width: int, most: float) -> tuple[bool, int]:
    """Whether the model of table 4 with another depth and width fits into the memory, and its parameters."""
    heads = 2 if config.size == "cpu" else width // 32
    shaped = replace(config, n_layers=depth, d_model=width, d_ff=4 * width, n_heads=heads)
    found = plan(shaped, device=None if config.size == "cpu" else "v100")
    return found["memory_bytes"]["total"] <= most, found["parameters"]


@pytest.mark.parametrize(
    ("size", "most", "depths", "step"), [("cpu", 64 * 2**20, (2, 4, 8), 8), ("paper", 16 * 2**30, (12, 24, 48), 32)]
)
@pytest.mark.parametrize("row", ["shortest", "four times as long", "sixteen times as long"])
def test_a_model_of_table_4_is_the_largest_that_its_memory_holds(
    row: str, size: str, most: float, depths: tuple[int, ...], step: int
) -> None:
    config = compose(EXPERIMENTS["sparse/table4"].row_overrides(row, size))
    assert config.d_ff == 4 * config.d_model
    fit, parameters = fits(config, config.n_layers, config.d_model, most)
    assert fit
    for depth in depths:
        # The narrowest of this depth that would be larger.
        width = max(int(config.d_model * (config.n_layers / depth) ** 0.5) // step - 2, 1) * step
        while fits(config, depth, width, most)[1] <= parameters:
            width += step
        assert not fits(config, depth, width, most)[0], (depth, width)


@pytest.mark.parametrize(
    ("item", "key"),
    [
        ("figure1", "pictures"),
        ("figure1", "sounds"),
        ("figure2", "overrides"),
        ("figure5", "pictures"),
    ],
)
@pytest.mark.parametrize("size", ["cpu", "smoke"])
def test_the_models_of_the_figures_compose(item: str, key: str, size: str) -> None:
    compose(EXPERIMENTS[f"sparse/{item}"].parameters[size][key])


def test_figure_1_draws_with_the_model_of_table_1() -> None:
    drawn = compose(EXPERIMENTS["sparse/figure1"].parameters["cpu"]["pictures"])
    one = EXPERIMENTS["sparse/table1"].row_overrides("ImageNet64, strided", "cpu")
    assert drawn == compose([*one, "optimizer.lr=0.003"])


def test_the_model_of_figure_5_is_twice_as_deep_as_that_of_figure_1() -> None:
    one, five = (
        compose(EXPERIMENTS[f"sparse/{item}"].parameters["cpu"]["pictures"]) for item in ("figure1", "figure5")
    )
    assert five == replace(one, n_layers=2 * one.n_layers)
