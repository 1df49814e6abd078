"""Checkpoints that a thread writes are those that would be written at once, and what goes wrong there is not lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from efftx.config.compose import compose
from efftx.config.settings import CheckpointConfig
from efftx.distributed.processes import ALONE
from efftx.errors import UserError
from efftx.runs import saver as module
from efftx.runs.checkpoint import read_checkpoint
from efftx.runs.optimizer_state import OptimizerState
from efftx.runs.run_directory import FollowedRun, read_metrics
from efftx.runs.saver import Saver
from efftx.training.loop import train

STEPS = 6
WORDS = (
    "model=transformer",
    "data=duplicate",
    "size=smoke",
    "threads=1",
    f"training.steps={STEPS}",
    "evaluation.every=2",
    "checkpoint.every=1",
    f"checkpoint.keep={STEPS}",
)


def slow_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not wait for a checkpoint overtakes it."""
    honest = module.save_checkpoint

    def late(*given: Any, **options: Any) -> Path:
        threading.Event().wait(0.2)
        return honest(*given, **options)

    monkeypatch.setattr(module, "save_checkpoint", late)


@pytest.mark.parametrize("words", [(), ("ema.decay=0.5",), ("optimizer.name=adafactor",)])
def test_no_update_and_no_evaluation_changes_what_is_being_written(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = train(compose([*WORDS, *words]), tmp_path / "at once", silent=True)
    slow_to_write(monkeypatch)
    beside = train(compose([*WORDS, *words, "checkpoint.asynchronous=true"]), tmp_path / "beside", silent=True)
    assert beside.hash == at_once.hash
    assert beside.weights_sha256 == at_once.weights_sha256
    assert beside.curve == at_once.curve
    assert read_metrics(beside.run) == read_metrics(at_once.run)
    for step in range(1, STEPS + 1):
        one, other = (read_checkpoint(run.run / "checkpoints" / f"step-{step:08d}") for run in (at_once, beside))
        assert one.meta["score"] == other.meta["score"]
        assert one.model.keys() == other.model.keys()
        for mine, its in ((one.model, other.model), (one.optimizer.tensors, other.optimizer.tensors)):
            assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_the_next_gradients_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save` comes back while the checkpoint is held up; `finish` does not."""
    let_go, held = threading.Event(), threading.Event()
    honest = module.save_checkpoint

    def held_up(*given: Any, **options: Any) -> Path:
        held.set()
        assert let_go.wait(60)
        return honest(*given, **options)

    monkeypatch.setattr(module, "save_checkpoint", held_up)
    run = FollowedRun(tmp_path)
    with Saver(run, CheckpointConfig(asynchronous=True), ALONE) as saver:
        saver.save(1, {"w": torch.ones(2)}, OptimizerState(), {})
        assert held.wait(60)
        assert not (run.checkpoints / "step-00000001").exists()
        let_go.set()
        saver.finish()
        assert (run.checkpoints / "step-00000001").is_dir()


def test_what_goes_wrong_in_the_thread_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **options: Any) -> Path:
        raise UserError("cannot_write", "the disk is full")

    monkeypatch.setattr(module, "save_checkpoint", full)
    with pytest.raises(UserError, match="the disk is full"):
        train(compose([*WORDS, "checkpoint.asynchronous=true"]), tmp_path / "run", silent=True)
    assert len(read_metrics(tmp_path / "run")) == 1, "no step after the one whose checkpoint was lost"
