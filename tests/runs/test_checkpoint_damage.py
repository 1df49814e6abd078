"""Checkpoints under damage, kills at every point, and disks that refuse: whole or absent."""

from __future__ import annotations

import errno
import os
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from efftx.core import files
from efftx.errors import UserError
from efftx.runs import checkpoint as module
from efftx.runs.checkpoint import load_latest, weights_sha256
from tests.runs.saved import FILES, names, save

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
    [(file, harm) for file in FILES for harm in (truncate, flip, delete, grow)],
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
    with pytest.warns(UserWarning, match=r"manifest\.json: it is missing"):
        assert load_latest(tmp_path) is None


def test_all_damaged_is_none_and_each_is_told(tmp_path):
    for step in (1, 2):
        truncate(save(tmp_path, step) / "model.safetensors")
    told = []
    assert load_latest(tmp_path, on_damage=told.append) is None
    assert told[0].endswith("the one before it is used")
    assert told[1].endswith("none stands before it")
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


@settings(max_examples=60)
@given(data=st.data())
def test_no_flipped_bit_of_any_file_goes_unnoticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    path = save(folder, 1)
    file = path / data.draw(st.sampled_from(FILES))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(content))
    assert load_latest(folder, on_damage=lambda text: None) is None


def test_a_checkpoint_of_another_format_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 3)
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


def test_a_fifo_or_a_folder_in_place_of_a_file_is_damage(tmp_path):
    for step, put in ((1, os.mkfifo), (2, os.mkdir)):
        for file in FILES:
            path = save(tmp_path, step) / file
            delete(path)
            put(path)
            assert load_latest(tmp_path, on_damage=lambda text: None) is None


@pytest.mark.parametrize("function", ["save_file", "file_sha256"])
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
    monkeypatch.setattr(module, "file_sha256", die)
    with pytest.raises(Killed):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_every_file_and_both_directories_are_forced_to_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def note(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", note)
    save(tmp_path / "folder", 1)
    assert [name for name in FILES if not any(name in one for one in synced[:-2])] == []
    assert synced[-2].startswith(".writing-step-00000001")
    assert synced[-1] == "folder"


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


def test_a_hash_of_shards_has_one_whole_tensor_at_a_time() -> None:
    tensors = {name: torch.full((2,), float(i)) for i, name in enumerate("cab")}
    gathered: list[float] = []

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        gathered.append(float(tensor[0]))
        return tensor

    assert weights_sha256(tensors, gather=gather) == weights_sha256(tensors)
    assert gathered == [1.0, 2.0, 0.0], "in the order of their names, which every process has"
