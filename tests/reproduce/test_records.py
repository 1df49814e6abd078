from __future__ import annotations

import json
from pathlib import Path

import pytest

from efftx.errors import UserError
from efftx.reproduce.records import RecordStore, Verification, slug, write_json

from .fakes import record


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
    with pytest.raises(ValueError, match="JSON"):
        store.write(record("A", 0, {"x": float("nan")}))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_two_writes_of_the_same_record_are_the_same_bytes(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 0, {"x": 1.0, "y": 2.0}))
    before = path.read_bytes()
    store.write(record("A", 0, {"y": 2.0, "x": 1.0}))
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"unheard": 1}', ""])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 0, {}))
    path.write_text(text)
    with pytest.raises(UserError, match=r"a-seed0\.json") as damaged:
        store.read_all("paper/item")
    assert damaged.value.kind == "damaged_record"


def test_a_record_that_lacks_a_field_is_damaged_too(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record("A", 0, {}))
    content = json.loads(path.read_text())
    del content["hash"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="hash"):
        store.read_all("paper/item")


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


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []
