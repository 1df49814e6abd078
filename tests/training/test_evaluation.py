"""An evaluation comes after its step's checkpoint, so that whatever happens in it loses nothing; a NaN is no result."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from efftx.ablate import ablate
from efftx.cli import main
from efftx.config.compose import compose
from efftx.distributed.processes import Processes
from efftx.errors import Interrupted, NotFiniteError, UserError
from efftx.runs import saver
from efftx.runs.checkpoint import load_latest
from efftx.runs.run_directory import read_metrics, read_result
from efftx.training import evaluation, loop
from efftx.training.evaluation import evaluate_run
from efftx.training.loop import TrainResult, train

WORDS = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "dropout=0.1"]
SEVEN = [*WORDS, "training.steps=7", "evaluation.every=3"]
DIVERGES = ["optimizer.lr=1e20", "training.steps=1", "schedule.name=constant", "schedule.warmup=0"]


@pytest.fixture
def whole(tmp_path: Path) -> TrainResult:
    """The run that nothing stops."""
    return train(compose(SEVEN), tmp_path / "whole", silent=True)


def same(run: Path, whole: TrainResult) -> None:
    """Going on from `run` gives what the run never stopped gave, to the last line of its metrics."""
    again = train(compose(SEVEN), run, silent=True)
    assert again.weights_sha256 == whole.weights_sha256
    assert again.metrics == whole.metrics
    assert again.curve == whole.curve
    assert read_metrics(run) == read_metrics(whole.run)


def fail_once(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, at: int) -> None:
    """The call number `at` that a module makes of a function ends in an error."""
    honest, calls = getattr(module, name), [0]

    def broken(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise KeyError("a mistake in an evaluation")
        return honest(*given, **options)

    monkeypatch.setattr(module, name, broken)


@pytest.mark.parametrize(("at", "step"), [(1, 3), (2, 6), (3, 7), (4, 7)])
def test_a_failure_in_an_evaluation_loses_no_step(
    at: int, step: int, tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validations at 3 and 6 and at the end, then the test."""
    fail_once(monkeypatch, loop, "evaluate_split", at)
    with pytest.raises(KeyError):
        train(compose(SEVEN), tmp_path / "run", silent=True)
    checkpoint = load_latest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == step
    same(tmp_path / "run", whole)


def test_a_stop_between_a_validation_and_its_checkpoint_tells_it_once(
    tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, saver, "save_meta", 2)
    with pytest.raises(KeyError):
        train(compose(SEVEN), tmp_path / "run", silent=True)
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_request_to_stop_waits_for_no_evaluation(
    step: int, tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[int] = []
    honest_update, honest_evaluate = loop.Progress.update, loop.evaluate_split
    stops: list[loop.StopRequest] = []

    def update(self: loop.Progress, at: int, *given: Any) -> None:
        honest_update(self, at, *given)
        if at == step:
            stops[0].exit_code = 143

    def evaluate(*given: Any, **options: Any) -> dict[str, float]:
        evaluated.append(len(evaluated))
        return honest_evaluate(*given, **options)

    class Stop(loop.StopRequest):
        def __enter__(self) -> Stop:
            stops.append(self)
            return super().__enter__()

    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", Stop)
        patched.setattr(loop.Progress, "update", update)
        patched.setattr(loop, "evaluate_split", evaluate)
        with pytest.raises(Interrupted, match=f"step {step}"):
            train(compose(SEVEN), tmp_path / "run", silent=True)
    assert len(evaluated) == {2: 0, 3: 0, 7: 2}[step]
    same(tmp_path / "run", whole)


def test_the_best_checkpoint_is_the_one_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    words = [*WORDS, "training.steps=9", "evaluation.every=3", "checkpoint.every=1", "checkpoint.keep=1"]
    run = train(compose(words), tmp_path / "run", silent=True)
    best = min(run.curve, key=lambda point: point["loss"])["step"]
    kept = {int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert kept == {9, best}


@pytest.mark.parametrize("data", ["data=duplicate", "data=copy_add"])
def test_a_split_without_end_is_refused_before_anything_is_trained(data: str) -> None:
    words = ["model=transformer", data, "size=smoke", "evaluation.batches=0"]
    if data == "data=copy_add":
        words += ["stack=encoder_decoder", "positions.kind=learned", "data.max_digits=8", "data.eval_max_digits=9"]
        words += ["data.eval_min_digits=9"]
    with pytest.raises(UserError, match=r"evaluation\.batches=0.*no end") as caught:
        compose(words)
    assert "evaluation.batches=8" in caught.value.hint


def test_an_evaluation_that_is_not_finite_is_an_error_with_a_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for _ in range(2):  # the second time it goes on from the checkpoint, to the same end
        assert main(["train", *WORDS, *DIVERGES, f"run_dir={run}", "--json"]) == 3
        out = capsys.readouterr().out
        assert json.loads(out, parse_constant=lambda name: pytest.fail(name))["error"]["kind"] == "not_finite"
        assert read_result(run) is None
        checkpoint = load_latest(run / "checkpoints")
        assert checkpoint is not None
        assert all(bool(weight.isfinite().all()) for weight in checkpoint.model.values())


def test_weights_that_are_not_finite_never_become_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(optimizer: Any, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = math.inf if len(steps) == 3 else rate
        steps.append(rate)

    steps: list[float] = []
    monkeypatch.setattr(loop, "set_learning_rate", spoil)
    with pytest.raises(NotFiniteError, match="step 4"):
        train(compose([*SEVEN, "checkpoint.every=1"]), tmp_path / "run", silent=True)
    checkpoint = load_latest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 3


def test_such_a_point_of_an_ablation_has_failed() -> None:
    runs = ablate([*WORDS, *DIVERGES, "seed=0,1"])
    assert [run["state"] for run in runs] == ["failed", "failed"]
    assert all("nan" in run["error"] for run in runs)
    assert all(run["metrics"] == {} for run in runs)


def test_a_column_that_is_not_finite_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(compose([*WORDS, "training.steps=3"]), tmp_path / "run", silent=True).run
    monkeypatch.setattr(evaluation, "evaluate", lambda *given, **options: {"loss": 1.0, "accuracy": math.nan})
    with pytest.raises(NotFiniteError, match="accuracy nan"):
        evaluate_run(run, compose([*WORDS, "training.steps=3"]))


def test_a_request_to_stop_while_the_result_is_written_loses_none_and_is_answered(
    tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def latency_of(*_: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(loop, "latency_of", latency_of)
        with pytest.raises(Interrupted, match="is done, and the same command shows it") as stopped:
            train(compose(SEVEN), tmp_path / "run", silent=True)
    assert stopped.value.exit_code == 143
    same(tmp_path / "run", whole)


def test_one_gpu_by_its_number_is_none_for_several_processes() -> None:
    with pytest.raises(UserError, match="2 processes want one each"):
        train(compose([*WORDS, "device=cuda:1"]), processes=Processes(0, 2, 2, None))
