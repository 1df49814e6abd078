"""Two runs side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.errors import UserError
from efftx.report.compared import MOST_STEPS, _some, compare, drawn

WORDS = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "evaluation.batches=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    a, b = folder / "a", folder / "b"
    assert main(["train", *WORDS, "training.steps=6", "evaluation.every=2", f"run_dir={a}"]) == 0
    more = ["training.steps=6", "evaluation.every=3", "optimizer.lr=0.02", "attention=[local]", "local.chunk_len=8"]
    assert main(["train", *WORDS, *more, f"run_dir={b}"]) == 0
    return a, b


def test_what_differs_is_named_with_both_values(runs: tuple[Path, Path]) -> None:
    found = compare(*runs)
    assert found.keys["attention"] == (["full"], ["local"])
    assert found.keys["optimizer.lr"][1] == 0.02
    assert found.keys["local.chunk_len"] == (128, 8)
    assert set(found.keys) == {"attention", "local.chunk_len", "optimizer.lr", "evaluation.every"}
    assert compare(runs[0], runs[0]).keys == {}


def test_metrics_and_curves_are_those_of_the_runs(runs: tuple[Path, Path]) -> None:
    found = compare(*runs)
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    assert found.metrics["loss"] == tuple(result["metrics"]["loss"] for result in results)
    curve = found.curves["loss"]
    assert list(curve) == [2, 3, 4, 6]
    expected = [{point["step"]: point["loss"] for point in result["curve"]} for result in results]
    for step, values in curve.items():
        assert values == tuple(points.get(step) for points in expected)


def test_a_run_that_is_not_finished_has_no_metrics_and_a_curve_so_far(runs: tuple[Path, Path], tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(runs[0], half)
    (half / "result.json").unlink()
    found = compare(half, runs[1])
    assert found.metrics == {}
    assert found.curves["loss"][6][0] is not None


def test_the_command_prints_and_draws(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    figure = tmp_path / "both.svg"
    assert main(["compare", *map(str, runs), f"out={figure}"]) == 0
    shown = capsys.readouterr().out
    assert "optimizer.lr" in shown
    assert "b - a" in shown
    assert max(map(len, shown.splitlines())) <= 80 or str(runs[0]) in shown
    assert figure.read_text().startswith("<?xml")
    assert main(["compare", *map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"]["attention"] == [["full"], ["local"]]


def test_a_figure_that_would_be_a_folder_is_refused(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "out=."]) == 2
    assert "out=. is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("n", [0, 1, 3])
def test_it_takes_two_runs(n: int, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *[str(runs[0])] * n]) == 2
    assert f"not {n}" in capsys.readouterr().err


def test_what_is_no_run_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        compare(runs[0], tmp_path)
    found = compare(runs[0], runs[1])
    nothing = type(found)(found.a, type(found.b)(found.b.run, {}, "", {}, {}))
    with pytest.raises(UserError, match="no validation metric in common"):
        drawn(nothing)


def test_of_a_long_curve_some_steps_are_printed_the_first_and_the_last_among_them() -> None:
    assert _some([1, 5, 9]) == [1, 5, 9]
    some = _some(list(range(0, 1000, 10)))
    assert len(some) == MOST_STEPS
    assert (some[0], some[-1]) == (0, 990)
    assert some == sorted(set(some))
