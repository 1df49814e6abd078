"""The cache of compositions: what it gives is what composing gives, and no state of it changes an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from efftx.config import compositions
from efftx.config.compose import compose
from efftx.config.compositions import composed
from efftx.core.cache import cache_root
from efftx.study.experiments import load_experiments

WORDS = ["model=terraformer", "data=stdlib", "size=smoke", "optimizer.lr=3e-4", "attention=[full,lsh]"]


class Composer:
    """Composes, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, overrides: Sequence[str]) -> Any:
        self.asked += 1
        return compose(overrides)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compositions._folder.cache_clear()
    return tmp_path / "cache"


def files() -> list[Path]:
    return sorted(path for path in cache_root().rglob("*") if path.is_file())


def test_what_is_read_is_what_was_composed() -> None:
    composer = Composer()
    first, again = composed(WORDS, composer), composed(WORDS, composer)
    assert composer.asked == 1
    assert again == first == compose(WORDS)
    assert again is not first
    assert [type(getattr(again, f.name)) for f in fields(first)] == [
        type(getattr(first, f.name)) for f in fields(first)
    ]
    assert type(again.data) is type(first.data)


def test_every_experiment_is_read_as_it_is_composed() -> None:
    for experiment in load_experiments().values():
        if experiment.kind == "train":
            size = experiment.sizes_known()[-1]
            words = experiment.row_overrides(next(iter(experiment.rows_at(size))), size)
            assert composed(words, compose) == composed(words, compose) == compose(words), experiment.id
    assert len(files()) > 3


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b'{"model": "reformer"}', b"[" * 200_000])
def test_a_damaged_file_is_made_anew(damage: bytes) -> None:
    composer = Composer()
    first = composed(WORDS, composer)
    (file,) = files()
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert composed(WORDS, composer) == first
    assert composer.asked == 2
    assert file.read_bytes() == whole


def test_a_flipped_bit_is_noticed() -> None:
    composer = Composer()
    first = composed(WORDS, composer)
    (file,) = files()
    data = bytearray(file.read_bytes())
    at = data.index(b"0.0003") + 5
    data[at] ^= 1
    file.write_bytes(data)
    assert composed(WORDS, composer) == first
    assert composer.asked == 2


def test_a_cache_that_cannot_be_written_is_as_none(own_cache: Path) -> None:
    own_cache.write_text("a file in its place")
    assert composed(WORDS, compose) == compose(WORDS)


@pytest.mark.parametrize("word", ["dropout=${oc.env:RATE}", "++dropout=${oc.env:RATE,0.3}"])
def test_what_reads_elsewhere_is_composed_each_time(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.1")
    composer = Composer()
    composed([*WORDS, word], composer)
    monkeypatch.setenv("RATE", "0.2")
    composed([*WORDS, word], composer)
    assert composer.asked == 2
    assert not files()


def test_no_experiment_is_composed_twice() -> None:
    for experiment in load_experiments().values():
        if experiment.kind == "train":
            size = experiment.usual_size()
            words = experiment.row_overrides(next(iter(experiment.rows_at(size))), size)
            composer = Composer()
            assert composed(words, composer) == composed(words, composer)
            assert composer.asked <= 1, experiment.id


def test_other_code_or_another_tree_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compositions._folder()
    monkeypatch.setattr(compositions, "version", lambda package: "another")
    compositions._folder.cache_clear()
    assert compositions._folder() != before
    monkeypatch.undo()
    (tmp_path / "conf").mkdir()
    monkeypatch.setattr(compositions, "shipped", lambda name: tmp_path / "conf")
    compositions._folder.cache_clear()
    other = compositions._folder()
    (tmp_path / "conf" / "train.yaml").write_text("a: 1\n")
    compositions._folder.cache_clear()
    assert len({before, other, compositions._folder()}) == 3


def test_compositions_of_old_code_are_removed(tmp_path: Path) -> None:
    for number in range(20):
        (cache_root() / "compositions" / str(number)).mkdir(parents=True)
    composed(WORDS, compose)
    kept = list((cache_root() / "compositions").iterdir())
    assert len(kept) == 16
    assert compositions._folder() in kept
