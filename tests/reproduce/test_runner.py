from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from efftx.errors import Interrupted, UserError
from efftx.study.aggregation import Results
from efftx.study.experiment import Experiment
from efftx.study.experiments import read_experiment
from efftx.study.records import RecordStore
from efftx.study.status import column_hashes, composed_from, measure_hash, state_of, status_of
from efftx.study.sweeps import Run

from .fakes import DATA, FakeConfig, FakeTrainer, record, reproduce

MEASURE = """\
id: paper/item
caption: a table
kind: measure
measure: attention_cost
cell: {metric: entries}"""
TABLE = """\
id: paper/item
caption: a table
kind: train
cell: {metric: accuracy, unit: "%", better: higher, format: "{:.1f}"}
base: [model=one]
sizes: {paper: [steps=999], cpu: [steps=9], smoke: [steps=1]}
rows:
  A: [row=A, quality=50]
  B: [row=B, quality=60]
columns:
  itself: {}
  2 rounds: {overrides: [rounds=2], carry: {B: swap}}
seeds: {cpu: [0, 1], paper: [0]}
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


def test_every_row_and_seed_is_trained_evaluated_and_recorded(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), FakeTrainer()
    (line,) = reproduce([e], "cpu", say=quiet, store=store, trainer=trainer)
    assert line == {"id": "paper/item", "size": "cpu", "ran": 4, "skipped": 0, "failed": 0, "failures": []}
    assert trainer.trained == [("A", 0, None), ("A", 1, None), ("B", 0, None), ("B", 1, None)]
    assert trainer.evaluated == [("2", None), ("2", None), ("2", "swap"), ("2", "swap")]
    record = store.read("paper/item", "B", 1, "cpu")
    assert record is not None
    assert record.metrics == {"itself": {"accuracy": 61.0}, "2 rounds": {"accuracy": 21.0}}
    assert record.first_losses == [5.0, 5.0, 3.0]
    assert record.data == DATA
    assert record.curve[0] == {"step": 10, "accuracy": 60.0}
    assert record.command == "efftx reproduce paper/item size=cpu seeds=1"
    assert record.environment["torch"]
    assert record.config["seed"] == 1
    assert record.wall_seconds >= 0


def test_what_has_a_record_is_skipped(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), FakeTrainer()
    reproduce([e], "cpu", [0], say=quiet, store=store, trainer=trainer)
    (line,) = reproduce([e], "cpu", say=quiet, store=store, trainer=trainer)
    assert (line["ran"], line["skipped"]) == (2, 2)
    assert trainer.trained[2:] == [("A", 1, None), ("B", 1, None)]


def test_a_row_that_fails_does_not_stop_the_others(tmp_path: Path, store: RecordStore) -> None:
    said: list[str] = []
    e = table(tmp_path)
    (line,) = reproduce([e], "cpu", [0], say=said.append, store=store, trainer=FakeTrainer(broken=("A",)))
    assert (line["ran"], line["failed"]) == (1, 1)
    assert line["failures"] == [{"row": "A", "seed": 0, "message": "RuntimeError: A broke"}]
    assert any("A broke" in text for text in said)
    assert store.read("paper/item", "A", 0, "cpu") is None


def test_an_evaluation_without_the_metric_of_its_cell_is_a_failure_and_not_a_cell_that_was_not_run(
    tmp_path: Path, store: RecordStore
) -> None:
    e = table(tmp_path, TABLE.replace("metric: accuracy", "metric: log_perplexity"))
    (line,) = reproduce([e], "smoke", say=quiet, store=store, trainer=FakeTrainer())
    assert line["failed"] == 2
    message = line["failures"][0]["message"]
    assert "the evaluation of 'A', 'itself', gives no 'log_perplexity'. It gives accuracy." in message


def test_a_row_that_does_not_compose_is_a_failure_with_its_reason(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path, TABLE.replace("[row=A,", "[impossible=1, row=A,"))
    (line,) = reproduce([e], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    assert (line["ran"], line["failed"]) == (1, 1)
    assert "impossible" in line["failures"][0]["message"]


def test_an_interrupt_stops_everything_and_keeps_what_is_done(tmp_path: Path, store: RecordStore) -> None:
    class Stopped(FakeTrainer):
        def train(self, config, *args, **kwargs):  # type: ignore[no-untyped-def]
            if config.keys["row"] == "B":
                raise Interrupted(130, "stopped")
            return super().train(config, *args, **kwargs)

    with pytest.raises(Interrupted):
        reproduce([table(tmp_path)], "cpu", [0], say=quiet, store=store, trainer=Stopped())
    assert [r.row for r in store.read_all("paper/item")] == ["A"]


def test_a_changed_configuration_is_stale_and_runs_again_only_when_asked(tmp_path: Path, store: RecordStore) -> None:
    trainer, said = FakeTrainer(), []
    reproduce([table(tmp_path)], "cpu", [0], say=quiet, store=store, trainer=trainer)
    changed = table(tmp_path, TABLE.replace("quality=50", "quality=55"))
    (line,) = reproduce([changed], "cpu", [0], say=said.append, store=store, trainer=trainer)
    assert (line["ran"], line["skipped"]) == (0, 2)
    assert any("A, seed 0 is stale" in text for text in said)
    assert state_of(changed, store, trainer)["state"] == "stale"
    (line,) = reproduce([changed], "cpu", [0], stale=True, say=quiet, store=store, trainer=trainer)
    assert (line["ran"], line["skipped"]) == (1, 1)
    assert trainer.aside == 1
    found = store.read("paper/item", "A", 0, "cpu")
    assert found is not None
    assert found.metrics["itself"] == {"accuracy": 55.0}


def test_a_changed_evaluation_is_stale_too(tmp_path: Path, store: RecordStore) -> None:
    trainer = FakeTrainer()
    reproduce([table(tmp_path)], "cpu", say=quiet, store=store, trainer=trainer)
    assert state_of(table(tmp_path), store, trainer)["state"] == "recorded"
    for old, new in (("rounds=2", "rounds=3"), ("{B: swap}", "{B: turn}")):
        changed = state_of(table(tmp_path, TABLE.replace(old, new)), store, trainer)
        assert changed["state"] == "stale"
        assert "2 rounds" in changed["why"]


@pytest.mark.parametrize(("before", "after"), [("{}", "{overrides: [rounds=1]}"), ("{overrides: [rounds=1]}", "{}")])
def test_a_column_that_begins_or_ceases_to_evaluate_is_stale(
    tmp_path: Path, store: RecordStore, before: str, after: str
) -> None:
    trainer = FakeTrainer()
    text = TABLE.replace("  itself: {}", f"  itself: {before}")
    reproduce([table(tmp_path, text)], "cpu", say=quiet, store=store, trainer=trainer)
    changed = state_of(table(tmp_path, TABLE.replace("  itself: {}", f"  itself: {after}")), store, trainer)
    assert changed["state"] == "stale"
    assert "itself" in changed["why"]


def test_a_cell_whose_metric_its_record_lacks_is_filled_in(tmp_path: Path, store: RecordStore) -> None:
    class Later(FakeTrainer):
        def evaluate(self, run: Path, config: FakeConfig, carry: str | None) -> dict[str, float]:
            found = super().evaluate(run, config, carry)
            return {**found, "bits": 2.0}

    reproduce([table(tmp_path)], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    other = TABLE.replace("{overrides: [rounds=2]", "{cell: {metric: bits}, overrides: [rounds=2]")
    changed, today = table(tmp_path, other), Later()
    assert state_of(changed, store, today)["why"].startswith("A, seed 0, size cpu: '2 rounds' was not evaluated")
    (line,) = reproduce([changed], "cpu", say=quiet, store=store, trainer=today)
    assert (line["ran"], today.aside) == (4, 0)
    assert state_of(changed, store, today)["state"] == "recorded"


def test_a_record_of_a_row_whose_name_makes_the_same_file_is_not_that_of_another(
    tmp_path: Path, store: RecordStore
) -> None:
    reproduce([table(tmp_path)], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    renamed = table(tmp_path, TABLE.replace("  A: [", "  A!: ["))
    assert state_of(renamed, store, FakeTrainer())["damaged"]
    (line,) = reproduce([renamed], "cpu", [0], say=quiet, store=store, trainer=FakeTrainer())
    assert "it is of a row 'A', not 'A!'" in line["failures"][0]["message"]


def test_a_new_column_is_filled_in_without_asking(tmp_path: Path, store: RecordStore) -> None:
    trainer = FakeTrainer()
    reproduce([table(tmp_path)], "cpu", say=quiet, store=store, trainer=trainer)
    more = table(tmp_path, TABLE.replace("  itself: {}", "  itself: {}\n  4 rounds: [rounds=4]"))
    assert state_of(more, store, trainer)["state"] == "partial"
    (line,) = reproduce([more], "cpu", say=quiet, store=store, trainer=trainer)
    assert line["ran"] == 4
    assert trainer.aside == 0
    assert state_of(more, store, trainer)["state"] == "recorded"


def test_listing_composes_nothing_while_nothing_it_reads_has_changed(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), FakeTrainer()
    reproduce([e], "cpu", say=quiet, store=store, trainer=trainer)
    lister = FakeTrainer()
    assert state_of(e, store, lister)["state"] == "recorded"
    assert (lister.composed, lister.trained) == (0, [])
    lister.code = "another"
    assert state_of(e, store, lister)["state"] == "recorded"
    assert lister.composed > 0


def test_states_from_not_run_to_recorded(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), FakeTrainer()
    found = state_of(e, store, trainer)
    assert (found["id"], found["paper"], found["caption"]) == ("paper/item", "paper", "a table")
    assert (found["state"], found["sizes"]) == ("not run", [])
    assert found["runs_at"] == ["paper", "cpu", "smoke"]
    reproduce([e], "smoke", say=quiet, store=store, trainer=trainer)
    found = state_of(e, store, trainer)
    assert (found["state"], found["sizes"]) == ("not run", ["smoke"])
    reproduce([e], "cpu", [0], say=quiet, store=store, trainer=trainer)
    found = state_of(e, store, trainer)
    assert (found["state"], found["sizes"]) == ("partial", ["cpu", "smoke"])
    reproduce([e], "cpu", say=quiet, store=store, trainer=trainer)
    assert state_of(e, store, trainer)["state"] == "recorded"


def test_what_cannot_be_composed_is_not_runnable_and_says_why(tmp_path: Path, store: RecordStore) -> None:
    found = state_of(table(tmp_path, TABLE.replace("model=one", "impossible=1")), store, FakeTrainer())
    assert found["state"] == "not runnable"
    assert "impossible" in found["why"]


def test_a_measure_whose_overrides_compose_to_something_else_is_stale(tmp_path: Path) -> None:
    text = f"""{MEASURE}
parameters: {{smoke: {{cases: {{small: {{overrides: [model=one, size=smoke]}}}}}}}}
rows: {{A: {{}}, B: {{parameters: {{own: [model=two]}}}}}}
"""
    e, store, today = table(tmp_path, text), RecordStore(tmp_path / "results"), FakeTrainer()
    for row in e.rows:
        run = Run(row, 0, "smoke")
        columns = {name: {"entries": 1.0} for name in e.columns_of(row, "smoke")}
        made = record(row, 0, {}, size="smoke", composed_from=composed_from(e, run, today))
        made = replace(made, metrics=columns, column_hashes=column_hashes(e, run, today, {}))
        store.write(replace(made, hash=measure_hash(e, run)))
    assert [status_of(e, Run(row, 0, "smoke"), today, store).word for row in e.rows] == ["fresh", "fresh"]
    today.code = "another"
    found = status_of(e, Run("A", 0, "smoke"), today, store)
    assert (found.word, found.why) == ("stale", "the configuration that its overrides compose to is another today")


def test_a_measures_hash_is_of_its_seed_row_parameters_and_name(tmp_path: Path) -> None:
    text = f"""{MEASURE}
parameters: {{smoke: {{lengths: [64], batch: 1}}}}
rows: {{A: {{parameters: {{attention: full}}}}, B: {{parameters: {{attention: lsh}}}}}}
"""
    e = table(tmp_path, text)
    hashes = {measure_hash(e, Run(row, seed, "smoke")) for row in e.rows for seed in (0, 1)}
    hashes.add(measure_hash(table(tmp_path, text.replace("batch: 1", "batch: 2")), Run("A", 0, "smoke")))
    hashes.add(measure_hash(table(tmp_path, text.replace("attention_cost", "attention_time")), Run("A", 0, "smoke")))
    assert len(hashes) == 6


def test_the_papers_size_names_its_price_and_asks_above_a_day(tmp_path: Path, store: RecordStore) -> None:
    e, said = table(tmp_path), []
    with pytest.raises(UserError, match=r"30\.0 h, more than 24 h") as dear:
        reproduce([e], "paper", say=said.append, store=store, trainer=FakeTrainer(price=15.0))
    assert "--yes" in dear.value.hint
    assert any("30.0 h" in text for text in said)
    assert store.read_all("paper/item") == []
    (line,) = reproduce([e], "paper", yes=True, say=quiet, store=store, trainer=FakeTrainer(price=15.0))
    assert line["ran"] == 2
    (line,) = reproduce([e], "paper", say=quiet, store=store, trainer=FakeTrainer(price=15.0))
    assert line["skipped"] == 2, "what is recorded costs nothing"


def test_an_unknown_size_is_refused_and_an_undefined_one_too(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path, TABLE.replace("paper: [steps=999], ", "").replace(", paper: [0]", ""))
    with pytest.raises(UserError, match="no size 'huge'"):
        reproduce([e], "huge", say=quiet, store=store, trainer=FakeTrainer())
    with pytest.raises(UserError, match="size paper"):
        reproduce([e], "paper", say=quiet, store=store, trainer=FakeTrainer())


COSTS = TABLE.replace("  itself: {}\n", '  itself: {}\n  size: {cell: {metric: parameters, format: "{:,.0f}"}}\n')


def test_what_a_model_costs_is_a_column_without_any_evaluation(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path, COSTS), FakeTrainer()
    reproduce([e], "cpu", say=quiet, store=store, trainer=trainer)
    assert len(trainer.evaluated) == 4
    assert Results(e, store.read_all("paper/item"), "cpu").values("B", "size") == {0: 6000.0, 1: 6000.0}
    assert state_of(e, store, trainer)["state"] == "recorded"


def test_a_record_without_costs_is_read_and_gets_them_untrained_where_a_column_asks(
    tmp_path: Path, store: RecordStore
) -> None:
    plain = table(tmp_path)
    reproduce([plain], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    for bare in store.read_all("paper/item"):
        bare.costs = {}
        store.write(bare)
    assert "costs" not in store.path("paper/item", "A", 0, "cpu").read_text()
    reproduce([plain], "cpu", verify=True, say=quiet, store=store, trainer=FakeTrainer())
    assert state_of(plain, store, FakeTrainer())["state"] == "recorded"
    e, trainer = table(tmp_path, COSTS), FakeTrainer()
    assert Results(e, store.read_all("paper/item"), "cpu").values("A", "size") == {}
    assert state_of(e, store, trainer)["state"] == "partial"
    (line,) = reproduce([e], "cpu", say=quiet, store=store, trainer=trainer)
    assert (line["ran"], trainer.trained) == (4, [])
    records = store.read_all("paper/item")
    assert Results(e, records, "cpu").values("A", "size") == {0: 5000.0, 1: 5000.0}
    assert all((found := store.verification(record)) and found.verdict == "fresh" for record in records)
    assert state_of(e, store, trainer)["state"] == "recorded"


def test_size_gpu_without_a_card_is_one_message_before_anything_is_run(
    tmp_path: Path, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    e, trainer = table(tmp_path, TABLE.replace("cpu: [steps=9]", "cpu: [steps=9], gpu: [steps=9]")), FakeTrainer()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch finds no CUDA device") as caught:
        reproduce([e], "gpu", say=quiet, store=store, trainer=trainer)
    assert (caught.value.kind, trainer.trained) == ("no_device", [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "card")
    (line,) = reproduce([e], "gpu", say=quiet, store=store, trainer=trainer)
    assert line["ran"] == 2
    assert {record.environment["gpu"] for record in store.read_all("paper/item")} == {"card"}
    assert state_of(e, store, trainer)["sizes"] == ["gpu"]
