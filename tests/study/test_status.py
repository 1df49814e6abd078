"""The state of an item, which every command and the report take from one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from efftx.report.items import gather
from efftx.study.records import RecordStore, Verification
from efftx.study.status import state_of
from tests.report.conftest import make_experiment, make_record

BOTH = make_experiment(sizes={"cpu": [], "smoke": []}, seeds={"cpu": [0, 1, 2], "smoke": [0]})


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., RecordStore]:
    """`kept(cpu=2, smoke=1)`: both rows of BOTH at so many seeds a size."""

    def keep(**n_seeds: int) -> RecordStore:
        store = RecordStore(tmp_path / "results")
        for size, count in n_seeds.items():
            for row in BOTH.rows:
                for seed in range(count):
                    store.write(make_record(row, seed, size=size))
        return store

    return keep


@pytest.mark.parametrize(
    ("n_seeds", "state", "why"),
    [
        ({}, "not run", ""),
        ({"cpu": 2}, "partial", "size cpu: 4 of 6 runs"),
        ({"cpu": 3}, "recorded", ""),
        ({"cpu": 2, "smoke": 1}, "partial", "size cpu: 4 of 6 runs"),
        ({"smoke": 1}, "not run", "records at size smoke alone"),
    ],
)
def test_one_full_size_is_a_record_and_a_rehearsal_is_none(
    kept: Callable[..., RecordStore], n_seeds: dict[str, int], state: str, why: str
) -> None:
    store = kept(**n_seeds)
    found = state_of(BOTH, store, None)
    assert (found["state"], found["why"], found["sizes"]) == (state, why, list(n_seeds))
    item = gather(store, BOTH)
    assert (item.state, item.why) == (state, why)


def test_smoke_counts_where_it_is_asked_for_and_where_there_is_no_other_size(kept: Callable[..., RecordStore]) -> None:
    store = kept(smoke=1)
    assert state_of(BOTH, store, None, ["smoke"])["state"] == "recorded"
    assert state_of(replace(BOTH, sizes={"smoke": []}), store, None)["state"] == "recorded"


def test_one_stale_record_is_a_stale_item(kept: Callable[..., RecordStore]) -> None:
    store = kept(cpu=3, smoke=1)
    for seed, size in ((1, "cpu"), (2, "cpu"), (0, "smoke")):
        record = make_record("LSH", seed, size=size)
        store.write_verification(record, Verification(record.hash, "stale", "another number", True))
    found = state_of(BOTH, store, None)
    assert (found["state"], found["why"]) == ("stale", "LSH, seed 1, size cpu: another number (and 1 more)")


def test_seeds_that_were_not_trained_alike_are_a_stale_item_without_a_composer_too(
    kept: Callable[..., RecordStore],
) -> None:
    store = kept(cpu=3)
    for record in store.read_all(BOTH.id):
        lr = 0.01 if (record.row, record.seed) == ("LSH", 2) else 0.003
        only_here = {"new_key": 1} if record.seed == 1 else {}
        config = {"optimizer": {"lr": lr}, "seed": record.seed, "threads": record.seed, "data": {"path": f"/{lr}"}}
        store.write(replace(record, config={**config, **only_here}))
    found = state_of(BOTH, store, None)
    assert (found["state"], found["why"]) == (
        "stale",
        "LSH, size cpu: its seeds were not trained alike (optimizer.lr)",
    )
    for record in store.read_all(BOTH.id):
        store.write(replace(record, config={"optimizer": {"lr": 0.003}}, data={"checksum": str(record.seed)}))
    assert state_of(BOTH, store, None)["why"].endswith("its seeds were not trained alike (checksum) (and 1 more)")


def test_another_configuration_is_stale_where_it_is_composed(kept: Callable[..., RecordStore]) -> None:
    class Today:
        """Composes whatever it is given to something that no record was made from."""

        def compose(self, overrides: list[str], seed: int) -> Any:
            return None

        def hash(self, *given: Any) -> str:
            return "today"

        def sources(self) -> str:
            return ""

    today: Any = Today()
    store = kept(cpu=3)
    told = [state_of(BOTH, store, today)["state"], gather(store, BOTH, (), today).state, gather(store, BOTH).state]
    assert told == ["stale", "stale", "recorded"]
