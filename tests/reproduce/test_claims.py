from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from efftx.errors import UserError
from efftx.reproduce.claims import Verdict, judge
from efftx.reproduce.experiment import Cell, Claim, ColumnSpec, Derived, Experiment, Published, Row
from efftx.reproduce.records import Record

from .fakes import record

Table = Mapping[str, Mapping[str, Sequence[float | None]]]


def experiment(
    holds_if: str,
    *,
    where: str = "",
    rows: Sequence[str] = ("A", "B"),
    columns: Sequence[str] = ("x", "y"),
    min_seeds: int = 3,
    better: str = "higher",
    baseline: Mapping[str, float] | None = None,
    published: Published | None = None,
) -> Experiment:
    return Experiment(
        id="paper/item",
        caption="",
        kind="train",
        cell=Cell("accuracy", "%", better),
        rows={name: Row() for name in rows},
        columns={name: ColumnSpec() for name in columns},
        sizes={"cpu": []},
        claims=[Claim("it is so", holds_if, where, min_seeds)],
        baseline=baseline or {},
        published=published,
    )


def records(table: Table) -> list[Record]:
    """Records of a table row -> column -> value a seed."""
    found = []
    for row, columns in table.items():
        for seed in range(max(len(values) for values in columns.values())):
            found.append(record(row, seed, {c: v[seed] for c, v in columns.items() if seed < len(v)}))
    return found


def verdict(e: Experiment, table: Table) -> Verdict:
    return judge(e, records(table), "cpu")[0]


def test_a_difference_beyond_noise_holds_and_the_other_way_round_does_not() -> None:
    table = {"A": {"x": [3.0, 4.0, 5.0]}, "B": {"x": [1.0, 2.0, 3.5]}}
    # D = 2, 2, 1.5: mean 1.8333, std 0.28868, noise 2 * 0.28868 / sqrt(3) = 1/3
    found = verdict(experiment('cell["A", "x"] > cell["B", "x"]', columns=["x"]), table)
    assert found.verdict == "holds"
    assert found.details[0]["difference"] == pytest.approx(11 / 6)
    assert found.details[0]["noise"] == pytest.approx(1 / 3)
    assert found.details[0]["n"] == 3
    assert verdict(experiment('cell["A", "x"] < cell["B", "x"]', columns=["x"]), table).verdict == "does not hold"


def test_noise_is_that_of_the_pairs_and_not_of_the_seeds() -> None:
    table = {"A": {"x": [10.0, 20.0, 31.0]}, "B": {"x": [9.0, 19.0, 29.0]}}
    assert verdict(experiment('cell["A", "x"] > cell["B", "x"]', columns=["x"]), table).verdict == "holds"


@pytest.mark.parametrize("comparison", [">", ">=", "<", "<="])
def test_a_difference_within_noise_decides_nothing(comparison: str) -> None:
    # D = 1, -1, 1.5: mean 0.5, std sqrt(3.5 / 2), noise 1.5275
    table = {"A": {"x": [1.0, -1.0, 1.5]}, "B": {"x": [0.0, 0.0, 0.0]}}
    found = verdict(experiment(f'cell["A", "x"] {comparison} cell["B", "x"]', columns=["x"]), table)
    assert found.verdict == "within noise"
    assert found.details[0]["noise"] == pytest.approx(2 * math.sqrt(1.75) / math.sqrt(3))


@pytest.mark.parametrize(
    ("a", "expected"),
    [([-1.0, 1.0, -1.5], "holds"), ([-2.0, -2.1, -1.9], "does not hold"), ([2.0, 2.1, 1.9], "holds")],
)
def test_never_worse_than_by_noise(a: list[float], expected: str) -> None:
    table = {"A": {"x": a}, "B": {"x": [0.0, 0.0, 0.0]}}
    assert verdict(experiment('cell["A", "x"] >= cell["B", "x"] - noise', columns=["x"]), table).verdict == expected


def test_noise_may_be_scaled_and_stand_on_either_side() -> None:
    # D = -2, -2.4, -1.6: mean -2, std 0.4, noise 0.4619
    table = {"A": {"x": [-2.0, -2.4, -1.6]}, "B": {"x": [0.0, 0.0, 0.0]}}
    for scale, expected in ((4, "does not hold"), (5, "holds")):
        for text in (f'cell["A", "x"] + {scale} * noise >= cell["B", "x"]', f'cell["A", "x"] >= -noise * {scale}'):
            assert verdict(experiment(text, columns=["x"]), table).verdict == expected, text


def test_equal_to_within_noise_is_a_chain() -> None:
    text = 'cell["B", "x"] - noise <= cell["A", "x"] <= cell["B", "x"] + noise'
    close = {"A": {"x": [1.0, -1.0, 1.5]}, "B": {"x": [0.0, 0.0, 0.0]}}
    apart = {"A": {"x": [1.0, 1.1, 1.2]}, "B": {"x": [0.0, 0.0, 0.0]}}
    assert verdict(experiment(text, columns=["x"]), close).verdict == "holds"
    assert verdict(experiment(text, columns=["x"]), apart).verdict == "does not hold"


def test_at_least_is_met_by_equality_without_spread_and_more_than_is_not() -> None:
    table = {"A": {"x": [99.0, 99.0, 99.0]}}
    assert verdict(experiment('cell["A", "x"] >= 99', columns=["x"]), table).verdict == "holds"
    assert verdict(experiment('cell["A", "x"] > 99', columns=["x"]), table).verdict == "within noise"


def test_fewer_than_three_common_seeds_are_too_few() -> None:
    e = experiment('cell["A", "x"] > cell["B", "x"]', columns=["x"])
    assert verdict(e, {"A": {"x": [2.0, 2.0, 2.0]}, "B": {"x": [1.0, 1.0]}}).verdict == "too few seeds"


def test_what_no_seed_can_move_needs_one_seed_where_the_claim_says_so() -> None:
    table = {"A": {"x": [2.0]}, "B": {"x": [1.0]}}
    assert verdict(experiment('cell["A", "x"] > cell["B", "x"]', columns=["x"], min_seeds=1), table).verdict == "holds"


def test_a_missing_cell_means_not_run() -> None:
    found = verdict(experiment('cell["A", "x"] > cell["B", "x"]', columns=["x"]), {"A": {"x": [2.0, 2.0, 2.0]}})
    assert found.verdict == "not run"
    assert "B / x" in found.why


def test_records_of_another_size_are_no_evidence() -> None:
    e = experiment('cell["A", "x"] > 1', columns=["x"])
    smoke = [record("A", seed, {"x": 5.0}, size="smoke") for seed in range(3)]
    assert judge(e, smoke, "cpu")[0].verdict == "not run"


def test_free_names_are_quantified_over_all_rows_and_columns() -> None:
    e = experiment('cell[row, column] >= cell[row, "x"] - noise')
    table = {"A": {"x": [1.0, 1.0, 1.0], "y": [2.0, 2.0, 2.0]}, "B": {"x": [1.0, 1.0, 1.0], "y": [0.5, 0.5, 0.5]}}
    found = verdict(e, table)
    assert found.verdict == "does not hold"
    assert "row = B, column = y" in found.why
    assert len(found.details) == 4


def test_where_restricts_what_is_quantified() -> None:
    table = {"A": {"x": [1.0, 1.0, 1.0], "y": [2.0, 2.0, 2.0]}, "B": {"x": [1.0, 1.0, 1.0], "y": [0.5, 0.5, 0.5]}}
    for where in ('row == "A"', 'row != "B"', 'row in ["A"]', 'row not in ["B"]', 'not row == "B" and row == "A"'):
        found = verdict(experiment('cell[row, "y"] > cell[row, "x"]', where=where), table)
        assert (found.verdict, len(found.details)) == ("holds", 1), where


def test_the_weakest_binding_gives_the_verdict() -> None:
    table = {"A": {"x": [5.0, 5.0, 5.0]}, "B": {"x": [1.0, -1.0, 1.5]}}
    assert verdict(experiment("cell[row, column] > 0", columns=["x"]), table).verdict == "within noise"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('cell["A", "x"] > 1 and cell["A", "x"] > 9', "does not hold"),
        ('cell["A", "x"] > 1 or cell["A", "x"] > 9', "holds"),
        ('not cell["A", "x"] > 9', "holds"),
        ('cell["A", "x"] / 2 - 1 <= 1.6 and max(cell["A", "x"], 7) >= 7', "holds"),
        ('min(cell["A", "x"], 4) < 4.5 and abs(-cell["A", "x"]) > 4', "holds"),
        ('cell["A", "x"] > published["A", "x"]', "does not hold"),
    ],
)
def test_arithmetic_and_conditions(text: str, expected: str) -> None:
    published = Published("verified", {"A": {"x": 6.0}})
    e = experiment(text, columns=["x"], published=published)
    assert verdict(e, {"A": {"x": [5.0, 5.0, 5.0]}}).verdict == expected


def test_two_rows_at_chance_teach_nothing() -> None:
    e = experiment('cell["A", "x"] >= cell["B", "x"] - noise', columns=["x"], baseline={"chance": 0.8})
    found = verdict(e, {"A": {"x": [0.8, 0.9, 0.7]}, "B": {"x": [0.7, 0.8, 0.6]}})
    assert found.verdict == "neither learned"
    assert "chance" in found.why


def test_one_row_above_chance_is_enough_to_judge() -> None:
    e = experiment('cell["A", "x"] >= cell["B", "x"] - noise', columns=["x"], baseline={"chance": 0.8})
    assert verdict(e, {"A": {"x": [50.0, 51.0, 52.0]}, "B": {"x": [0.7, 0.8, 0.6]}}).verdict == "holds"


def test_where_lower_is_better_learning_is_below_the_baseline() -> None:
    text = 'cell["A", "x"] <= cell["B", "x"] + noise'
    e = experiment(text, columns=["x"], baseline={"uniform": 4.85}, better="lower")
    assert verdict(e, {"A": {"x": [4.9, 4.9, 4.9]}, "B": {"x": [4.9, 5.0, 4.95]}}).verdict == "neither learned"
    assert verdict(e, {"A": {"x": [1.0, 1.1, 1.0]}, "B": {"x": [4.9, 5.0, 4.95]}}).verdict == "holds"


def test_bindings_that_learned_nothing_do_not_count_as_support() -> None:
    e = experiment("cell[row, column] >= 50", columns=["x"], baseline={"chance": 0.8})
    found = verdict(e, {"A": {"x": [60.0, 60.0, 60.0]}, "B": {"x": [0.8, 0.8, 0.8]}})
    assert found.verdict == "holds"
    assert "1 more where neither learned" in found.why


def test_a_claim_about_the_baseline_itself_is_judged() -> None:
    e = experiment('cell["A", "x"] <= baseline["chance"] + noise', columns=["x"], baseline={"chance": 0.8})
    assert verdict(e, {"A": {"x": [0.8, 0.8, 0.8]}}).verdict == "holds"


def test_a_level_never_reached_is_later_than_every_step() -> None:
    e = Experiment(
        id="paper/item",
        caption="",
        kind="train",
        cell=Cell("accuracy", "%", "higher"),
        rows={"A": Row(), "B": Row()},
        columns={"steps": ColumnSpec(cell=Cell("steps_to_99", "steps", "lower"))},
        sizes={"cpu": []},
        derived={"steps_to_99": Derived("accuracy", first_at_least=99)},
        claims=[
            Claim("A is first", 'cell["A", "steps"] < cell["B", "steps"]'),
            Claim("B is first", 'cell["B", "steps"] < cell["A", "steps"]'),
            Claim("a tie", 'cell["B", "steps"] <= cell["B", "steps"]'),
        ],
    )
    curves = {
        "A": [{"step": 5, "accuracy": 50.0}, {"step": 10, "accuracy": 99.5}],
        "B": [{"step": 10, "accuracy": 2.0}],
    }
    found = judge(e, [record(row, s, {}, curve=curves[row]) for row in "AB" for s in range(3)], "cpu")
    assert [v.verdict for v in found] == ["holds", "does not hold", "neither learned"]
    assert "never" in found[0].why


def test_the_noise_of_noise_cannot_be_asked() -> None:
    table = {"A": {"x": [1.0, 2.0, 3.0]}}
    for text in ('cell["A", "x"] > noise * noise', 'cell["A", "x"] > abs(noise)', 'cell["A", "x"] > 1 / noise'):
        with pytest.raises(UserError, match="noise"):
            verdict(experiment(text, columns=["x"]), table)
    with pytest.raises(UserError, match="noise"):
        verdict(experiment('cell["A", "x"] * noise > 1', columns=["x"]), table)
