"""The moving average of the weights: its value by hand, who takes it, and that a resume keeps its bits."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from efftx.config.compose import compose
from efftx.errors import UserError
from efftx.plan.memory import optimizer_bytes
from efftx.runs.checkpoint import load_latest, read_checkpoint, weights_sha256
from efftx.runs.ema import Average, evaluated_weights
from efftx.runs.optimizer_state import OptimizerState
from efftx.sampling.request import Request
from efftx.sampling.trained import load_run
from efftx.training.evaluation import evaluate_run
from efftx.training.loop import train

BASE = ["model=reformer", "data=duplicate", "size=smoke", "threads=1", "training.steps=8", "evaluation.every=4"]
EMA = [*BASE, "ema.decay=0.5"]


class Two(nn.Module):
    """A weight that trains and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.trains = nn.Parameter(torch.tensor([8.0]))
        self.stays = nn.Parameter(torch.tensor([1.0]), requires_grad=False)


def set_to(model: Two, value: float) -> None:
    with torch.no_grad():
        model.trains.fill_(value)


def test_it_begins_as_the_weights_and_follows_them_by_its_decay() -> None:
    model = Two()
    average = Average(model, 0.75)
    for value, expected in ((4.0, 7.0), (0.0, 5.25), (5.25, 5.25)):
        set_to(model, value)
        average.update()
        with average.in_place():
            assert model.trains.item() == expected
            assert model.stays.item() == 1.0
        assert model.trains.item() == value
    set_to(model, 3.0)
    average.begin()
    with average.in_place():
        assert model.trains.item() == 3.0


def test_the_weights_come_back_where_an_evaluation_fails() -> None:
    model = Two()
    average = Average(model, 0.75)
    set_to(model, 2.0)
    with pytest.raises(RuntimeError), average.in_place():
        raise RuntimeError
    assert model.trains.item() == 2.0


def test_a_checkpoint_has_it_beside_the_optimisers_state_and_gives_both_back() -> None:
    model = Two()
    average = Average(model, 0.75)
    set_to(model, 4.0)
    average.update()
    own = OptimizerState({"trains.exp_avg": torch.tensor([9.0])})
    captured = average.captured(own)
    assert captured.tensors["trains.ema"].item() == 7.0
    other = Average(Two(), 0.75)
    assert other.restored(captured).tensors == own.tensors
    with other.in_place():
        assert next(iter(other._parameters.values())).item() == 7.0
    none = Average(model, 0.0)
    assert none.captured(own).tensors == own.tensors
    assert none.restored(own).tensors == own.tensors


def test_evaluations_and_samples_take_it_and_the_training_does_not_know_of_it(tmp_path: Path) -> None:
    plain = train(compose([*BASE, f"run_dir={tmp_path / 'plain'}"]))
    config = compose([*EMA, f"run_dir={tmp_path / 'ema'}"])
    found = train(config)
    assert found.hash != plain.hash
    assert found.weights_sha256 == plain.weights_sha256
    assert found.first_losses == plain.first_losses
    assert found.metrics["loss"] != plain.metrics["loss"]
    assert [point["loss"] for point in found.curve] != [point["loss"] for point in plain.curve]
    assert evaluate_run(found.run, config) == found.metrics
    assert evaluate_run(found.run, compose(BASE)) == plain.metrics
    checkpoint = load_latest(found.run / "checkpoints")
    assert checkpoint is not None
    sampled = load_run(found.run, Request(), print).model
    averaged = evaluated_weights(checkpoint, 0.5)
    for name, parameter in sampled.named_parameters():
        assert torch.equal(parameter, averaged[name])
    assert any(not torch.equal(averaged[name], tensor) for name, tensor in checkpoint.model.items())
    bare = load_latest(plain.run / "checkpoints")
    assert bare is not None
    assert evaluated_weights(bare, 0.0) == bare.model
    with pytest.raises(UserError, match=r"ema\.decay=0\.5, but the checkpoint .* has no moving average"):
        evaluate_run(plain.run, config)


def test_the_average_is_that_of_the_weights_after_every_step(tmp_path: Path) -> None:
    words = [*EMA, "training.steps=4", "checkpoint.every=1", "checkpoint.keep=9", f"run_dir={tmp_path / 'run'}"]
    train(compose(words))
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    steps = [read_checkpoint(folder) for folder in folders]
    assert [one.step for one in steps] == [1, 2, 3, 4]
    for before, after in itertools.pairwise(steps):
        for name, tensor in after.model.items():
            expected = torch.lerp(before.optimizer.tensors[f"{name}.ema"], tensor, 0.5)
            assert torch.equal(after.optimizer.tensors[f"{name}.ema"], expected)


def test_a_training_that_goes_on_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(compose([*EMA, "checkpoint.every=3", f"run_dir={tmp_path / 'whole'}"]))
    config = compose([*EMA, "checkpoint.every=3", f"run_dir={tmp_path / 'killed'}"])
    calls = []

    def fails(self: Average) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        update(self)

    update = Average.update
    monkeypatch.setattr(Average, "update", fails)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(Average, "update", update)
    resumed = train(config)
    assert resumed.resumed_from == 6
    assert resumed.metrics == whole.metrics
    assert resumed.curve == whole.curve
    ends = [load_latest(tmp_path / name / "checkpoints") for name in ("whole", "killed")]
    assert ends[0] is not None
    assert ends[1] is not None
    sums = {weights_sha256(evaluated_weights(end, 0.5)) for end in ends if end is not None}
    assert len(sums) == 1


def test_a_decay_of_one_would_never_move_and_is_refused_and_memory_counts_a_copy() -> None:
    with pytest.raises(UserError, match=r"ema\.decay=1 must be less than 1"):
        compose([*BASE, "ema.decay=1"])
    weights = [nn.Parameter(torch.zeros(3, 5))]
    assert optimizer_bytes("adam", weights, average=True) == optimizer_bytes("adam", weights) + 4 * 15


def test_a_tied_weight_is_sampled_and_evaluated_by_its_average_under_both_its_names(tmp_path: Path) -> None:
    tied = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "training.steps=4", "ema.decay=0.5"]
    config = compose([*tied, "tie_embeddings=true", f"run_dir={tmp_path / 'run'}"])
    result = train(config, silent=True)
    checkpoint = load_latest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    found = evaluated_weights(checkpoint, 0.5)
    assert torch.equal(found["head.linear.weight"], found["embedding.weight"])
    assert not torch.equal(found["embedding.weight"], checkpoint.model["embedding.weight"])
    assert evaluate_run(result.run, config) == result.metrics
