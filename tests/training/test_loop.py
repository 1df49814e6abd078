"""The loop: the same bits whether stopped or not, an orderly end on signals, and no update by a NaN."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from efftx.config.compose import compose
from efftx.distributed.processes import Processes
from efftx.errors import Interrupted, NotFiniteError, UserError
from efftx.runs.checkpoint import weights_sha256
from efftx.runs.pretrained import final_checkpoint
from efftx.runs.run_directory import read_metrics
from efftx.training import loop
from efftx.training.evaluation import evaluate_run
from efftx.training.loop import train

FAMILIES = {
    "transformer": ["model=transformer", "data=duplicate", "attention=[full,local]", "training.accumulation=2"],
    "reformer": [
        "model=reformer",
        "data=duplicate",
        "attention=[lsh,local]",
        "training.accumulation=2",
        "attention_dropout=0.1",
        "lsh.n_hashes=2",
    ],
    "terraformer": [
        "model=terraformer",
        "data=c4",
        "data.path=efftx:samples/c4",
        "dropout=0.1",
        "training.accumulation=2",
    ],
    "scaling": ["model=scaling", "data=c4", "data.path=efftx:samples/c4", "dropout=0.1", "sru.n_layers=1", "sru.d=8"],
    "curriculum of coupled digits": [
        "model=scaling",
        "data=copy_add",
        "data.task=add",
        "data.length=16",
        "data.max_digits=6",
        "data.stages=[2,4]",
        "data.stage_steps=20",
        "data.eval_min_digits=8",
        "data.eval_max_digits=12",
        "positions.kind=coupled",
        "positions.max_len=32",
    ],
}
COMMON = ["size=smoke", "threads=1", "training.steps=60", "checkpoint.every=4", "evaluation.every=10"]


def start(words: list[str], run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "efftx", "train", *words, f"run_dir={run}", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the run has logged `step`; fails where it ends before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"ended too early: {process.communicate()}")
        file = run / "metrics.jsonl"
        if file.exists() and file.read_text().count('"grad_norm"') >= step:
            return
        time.sleep(0.01)
    raise AssertionError("it never got there")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_run_killed_twice_ends_with_the_bits_of_one_never_stopped(family: str, tmp_path: Path) -> None:
    words = [*FAMILIES[family], *COMMON]
    whole = train(compose(words), tmp_path / "whole", silent=True)
    run = tmp_path / "killed"
    for step in (6, 31):
        process = start(words, run)
        wait_for_step(run, step, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(words, run)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["resumed_from"] is not None
    assert result["resumed_from"] > 6
    assert result["weights_sha256"] == whole.weights_sha256
    assert result["metrics"] == whole.metrics
    assert result["curve"] == whole.curve
    assert read_metrics(run) == read_metrics(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_at_the_step_boundary(number: signal.Signals, code: int, tmp_path: Path) -> None:
    words = [*FAMILIES["transformer"], *COMMON, "training.steps=100000", "checkpoint.every=0", "evaluation.every=0"]
    run = tmp_path / "run"
    process = start(words, run)
    wait_for_step(run, 3, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "goes on from" in json.loads(out)["error"]["message"]
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    assert int(checkpoint.name.removeprefix("step-")) == read_metrics(run)[-1]["step"]


def test_a_second_process_on_the_same_run_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    words = [*FAMILIES["transformer"], *COMMON, "training.steps=100000"]
    run = tmp_path / "run"
    process = start(words, run)
    try:
        wait_for_step(run, 1, process)
        with pytest.raises(UserError, match=str(process.pid)):
            train(compose(words), run, silent=True)
    finally:
        process.kill()
        process.communicate()


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    words = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "optimizer.lr=1e30"]
    with pytest.raises(NotFiniteError, match=r"Step \d+ gave loss") as caught:
        train(compose(words), tmp_path / "run", silent=True)
    assert caught.value.exit_code == 3
    assert all(record["loss"] is not None for record in read_metrics(tmp_path / "run"))


def test_the_losses_of_the_first_steps_come_out_again_in_a_replay(tmp_path: Path) -> None:
    config = compose([*FAMILIES["reformer"], *COMMON, "training.steps=8"])
    whole = train(config, tmp_path / "whole", silent=True)
    replay = train(config, tmp_path / "replay", steps=3)
    assert len(replay.first_losses) == 3
    assert replay.first_losses == whole.first_losses
    assert replay.metrics == {}


def test_a_perturbation_moves_the_losses_by_roundings_and_is_drawn_from_its_seed(tmp_path: Path) -> None:
    config = compose([*FAMILIES["transformer"], *COMMON])
    plain = train(config, tmp_path / "plain", steps=3)
    moved, again, other = (
        train(config, tmp_path / f"{i}", steps=3, perturbation=seed) for i, seed in enumerate((0, 0, 1))
    )
    assert moved.first_losses == again.first_losses
    assert len({r.weights_sha256 for r in (plain, moved, again, other)}) == 3
    assert moved.first_losses[0] == pytest.approx(plain.first_losses[0], rel=1e-6)


def test_a_stop_is_answered_in_a_replay_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = loop.Progress.update

    def update(self: loop.Progress, step: int, *given: Any) -> None:
        honest(self, step, *given)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Progress, "update", update)
    with pytest.raises(Interrupted, match="Stopped at step 1 of a replay") as stopped:
        train(compose([*FAMILIES["transformer"], *COMMON]), tmp_path / "replay", steps=3)
    assert stopped.value.exit_code == 143


def test_a_stop_between_two_looks_at_it_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([0, 143])
    monkeypatch.setattr(Processes, "highest", lambda self, value: next(asked))
    config = compose([*FAMILIES["transformer"], *COMMON, "checkpoint.every=0", "evaluation.every=0"])
    with pytest.raises(Interrupted, match="Stopped at step 1"):
        train(config, tmp_path / "run", silent=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000001"]


def test_a_training_of_no_steps_keeps_the_weights_that_it_evaluates(tmp_path: Path) -> None:
    words = [*FAMILIES["transformer"], *COMMON, "training.steps=0", "schedule.name=constant", "schedule.warmup=0"]
    result = train(compose(words), tmp_path / "run", silent=True)
    assert result.step == 0
    assert weights_sha256(final_checkpoint(tmp_path / "run").model) == result.weights_sha256


def test_training_ends_at_the_first_validation_that_reaches_the_goal(tmp_path: Path) -> None:
    words = [*FAMILIES["transformer"], *COMMON, "evaluation.stop_at_accuracy=0.0001", "data.n_symbols=2"]
    result = train(compose(words), tmp_path / "run", silent=True)
    assert result.step == 10
    assert [entry["step"] for entry in result.curve] == [10]
    again = train(compose(words), tmp_path / "run", silent=True)
    assert again.metrics == result.metrics


def test_a_checkpoint_is_evaluated_under_another_attention(tmp_path: Path) -> None:
    words = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "positions.kind=learned"]
    separate = compose(words)
    run = train(separate, tmp_path / "run", silent=True).run
    assert evaluate_run(run, separate) == train(separate, run, silent=True).metrics
    lsh = compose([*words, "attention=[lsh]", "lsh.chunk_len=8"])
    assert set(evaluate_run(run, lsh, carry="q_to_qk")) == {"loss", "log_perplexity", "accuracy"}
    with pytest.raises(UserError, match=r"Only the checkpoint has the weight .*project\.k"):
        evaluate_run(run, lsh)
    with pytest.raises(UserError, match="no mapping of weights"):
        evaluate_run(run, lsh, carry="q_to_kq")


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path: Path) -> None:
    words = [*FAMILIES["transformer"], *COMMON, "training.steps=12"]
    whole = train(compose(words), tmp_path / "whole", silent=True)
    run = tmp_path / "run"
    train(compose(words), run, silent=True)
    (run / "result.json").unlink()
    newest = max((run / "checkpoints").glob("step-*"))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + os.urandom(8))
    result = train(compose(words), run, silent=True)
    assert result.resumed_from == 10
    assert result.weights_sha256 == whole.weights_sha256
    assert list((run / "checkpoints").glob("*.damaged"))


def test_half_precision_trains_on_the_cpu_too(tmp_path: Path) -> None:
    words = ["model=reformer", "data=duplicate", "size=smoke", "threads=1", "dtype=bfloat16", "training.steps=3"]
    result = train(compose([*words, "lsh.n_hashes=1"]), tmp_path / "run", silent=True)
    assert all(torch.isfinite(torch.tensor(result.first_losses)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # PyTorch's own, while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_losses_are_those_of_eager_code(tmp_path: Path) -> None:
    words = [
        "model=transformer",
        "data=duplicate",
        "size=smoke",
        "threads=1",
        "n_layers=1",
        "training.steps=3",
        "dropout=0",
    ]
    eager = train(compose(words), tmp_path / "eager", silent=True)
    compiled = train(compose([*words, "compile=true"]), tmp_path / "compiled", silent=True)
    assert compiled.hash != eager.hash
    assert compiled.first_losses == pytest.approx(eager.first_losses, rel=1e-5)
