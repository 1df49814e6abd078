"""Two processes have the losses, validations and metrics of one, whatever the model, in replicas and in shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from efftx.runs.run_directory import read_metrics

from .launched import train_all

STEPS = 50
COMMON = (
    "size=smoke",
    "threads=1",
    "dtype=float64",
    f"training.steps={STEPS}",
    "training.batch_size=2",
    "training.accumulation=2",
    "training.clip_norm=0.5",
    "evaluation.every=25",
    "evaluation.batches=3",
)
MODELS = {
    "transformer, dropout, average of the weights": (
        "model=transformer",
        "data=duplicate",
        "data.length=32",
        "dropout=0.1",
        "ema.decay=0.9",
    ),
    "reformer: LSH, reversible, Adafactor": (
        "model=reformer",
        "data=duplicate",
        "data.length=32",
        "attention=[lsh,local]",
        "lsh.chunk_len=8",
        "local.chunk_len=8",
        "optimizer.name=adafactor",
    ),
    "sparse transformer: strided, recomputed": (
        "model=sparse_transformer",
        "data=duplicate",
        "data.length=32",
        "attention=[strided,fixed]",
        "recompute.enabled=true",
    ),
    "scaling: sparse layers, targets of unequal length": (
        "model=scaling",
        "data=copy_add",
        "data.max_digits=6",
        "data.eval_min_digits=2",
        "data.eval_max_digits=6",
        "data.length=32",
        "data.target_length=16",
        "sparse_ff.N=4",
        "sparse_qkv.S=4",
    ),
    "terraformer: concatenated, SRU, sparse loss": (
        "model=terraformer",
        "data=stdlib",
        "data.length=48",
        "data.target_length=32",
        "tie_embeddings=false",
    ),
}
CLOSE = 1e-9
"""Relative: the same sums in another order, through fifty updates in float64."""


def cases(*strategies: str) -> dict[str, list[str]]:
    return {
        f"{strategy} {name}": [*words, *COMMON, f"distributed.strategy={strategy}"]
        for name, words in MODELS.items()
        for strategy in strategies
    }


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """One test, since what it looks at is made once: 50 steps of five models, alone and in two processes both ways."""
    (alone, shared) = (tmp_path / "alone", tmp_path / "shared")
    expected = train_all(cases("ddp"), alone, 1)
    for name, found in train_all(cases("ddp", "fsdp"), shared).items():
        own = f"ddp {name.partition(' ')[2]}"
        lines, others = read_metrics(alone / own), read_metrics(shared / name)
        assert len([line for line in lines if "loss" in line]) == STEPS
        assert len({line.get("loss") for line in lines}) > STEPS / 2
        assert len(others) == len(lines)
        for line, other in zip(lines, others, strict=True):
            assert other == pytest.approx(line, rel=CLOSE, abs=1e-12), f"{name}, step {line['step']}"
        assert [*found["metrics"]] == [*expected[own]["metrics"]]
        assert found["metrics"] == pytest.approx(expected[own]["metrics"], rel=CLOSE), name
        assert found["step"] == STEPS
