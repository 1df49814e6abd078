"""Two `efftx reproduce` on one store: each row is run once, and what one has at hand the other leaves to it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from efftx.errors import UserError
from efftx.reproduce import runner, sharing
from efftx.reproduce.sharing import holding
from efftx.study.experiment import Experiment
from efftx.study.experiments import read_experiment
from efftx.study.records import RecordStore
from efftx.training.loop import TrainResult

from ..processes import children_of, is_gone, wait_until
from .fakes import FakeConfig, FakeTrainer, reproduce
from .test_runner import TABLE, quiet


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "results")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "item.yaml").write_text(TABLE)
    return read_experiment(tmp_path / "item.yaml")


class Meanwhile(FakeTrainer):
    """Does `then` while the first row is trained: what another process does at that time."""

    then: Callable[[], Any]

    def train(self, config: FakeConfig, *args: Any, **kwargs: Any) -> TrainResult:
        if not self.trained:
            self.trained.append(("", 0, None))
            self.then()
        return super().train(config, *args, **kwargs)


def test_a_row_that_another_process_has_at_hand_is_left_to_it(experiment: Experiment, store: RecordStore) -> None:
    other, trainer = FakeTrainer(), Meanwhile()
    # The other waits at its end for the row that is trained here, so that it is given only the rest.
    trainer.then = lambda: _without_waiting(
        lambda: reproduce([experiment], "cpu", say=quiet, store=store, trainer=other)
    )
    (line,) = reproduce([experiment], "cpu", say=quiet, store=store, trainer=trainer)
    assert [what for what in trainer.trained if what[0]] == [("A", 0, None)]
    assert other.trained == [("A", 1, None), ("B", 0, None), ("B", 1, None)]
    assert (line["ran"], line["skipped"], line["failed"]) == (1, 3, 0)
    assert len(list(store.read_all("paper/item"))) == 4


class _WouldWaitError(Exception):
    pass


def _without_waiting(run: Callable[[], Any]) -> None:
    """`run` up to where it would wait for another process."""

    def held(*where: Any, wait: bool) -> Any:
        if wait:
            raise _WouldWaitError
        return holding(*where, wait=wait)

    with pytest.MonkeyPatch.context() as patch, suppress(_WouldWaitError):
        patch.setattr(runner, "holding", held)
        run()


def test_a_run_directory_in_use_is_waited_for(
    experiment: Experiment, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    class Busy(FakeTrainer):
        def train(self, config: FakeConfig, *args: Any, **kwargs: Any) -> TrainResult:
            if config.keys["row"] == "A" and config.seed == 0:
                tries.append("A")
                if len(tries) < 4:
                    raise UserError("run_in_use", "run directory x is in use by process 1.")
            return super().train(config, *args, **kwargs)

    monkeypatch.setattr(runner, "LOOK_AGAIN", 0.001)
    trainer = Busy()
    (line,) = reproduce([experiment], "cpu", say=quiet, store=store, trainer=trainer)
    assert len(tries) == 4
    assert trainer.trained == [("A", 1, None), ("B", 0, None), ("B", 1, None), ("A", 0, None)]
    assert (line["ran"], line["failed"]) == (4, 0)


def test_a_run_directory_in_use_is_set_aside_when_it_is_free_and_only_then(
    experiment: Experiment, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce([experiment], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    told: list[str] = []

    class Busy(FakeTrainer):
        def set_aside(self, config: FakeConfig, *args: Any, **kwargs: Any) -> None:
            if config.keys["row"] == "A" and config.seed == 0 and told.count("busy") < 3:
                told.append("busy")
                raise UserError("run_in_use", "run directory x is in use by process 1.")
            super().set_aside(config, *args, **kwargs)

    monkeypatch.setattr(runner, "LOOK_AGAIN", 0.001)
    trainer = Busy(offset=1.0)
    reproduce([experiment], "cpu", verify=True, say=quiet, store=store, trainer=trainer)
    (line,) = reproduce([experiment], "cpu", stale=True, say=quiet, store=store, trainer=trainer)
    assert (line["ran"], line["failed"], trainer.aside) == (4, 0, 4)
    assert told == ["busy"] * 3


# ---- real processes

WORDS = ["reproduce", "reformer/table2", "--row", "Full", "--row", "LSH-1", "size=smoke", "seeds=0", "--json"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    roots = {"EFFTX_RESULTS": str(folder / "results"), "EFFTX_RUNS": str(folder / "runs")}
    command = [sys.executable, "-m", "efftx", *WORDS, *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **roots}
    )


def test_two_processes_on_one_store_record_every_row_once(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    told = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    lines = [json.loads(out)["items"][0] for out, _ in told]
    assert sum(line["ran"] for line in lines) == 2
    assert sum(line["skipped"] for line in lines) == 2
    assert len(list((tmp_path / "results" / "records").rglob("*.json"))) == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_two_of_four_processes_on_one_store_are_killed_and_nothing_is_lost_or_run_twice(tmp_path: Path) -> None:
    words = ("--row", "LSH-2", "--row", "LSH-4")
    four = [start(tmp_path, *words) for _ in range(4)]
    wait_until(lambda: list((tmp_path / "runs").glob("*/owner.json")))
    for process in four[:2]:
        process.kill()
    told = [process.communicate(timeout=400) for process in four]
    assert [process.returncode for process in four[2:]] == [0, 0], told
    lines = [json.loads(out)["items"][0] for out, _ in told[2:]]
    records = sorted((tmp_path / "results" / "records").rglob("*.json"))
    assert len(records) == 4
    by_the_killed = 4 - sum(line["ran"] for line in lines)
    assert 0 <= by_the_killed <= 2, "each had one row at hand, and may have come to its end"
    assert sum(line["skipped"] for line in lines) == 4 + by_the_killed
    assert not RecordStore(tmp_path / "results").damaged(["reformer/table2"])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_no_training_outlives_a_killed_reproduce(tmp_path: Path) -> None:
    parent = start(tmp_path, "jobs=2")
    children = wait_until(lambda: len(found := children_of(parent.pid)) == 2 and found)
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    wait_until(lambda: all(is_gone(pid) for pid in children))
    assert not (tmp_path / "results" / "records").exists(), "they were ended, and had not come to their own end"


@pytest.mark.parametrize("verify", [False, True])
def test_a_store_that_cannot_be_written_is_said_once_before_anything_is_run(
    experiment: Experiment, store: RecordStore, verify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if verify:
        reproduce([experiment], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    monkeypatch.setattr(sharing.tempfile, "TemporaryFile", _read_only)
    trainer, said = FakeTrainer(), list[str]()
    with pytest.raises(UserError, match=r"cannot write under .*results: Read-only file system") as caught:
        reproduce([experiment], "cpu", verify=verify, say=said.append, store=store, trainer=trainer)
    assert "EFFTX_RESULTS" in caught.value.hint
    assert (trainer.trained, said) == ([], [])


def test_a_store_that_lacks_nothing_need_not_be_writable(
    experiment: Experiment, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce([experiment], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    monkeypatch.setattr(sharing.tempfile, "TemporaryFile", _read_only)
    (line,) = reproduce([experiment], "cpu", say=quiet, store=store, trainer=FakeTrainer())
    assert (line["skipped"], line["failed"]) == (4, 0)


def _read_only(**_: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
