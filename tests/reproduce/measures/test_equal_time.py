"""As many steps are trained as fit into the time."""

from __future__ import annotations

from typing import Any

import pytest

from efftx.machine.timing import Timing
from efftx.reproduce.measures import equal_time as module
from efftx.reproduce.measures.equal_time import equal_time, first_losses

PARAMETERS = {
    "seconds": 3.0,
    "warm_up": 0,
    "repeats": 1,
    "overrides": [
        *("model=transformer", "data=text", "data.path=efftx:samples/c4", "size=smoke", "threads=1"),
        *("data.length=64", "schedule.name=constant", "evaluation.every=2", "evaluation.batches=1"),
    ],
    "columns": {"bits": {}, "steps": {}},
}
OWN: dict[str, Any] = {"overrides": ["training.batch_size=3", "training.accumulation=2"]}


def test_the_number_of_steps_is_the_time_over_that_of_a_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("EFFTX_RUNS", str(tmp_path_factory.mktemp("runs")))
    monkeypatch.setattr(module, "interleaved", lambda calls, **how: dict.fromkeys(calls, Timing(0.7, 0.0)))
    found = equal_time(PARAMETERS, 1, "row", OWN)
    own = found["metrics"]["bits"]
    assert found["metrics"]["steps"] == own
    assert own["steps"] == 4
    assert own["tokens"] == 4 * 3 * 2 * 64
    assert own["overrun"] == own["train_seconds"] / 3.0 - 1.0
    assert own["bits_per_dim"] > 0
    assert len(found["series"]["bits"]) == 2
    assert found["series"]["seconds"] == [own["train_seconds"] / 2, own["train_seconds"]]


def test_a_step_longer_than_the_time_is_trained_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("EFFTX_RUNS", str(tmp_path_factory.mktemp("runs")))
    monkeypatch.setattr(module, "interleaved", lambda calls, **how: dict.fromkeys(calls, Timing(30.0, 0.0)))
    assert equal_time(PARAMETERS, 1, "row", OWN)["metrics"]["bits"]["steps"] == 1


def test_the_first_losses_are_the_same_whatever_the_number_of_steps() -> None:
    losses = first_losses(PARAMETERS, 1, "row", OWN)
    longer = {"overrides": [*OWN["overrides"], "training.steps=77"]}
    assert len(losses) == 3
    assert first_losses(PARAMETERS, 1, "row", longer) == losses
