"""Parameters in the host's memory: the same bits as on the device, in one process and in two, and runs that go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from efftx.runs.checkpoint import load_latest
from efftx.runs.run_directory import read_metrics

from .launched import train_all
from .test_resume import CLOSE, OPTIMIZERS, STEPS, STOP, WORDS
from .test_same_losses import MODELS

OFFLOADED = ("distributed.strategy=fsdp", "distributed.offload=true")
FEW = ("size=smoke", "threads=1", "training.steps=6", "training.batch_size=2", "evaluation.every=3")


@pytest.mark.parametrize("name", MODELS)
def test_one_process_has_the_same_bits(name: str, tmp_path: Path) -> None:
    plain = train_all({"run": [*MODELS[name], *FEW]}, tmp_path / "plain", 1)
    offloaded = train_all({"run": [*MODELS[name], *FEW, *OFFLOADED]}, tmp_path / "offloaded", 1)
    assert offloaded == plain
    assert read_metrics(tmp_path / "offloaded" / "run") == read_metrics(tmp_path / "plain" / "run")
    own, other = (load_latest(tmp_path / way / "run" / "checkpoints") for way in ("plain", "offloaded"))
    assert own is not None
    assert other is not None
    assert own.model.keys() == other.model.keys()
    assert all(other.model[key].equal(tensor) for key, tensor in own.model.items())
    assert all(other.optimizer.tensors[key].equal(tensor) for key, tensor in own.optimizer.tensors.items())


@pytest.mark.parametrize("ways", [((), OFFLOADED), (OFFLOADED, ())], ids=["to the host", "to the device"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_goes_on_the_other_way(ways: tuple[tuple[str, ...], ...], optimizer: str, tmp_path: Path) -> None:
    words = [*WORDS, *OPTIMIZERS[optimizer]]
    begun, ended = ([*words, *way] for way in ways)
    whole = train_all({"run": words}, tmp_path / "whole", 1)
    stopped = train_all({"run": begun}, tmp_path / "half", 1, stop_at=STOP)["run"]
    assert f"Stopped at step {STOP}" in stopped["stopped"]
    result = train_all({"run": ended}, tmp_path / "half", 1)["run"]
    assert (result["resumed_from"], result["step"]) == (STOP, STEPS)
    assert result["metrics"] == whole["run"]["metrics"]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    cases = {optimizer: [*WORDS, *own] for optimizer, own in OPTIMIZERS.items()}
    alone = train_all(cases, tmp_path / "alone", 1)
    shared = train_all({name: [*words, *OFFLOADED] for name, words in cases.items()}, tmp_path / "shared")
    for name in cases:
        assert shared[name]["metrics"] == pytest.approx(alone[name]["metrics"], rel=CLOSE), name
