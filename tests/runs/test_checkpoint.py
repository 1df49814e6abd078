"""Checkpoints: whole, verified, bit for bit; and which of them stay."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

from efftx.errors import UserError
from efftx.optim.optimizers import OptimizerConfig, make_optimizer
from efftx.runs.checkpoint import (
    load_latest,
    read_checkpoint,
    save_checkpoint,
    weights_sha256,
)
from efftx.runs.optimizer_state import capture_optimizer, restore_optimizer
from tests.runs.saved import FILES, make, names, save, train_steps

OPTIMIZERS = ["adam", "adamw", "adafactor"]

# ---- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_training_has_the_bits_of_one_never_stopped(tmp_path, name):
    whole, whole_optimizer = make(name)
    train_steps(whole, whole_optimizer, 1, 6)

    model, optimizer = make(name)
    train_steps(model, optimizer, 1, 3)
    optimizer.param_groups[0]["lr"] = 0.1
    save_checkpoint(tmp_path, 3, model.state_dict(), optimizer, {})

    resumed, resumed_optimizer = make(name, seed=99)
    found = load_latest(tmp_path)
    resumed.load_state_dict(found.model)
    restore_optimizer(resumed_optimizer, found.optimizer)
    train_steps(resumed, resumed_optimizer, found.step + 1, 6)

    assert weights_sha256(resumed.state_dict()) == weights_sha256(whole.state_dict())
    ours, theirs = capture_optimizer(resumed_optimizer), capture_optimizer(whole_optimizer)
    assert weights_sha256(ours.tensors) == weights_sha256(theirs.tensors)
    assert ours.numbers == theirs.numbers
    assert ours.groups == theirs.groups


def test_learning_rates_and_meta_come_back_exactly(tmp_path):
    model, optimizer = make()
    optimizer.param_groups[0]["lr"] = 0.1 + 0.2
    meta = {"score": 1 / 3, "tiny": 5e-324, "list": [1, None, "x"], "scaler": {"scale": 65536.0}}
    save_checkpoint(tmp_path, 1, model.state_dict(), optimizer, meta)
    found = load_latest(tmp_path)
    assert found.meta == meta
    _, other = make()
    restore_optimizer(other, found.optimizer)
    assert other.param_groups[0]["lr"] == 0.1 + 0.2
    assert other.param_groups[0]["betas"] == (0.9, 0.98)


def test_moments_of_bfloat16_weights_come_back_in_float32(tmp_path):
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = make_optimizer(OptimizerConfig(name="adafactor"), [("w", weight)])
    weight.grad = torch.full_like(weight, 0.1)
    optimizer.step()
    save_checkpoint(tmp_path, 1, {"w": weight}, optimizer, {})
    other = make_optimizer(OptimizerConfig(name="adafactor"), [("w", nn.Parameter(weight.detach().clone()))])
    restore_optimizer(other, load_latest(tmp_path).optimizer)
    (state,) = other.state.values()
    assert state["v_row"].dtype is torch.float32
    assert torch.equal(state["v_row"], optimizer.state[weight]["v_row"])
    assert state["step"] == 1


def test_tied_tensors_are_stored_once_and_come_back_as_one(tmp_path):
    model, optimizer = make()
    path = save_checkpoint(tmp_path, 1, model.state_dict(), optimizer, {})
    found = load_latest(tmp_path)
    assert found.model["out.weight"] is found.model["embedding.weight"]
    assert set(found.model) == set(model.state_dict())
    size = (path / "model.safetensors").stat().st_size
    untied = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = save_checkpoint(tmp_path, 2, untied, optimizer, {})
    assert (path / "model.safetensors").stat().st_size > size


def test_views_of_one_memory_that_differ_are_both_stored(tmp_path):
    _, optimizer = make()
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "transposed": base.t(), "row": base[1], "empty": torch.empty(0), "other": torch.empty(0)}
    save_checkpoint(tmp_path, 1, tensors, optimizer, {})
    found = load_latest(tmp_path).model
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_a_name_that_begins_with_another_ones_keeps_its_own_state(tmp_path):
    inner, outer = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(OptimizerConfig(), [("a", inner), ("a.b", outer)])
    inner.grad, outer.grad = torch.ones(2), torch.ones(3)
    optimizer.step()
    save_checkpoint(tmp_path, 1, {"a": inner}, optimizer, {})
    other = make_optimizer(OptimizerConfig(), [("a", inner), ("a.b", outer)])
    restore_optimizer(other, load_latest(tmp_path).optimizer)
    assert set(other.state[inner]) == set(other.state[outer]) == {"step", "exp_avg", "exp_avg_sq"}
    assert other.state[outer]["exp_avg"].shape == (3,)


def test_an_optimiser_over_other_parameters_is_refused(tmp_path):
    save(tmp_path, 1)
    optimizer = make_optimizer(OptimizerConfig(), [("stranger", nn.Parameter(torch.ones(2)))])
    with pytest.raises(UserError) as caught:
        restore_optimizer(optimizer, load_latest(tmp_path).optimizer)
    assert "stranger" in caught.value.message


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path / "absent") is None
    assert load_latest(tmp_path) is None


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    path = save(tmp_path, 1)
    assert names(path) == sorted(FILES)
    json.loads((path / "state.json").read_text())
    json.loads((path / "manifest.json").read_text())


# ---- which ones stay -------------------------------------------------------------------------------------------------


def test_the_last_ones_and_the_best_one_stay(tmp_path):
    for step, score in [(1, 5.0), (2, 1.0), (3, 4.0), (4, 3.0), (5, float("nan")), (6, None)]:
        save(tmp_path, step, score=score, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]
    assert load_latest(tmp_path).step == 6


def test_without_scores_only_the_last_ones_stay(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == ["step-00000003"]


def test_steps_are_ordered_by_number_and_not_by_name(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert load_latest(tmp_path).step == 100_000_000


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, seed=1)
    before = weights_sha256(load_latest(tmp_path).model)
    save(tmp_path, 1, seed=2)
    assert weights_sha256(load_latest(tmp_path).model) != before
    assert names(tmp_path) == ["step-00000001"]


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_does_not_depend_on_order_or_layout():
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2)
    assert weights_sha256({"a": a, "b": b}) == weights_sha256({"b": b, "a": a.t().contiguous().t()})


def test_the_fingerprint_depends_on_name_shape_dtype_and_every_bit():
    base = torch.zeros(2, 3)
    bit = base.clone()
    bit[1, 2] = -0.0
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.reshape(3, 2)},
        {"a": base.to(torch.int32)},
        {"a": bit},
        {"a": base, "b": torch.empty(0)},
    ]
    assert len({weights_sha256(variant) for variant in variants}) == len(variants)


def test_the_fingerprint_takes_every_dtype_and_a_scalar():
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool):
        assert len(weights_sha256({"x": torch.ones((), dtype=dtype)})) == 64


def test_a_copied_checkpoint_reads_as_the_original(tmp_path):
    path = save(tmp_path, 1)
    shutil.copytree(path, tmp_path / "copy")
    assert weights_sha256(read_checkpoint(tmp_path / "copy").model) == weights_sha256(read_checkpoint(path).model)
