from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from efftx.data.dataset import find_source
from efftx.errors import UserError
from efftx.study.composer import Composer
from efftx.study.experiment import Cell, Experiment
from efftx.study.experiments import load_experiments, narrow, read_experiment
from efftx.study.gates import Gate
from efftx.study.records import RecordStore
from efftx.study.status import state_of
from efftx.study.sweeps import Run, planned

from ..reproduce.fakes import FakeTrainer, reproduce
from ..reproduce.test_runner import TABLE

BIGRAM = Gate("ngram", order=2)


def silent(_: str) -> None:
    pass


@pytest.fixture
def plain(tmp_path: Path) -> Experiment:
    path = tmp_path / "item.yaml"
    path.write_text(TABLE)
    return read_experiment(path)


def gated(e: Experiment, **gates: Gate) -> Experiment:
    return replace(e, gates=gates or {"bigram": BIGRAM})


def test_a_gate_is_computed_once_recorded_and_listed_like_a_row(tmp_path: Path, plain: Experiment) -> None:
    e, store, trainer = gated(plain), RecordStore(tmp_path), FakeTrainer()
    rows = planned(plain, "cpu")
    assert planned(e, "cpu") == [Run("bigram", 0, "cpu"), *rows]
    (line,) = reproduce([e], "cpu", say=silent, store=store, trainer=trainer)
    assert (line["ran"], line["failed"]) == (len(rows) + 1, 0)
    record = store.read(e.id, "bigram", 0, "cpu")
    assert record is not None
    assert record.metrics == {"": {"accuracy": 7.0, "loss": 2.0}}
    assert record.config["gate"] == {"kind": "ngram", "order": 2}
    assert record.command == f"efftx reproduce {e.id} size=cpu --row bigram"
    assert state_of(e, store, trainer)["state"] == "recorded"
    (line,) = reproduce([e], "cpu", say=silent, store=store, trainer=trainer)
    assert (line["ran"], line["skipped"]) == (0, len(rows) + 1)


def test_a_gate_is_stale_where_its_data_or_its_replay_is_another(tmp_path: Path, plain: Experiment) -> None:
    e, store, trainer = gated(plain), RecordStore(tmp_path), FakeTrainer()
    (chosen,) = narrow([e], ["bigram"])
    reproduce([chosen], "cpu", say=silent, store=store, trainer=trainer)
    (line,) = reproduce([chosen], "cpu", verify=True, say=silent, store=store, trainer=trainer)
    assert (line["fresh"], line["stale"]) == (1, 0)
    trainer.offset = 1.0
    (line,) = reproduce([chosen], "cpu", verify=True, say=silent, store=store, trainer=trainer)
    assert (line["fresh"], line["stale"]) == (0, 1)
    trainer.offset, trainer.code = 0.0, "two"
    changed = replace(chosen, gates={"bigram": Gate("ngram", order=3)})
    (line,) = reproduce([changed], "cpu", stale=True, say=silent, store=store, trainer=trainer)
    assert line["ran"] == 1


def test_a_gate_that_says_nothing_of_what_models_are_measured_by_fails(tmp_path: Path, plain: Experiment) -> None:
    e = gated(replace(plain, cell=Cell("bits_per_dim", "bits/dim", "lower")))
    (line,) = reproduce(narrow([e], ["bigram"]), "cpu", say=silent, store=RecordStore(tmp_path), trainer=FakeTrainer())
    assert line["failed"] == 1
    assert "gives no 'bits_per_dim'. It gives accuracy, loss." in line["failures"][0]["message"]


def test_a_gate_of_a_measure_is_computed_from_the_data_that_its_models_train_on(tmp_path: Path) -> None:
    path = tmp_path / "item.yaml"
    path.write_text(
        "id: own/item\ncaption: c\nkind: measure\nmeasure: attention_maps\ncell: {metric: accuracy, better: higher}\n"
        "parameters: {cpu: {overrides: [row=A]}}\nrows: {A: {parameters: {overrides: [quality=1]}}}\n"
        "gates: {bigram: {kind: ngram, order: 2}}\n"
    )
    e, store, trainer = read_experiment(path), RecordStore(tmp_path), FakeTrainer()
    assert e.gate_overrides("bigram", "cpu") == ["row=A", "quality=1"]
    (line,) = reproduce(narrow([e], ["bigram"]), "cpu", say=silent, store=store, trainer=trainer)
    assert (line["ran"], line["failed"]) == (1, 0)
    (line,) = reproduce(narrow([e], ["bigram"]), "cpu", verify=True, say=silent, store=store, trainer=trainer)
    assert (line["fresh"], line["stale"]) == (1, 0)
    path.write_text(path.read_text().replace("overrides: [row=A]", "pictures: 4"))
    with pytest.raises(UserError, match=r"computed from parameters\.SIZE\.overrides, which it has not"):
        read_experiment(path)


def test_constants_and_levels_are_not_run(plain: Experiment) -> None:
    e = gated(plain, chance=Gate("constant", 50), learned=Gate("at least", 99))
    assert planned(e, "cpu") == planned(plain, "cpu")


def test_a_gate_before_no_row_that_runs_is_not_run(plain: Experiment) -> None:
    e = gated(plain, paper=replace(BIGRAM, only=["paper"]))
    assert planned(e, "cpu") == planned(plain, "cpu")


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"kind": "ngrams", "order": 1}, "no kind 'ngrams'"),
        ({"kind": "ngram"}, "an order, 1, 2 or 3"),
        ({"kind": "ngram", "order": 4}, "an order, 1, 2 or 3"),
        ({"kind": "ngram", "order": 1, "value": 3}, "a value is given to"),
        ({"kind": "constant"}, "a value is given to"),
        ({"kind": "majority", "codec": "xz"}, "a codec"),
        ({"kind": "compressed", "codec": "zip"}, "a codec"),
        ({"kind": "constant", "value": 1, "rows": ["C"]}, "rows: there is no 'C'"),
        ({"kind": "constant", "value": 1, "columns": ["z"]}, "columns: there is no 'z'"),
        ({"kind": "constant", "value": 1, "guards": ["z"]}, "guards: there is no 'z'"),
        ({"kind": "constant", "value": 1, "only": ["huge"]}, "no size 'huge'"),
        ({"kind": "constant", "value": 1, "columns": ["neutral"]}, "none is better"),
        ({"kind": "at most", "value": 1}, "higher is better, so that a gate 'at most' has no sense"),
        ({"kind": "constant", "value": 1, "valeu": 2}, "no key 'valeu'"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused_where_it_is_read(
    tmp_path: Path, gate: dict[str, Any], message: str
) -> None:
    path = tmp_path / "item.yaml"
    path.write_text(
        "id: own/item\ncaption: c\nkind: train\ncell: {metric: accuracy, better: higher}\nsizes: {cpu: []}\n"
        "rows: {A: [], B: []}\ncolumns: {x: {}, neutral: {cell: {metric: steps}}}\n"
        f"gates: {{gate: {gate}}}\n"
    )
    with pytest.raises(UserError, match=message):
        read_experiment(path)


def test_a_gate_and_a_row_do_not_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "item.yaml"
    path.write_text(
        "id: own/item\ncaption: c\nkind: train\ncell: {metric: accuracy, better: higher}\nsizes: {cpu: []}\n"
        "rows: {A: []}\ngates: {a: {kind: majority}}\n"
    )
    with pytest.raises(UserError, match="would write the same file"):
        read_experiment(path)


QUALITY = {
    id: e
    for id, e in load_experiments().items()
    if e.kind == "train" and e.cell.metric in ("log_perplexity", "bits_per_dim", "accuracy", "rouge1")
}


@pytest.mark.parametrize("e", QUALITY.values(), ids=lambda e: e.id)
def test_every_item_of_quality_has_gates_before_all_its_rows(e: Experiment) -> None:
    rows = [row for row in e.rows_at("cpu") if e.seeds_of(row, "cpu")]
    assert [row for row in rows if not any(gate.stands_before(row, "cpu") for gate in e.gates.values())] == []


@pytest.mark.parametrize("e", QUALITY.values(), ids=lambda e: e.id)
def test_a_compressed_size_stands_before_models_of_pixels_and_sounds_alone_unless_a_claim_names_it(
    e: Experiment,
) -> None:
    """Of text xz looks back over all that is scored, a model over its row: n-gram tables stand before those."""
    named = " ".join(claim.holds_if for claim in e.claims)
    for row in (row for row in e.rows_at("cpu") if e.seeds_of(row, "cpu")):
        before = {name: gate for name, gate in e.gates.items() if gate.stands_before(row, "cpu") and gate.is_computed}
        compressed = {name for name, gate in before.items() if gate.kind == "compressed"}
        source = find_source(Composer().compose(e.row_overrides(row, "cpu"), 0).data.name)
        if source.row_length is not None or source.name == "music":
            assert compressed, row
        else:
            assert all(f'gate["{name}"' in named for name in compressed), row


@pytest.mark.parametrize("e", [e for e in QUALITY.values() if e.gates_at("cpu")], ids=lambda e: e.id)
def test_the_rows_before_which_a_gate_stands_train_on_the_same_data(e: Experiment) -> None:
    composer = Composer()
    for gate in e.gates_at("cpu").values():
        rows = [row for row in e.rows_at("cpu") if gate.stands_before(row, "cpu") and e.seeds_of(row, "cpu")]
        configs = [composer.compose(e.row_overrides(row, "cpu"), 0) for row in rows]
        if not any(config.evaluation.batches for config in configs):  # the whole split, however long its rows are
            configs = [replace(config, data=replace(config.data, length=1)) for config in configs]
        assert all((c.data, c.objective) == (configs[0].data, configs[0].objective) for c in configs)
