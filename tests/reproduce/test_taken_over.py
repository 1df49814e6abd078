"""A training that another item has recorded is not run again: its record is this item's too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from efftx.reproduce.trainer import Trainer
from efftx.study.experiment import Experiment
from efftx.study.experiments import read_experiment
from efftx.study.records import RecordStore, Verification
from efftx.study.status import state_of

from .fakes import FakeTrainer, reproduce
from .test_runner import quiet
from .test_sweeps import TABLE, VALUES, Tuned

PLAIN = TABLE.replace("  2 rounds: {overrides: [rounds=2]}\n", "  again: {cell: {metric: parameters}}\n")
"""Without a column that evaluates under another configuration."""


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "results")


def item(folder: Path, name: str, text: str = PLAIN) -> Experiment:
    (folder / f"{name}.yaml").write_text(text.replace("id: paper/item", f"id: paper/{name}"))
    return read_experiment(folder / f"{name}.yaml")


def run(e: Experiment, store: RecordStore, trainer: Trainer, **options: Any) -> dict[str, Any]:
    (line,) = reproduce([e], "cpu", say=options.pop("say", quiet), store=store, trainer=trainer, **options)
    return line


def test_another_items_records_are_taken_over_with_their_replays_and_their_sweep(
    tmp_path: Path, store: RecordStore
) -> None:
    first, second, trainer, said = item(tmp_path, "first"), item(tmp_path, "second"), Tuned(), list[str]()
    run(first, store, trainer)
    run(first, store, trainer, verify=True)
    n_trained = len(trainer.trained)
    line = run(second, store, trainer, say=said.append)
    assert len(trainer.trained) == n_trained
    assert (line["ran"], line["failed"]) == (2 * 3 + 2 * 3, 0)
    assert any("the same run as in paper/first" in text for text in said)
    assert state_of(second, store, trainer)["state"] == "recorded"
    old, new = (store.read(f"paper/{name}", "A", 5, "cpu") for name in ("first", "second"))
    assert old is not None
    assert new is not None
    assert (new.hash, new.curve, new.environment, new.metrics) == (old.hash, old.curve, old.environment, old.metrics)
    assert new.command == "efftx reproduce paper/second size=cpu seeds=5"
    verification = store.verification(new)
    assert verification is not None
    assert verification.verdict == "fresh"
    swept = store.read_sweeps("paper/second")
    assert sorted({record.value for record in swept if record.value is not None}) == list(VALUES)
    assert run(second, store, trainer, verify=True)["fresh"] == 12


def test_one_that_a_column_evaluates_otherwise_is_trained_for_its_weights(tmp_path: Path, store: RecordStore) -> None:
    run(item(tmp_path, "first"), store, Tuned())
    trainer = Tuned()
    run(item(tmp_path, "second", TABLE), store, trainer)
    assert [what for what in trainer.trained if what[1] != 4] == [
        (at, seed, None) for at in ("A@0.003", "B@0.01") for seed in (5, 6)
    ]


def test_what_such_a_column_gave_is_not_taken_for_the_runs_own_test(tmp_path: Path, store: RecordStore) -> None:
    run(item(tmp_path, "first", TABLE), store, Tuned())
    run(item(tmp_path, "second"), store, Tuned())
    record, other = store.read("paper/second", "A", 5, "cpu"), store.read("paper/first", "A", 5, "cpu")
    assert record is not None
    assert other is not None
    assert record.metrics["itself"] == record.metrics["again"] == other.metrics["itself"]
    assert other.metrics["2 rounds"] != other.metrics["itself"]


def test_a_record_that_is_older_than_a_metric_is_not_taken_over(tmp_path: Path, store: RecordStore) -> None:
    run(item(tmp_path, "first"), store, Tuned())
    for record in (*store.read_all("paper/first"), *store.read_sweeps("paper/first")):
        record.metrics = {name: {"loss": 1.0} for name in record.metrics}
        store.write(record)
    trainer = Tuned()
    line = run(item(tmp_path, "second"), store, trainer)
    assert (line["failed"], len(trainer.trained)) == (0, 12)


@pytest.mark.parametrize("change", [("quality=50", "quality=51"), ("model=one", "model=two")])
def test_another_configuration_is_another_run(tmp_path: Path, store: RecordStore, change: tuple[str, str]) -> None:
    run(item(tmp_path, "first"), store, Tuned())
    trainer = Tuned()
    run(item(tmp_path, "second", PLAIN.replace(*change)), store, trainer)
    assert ("A@0.003", 5, None) in trainer.trained


def test_a_record_that_no_longer_comes_out_is_not_taken_over(tmp_path: Path, store: RecordStore) -> None:
    first = item(tmp_path, "first")
    run(first, store, Tuned())
    for record in (*store.read_all("paper/first"), *store.read_sweeps("paper/first")):
        store.write_verification(record, Verification(record.hash, "stale", "other losses", False))
    trainer = Tuned()
    run(item(tmp_path, "second"), store, trainer)
    assert len(trainer.trained) == 12


def test_what_is_asked_to_run_again_is_run(tmp_path: Path, store: RecordStore) -> None:
    first, second = item(tmp_path, "first"), item(tmp_path, "second")
    run(first, store, FakeTrainer())
    run(second, store, FakeTrainer())
    for record in (*store.read_all("paper/second"), *store.read_sweeps("paper/second")):
        store.write_verification(record, Verification(record.hash, "stale", "other losses", False))
    trainer = FakeTrainer()
    run(second, store, trainer, stale=True)
    assert trainer.trained
