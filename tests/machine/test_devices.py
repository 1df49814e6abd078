"""Devices and dtypes by name, randomness as a function of the step, and what a record says about a machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efftx.core import device_names
from efftx.errors import UserError
from efftx.machine import allocator, devices
from efftx.machine.devices import (
    LossScaler,
    autocast,
    dtype_note,
    environment,
    grad_scaler,
    parameter_dtype,
    resolve_device,
    resolve_dtype,
    seed_step,
    set_determinism,
    step_seed,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def global_settings():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark = fill, benchmark
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


# ---- devices and dtypes ----------------------------------------------------------------------------------------------


def with_gpus(monkeypatch, count):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_numbered_gpu_is_the_processs_own_and_one_that_is_not_here_is_refused(monkeypatch):
    chosen = with_gpus(monkeypatch, 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [1]
    with pytest.raises(UserError, match="no such GPU") as caught:
        resolve_device("cuda:99")
    assert "cuda:0 to cuda:1" in caught.value.hint


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:99"])
def test_a_gpu_where_there_is_none_is_one_sentence(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device={name}: PyTorch finds no CUDA device") as caught:
        resolve_device(name)
    assert caught.value.kind == "no_device"


@pytest.mark.parametrize("name", ["mps", "cpu:1", "cpu:0", "cuda:", "cuda:-1", "cuda:1.0", "cuda:٣", "CUDA", ""])
def test_nothing_else_is_a_device(name):
    with pytest.raises(UserError, match="is not a device"):
        resolve_device(name)


def test_the_dtypes_that_a_config_may_name_are_those_that_are_computed_in():
    assert set(devices.DTYPES) == set(device_names.DTYPES)


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    with_gpus(monkeypatch, 1)
    assert resolve_device("auto") == resolve_device("cuda") == CUDA
    assert resolve_device("cpu") == CPU


def test_auto_is_the_cpu_where_there_is_no_gpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(UserError) as caught:
        resolve_device("cuda")
    assert caught.value.kind == "no_device"


def test_an_unknown_device_or_dtype_gets_the_nearest_name():
    with pytest.raises(UserError) as caught:
        resolve_device("cuda0")
    assert "'cuda'" in caught.value.hint
    with pytest.raises(UserError) as caught:
        resolve_dtype("float23", CPU)
    assert "'float32'" in caught.value.hint


def test_float16_needs_a_device_with_loss_scaling():
    assert resolve_dtype("float16", CUDA) is torch.float16
    with pytest.raises(UserError) as caught:
        resolve_dtype("float16", CPU)
    assert "loss scaling" in caught.value.message


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_the_other_dtypes_are_allowed_on_the_cpu(name):
    assert resolve_dtype(name, CPU) is getattr(torch, name)


def test_bfloat16_on_a_cpu_is_allowed_with_a_note():
    assert "bfloat16" in dtype_note(torch.bfloat16, CPU)
    assert dtype_note(torch.bfloat16, CUDA) == dtype_note(torch.float32, CPU) == ""


def test_weights_are_float32_unless_all_is_float64():
    kinds = [parameter_dtype(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)]
    assert kinds == [torch.float32] * 3 + [torch.float64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_run_in_the_dtype_asked_for(dtype):
    x = torch.ones(2, 2, dtype=parameter_dtype(dtype))
    with autocast(CPU, dtype):
        assert (x @ x).dtype is dtype


def test_a_switched_off_scaler_changes_nothing():
    scaler = grad_scaler(CPU, torch.float32)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    loss = weight.sum()
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight, torch.zeros(2))
    assert not scaler.is_enabled()


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("global_settings")
def test_determinism_sets_threads_and_refuses_operations_that_vary():
    assert set_determinism(1) == torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert set_determinism(None) == 1
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.usefixtures("global_settings")
def test_no_threads_is_refused():
    with pytest.raises(UserError):
        set_determinism(0)


def test_a_steps_seed_is_the_same_everywhere_and_for_ever():
    # A changed number here changes every recorded run.
    assert [step_seed(0, 1), step_seed(0, 1, 1), step_seed(-1, 2**40, 7)] == [
        15792386440496077211,
        2724087918425646993,
        9987711526060840188,
    ]


@given(
    a=st.tuples(st.integers(-5, 5), st.integers(0, 9), st.integers(0, 9)),
    b=st.tuples(st.integers(-5, 5), st.integers(0, 9), st.integers(0, 9)),
)
def test_different_steps_have_different_seeds_of_64_bits(a, b):
    assert (step_seed(*a) == step_seed(*b)) == (a == b)
    assert 0 <= step_seed(*a) < 2**64


def test_a_steps_randomness_does_not_depend_on_what_came_before():
    with torch.random.fork_rng():
        seed_step(3, 5)
        expected = torch.rand(4)
        torch.rand(17)
        seed_step(3, 5)
        assert torch.equal(torch.rand(4), expected)
        seed_step(3, 5, micro=1)
        assert not torch.equal(torch.rand(4), expected)


# ---- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_is_json_and_names_no_host_path_or_user(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setenv("LD_PRELOAD", "/secret/place/libtcmalloc.so.4:/other/libx.so")
    monkeypatch.setattr(allocator, "_told", {})
    record = asdict(environment())
    text = json.dumps(record)
    assert record["allocator"] == {"MALLOC_ARENA_MAX": "2", "LD_PRELOAD": "libtcmalloc.so.4 libx.so"}
    assert record["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["processor"]
    for private in ("/secret", str(Path.home()), str(Path.cwd()), socket.gethostname()):
        assert private not in text


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_a_checkout_has_a_commit_and_is_clean_until_its_code_changes(tmp_path):
    (tmp_path / "efftx").mkdir()
    (tmp_path / "efftx" / "a.py").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    commit, clean = devices._git_state(tmp_path)
    assert len(commit) == 40
    assert clean is True
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "metrics.jsonl").write_text("{}")
    assert devices._git_state(tmp_path) == (commit, True)  # what a run writes is no change of the code
    (tmp_path / "efftx" / "a.py").write_text("2")
    assert devices._git_state(tmp_path) == (commit, False)


def test_a_package_installed_inside_a_repository_does_not_claim_its_commit(tmp_path):
    (tmp_path / "venv").mkdir()
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "x")
    assert devices._git_state(tmp_path / "venv") == (None, None)


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert devices._git_state(tmp_path) == (None, None)


def test_the_loss_scale_halves_at_an_infinity_doubles_after_a_thousand_good_steps_and_has_a_floor():
    scaler = LossScaler("cpu")
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)

    def step(factor):
        before = weight.item()
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(optimizer)
        gradient = weight.grad.item()
        scaler.step(optimizer)
        scaler.update()
        return gradient, weight.item() - before

    assert step(0.25) == (0.25, -0.125)
    assert scaler.get_scale() == 2**16
    for expected in (2**15, 2**14):
        assert step(float("inf"))[1] == 0  # skipped
        assert scaler.get_scale() == expected
    for _ in range(999):
        step(0.0)
    assert scaler.get_scale() == 2**14
    step(0.0)
    assert scaler.get_scale() == 2**15
    for _ in range(5):
        step(0.0)
    for expected in (2**14, 2**13, 2**12, 2**11, 2**10, 2**10, 2**10):
        assert step(float("nan"))[1] == 0
        assert scaler.get_scale() == expected
    again = LossScaler("cpu")
    again.load_state_dict(scaler.state_dict())
    assert again.get_scale() == 2**10
    assert step(0.5)[0] == 0.5
