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
    return {name: [*WORDS, *OPTIMIZERS[name], f"distributed.strategy={strategy}"] for name in names}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were stopped at a step, by what began them."""
    found = {}
    for begun, (processes, strategy) in BEGUN.items():
        folder = found[begun] = tmp_path_factory.mktemp(f"begun_{begun}")
        results = train_all(cases(strategy, OPTIMIZERS), folder, processes, stop_at=STOP)
        for result in results.values():
            assert result["exit_code"] == 143
            assert f"Stopped at step {STOP}" in result["stopped"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: (folder / name, result) for name, result in train_all(cases("ddp", OPTIMIZERS), folder, 1).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "ended"), PAIRS)
def test_a_run_goes_on_in_another_number_of_processes(
    begun: str,
    ended: str,
    halves: dict[str, Path],
    whole: dict[str, tuple[Path, dict[str, Any]]],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(halves[begun], folder)
    processes, strategy = BEGUN[ended]
    for name, result in train_all(cases(strategy, OPTIMIZERS), folder, processes).items():
        run, expected = whole[name]
        assert result["resumed_from"] == STOP
        assert result["step"] == STEPS
        assert result["metrics"] == pytest.approx(expected["metrics"], rel=CLOSE)
        for line, other in zip(read_metrics(folder / name), read_metrics(run), strict=True):
            assert line == pytest.approx(other, rel=CLOSE, abs=1e-12)


@pytest.mark.slow
def test_shards_are_safetensors_of_which_each_process_wrote_its_part(halves: dict[str, Path]) -> None:
    (step,) = (halves["fsdp"] / "adamw" / "checkpoints").glob(f"step-*{STOP}")
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


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model", "optimizer"])
def test_a_flipped_bit_of_a_shard_is_seen_and_the_checkpoint_before_it_used(
    file: str, halves: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(halves["fsdp"] / "adamw", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shard = sorted((checkpoints / f"step-{STOP:08d}" / file).iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    told: list[str] = []
    found = load_latest(checkpoints, on_damage=told.append)
    assert found is not None
    assert found.step == STOP - 1, "smoke keeps one every three steps"
    assert "does not have its checksum" in told[0]


@pytest.mark.slow
def test_a_missing_shard_is_damage(halves: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(halves["fsdp"] / "adamw", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    next((checkpoints / f"step-{STOP:08d}" / "model").iterdir()).unlink()
    told: list[str] = []
    found = load_latest(checkpoints, on_damage=told.append)
    assert found is not None
    assert found.step == STOP - 1, "smoke keeps one every three steps"
    assert "it is missing" in told[0]
