"""A stack that leaves positions unconnected is told so."""

from __future__ import annotations

import pytest

from efftx.cli import main
from efftx.models.reach import unreached

CONNECTED = [
    "attention=[strided] n_layers=2",
    "attention=[fixed] n_layers=2 fixed.mode=interleaved",
    "attention=[fixed] n_layers=2 fixed.c=1",
    "attention=[strided] n_layers=2 strided.mode=heads",
    "attention=[strided,local,local,local] n_layers=4 strided.mode=second local.window=8",
    "attention=[strided,full] n_layers=2",
    "attention=[local] n_layers=1 local.window=2",
]
UNCONNECTED = [
    "attention=[strided] n_layers=1",
    "attention=[strided] n_layers=1 strided.mode=merged",
    "attention=[strided] n_layers=2 strided.mode=second",
    "attention=[fixed] n_layers=8 fixed.mode=second",
    "attention=[strided,local] n_layers=2 strided.mode=second local.window=2",
    "attention=[strided,identity] n_layers=2 strided.mode=first",
    "attention=[fixed,identity] n_layers=2 fixed.mode=second",
]


@pytest.mark.parametrize("words", CONNECTED)
def test_nothing_is_said_where_all_is_connected_or_nothing_is_factored(configure, words: str) -> None:
    assert unreached(configure("model=transformer", *words.split())) is None


@pytest.mark.parametrize("words", UNCONNECTED)
def test_what_is_not_connected_is_told(configure, words: str) -> None:
    told = unreached(configure("model=transformer", *words.split()))
    assert told is not None
    assert "unconnected" in told


def test_the_share_is_that_of_the_pairs(configure) -> None:
    """64 positions, a window of 8: of 2080 pairs 8 * 64 - 28 = 484 are seen, and 77 % are not."""
    told = unreached(configure("model=transformer", "attention=[strided]", "n_layers=1"))
    assert told is not None
    assert " 77% " in told


def test_training_says_so(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=transformer", "data=duplicate", "size=smoke", "attention=[strided]", "n_layers=1"]
    assert main(["train", *words, "training.steps=1", f"run_dir={tmp_path / 'run'}", "schedule.warmup=0"]) == 0
    assert "77% of the pairs of positions unconnected" in capsys.readouterr().err
