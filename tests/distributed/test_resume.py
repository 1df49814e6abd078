"""A run that some processes began goes on in any other number of them, to the numbers of a run never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from efftx.runs.checkpoint import MANIFEST_FILE, load_latest
from efftx.runs.run_directory import read_metrics

from .launched import train_all

STEPS, STOP = 12, 7
WORDS = (
    "model=reformer",
    "data=duplicate",
    "data.length=32",
    "attention=[lsh,local]",
    "lsh.chunk_len=8",
    "local.chunk_len=8",
    "size=smoke",
    "threads=1",
    "dtype=float64",
    f"training.steps={STEPS}",
    "training.batch_size=2",
    "training.accumulation=2",
    "evaluation.every=5",
    "evaluation.batches=2",
)
OPTIMIZERS = {"adafactor": ("optimizer.name=adafactor",), "adamw": ("optimizer.name=adamw", "ema.decay=0.9")}
BEGUN = {"alone": (1, "ddp"), "ddp": (2, "ddp"), "fsdp": (2, "fsdp")}
PAIRS = [("ddp", "alone"), ("fsdp", "alone"), ("alone", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp")]
CLOSE = 1e-9


def cases(strategy: str, names: Any) -> dict[str, list[str]]:
    """Those in shards are written beside the training."""
    words = [*WORDS, f"distributed.strategy={strategy}", f"checkpoint.asynchronous={strategy == 'fsdp'}".lower()]
    return {name: [*words, *OPTIMIZERS[name]] for name in names}


def begin(begun: str, folder: Path) -> Path:
    """Runs that `begun` began and that were stopped at a step."""
    processes, strategy = BEGUN[begun]
    for result in train_all(cases(strategy, OPTIMIZERS), folder, processes, stop_at=STOP).values():
        assert result["exit_code"] == 143
        assert f"Stopped at step {STOP}" in result["stopped"]
    return folder


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    whole = train_all(cases("ddp", OPTIMIZERS), tmp_path / "whole", 1)
    halves = {begun: begin(begun, tmp_path / begun) for begun in BEGUN}
    for begun, ended in PAIRS:
        folder = tmp_path / f"{begun}, then {ended}"
        shutil.copytree(halves[begun], folder)
        processes, strategy = BEGUN[ended]
        for name, result in train_all(cases(strategy, OPTIMIZERS), folder, processes).items():
            assert result["resumed_from"] == STOP
            assert result["step"] == STEPS
            assert result["metrics"] == pytest.approx(whole[name]["metrics"], rel=CLOSE), folder.name
            lines, expected = read_metrics(folder / name), read_metrics(tmp_path / "whole" / name)
            for line, other in zip(lines, expected, strict=True):
                assert line == pytest.approx(other, rel=CLOSE, abs=1e-12), folder.name


@pytest.mark.slow
def test_each_process_writes_its_shards_and_a_damaged_one_is_seen(tmp_path: Path) -> None:
    checkpoints = begin("fsdp", tmp_path / "runs") / "adamw" / "checkpoints"
    step = checkpoints / f"step-{STOP:08d}"
    sizes: dict[str, list[int]] = {}
    for part in (step / "model").iterdir():
        with safe_open(part, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                sizes.setdefault(name, []).append(opened.get_tensor(name).numel())
    split = {name: parts for name, parts in sizes.items() if len(parts) == 2}
    assert len(split) > len(sizes) / 2
    assert max(max(parts) / sum(parts) for parts in split.values() if sum(parts) > 1000) < 0.6
    manifest = json.loads((step / MANIFEST_FILE).read_text())
    listed = {name for name in str(manifest).split("'") if name.endswith(".safetensors")}
    assert listed == {p.relative_to(step).as_posix() for p in step.rglob("*.safetensors")}

    for harm, says in {"flip": "does not have its checksum", "delete": "it is missing"}.items():
        for folder in ("model", "optimizer"):
            harmed = tmp_path / harm / folder
            shutil.copytree(checkpoints, harmed)
            shard = sorted((harmed / step.name / folder).iterdir())[1]
            content = bytearray(shard.read_bytes())
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
            if harm == "delete":
                shard.unlink()
            told: list[str] = []
            found = load_latest(harmed, on_damage=told.append)
            assert found is not None
            assert found.step == STOP - 1, "smoke keeps one every three steps"
            assert says in told[0]
