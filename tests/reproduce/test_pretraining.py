"""Rows that start from a pre-trained run: it comes first, is shared, and the record needs it no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efftx.errors import UserError
from efftx.study.experiment import Experiment
from efftx.study.experiments import read_experiment
from efftx.study.records import RecordStore
from efftx.study.status import state_of

from .fakes import DATA, FakeTrainer, reproduce

TABLE = """\
id: paper/item
caption: a table
kind: train
cell: {metric: accuracy, unit: "%", better: higher, format: "{:.1f}"}
sizes: {cpu: [steps=9], smoke: [steps=1]}
pretraining: [row=before, quality=10]
pretraining_sizes: {cpu: [steps=99]}
rows:
  A: [row=A, quality=50]
  B: [row=B, quality=60]
  wide: {overrides: [row=C, quality=70], pretraining: [row=wide-before]}
  elsewhere: {overrides: [row=D, quality=1], seeds: {cpu: []}}
"""


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "results")


def table(folder: Path, text: str = TABLE) -> Experiment:
    path = folder / "item.yaml"
    path.write_text(text)
    return read_experiment(path)


def quiet(_: str) -> None:
    pass


def test_a_rows_pretraining_is_the_experiments_the_sizes_and_its_own(tmp_path: Path) -> None:
    e = table(tmp_path)
    before = ["row=before", "quality=10", "size=cpu", "steps=99"]
    assert e.pretraining_overrides("A", "cpu") == before
    assert e.pretraining_overrides("wide", "cpu") == [*before, "row=wide-before"]
    assert e.pretraining_overrides("A", "smoke") == ["row=before", "quality=10", "size=smoke"]


def test_it_is_trained_first_at_the_same_seed_and_the_row_starts_from_it(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), FakeTrainer()
    (line,) = reproduce([e], "cpu", [3], say=quiet, store=store, trainer=trainer)
    assert (line["ran"], line["failed"]) == (3, 0)
    assert [(name, seed) for name, seed, _ in trainer.trained[:2]] == [("before", 3), ("A", 3)]
    assert trainer.pretrained == [Path("before"), Path("before"), Path("wide-before")]
    record = store.read("paper/item", "A", 3, "cpu")
    assert record is not None
    its = record.pretraining
    assert its["data"] == DATA
    assert its["config"]["keys"]["steps"] == "99"
    assert (its["first_losses"], its["metrics"]) == ([5.0, 7.0, 3.0], {"accuracy": 13.0})
    config = trainer.compose(e.row_overrides("A", "cpu"), 3)
    assert record.hash == trainer.hash(config, DATA, pretrained=its["hash"])


def test_a_row_without_seeds_at_a_size_is_not_run_there(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), FakeTrainer()
    for seeds in (None, [0, 1]):
        reproduce([e], "cpu", seeds, say=quiet, store=store, trainer=trainer)
    assert store.read("paper/item", "elsewhere", 0, "cpu") is None
    assert state_of(e, store, trainer)["state"] == "recorded"


def test_listing_needs_neither_run_nor_training(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    reproduce([e], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    lister = FakeTrainer(code="another", gone=True)
    assert state_of(e, store, lister)["state"] == "recorded"
    assert lister.trained == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("quality=10", "quality=11"), ("[steps=99]", "[steps=98]"), ("[row=wide-before]", "[row=other]")],
)
def test_another_pretraining_makes_records_stale(tmp_path: Path, store: RecordStore, old: str, new: str) -> None:
    reproduce([table(tmp_path)], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    found = state_of(table(tmp_path, TABLE.replace(old, new)), store, FakeTrainer())
    assert found["state"] == "stale"
    assert "the pre-training" in found["why"]


def test_pretraining_that_is_added_or_dropped_makes_records_stale(tmp_path: Path, store: RecordStore) -> None:
    without = TABLE.replace("pretraining: [row=before, quality=10]\npretraining_sizes: {cpu: [steps=99]}\n", "")
    without = without.replace(", pretraining: [row=wide-before]", "")
    for first, then in ((TABLE, without), (without, TABLE)):
        reproduce([table(tmp_path, first)], "cpu", stale=True, say=quiet, store=store, trainer=FakeTrainer())
        assert state_of(table(tmp_path, then), store, FakeTrainer())["state"] == "stale"


def test_a_stale_row_begins_anew_and_asks_whether_its_pretraining_must(tmp_path: Path, store: RecordStore) -> None:
    reproduce([table(tmp_path)], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    trainer = FakeTrainer()
    changed = table(tmp_path, TABLE.replace("quality=50", "quality=51"))
    reproduce([changed], "cpu", stale=True, say=quiet, store=store, trainer=trainer)
    assert (trainer.aside, trainer.again) == (1, [("before", True)])


@pytest.mark.parametrize("gone", [False, True])
def test_a_replay_begins_with_the_pretraining_and_goes_on_where_its_run_is_here(
    tmp_path: Path, store: RecordStore, gone: bool
) -> None:
    e = table(tmp_path)
    reproduce([e], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    trainer, said = FakeTrainer(gone=gone), []
    (line,) = reproduce([e], "cpu", verify=True, say=said.append, store=store, trainer=trainer)
    assert (line["fresh"], line["stale"], line["failed"]) == (3, 0, 0)
    assert trainer.trained[0] == ("before", 0, 3)
    assert (("A", 0, 3) in trainer.trained) != gone
    assert any("weights are not here" in text for text in said) == gone
    (line,) = reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=FakeTrainer(offset=1.0, gone=gone))
    assert line["stale"] == 3


def test_a_record_that_started_afresh_says_nothing_of_it(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    reproduce([e], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    record = store.read("paper/item", "A", 0, "cpu")
    assert record is not None
    assert store.read_all("paper/item")[0] == record
    record.pretraining = {}
    assert "pretraining" not in json.loads(store.write(record).read_text())


def test_the_price_counts_a_shared_pretraining_once(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path, TABLE.replace("sizes: {cpu", "sizes: {paper: [], cpu").replace("  elsewhere", "  E"))
    with pytest.raises(UserError, match=r"60\.0 h"):
        reproduce([e], "paper", say=quiet, store=store, trainer=FakeTrainer(price=10.0))


def test_the_price_counts_a_pretraining_once_for_each_seed_at_which_it_is_run(
    tmp_path: Path, store: RecordStore
) -> None:
    text = """\
id: paper/item
caption: a table
kind: train
cell: {metric: accuracy}
sizes: {paper: []}
seeds: {paper: [0, 1, 2]}
pretraining: [row=before, quality=10]
rows:
  A: {overrides: [row=A, quality=50], seeds: {paper: [0]}}
  B: [row=B, quality=60]
"""
    trainer = FakeTrainer(price=5.0)
    with pytest.raises(UserError, match=r"35\.0 h"):  # four runs, and three before them: B's at seed 0 is A's
        reproduce([table(tmp_path, text)], "paper", say=quiet, store=store, trainer=trainer)
    reproduce([table(tmp_path, text)], "paper", yes=True, say=quiet, store=store, trainer=trainer)
    assert len({seed for row, seed, _ in trainer.trained if row == "before"}) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pretraining: [row=before, quality=10]\n", "", "no pretraining"),
        ("{cpu: [steps=99]}", "{cpux: [steps=99]}", "no size 'cpux'"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = TABLE.replace(", pretraining: [row=wide-before]", "")
    with pytest.raises(UserError, match=message):
        table(tmp_path, text.replace(old, new))
