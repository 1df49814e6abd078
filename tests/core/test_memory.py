"""Want of memory is one message, whoever says it and whenever it comes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efftx import bench
from efftx.ablate import ablate
from efftx.cli import main
from efftx.commands import COMMANDS
from efftx.config.compose import compose
from efftx.core.memory import allocating, is_out_of_memory
from efftx.errors import OutOfMemory, UserError
from efftx.machine import devices
from efftx.runs import saver
from efftx.runs.checkpoint import load_latest
from efftx.training import evaluation, fit, learner, setting
from efftx.training.loop import train

WORDS = ["model=transformer", "data=duplicate", "size=smoke", "threads=1"]
SIX = [*WORDS, "training.steps=6", "checkpoint.every=2", "evaluation.every=0"]


def numpys_own() -> BaseException:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**62, dtype=np.int8)
    return caught.value


def pytorchs_own() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.int8)
    return caught.value


ERRORS = {
    "Python": MemoryError(),
    "numpy": numpys_own(),
    "PyTorch on the CPU": pytorchs_own(),
    "PyTorch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "a driver": RuntimeError("CUDA error: out of memory"),
    "C++": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_what_makes_it_smaller_only_where_it_takes_that(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object, words: object) -> None:
        raise MemoryError

    monkeypatch.setattr(COMMANDS[name].load(), "run", run)
    assert main([name]) == 2
    told = capsys.readouterr().err
    assert "Out of memory" in told
    assert ("data.length" in told) == (name in ("train", "ablate", "plan", "import"))
    if not COMMANDS[name].less_memory:
        assert "use a machine with more memory" in told
    for key in re.findall(r"(\w+)=", COMMANDS[name].less_memory):
        assert f"{key}=" in COMMANDS[name].epilog


@pytest.mark.parametrize("name", bench.BENCHES)
def test_a_bench_that_finds_no_memory_names_options_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        bench.run(name, ["zzzz=1"])
    known = caught.value.hint.removeprefix("Known: ").rstrip(".").split(", ")
    parts = re.split(r"^(\w+)  ", COMMANDS["bench"].epilog, flags=re.MULTILINE)
    part = dict(zip(parts[1::2], parts[2::2], strict=True))
    said = part[name] + (part["memory"] if "keys of memory" in part[name] else "")
    unsaid = {"decode": ["device"]}.get(name, [])  # the CPU alone
    assert [key for key in known if f"{key}=" not in said] == unsaid

    def run(name: str, options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(bench, "run", run)
    assert main(["bench", name]) == 2
    keys = re.findall(r"(\w+)=", capsys.readouterr().err)
    assert len(keys) > 1
    assert [key for key in keys if key not in known] == []


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize(("begun", "code"), [(False, 2), (True, 4)])
def test_whoever_says_it_the_message_names_what_and_what_to_do(name: str, begun: bool, code: int) -> None:
    with pytest.raises(OutOfMemory) as caught, allocating("the weights", "d_model or n_layers", begun=begun):
        raise ERRORS[name]
    assert "the weights" in caught.value.message
    assert ("checkpoint is kept" in caught.value.message) == begun
    assert "d_model or n_layers" in caught.value.hint
    assert "efftx plan" in caught.value.hint
    assert caught.value.exit_code == code


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), ValueError("out of memory"), KeyError("x")])
def test_every_other_error_passes_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, allocating("the weights", "d_model"):
        raise error
    assert caught.value is error


def broken(place: Any, name: str, monkeypatch: pytest.MonkeyPatch, at: int = 1) -> None:
    """The call number `at` of a function finds no memory."""
    honest, calls = getattr(place, name), [0]

    def once(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise ERRORS["PyTorch on the CPU"]
        return honest(*given, **options)

    monkeypatch.setattr(place, name, once)


@pytest.mark.parametrize(
    ("place", "name", "at", "code", "says", "kept"),
    [
        (setting, "open_dataset", 1, 2, "data=duplicate in rows of data.length=64", None),
        (setting, "build_model", 1, 2, "weights and optimiser state", None),
        (learner, "make_optimizer", 1, 2, "weights and optimiser state", None),
        (learner, "accumulate", 1, 2, "activations and gradients of step 1", None),
        (learner, "clip_gradients", 1, 2, "activations and gradients of step 1", None),
        (learner, "accumulate", 6, 4, "activations and gradients of step 6", 4),
        (saver, "save_checkpoint", 2, 4, "for its checkpoint", 2),
        (evaluation, "evaluate", 1, 4, "evaluating 2 rows", 6),
        (evaluation, "evaluate", 2, 4, "evaluating 2 rows", 6),
    ],
)
def test_a_training_without_memory_ends_in_a_sentence_with_its_checkpoint_kept(
    place: Any,
    name: str,
    at: int,
    code: int,
    says: str,
    kept: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        broken(place, name, patched, at)
        assert main(["train", *SIX, f"run_dir={tmp_path / 'run'}", "--json"]) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "out_of_memory"
    assert says in error["message"]
    assert error["hint"].count(" or ") == 1
    assert "efftx plan" in error["hint"]
    checkpoint = load_latest(tmp_path / "run" / "checkpoints")
    assert (None if checkpoint is None else checkpoint.step) == kept
    whole = train(compose(SIX), tmp_path / "whole", silent=True)
    assert train(compose(SIX), tmp_path / "run", silent=True).metrics == whole.metrics


def test_decoding_without_memory_takes_no_result_from_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(evaluation, "decoding_latency", monkeypatch)
    result = train(compose(SIX), tmp_path / "run", silent=True)
    assert result.metrics
    assert "decode_ms" not in result.timings


def test_a_point_of_an_ablation_without_memory_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(learner, "accumulate", monkeypatch)
    runs = ablate([*SIX, "seed=0,1"])
    assert [run["state"] for run in runs] == ["failed", "done"]
    assert "Out of memory" in runs[0]["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.length=1000000000", "positions.kind=sinusoidal"], "activations of 2 rows of 1000000000 tokens"),
        (["d_model=1000000", "n_layers=500", "positions.kind=sinusoidal"], "weights, gradients and optimiser state"),
        (["d_ff=16777216", "d_model=4096", "positions.kind=sinusoidal"], "weights, gradients and optimiser state"),
    ],
)
def test_what_surely_does_not_fit_is_refused_before_anything_is_allocated(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *WORDS, *words, f"run_dir={tmp_path / 'run'}", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "out_of_memory"
    assert says in error["message"]
    assert "would be free on an empty machine" in error["message"]
    assert "efftx plan" in error["hint"]
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_does_not_fit_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    large = ["data=c4", "data.path=efftx:samples/c4", "data.tokenizer=bpe", "data.vocab_size=400000000"]
    assert main(["train", "model=terraformer", "size=smoke", *large]) == 2
    assert "data.vocab_size" in capsys.readouterr().err


def test_what_fits_by_a_byte_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(WORDS)
    cpu = torch.device("cpu")
    needed = 0
    for needed in range(0, 10**7, 1000):  # the least that passes
        monkeypatch.setattr(devices, "available_memory", lambda free=needed: free)
        try:
            fit.refuse_too_large(config, cpu)
        except OutOfMemory:
            continue
        break
    weights = sum(p.numel() for p in fit.build_on_meta(config, 128).parameters())
    assert needed >= 4 * 4 * weights, "weights, gradients, two moments"
    assert needed <= 4 * 4 * weights + 4 * 10**6
    monkeypatch.setattr(devices, "available_memory", lambda: None)
    fit.refuse_too_large(config, cpu)


def test_what_pytorch_keeps_of_an_earlier_training_on_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"mem_get_info": (0, 10**9), "memory_reserved": 10**9, "memory_allocated": 0}
    for name, value in kept.items():
        monkeypatch.setattr(torch.cuda, name, lambda device=None, value=value: value)
    gpu = torch.device("cuda")
    fit.refuse_too_large(compose(WORDS), gpu)
    assert devices.free_memory(gpu) == 10**9
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 10**9)
    with pytest.raises(OutOfMemory, match=r"0\.0 GB are free"):
        fit.refuse_too_large(compose(WORDS), gpu)


def test_a_run_that_is_done_is_found_done_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = train(compose(SIX), tmp_path / "run", silent=True)
    monkeypatch.setattr(devices, "available_memory", lambda: 0)
    assert train(compose(SIX), tmp_path / "run", silent=True).metrics == done.metrics


LIMITED = """
import resource, sys
import torch
from efftx.cli import main
import efftx.training.loop, efftx.config
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 400 * 2**20,) * 2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process's memory are Linux's")
@pytest.mark.parametrize("words", [["training.batch_size=20000"], ["d_ff=4000000"]], ids=["activations", "weights"])
def test_a_process_that_gets_no_more_memory_says_so(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, "train", *WORDS, *words, f"run_dir={tmp_path / 'run'}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"]["kind"] == "out_of_memory"
    assert "Traceback" not in done.stderr


def test_an_error_is_told_from_another_by_what_it_is() -> None:
    assert all(is_out_of_memory(error) for error in ERRORS.values())
    assert not is_out_of_memory(RuntimeError("the size of a tensor must match"))


@pytest.mark.parametrize("command", ["sample", "plan"])
def test_a_command_that_trains_nothing_says_so_too(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*given: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("efftx.sampling.trained.load_run", without)
    monkeypatch.setattr("efftx.plan.plan", without)
    words = [str(tmp_path)] if command == "sample" else WORDS
    assert main([command, *words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "out_of_memory"
    assert f"efftx {command}" in error["message"]
    assert " or " in error["hint"]
