from __future__ import annotations

from dataclasses import replace

import pytest

from efftx.report.build import compose_report
from efftx.report.fairness import sweep_tables
from efftx.report.items import gather
from efftx.study.experiment import Experiment, Sweep
from efftx.study.records import RecordStore

from .conftest import make_experiment, make_record

SWEEP = Sweep("optimizer.lr", {"cpu": [0.001, 0.003, 0.01]})
SCORES = {"Full": [60.0, 70.5, 65.0], "LSH": [50.0, None, 55.0]}


@pytest.fixture
def swept(full_store: RecordStore) -> Experiment:
    """Full validates best at 0.003; LSH diverged there and is best at the end of the range."""
    for row, scores in SCORES.items():
        for value, score in zip(SWEEP.values["cpu"], scores, strict=True):
            word = {"key": SWEEP.key, "value": value, **({"diverged": "at step 3"} if score is None else {})}
            curve = [] if score is None else [{"step": 20.0, "accuracy": score}]
            record = make_record(row, 0, curve=curve, metrics={}, swept=word)
            full_store.write(record)
    return make_experiment(sweep=SWEEP)


def test_a_sweep_is_a_table_with_the_chosen_value_bold(full_store: RecordStore, swept: Experiment) -> None:
    (table,) = sweep_tables(gather(full_store, swept))
    assert table.columns == ("optimizer.lr = 0.001", "optimizer.lr = 0.003", "optimizer.lr = 0.01", "chosen")
    told = {row.label: [f"*{c.text}*" if c.bold else c.text for c in row.cells] for row in table.blocks[0].rows}
    assert told == {"Full": ["60.0", "*70.5*", "65.0", "0.003"], "LSH": ["50.0", "diverged", "*55.0*", "0.01"]}
    assert "validation accuracy (%)" in table.caption


def test_a_best_value_at_an_end_of_the_range_is_told(full_store: RecordStore, swept: Experiment) -> None:
    (table,) = sweep_tables(gather(full_store, swept))
    assert table.notes == ("Best at an end of the range, so that a better value may lie beyond: LSH (highest).",)


def test_a_sweep_that_is_not_complete_shows_the_rows_that_are(full_store: RecordStore, swept: Experiment) -> None:
    full_store.path(swept.id, "LSH", 0, "cpu", 0.003).unlink()
    (table,) = sweep_tables(gather(full_store, swept))
    assert [row.label for row in table.blocks[0].rows] == ["Full"]
    assert sweep_tables(gather(full_store, replace(swept, sweep=None))) == []


def test_the_sweep_stands_on_the_page_and_in_the_documents(full_store: RecordStore, swept: Experiment) -> None:
    files = compose_report(full_store, [swept])
    for name in ("index.html", "paper-table2.md", "paper-table2.tex"):
        assert "Sweep at size cpu" in files[name], name
