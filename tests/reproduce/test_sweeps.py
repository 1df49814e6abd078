"""Each row at the best value of a recorded sweep: what is trained, what is chosen, what a gap in it stops."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from efftx.cli import main
from efftx.core.files import DamagedFileError
from efftx.errors import NotFiniteError, UserError
from efftx.reproduce import runner
from efftx.reproduce.parallel import Task
from efftx.reproduce.trainer import Trainer
from efftx.study.experiment import Experiment
from efftx.study.experiments import read_experiment
from efftx.study.records import RecordStore
from efftx.study.status import state_of
from efftx.study.sweeps import chosen
from efftx.training.loop import TrainResult

from .fakes import FakeConfig, FakeTrainer, reproduce
from .test_runner import quiet

TABLE = """\
id: paper/item
caption: a table
kind: train
cell: {metric: accuracy, unit: "%", better: higher, format: "{:.1f}"}
base: [model=one]
sizes: {cpu: [steps=9], smoke: [steps=1]}
rows:
  A: [row=A, quality=50, best=0.003]
  B: [row=B, quality=60, best=0.01]
columns:
  itself: {}
  2 rounds: {overrides: [rounds=2]}
seeds: {cpu: [4, 5, 6]}
sweep: {key: lr, values: {cpu: [0.001, 0.003, 0.01], smoke: [0.003]}}
"""
VALUES = (0.001, 0.003, 0.01)


@dataclass
class Tuned(FakeTrainer):
    """Best at the row's own `best` of lr; `diverging` names (row, lr), `failing` too. A run that is done stays done.

    What diverges does so at the step `diverges_at`.
    """

    diverging: tuple[tuple[str, str], ...] = ()
    diverges_at: int = 7
    failing: tuple[tuple[str, str], ...] = ()

    def train(
        self, config: FakeConfig, run_dir: Path | None = None, steps: int | None = None, *args: Any, **kwargs: Any
    ) -> TrainResult:
        at = (config.keys["row"], config.keys["lr"])
        if at in self.failing:
            raise UserError("out_of_memory", "no room")
        if at in self.diverging and (steps is None or steps >= self.diverges_at):
            raise NotFiniteError("not_finite", f"Step {self.diverges_at} gave loss nan")
        found = super().train(config, run_dir, steps)
        self.trained[-1] = (f"{at[0]}@{at[1]}", config.seed, steps)
        loss = abs(float(config.keys["lr"]) - float(config.keys["best"]))
        found.curve = [{"step": 10, "accuracy": 99.0}, {"step": 20, "accuracy": 90.0 - 1000 * loss, "loss": loss}]
        first = found.first_losses[:steps]
        return found if steps is None else replace(found, metrics={}, curve=[], first_losses=first)


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "results")


def table(folder: Path, text: str = TABLE) -> Experiment:
    (folder / "item.yaml").write_text(text)
    return read_experiment(folder / "item.yaml")


def run(e: Experiment, store: RecordStore, trainer: FakeTrainer, **options: Any) -> dict[str, Any]:
    (line,) = reproduce([e], options.pop("size", "cpu"), say=quiet, store=store, trainer=trainer, **options)
    return line


def test_every_row_is_trained_at_every_value_and_recorded_at_its_best(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), Tuned()
    line = run(e, store, trainer)
    assert (line["ran"], line["failed"]) == (2 * 3 + 2 * 3, 0)
    swept = [(f"{row}@{value!r}", 4, None) for row in "AB" for value in VALUES]
    rows = [(at, seed, None) for at in ("A@0.003", "B@0.01") for seed in (4, 5, 6)]
    assert trainer.trained == swept + rows
    assert len(trainer.evaluated) == 6, "a sweep's own runs are not evaluated under the columns"
    for row, best in (("A", 0.003), ("B", 0.01)):
        for seed in (4, 5, 6):
            record = store.read("paper/item", row, seed, "cpu")
            assert record is not None
            assert record.config["keys"]["lr"] == repr(best)
            assert record.swept == {}
            assert set(record.metrics) == {"itself", "2 rounds"}
    records = store.read_sweeps("paper/item")
    assert sorted((r.row, r.value) for r in records) == [(row, value) for row in "AB" for value in VALUES]
    assert {r.seed for r in records} == {4}
    assert records[0].swept == {"key": "lr", "value": 0.001}
    assert records[0].command == "efftx reproduce paper/item size=cpu seeds=4 swept=0.001"
    assert len(store.read_all("paper/item")) == 6


def test_the_rows_record_at_the_sweeps_seed_is_of_the_same_run(tmp_path: Path, store: RecordStore) -> None:
    run(table(tmp_path), store, Tuned())
    own, of_sweep = store.read("paper/item", "A", 4, "cpu"), store.read("paper/item", "A", 4, "cpu", 0.003)
    assert own is not None
    assert of_sweep is not None
    assert (own.hash, own.config) == (of_sweep.hash, of_sweep.config)


def test_the_choice_is_by_the_last_validation_and_warns_at_an_end(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    run(e, store, Tuned())
    a, b = chosen(e, "A", "cpu", store), chosen(e, "B", "cpu", store)
    assert a is not None
    assert b is not None
    assert a.scores == pytest.approx({0.001: 88.0, 0.003: 90.0, 0.01: 83.0})
    assert (a.value, a.at_end) == (0.003, "")
    assert (b.value, b.at_end) == (0.01, "highest")


def test_another_metric_and_direction_may_choose(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path, TABLE.replace("sweep: {", "sweep: {metric: loss, better: lower, "))
    run(e, store, Tuned())
    found = chosen(e, "A", "cpu", store)
    assert found is not None
    assert (found.value, found.scores[0.003]) == (0.003, 0.0)


def test_a_metric_that_validation_does_not_give_is_told(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path, TABLE.replace("sweep: {", "sweep: {metric: rouge, better: higher, "))
    line = run(e, store, Tuned())
    assert "validation gave no 'rouge'" in line["failures"][0]["message"]


def test_what_is_recorded_is_skipped_and_a_new_value_alone_is_run(tmp_path: Path, store: RecordStore) -> None:
    run(table(tmp_path), store, Tuned())
    again = Tuned()
    line = run(table(tmp_path), store, again)
    assert (line["ran"], line["skipped"], again.trained) == (0, 12, [])
    wider, trainer = table(tmp_path, TABLE.replace("0.01], smoke", "0.01, 0.03], smoke")), Tuned()
    assert state_of(wider, store, trainer)["state"] == "partial"
    line = run(wider, store, trainer)
    assert [what[0] for what in trainer.trained] == ["A@0.03", "B@0.03"]
    assert line["skipped"] == 12
    assert state_of(wider, store, trainer)["state"] == "recorded"


def test_where_another_value_is_best_now_the_rows_are_stale(tmp_path: Path, store: RecordStore) -> None:
    run(table(tmp_path, TABLE.replace("0.003, 0.01], smoke", "0.003], smoke")), store, Tuned())
    e, trainer = table(tmp_path), Tuned()
    run(e, store, trainer)
    found = state_of(e, store, trainer)
    assert (found["state"], "configuration" in found["why"]) == ("stale", True)
    for record in store.read_all("paper/item"):  # as a configuration is, by its keys
        store.write(replace(record, config={**record.config, "lr": float(record.config["keys"]["lr"])}))
    found = state_of(e, store, None)
    assert found["why"] == "B, seed 4, size cpu: its sweep chooses lr=0.01 today, not 0.003 (and 2 more)"
    trainer.trained.clear()
    run(e, store, trainer, stale=True)
    assert trainer.trained == [("B@0.01", seed, None) for seed in (4, 5, 6)]
    assert state_of(e, store, trainer)["state"] == "recorded"


def test_a_row_whose_sweep_has_a_gap_is_not_trained_at_its_seeds(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), Tuned(failing=(("A", "0.01"),))
    line = run(e, store, trainer)
    assert {"row": "A", "seed": 4, "swept": 0.01, "message": "no room"} in line["failures"]
    gap = [f["message"] for f in line["failures"] if "swept" not in f]
    assert gap == ["not trained: its sweep lacks lr=0.01"] * 3
    assert {r.row for r in store.read_all("paper/item")} == {"B"}
    trainer = Tuned()
    assert run(e, store, trainer)["ran"] == 1 + 3
    assert trainer.trained[0] == ("A@0.01", 4, None)


def test_a_value_at_which_a_row_diverges_is_a_result_and_never_chosen(tmp_path: Path, store: RecordStore) -> None:
    said: list[str] = []
    e, trainer = table(tmp_path), Tuned(diverging=(("B", "0.01"),))
    (line,) = reproduce([e], "cpu", say=said.append, store=store, trainer=trainer)
    assert (line["ran"], line["failed"]) == (12, 0)
    assert any("B, seed 4, lr=0.01 diverged" in text for text in said)
    record = store.read("paper/item", "B", 4, "cpu", 0.01)
    assert record is not None
    assert record.swept["diverged"] == "Step 7 gave loss nan"
    assert (record.metrics, record.curve, len(record.first_losses)) == ({"": {}}, [], 3)
    choice = chosen(e, "B", "cpu", store)
    assert choice is not None
    assert (choice.value, choice.scores[0.01]) == (0.003, None)
    (line,) = reproduce([e], "cpu", verify=True, say=quiet, store=store, trainer=trainer)
    assert (line["fresh"], line["stale"]) == (12, 0)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_value_that_diverges_at_once_is_a_result_too(tmp_path: Path, store: RecordStore, step: int) -> None:
    trainer = Tuned(diverging=(("B", "0.01"),), diverges_at=step)
    (line,) = reproduce([table(tmp_path)], "cpu", say=quiet, store=store, trainer=trainer)
    assert (line["ran"], line["failed"]) == (12, 0)
    record = store.read("paper/item", "B", 4, "cpu", 0.01)
    assert record is not None
    assert len(record.first_losses) == step - 1
    (line,) = reproduce([table(tmp_path)], "cpu", verify=True, say=quiet, store=store, trainer=trainer)
    assert (line["stale"], line["fresh"]) == (0, 11 + (step > 1))


def test_a_row_that_diverges_everywhere_is_told(tmp_path: Path, store: RecordStore) -> None:
    trainer = Tuned(diverging=tuple(("A", repr(value)) for value in VALUES))
    line = run(table(tmp_path), store, trainer)
    assert line["failures"][0]["message"] == "not trained: it diverged at every value of lr"


def test_seeds_and_rows_are_chosen_and_the_sweep_keeps_its_own_seed(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), Tuned()
    only = replace(e, rows={"A": e.rows["A"]})
    run(only, store, trainer, seeds=[9])
    assert trainer.trained == [(f"A@{value!r}", 4, None) for value in VALUES] + [("A@0.003", 9, None)]


def test_one_value_of_the_sweep_alone(tmp_path: Path, store: RecordStore) -> None:
    trainer = Tuned()
    run(table(tmp_path), store, trainer, swept=0.01)
    assert trainer.trained == [("A@0.01", 4, None), ("B@0.01", 4, None)]
    with pytest.raises(UserError, match=r"swept at the value 0\.02") as unknown:
        run(table(tmp_path), store, trainer, swept=0.02)
    assert "0.001, 0.003, 0.01" in unknown.value.hint


def test_a_verification_replays_the_sweep_too(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    run(e, store, Tuned())
    changed = Tuned(offset=1.0)
    line = run(e, store, changed, verify=True)
    assert (line["stale"], line["fresh"]) == (12, 0)
    assert state_of(e, store, changed)["state"] == "stale"
    changed.trained.clear()
    line = run(e, store, changed, stale=True)
    assert len(changed.trained) == 12
    assert changed.aside == 6 + 4, "the row's record at the sweep's seed is of the run that was just begun anew"
    assert run(e, store, changed, verify=True)["fresh"] == 12


def test_nothing_is_trained_beyond_a_stale_sweep(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    run(e, store, Tuned(), seeds=[4])
    run(e, store, Tuned(offset=1.0), verify=True)
    line = run(e, store, Tuned(offset=1.0))
    assert "is stale" in line["failures"][0]["message"]
    assert line["ran"] == 0


def test_nothing_is_trained_anew_on_a_sweep_that_is_renewed_in_part(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    run(e, store, Tuned())
    run(e, store, Tuned(offset=1.0), verify=True)
    line = run(e, store, Tuned(offset=1.0, failing=(("A", "0.003"),)), stale=True)
    assert line["failed"] == 1 + 3
    assert sum("its sweep" in failure["message"] for failure in line["failures"]) == 3


def test_a_row_that_a_replay_found_stale_begins_anew_at_the_sweeps_seed_too_where_the_sweep_was_not_replayed(
    tmp_path: Path, store: RecordStore
) -> None:
    e, today = table(tmp_path), Tuned(offset=1.0)
    run(e, store, Tuned())
    run(e, store, today, verify=True)
    for record in store.read_sweeps("paper/item"):
        store.write(record)  # without what a replay said
    today.trained.clear()
    assert run(e, store, today, stale=True)["ran"] == 6
    assert (len(today.trained), today.aside) == (6, 6)
    assert run(e, store, today, verify=True)["stale"] == 6, "those of the sweep, which nobody ran again"


def test_smoke_proves_the_path_with_one_value_and_warns_of_no_end(tmp_path: Path, store: RecordStore) -> None:
    e, trainer = table(tmp_path), Tuned()
    run(e, store, trainer, size="smoke")
    assert trainer.trained == [(f"{row}@0.003", 0, None) for row in "ABAB"]
    found = chosen(e, "B", "smoke", store)
    assert found is not None
    assert found.at_end == ""


def test_a_damaged_record_of_a_sweep_is_named(tmp_path: Path, store: RecordStore) -> None:
    e = table(tmp_path)
    run(e, store, Tuned())
    path = store.path("paper/item", "A", 4, "cpu", 0.01)
    assert path == tmp_path / "results/records/paper/item/cpu/sweep/a-seed4-0.01.json"
    path.write_text(path.read_text().replace("90.0", "91.0").replace("83.0", "99.0"))
    assert [error.path for error in store.damaged(["paper/item"])] == [path]
    with pytest.raises(DamagedFileError):
        chosen(e, "A", "cpu", store)


def test_a_record_in_the_place_of_another_value_is_damaged(tmp_path: Path, store: RecordStore) -> None:
    run(table(tmp_path), store, Tuned())
    store.path("paper/item", "A", 4, "cpu", 0.01).write_bytes(
        store.path("paper/item", "A", 4, "cpu", 0.001).read_bytes()
    )
    assert len(store.damaged(["paper/item"])) == 1


def test_two_items_have_records_of_one_run(tmp_path: Path, store: RecordStore) -> None:
    one = table(tmp_path)
    other = replace(one, id="paper/other")
    lines = reproduce([one, other], "cpu", say=quiet, store=store, trainer=Tuned())
    assert [line["ran"] for line in lines] == [12, 12]
    assert {r.hash for r in store.read_all("paper/item")} == {r.hash for r in store.read_all("paper/other")}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[0.001, 0.003, 0.01]", "[0.003, 0.001]", "the smallest first"),
        ("[0.001, 0.003, 0.01]", "[]", "given once each"),
        ("better: higher", "better: none", "neither 'higher' nor 'lower'"),
        ("{key: lr, ", "{key: lr, metric: late, ", "derived from the curve"),
        ("smoke: [0.003]}", "tiny: [0.003]}", "no size 'tiny'"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = TABLE.replace(old, new) + "derived: {late: {of: accuracy, first_at_least: 90}}\n"
    with pytest.raises(UserError, match=message):
        table(tmp_path, text)


REAL = """\
id: paper/item
caption: a table
kind: train
cell: {metric: loss, better: lower}
base: [model=transformer, data=duplicate, threads=1]
sizes: {smoke: [training.steps=3, evaluation.every=3, evaluation.batches=1]}
rows: {A: [], B: [n_heads=1]}
seeds: {smoke: [0, 1]}
sweep: {key: optimizer.lr, values: {smoke: [0.001, 0.01]}}
"""


def items(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("item", "other"):
        (folder / f"{name}.yaml").write_text(REAL.replace("paper/item", f"paper/{name}"))
    monkeypatch.setenv("EFFTX_EXPERIMENTS", str(folder))


def test_items_that_share_their_runs_train_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    items(tmp_path / "own", monkeypatch)
    store, trainer = RecordStore(tmp_path / "results"), Trainer()
    both = [read_experiment(tmp_path / "own" / f"{name}.yaml") for name in ("item", "other")]
    lines = reproduce(both, "smoke", say=quiet, store=store, trainer=trainer)
    assert [(line["ran"], line["failed"]) for line in lines] == [(8, 0), (8, 0)]
    # Two rows at two values, and each at its best at the second seed: six runs for sixteen records.
    assert len(list((tmp_path / "runs").glob("transformer-duplicate-*"))) == 6
    one, other = (store.read_all(f"paper/{name}") for name in ("item", "other"))
    assert [(r.hash, r.metrics, r.curve) for r in one] == [(r.hash, r.metrics, r.curve) for r in other]
    lines = reproduce(both, "smoke", verify=True, say=quiet, store=store, trainer=trainer)
    assert [(line["fresh"], line["stale"]) for line in lines] == [(8, 0), (8, 0)]


def test_side_by_side_the_rows_wait_for_their_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    items(tmp_path / "own", monkeypatch)
    words = ["reproduce", "paper/item", "size=smoke", "jobs=2", "--row", "A", "--json"]
    assert main(words) == 0
    (line,) = json.loads(capsys.readouterr().out)["items"]
    assert (line["ran"], line["skipped"], line["failed"]) == (4, 0, 0)
    assert main(words) == 0
    (line,) = json.loads(capsys.readouterr().out)["items"]
    assert (line["ran"], line["skipped"], line["failed"]) == (0, 4, 0)


def test_side_by_side_a_stale_row_is_run_again_at_the_sweeps_seed_too(
    tmp_path: Path, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    e, asked = table(tmp_path), []
    run(e, store, Tuned())
    run(e, store, Tuned(offset=1.0), verify=True)

    def in_this_process(tasks: list[Task], jobs: int) -> list[dict[str, Any]]:
        asked.extend(tasks)
        options = [(replace(e, chosen=(t.run.row,)), [t.run.seed], t.again, t.run.value) for t in tasks]
        return [
            run(at, store, today, seeds=seeds, stale=stale, swept=swept) | {"returncode": 0}
            for at, seeds, stale, swept in options
        ]

    monkeypatch.setattr(runner, "run_tasks", in_this_process)
    today = Tuned(offset=1.0)
    line = run(e, store, today, stale=True, jobs=2)
    assert (len(asked), line["ran"], line["failed"]) == (12, 12, 0)
    assert run(e, store, today, verify=True)["fresh"] == 12
