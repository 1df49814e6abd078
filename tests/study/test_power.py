from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from efftx.cli import main
from efftx.commands import COMMANDS
from efftx.study.experiment import SIZES, Experiment
from efftx.study.gates import Gate
from efftx.study.power import SEEDS, Power, powers
from efftx.study.records import Record, RecordStore
from efftx.study.significance import LEVEL, detectable, power, seeds_to_decide, upper_tail

from .claimed import NO_WORSE, experiment, records

A_OVER_B = 'cell["A", "x"] > cell["B", "x"]'
# A - B is 1.5, 0.5, 1.0: mean 1, standard deviation 1/2.
TABLE = {"A": {"x": [3.5, 3.5, 5.0]}, "B": {"x": [2.0, 3.0, 4.0]}}


def told(e: Experiment, found: list[Record] | None = None) -> Power:
    (one,) = powers(e, records(TABLE) if found is None else found, "cpu")
    return one


@pytest.mark.parametrize("n", SEEDS)
@pytest.mark.parametrize("level", [LEVEL, LEVEL / 6])
def test_what_is_detectable_is_found_in_four_of_five(n: int, level: float) -> None:
    effect = detectable(n, level)
    assert power(effect, n, level) == pytest.approx(0.8, abs=1e-9)
    draws = np.random.default_rng(n).normal(effect, 1.0, (2_000, n))
    assert np.mean([upper_tail(row) <= level for row in draws]) == pytest.approx(0.8, abs=0.03)


def test_a_claim_of_better_sees_multiples_of_its_spread() -> None:
    found = told(experiment(A_OVER_B))
    assert found.spread == pytest.approx(0.5)
    assert found.sees == pytest.approx({n: detectable(n, LEVEL) * 0.5 for n in (3, 5, 10, 20)})
    assert found.seeds == seeds_to_decide(2.0)
    assert (found.margin_seeds, found.seeds_asked, found.comparisons) == (None, found.seeds, 1)


def test_a_margin_needs_the_seeds_that_keep_no_difference_within_it() -> None:
    found = told(experiment(NO_WORSE, "as good as", margin=0.25))
    assert found.margin_seeds == found.seeds_asked == seeds_to_decide(0.25 / 0.5)
    assert found.seeds == seeds_to_decide(1.25 / 0.5)
    both = told(experiment('cell["A", "x"] == cell["B", "x"]', "as good as", margin=0.5))
    assert both.margin_seeds == seeds_to_decide(1.0, 1.0)


def test_several_comparisons_share_the_level_and_the_widest_is_told() -> None:
    table = {**TABLE, "C": {"x": [0.0, 1.0, 2.0]}}
    e = experiment('cell["A", "x"] > cell[row, "x"]', rows=("A", "B", "C"), where='row != "A"')
    found = told(e, records(table))
    # A - C is 3.5, 2.5, 3: as wide as A - B; A - B is nearer to 0 and needs the seeds.
    assert found.comparisons == 2
    assert found.sees == pytest.approx({n: detectable(n, LEVEL / 2) * 0.5 for n in (3, 5, 10, 20)})
    assert found.seeds == seeds_to_decide(2.0, level=LEVEL / 2)


def test_the_price_is_that_of_the_seeds_beyond_the_recorded_ones() -> None:
    timed = [replace(r, wall_seconds=1800.0 if r.row == "A" else 900.0) for r in records(TABLE)]
    found = told(experiment(NO_WORSE, "as good as", margin=0.25), timed)
    assert found.hours_a_seed == pytest.approx(0.75)
    assert found.margin_seeds is not None
    assert found.hours == pytest.approx((found.margin_seeds - 3) * 0.75)
    enough = told(experiment(NO_WORSE, "as good as", margin=4), timed)
    assert (enough.margin_seeds, enough.hours) == (3, 0.0)


@pytest.mark.parametrize(
    ("claim", "table", "why"),
    [
        (A_OVER_B, {"A": {"x": [1.0]}, "B": {"x": [2.0]}}, "a spread takes two seeds"),
        (A_OVER_B, {"A": {"x": [1.0, 2.0, 3.0]}, "B": {"x": [0.0, 1.0, 2.0]}}, "nothing varies"),
        (A_OVER_B, {"A": {"x": [1.0, 2.0, 3.0]}}, "no record of B, x"),
    ],
)
def test_where_there_is_no_spread_it_is_said(claim: str, table: dict[str, dict[str, list[float]]], why: str) -> None:
    found = told(experiment(claim), records(table))
    assert found.sees is None
    assert found.why.startswith(why)


def test_what_is_exact_needs_no_seeds() -> None:
    assert told(experiment(A_OVER_B, "exact")).why.startswith("exact")


def test_a_difference_out_of_reach_has_no_price() -> None:
    table = {"A": {"x": [1.0, -1.0, 1e-6]}, "B": {"x": [0.0, 0.0, 0.0]}}
    found = told(experiment(A_OVER_B), records(table))
    assert (found.seeds, found.hours) == (None, None)


def test_a_gate_that_is_not_passed_hides_no_spread() -> None:
    found = told(experiment(A_OVER_B, gates={"far": Gate("constant", 1000)}))
    assert found.spread == pytest.approx(0.5)


ITEM = """\
id: own/item
caption: c
kind: train
cell: {metric: accuracy, unit: "%", better: higher}
sizes: {cpu: []}
rows: {A: [], B: []}
columns: {x: {}}
claims:
  - {says: A is better than B by a claim that has a sentence which is longer than eighty columns are wide, kind: better,
     holds_if: 'cell["A", "x"] > cell["B", "x"]'}
  - {says: A is as good as B, kind: as good as, holds_if: 'cell["A", "x"] >= cell["B", "x"]', margin: 0.25, reason: r}
  - {says: A is five, kind: exact, holds_if: 'cell["A", "x"] == 5'}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "item.yaml").write_text(ITEM)
    monkeypatch.setenv("EFFTX_EXPERIMENTS", str(tmp_path / "own"))
    monkeypatch.setenv("EFFTX_RESULTS", str(tmp_path / "results"))
    for one in records(TABLE):
        RecordStore().write(replace(one, id="own/item", wall_seconds=3600.0))


@pytest.mark.usefixtures("own")
def test_the_command_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "own/item", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {key: answer[key] for key in ("id", "size", "power", "level")} == {
        "id": "own/item", "size": "cpu", "power": 0.8, "level": 0.05
    }  # fmt: skip
    better, as_good, exact = answer["claims"]
    assert better["sees"]["5"] == pytest.approx(detectable(5, LEVEL) * 0.5)
    assert (better["hardest"], better["n"], better["unit"]) == ("A, x > B, x", 3, "%")
    assert as_good["seeds_for_margin"] == seeds_to_decide(0.5)
    assert as_good["hours"] == pytest.approx(2.0 * (as_good["seeds_for_margin"] - 3))
    assert (exact["sees"], exact["hardest"]) == ({}, None)


@pytest.mark.usefixtures("own")
def test_the_command_fits_eighty_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["power", "own/item"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "own/item, size cpu: what seeds can see at 80% power" in text
    assert f"margin 0.25 %: {seeds_to_decide(0.5)} seeds if there is no difference" in text
    assert "2.0 h a seed" in text


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Say which item"),
        (["own/itme"], "own/item"),
        (["own/item", "size=cqu"], "cpu"),
        (["own/item", "size=paper"], "Nothing of this is defined at size paper. It is at cpu: give size=cpu"),
    ],
)
def test_a_mistake_is_one_message(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("own")
def test_an_item_of_another_size_alone_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own" / "item.yaml").write_text(ITEM.replace("cpu: []", "smoke: []"))
    assert main(["power", "own/item"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "defined at size cpu or paper. It is at smoke: give size=smoke." in told
    assert [size for size in SIZES if not re.search(rf"\b{size}\b", COMMANDS["power"].epilog)] == []
