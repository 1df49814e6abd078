"""A run that an earlier version of efftx left half done goes on where it stopped, under the same hash.

`tests/golden/half_a_run` was written by efftx of November 2026: three of six steps of a small Terraformer (LSH hashing,
reversible, sparse feed-forward, sparse QKV, SRU, sparse loss). On the same machine the bits are the same; another
processor rounds otherwise, so that a unit or a bucket may be another one's, of which each moves the loss by 2e-5 or so.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from efftx.config.compose import compose
from efftx.runs.run_directory import read_config, read_metrics
from efftx.training.loop import train
from tests.conftest import GOLDEN

WORDS = (
    *("model=terraformer", "data=c4", "data.path=efftx:samples/c4", "size=smoke", "threads=1"),
    *("d_model=16", "d_ff=32", "n_heads=2", "sru.d=4", "n_layers=1", "n_encoder_layers=1", "sparse_qkv.S=2"),
    *("training.steps=6", "checkpoint.every=3", "evaluation.every=0", "evaluation.batches=1"),
)
LOSSES = [
    5.955671787261963,
    5.979358673095703,
    6.059975624084473,
    5.942543983459473,
    5.921814918518066,
    5.974009037017822,
]
"""Of all six steps, in nats, as they were then."""
TEST_LOSS = 6.028282710484096
ANOTHER_PROCESSOR = 2e-4


@pytest.fixture
def left(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "half_a_run", tmp_path / "run")
    return tmp_path / "run"


def test_half_a_run_of_an_earlier_version_is_finished_under_its_hash(left: Path) -> None:
    written = read_config(left)
    assert written is not None
    result = train(compose(WORDS), left, silent=True)
    assert (result.resumed_from, result.step, result.hash) == (3, 6, written[1])
    steps = [line["loss"] for line in read_metrics(left) if "loss" in line]
    assert steps[:3] == LOSSES[:3]
    assert steps == pytest.approx(LOSSES, rel=ANOTHER_PROCESSOR)
    assert result.metrics["loss"] == pytest.approx(TEST_LOSS, rel=ANOTHER_PROCESSOR)


def test_what_it_went_on_to_is_what_a_run_from_the_beginning_comes_to(left: Path, tmp_path: Path) -> None:
    resumed, whole = train(compose(WORDS), left, silent=True), train(compose(WORDS), tmp_path / "whole", silent=True)
    assert whole.hash == resumed.hash
    assert whole.metrics["loss"] == pytest.approx(resumed.metrics["loss"], rel=ANOTHER_PROCESSOR)
