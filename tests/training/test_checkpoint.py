"""Checkpoints: whole or absent, verified, bit for bit; damage and kills at every point."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import nn

from efftx.errors import UserError
from efftx.training import checkpoint as module
from efftx.training import durable
from efftx.training.checkpoint import (
    CheckpointConfig,
    capture_optimizer,
    check_checkpoint,
    load_latest,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
    weights_sha256,
)
from efftx.training.optimizers import OptimizerConfig, make_optimizer

OPTIMIZERS = ["adam", "adamw", "adafactor"]
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


class Tied(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.out.weight = self.embedding.weight

    def forward(self, tokens_L):
        return self.out(self.inner(self.embedding(tokens_L)))


def train_steps(model, optimizer, first, last):
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        tokens_L = torch.randint(0, 7, (16,), generator=generator)
        loss = nn.functional.cross_entropy(model(tokens_L), tokens_L.roll(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make(name="adam", seed=0):
    model = Tied(seed)
    return model, make_optimizer(OptimizerConfig(name=name, lr=0.1), model.named_parameters())


def save(folder, step, *, score=None, keep=2, seed=None):
    model, optimizer = make(seed=step if seed is None else seed)
    train_steps(model, optimizer, 1, 1)
    return save_checkpoint(folder, step, model.state_dict(), optimizer, {"score": score}, keep=keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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


# ---- damage ----------------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def grow(path):
    path.write_bytes(path.read_bytes() + b" ")


def delete(path):
    path.unlink()


@pytest.mark.parametrize(
    ("file", "harm"),
    # not (manifest, grow): white space after JSON harms nothing
    [(file, harm) for file in FILES for harm in (truncate, flip, delete)] + [(file, grow) for file in FILES[:3]],
)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_used(tmp_path, file, harm):
    save(tmp_path, 1)
    good = weights_sha256(load_latest(tmp_path).model)
    save(tmp_path, 2)
    harm(tmp_path / "step-00000002" / file)
    told = []
    found = load_latest(tmp_path, on_damage=told.append)
    assert (found.step, weights_sha256(found.model)) == (1, good)
    assert len(told) == 1
    assert "step-00000002" in told[0]
    assert names(tmp_path) == ["step-00000001", "step-00000002.damaged"]


def test_damage_without_a_listener_is_a_warning(tmp_path):
    delete(save(tmp_path, 1) / "manifest.json")
    with pytest.warns(UserWarning, match=r"manifest\.json is missing"):
        assert load_latest(tmp_path) is None


def test_all_damaged_is_none_and_each_is_told(tmp_path):
    for step in (1, 2):
        truncate(save(tmp_path, step) / "model.safetensors")
    told = []
    assert load_latest(tmp_path, on_damage=told.append) is None
    assert len(told) == 2


def test_the_same_step_can_be_damaged_twice(tmp_path):
    for _ in range(2):
        truncate(save(tmp_path, 1) / "model.safetensors")
        load_latest(tmp_path, on_damage=lambda text: None)
    assert names(tmp_path) == ["step-00000001.damaged", "step-00000001.damaged-2"]


def test_a_reader_without_the_lock_changes_nothing(tmp_path):
    save(tmp_path, 1)
    truncate(save(tmp_path, 2) / "model.safetensors")
    (tmp_path / ".writing-step-00000003-1").mkdir()
    before = names(tmp_path)
    told = []
    assert load_latest(tmp_path, on_damage=told.append, read_only=True).step == 1
    assert names(tmp_path) == before
    assert len(told) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_of_any_file_goes_unnoticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    path = save(folder, 1)
    whole = read_checkpoint(path)
    file = path / data.draw(st.sampled_from(FILES))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(content))
    found = load_latest(folder, on_damage=lambda text: None)
    # a flip in the manifest may fall on white space, and then nothing is lost
    assert found is None or (
        file.name == "manifest.json" and weights_sha256(found.model) == weights_sha256(whole.model)
    )


def test_a_checkpoint_of_another_format_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 2)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError) as caught:
        load_latest(tmp_path)
    assert caught.value.kind == "other_format"
    assert names(tmp_path) == ["step-00000001"]


# ---- kills -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def die(*arguments, **keywords):
    raise Killed


def leave_everything(monkeypatch):
    """Make the clean-up after an exception do nothing, as a kill would."""
    monkeypatch.setattr(module.shutil, "rmtree", lambda *a, **k: None)


@pytest.mark.parametrize("function", ["save_file", "_sha256"])
def test_two_kills_while_writing_leave_the_checkpoint_before_them(tmp_path, monkeypatch, function):
    save(tmp_path, 1)
    for step in (2, 3):
        with monkeypatch.context() as patch:
            leave_everything(patch)
            patch.setattr(module, function, die)
            with pytest.raises(Killed):
                save(tmp_path, step)
    assert [name for name in names(tmp_path) if name.startswith(".writing-")]
    assert load_latest(tmp_path).step == 1
    assert names(tmp_path) == ["step-00000001"]


def test_a_kill_before_the_rename_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        leave_everything(patch)
        patch.setattr(module.os, "rename", die)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert load_latest(tmp_path).step == 1


def test_a_kill_between_the_two_renames_of_a_replacement_brings_the_old_one_back(tmp_path, monkeypatch):
    save(tmp_path, 1, seed=1)
    before = weights_sha256(load_latest(tmp_path).model)
    rename, calls = os.rename, []

    def rename_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        leave_everything(patch)
        patch.setattr(module.os, "rename", rename_once)
        with pytest.raises(Killed):
            save(tmp_path, 1, seed=2)
    assert not (tmp_path / "step-00000001").exists()
    assert weights_sha256(load_latest(tmp_path).model) == before
    assert names(tmp_path) == ["step-00000001"]


def test_a_kill_while_an_old_one_is_removed_leaves_no_damaged_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    with monkeypatch.context() as patch:
        leave_everything(patch)
        save(tmp_path, 2, keep=1)
    told = []
    assert load_latest(tmp_path, on_damage=told.append).step == 2
    assert not told
    assert names(tmp_path) == ["step-00000002"]


def test_an_interrupted_save_cleans_up_after_itself(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(module, "_sha256", die)
    with pytest.raises(Killed):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_every_file_and_both_directories_are_forced_to_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    synced, sync = [], durable.sync
    monkeypatch.setattr(durable, "sync", lambda path: (synced.append(path.name), sync(path)))
    save(tmp_path / "folder", 1)
    assert synced[:4] == FILES
    assert synced[4].startswith(".writing-step-00000001")
    assert synced[5] == "folder"


# ---- disks -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_message_and_nothing_half_written(tmp_path):
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(UserError) as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.kind == "cannot_write"
    assert str(tmp_path) in caught.value.message
    assert names(tmp_path) == ["step-00000001"]
    assert load_latest(tmp_path).step == 1


@pytest.mark.parametrize(
    ("error", "says", "hint"),
    [
        (OSError(errno.ENOSPC, ""), "No space left", "Free some space"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left", "Free some space"),
        (OSError(errno.EROFS, ""), "Read-only file system", "Make it writable"),
        (PermissionError(errno.EACCES, ""), "Permission denied", "Make it writable"),
    ],
)
def test_a_disk_that_refuses_says_what_to_do(tmp_path, monkeypatch, error, says, hint):
    save(tmp_path, 1)

    def refuse(*arguments, **keywords):
        raise error

    monkeypatch.setattr(module, "save_file", refuse)
    with pytest.raises(UserError) as caught:
        save(tmp_path, 2)
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_one_message(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError):
            save(tmp_path, 1)
        assert names(tmp_path) == []
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_is_a_file_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        save(tmp_path / "file", 1)
    assert caught.value.kind == "cannot_write"


# ---- config and fingerprints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CheckpointConfig(every=-1), CheckpointConfig(keep=0)])
def test_a_wrong_checkpoint_config_is_refused(config):
    with pytest.raises(UserError):
        check_checkpoint(config)


def test_the_default_checkpoint_config_is_accepted():
    check_checkpoint(CheckpointConfig())


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
