from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from efftx.core.artifact import read_document, write_document
from efftx.core.files import DamagedFileError
from efftx.study.records import RecordStore, Verification, slug

from ..reproduce.fakes import record


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    one = record("LSH-4, 1024", 2, {"x": 1 / 3, "y": None}, first_losses=[0.1 + 0.2, 1e-17])
    path = store.write(one)
    assert path == tmp_path / "records/paper/item/cpu/lsh-4-1024-seed2.json"
    assert store.read("paper/item", "LSH-4, 1024", 2, "cpu") == one
    assert store.read_all("paper/item") == [one]
    assert store.read_all("paper/other") == []


def test_the_root_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFTX_RESULTS", str(tmp_path / "elsewhere"))
    assert RecordStore().write(record("A", 0, {})).is_relative_to(tmp_path / "elsewhere")
    monkeypatch.delenv("EFFTX_RESULTS")
    assert RecordStore().root == Path("results")


def test_a_record_that_cannot_be_written_leaves_the_old_one_and_nothing_half_written(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 0, {"x": 1.0}))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'metrics' holds"):
        store.write(record("A", 0, {"x": float("nan")}))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_two_writes_of_the_same_record_are_the_same_bytes(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 0, {"x": 1.0, "y": 2.0}))
    before = path.read_bytes()
    store.write(record("A", 0, {"y": 2.0, "x": 1.0}))
    assert path.read_bytes() == before


def damage(store: RecordStore) -> str:
    """What is said of the one damaged file there is, which reading leaves out or refuses."""
    (error,) = store.damaged(["paper/item"])
    assert error.kind == "damaged_file"
    assert "efftx reproduce" in error.hint
    return error.message


@pytest.mark.parametrize("text", ["{", "[]", '{"unheard": 1}', "", "[" * 200_000])
def test_a_damaged_record_is_named_and_left_out(tmp_path: Path, text: str) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 0, {}))
    store.write(record("A", 1, {}))
    path.write_text(text)
    assert str(path) in damage(store)
    assert [one.seed for one in store.read_all("paper/item")] == [1]
    with pytest.raises(DamagedFileError, match=r"a-seed0\.json"):
        store.read("paper/item", "A", 0, "cpu")


def test_a_changed_digit_is_noticed(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 0, {"x": 71.25}))
    path.write_text(path.read_text().replace("71.25", "71.26"))
    assert "checksum" in damage(store)


def test_a_record_in_anothers_place_is_noticed(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 1, {}))
    store.path("paper/item", "A", 2, "cpu").write_bytes(path.read_bytes())
    assert "a-seed2.json is damaged: it says that it is of paper/item, A, seed 1" in damage(store)
    assert [one.seed for one in store.read_all("paper/item")] == [1]


def rewrite(path: Path, **changes: Any) -> None:
    """The record at `path` with other content and a right checksum."""
    content = read_document(path)
    assert content is not None
    write_document(path, {key: value for key, value in {**content, **changes}.items() if value is not LACKING})


LACKING = object()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hash": LACKING}, "'hash' is missing"),
        ({"unheard": 1}, "'unheard' is no field of a record"),
        ({"metrics": {"x": {"accuracy": "high"}}}, "'metrics' holds"),
        ({"metrics": {"x": None}}, "'metrics' holds"),
        ({"seed": True}, "'seed' holds True"),
        ({"seed": 0.5}, "'seed' holds 0.5"),
        ({"first_losses": [1.0, None]}, "'first_losses' holds"),
        ({"curve": [{"step": "1"}]}, "'curve' holds"),
        ({"series": [1.0]}, "'series' holds"),
        ({"environment": None}, "'environment' holds None"),
        ({"wall_seconds": "long"}, "'wall_seconds' holds"),
    ],
)
def test_what_is_no_record_is_damage_even_with_a_checksum(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    store = RecordStore(tmp_path)
    rewrite(store.write(record("A", 0, {"x": 1.0})), **changes)
    assert why in damage(store)
    assert store.read_all("paper/item") == []


def test_a_damaged_replay_is_named_and_counts_as_none(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    one = record("A", 0, {})
    store.write(one)
    store.write_verification(one, Verification("h", "stale", "because", True, [1.0]))
    (path,) = (tmp_path / "verified").rglob("*.json")
    path.write_text(path.read_text().replace("stale", "fresh"))
    assert store.verification(one) is None
    assert str(path) in damage(store)
    rewrite(store.write(one))
    store.write_verification(one, Verification("h", "stale", "because", True, [1.0]))
    rewrite(path, replayed=["1"])
    assert "'replayed' holds" in damage(store)


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 0, {}))
    litter = path.with_name(".a-seed1.json.1-0.tmp")
    litter.write_text("{")
    store.write(record("A", 0, {}))
    assert not litter.exists()
    litter.write_text("{")
    store.sweep()
    assert not litter.exists()
    assert path.exists()


def test_a_verification_speaks_of_the_record_it_replayed_alone(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    one = record("A", 0, {})
    store.write(one)
    assert store.verification(one) is None
    store.write_verification(one, Verification("h", "stale", "because", True, [1.0]))
    found = store.verification(one)
    assert found is not None
    assert found.verdict == "stale"
    assert store.read_all("paper/item") == [one], "a verification is no record"
    store.write(one)
    assert store.verification(one) is None, "a new record has not been replayed"


def test_names_of_rows_become_names_of_files() -> None:
    assert slug("Full shared-QK, 1024") == "full-shared-qk-1024"
    assert slug("N=64 / S=16") == "n-64-s-16"
    assert slug("γ") == "row"
