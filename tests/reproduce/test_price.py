"""What is left to run and how long that takes is told before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from efftx.reproduce.asked import Asked
from efftx.reproduce.price import tell_left, unrecorded
from efftx.study.records import RecordStore

from .fakes import FakeTrainer, reproduce
from .test_runner import TABLE, quiet, store, table
from .test_sweeps import TABLE as SWEPT
from .test_sweeps import Tuned

__all__ = ["store"]


def test_what_is_left_is_told_with_its_hours(tmp_path: Path, store: RecordStore) -> None:
    e, said = table(tmp_path), []
    reproduce([e], "cpu", say=said.append, store=store, trainer=FakeTrainer(price=1.5))
    assert said[0] == "paper/item: 4 runs left, about 6.0 h by efftx plan"
    said.clear()
    reproduce([e], "cpu", say=said.append, store=store, trainer=FakeTrainer(price=1.5))
    assert not any("left" in text for text in said)


def test_recorded_runs_tell_the_hours_of_those_left_and_side_by_side_they_take_less(
    tmp_path: Path, store: RecordStore
) -> None:
    e, said = table(tmp_path), []
    reproduce([e], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    for record, seconds in zip(store.read_all("paper/item"), (1800.0, 5400.0), strict=True):
        record.wall_seconds = seconds
        store.write(record)
    store.write(replace(record, row="unigram", wall_seconds=1.0))  # a gate is no training
    trainer = FakeTrainer(price=99.0)
    left = unrecorded(e, Asked("cpu", [1, 2]), trainer, store)
    tell_left(e, left, 2, trainer, store, said.append)
    assert said == ["paper/item: 4 runs left, about 2.0 h by 2 records, 2 side by side"]


def test_a_run_of_a_sweep_and_the_rows_own_are_counted_once(tmp_path: Path, store: RecordStore) -> None:
    e, said = table(tmp_path, SWEPT), []
    reproduce([e], "cpu", say=said.append, store=store, trainer=Tuned(price=1.0))
    assert said[0] == "paper/item: 10 runs left, about 10.0 h by efftx plan"


def test_seconds_of_work_are_not_worth_telling(tmp_path: Path, store: RecordStore) -> None:
    said: list[str] = []
    reproduce([table(tmp_path)], "cpu", say=said.append, store=store, trainer=FakeTrainer(price=0.001))
    assert not any("left" in text for text in said)


def test_pretrainings_are_told_too_each_once(tmp_path: Path, store: RecordStore) -> None:
    e, said = table(tmp_path, TABLE + "pretraining: [row=P, quality=1]\npretraining_sizes: {cpu: [steps=3]}\n"), []
    runs = unrecorded(e, Asked("cpu"), FakeTrainer(), store)
    tell_left(e, runs, 1, FakeTrainer(price=1.0), store, said.append)
    assert said == ["paper/item: 4 runs left, about 6.0 h by efftx plan"], "a pre-training a seed"


def test_a_row_that_does_not_compose_is_left_out_of_the_price(tmp_path: Path, store: RecordStore) -> None:
    e, said = table(tmp_path, TABLE.replace("[row=A,", "[impossible=1, row=A,")), []
    (line,) = reproduce([e], "paper", say=said.append, store=store, trainer=FakeTrainer(price=1.0), yes=True)
    assert (line["ran"], line["failed"]) == (1, 1)
    assert "paper/item: A, 1 run: there is no key 'impossible'" in said
    assert "price at the paper's size: 1.0 h on this device" in said
