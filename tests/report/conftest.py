"""Experiments and records made by hand, small enough to check every number of the report on paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from efftx.core.environment import Environment
from efftx.study.experiment import Cell, Claim, ColumnSpec, Experiment, Row
from efftx.study.gates import Gate
from efftx.study.published import Published
from efftx.study.records import Record, RecordStore

ENVIRONMENT = asdict(
    Environment(
        processor="A processor",
        threads=2,
        torch="2.13.0",
        git_commit="0123456789abcdef",
        git_clean=False,
        allocator={"A": "1"},
    )
)


def make_experiment(**changes: Any) -> Experiment:
    """Two models, two columns, a verified published value for one of the four cells, chance 1 %."""
    made = Experiment(
        id="paper/table2",
        paper="paper",
        caption="Accuracy of two models",
        kind="train",
        cell=Cell(metric="accuracy", unit="%", better="higher", format="{:.1f}"),
        base=[],
        sizes={"cpu": []},
        rows={"Full": Row(), "LSH": Row()},
        columns={"at 2": ColumnSpec(parameters={"length": 2}), "at 8": ColumnSpec(parameters={"length": 8})},
        seeds={"cpu": [0, 1, 2]},
        published=Published("verified", {"Full": {"at 8": 12.34}}),
        claims=[Claim("full attention is better at 8", "better", 'cell["Full", "at 8"] > cell["LSH", "at 8"]')],
        gates={"chance": Gate("constant", 1.0)},
        head="What it should reach.",
    )
    return replace(made, **changes)


def make_record(row: str, seed: int, **changes: Any) -> Record:
    """A run of `row`: accuracy 90 + seed for Full and 80 + seed for LSH at 2, ten less at 8; two evaluations."""
    top = {"Full": 90.0, "LSH": 80.0}[row] + seed
    made = Record(
        id="paper/table2",
        row=row,
        seed=seed,
        size="cpu",
        config={"training": {"steps": 20}},
        hash=f"{row}{seed}".lower().encode().hex().ljust(16, "0"),
        metrics={"at 2": {"accuracy": top}, "at 8": {"accuracy": top - 10}},
        data={"name": "duplicate", "variant": "length 256", "checksum": "ab" * 32},
        curve=[{"step": 10.0, "accuracy": top / 2}, {"step": 20.0, "accuracy": top}],
        environment=ENVIRONMENT,
        wall_seconds=75.0,
        command="efftx reproduce paper/table2 size=cpu seeds=0,1,2",
    )
    return replace(made, **changes)


@pytest.fixture
def experiment() -> Experiment:
    return make_experiment()


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "results")


@pytest.fixture
def full_store(store: RecordStore) -> RecordStore:
    """Both rows at three seeds."""
    for row in ("Full", "LSH"):
        for seed in range(3):
            store.write(make_record(row, seed))
    return store


@pytest.fixture
def change(full_store: RecordStore) -> Callable[..., None]:
    """`change(row, seed, accuracy)`: rewrite one record with another accuracy at 8."""

    def rewrite(row: str, seed: int, accuracy: float) -> None:
        old = make_record(row, seed)
        full_store.write(replace(old, metrics={**old.metrics, "at 8": {"accuracy": accuracy}}))

    return rewrite
