"""The runner over the product's own training: what a fake trainer cannot show."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from efftx.reproduce.trainer import Trainer
from efftx.study.experiments import read_experiment
from efftx.study.records import RecordStore

from .fakes import reproduce

TABLE = """\
id: paper/item
caption: a table
kind: train
cell: {metric: accuracy}
base: [model=transformer, data=duplicate, threads=1]
sizes: {smoke: [training.steps=3, evaluation.every=3, evaluation.batches=1]}
rows: {A: []}
columns: {itself: {}, shared: {overrides: [share_qk=false, evaluation.batches=2]}}
seeds: {smoke: [0, 1]}
"""


def test_two_seeds_are_two_runs_with_a_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFTX_RUNS", str(tmp_path / "runs"))
    (tmp_path / "item.yaml").write_text(TABLE)
    experiment, store = read_experiment(tmp_path / "item.yaml"), RecordStore(tmp_path / "results")
    (line,) = reproduce([experiment], "smoke", say=lambda _: None, store=store, trainer=Trainer())
    assert (line["ran"], line["failed"]) == (2, 0)
    assert len(list((tmp_path / "runs").glob("transformer-duplicate-*"))) == 2
    zero, one = (store.read("paper/item", "A", seed, "smoke") for seed in (0, 1))
    assert zero is not None
    assert one is not None
    assert [record.config["seed"] for record in (zero, one)] == [0, 1]
    assert zero.hash != one.hash
    assert zero.column_hashes["shared"] != one.column_hashes["shared"]
    assert not set(zero.first_losses) & set(one.first_losses)
    for column in experiment.columns:
        assert statistics.stdev(float(record.metrics[column]["loss"] or 0) for record in (zero, one)) > 0
    (line,) = reproduce([experiment], "smoke", verify=True, say=lambda _: None, store=store, trainer=Trainer())
    assert (line["fresh"], line["stale"]) == (2, 0)
