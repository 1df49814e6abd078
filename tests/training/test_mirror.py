"""The mirrors in Weights & Biases and TensorBoard: the real packages, and a stand-in for what only fails online."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.config.settings import TrackerConfig
from efftx.reproduce.parallel import Task
from efftx.runs.run_directory import read_metrics
from efftx.study.sweeps import Run
from efftx.training import mirror
from efftx.training.mirror import MIRROR_FILE, TENSORBOARD_FOLDER, Mirrored, Tracker, identity

SMALL = ["model=reformer", "data=duplicate", "size=smoke", "threads=1"]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNS", "RESULTS", "DATA"):
        monkeypatch.setenv(f"EFFTX_{name}", str(tmp_path / name.lower()))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials of the machine's user


def written(folder: Path) -> list[object]:
    """The records in an offline folder's file; the service's process may be a little behind its last one, the exit."""
    for _ in range(150):
        records = list(on_disk(folder))
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.2)
    return records


def on_disk(folder: Path) -> Iterator[object]:
    """The records in an offline folder's file: blocks of 32 KiB, each record cut into chunks with a head of 7 bytes."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (file,) = folder.glob("*.wandb")
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a record in one chunk, or a record's last chunk
            record = pb.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(folder: Path) -> dict[int, dict[str, object]]:
    """Step -> what is logged of it."""
    steps = {}
    for record in written(folder):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            steps[items["_step"]] = items
    return steps


def head(folder: Path) -> object:
    return next(record.run for record in written(folder) if record.WhichOneof("record_type") == "run")


def folders(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


def trained(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, object], str]:
    assert main(["train", *SMALL, *words, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


class Stopped(Tracker):
    def log(self, step, values):
        super().log(step, values)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped_at_step_4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("efftx.training.loop.Tracker", Stopped)
        assert main(["train", *SMALL, *words]) == 143
    capsys.readouterr()


# ---- the real package ------------------------------------------------------------------------------------------------


def test_offline_every_step_is_mirrored_and_it_is_said_how_to_send_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "mirrored"
    words = ["tracker.wandb=true", "tracker.entity=us", "tracker.group=g", "tracker.tags=[a,b]", f"run_dir={run}"]
    result, told = trained(capsys, *words)
    (folder,) = folders(run)
    assert f"`wandb sync {folder}`" in told
    about = head(folder)
    assert (about.entity, about.project, about.run_group, list(about.tags)) == ("us", "efftx", "g", ["a", "b"])
    assert about.display_name == "mirrored"
    steps = history(folder)
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    assert {"loss", "grad_norm", "lr", "tokens_per_second", "memory_bytes"} <= set(steps[1])
    assert steps[6]["test_loss"] == result["metrics"]["loss"]
    assert {"valid_loss", "valid_accuracy"} <= set(steps[3])

    plain, _ = trained(capsys, f"run_dir={tmp_path / 'plain'}")
    assert plain["weights_sha256"] == result["weights_sha256"]
    assert plain["metrics"] == result["metrics"]
    assert plain["hash"] == result["hash"]


def test_a_run_that_goes_on_keeps_its_id_and_its_last_folder_holds_all_steps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    words = ["tracker.wandb=true", f"run_dir={tmp_path / 'run'}"]

    stopped_at_step_4(monkeypatch, capsys, words)
    result, told = trained(capsys, *words)
    assert result["resumed_from"] == 4
    first, last = folders(tmp_path / "run")
    assert f"`wandb sync {last}`" in told
    assert head(first).run_id == head(last).run_id
    before, after = history(first), history(last)
    assert (sorted(before), sorted(after)) == ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6])
    for step, values in before.items():
        same = {key for key in values if not key.startswith("_") and key != "memory_bytes"}
        assert {"loss", "tokens_per_second"} <= same
        assert {key: after[step][key] for key in same} == {key: values[key] for key in same}


def test_reproduce_mirrors_every_training_under_its_item_and_the_record_does_not_know(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    words = ["reformer/table2", "--row", "Full", "size=smoke", "seeds=0", "tracker.wandb=true"]
    assert main(["reproduce", *words, "tracker.tags=[x]"]) == 0, capsys.readouterr().err
    (folder,) = (tmp_path / "runs").glob("*/wandb/offline-run-*")
    about = head(folder)
    assert (about.run_group, list(about.tags)) == ("reformer/table2", ["x"])
    (record,) = (tmp_path / "results").rglob("*seed0*.json")
    assert json.loads(record.read_text())["config"]["tracker"]["wandb"] is False


def test_a_slip_in_reproduces_tracker_is_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words in (["tracker.project=x"], ["tracker.wandb=maybe"], ["tracker.wand=true"]):
        assert main(["reproduce", "reformer/table2", "size=smoke", *words]) == 2
        assert "tracker." in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_process_of_its_own_mirrors_as_its_parent_was_told() -> None:
    command = Task("a/b", Run("r", 0, "cpu"), True, ("tracker.wandb=true",)).command()
    assert "tracker.wandb=true" in command
    assert command[-1] == "--stale"


def test_disabled_is_off(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail, and be told
    _, told = trained(capsys, "tracker.wandb=true", f"run_dir={tmp_path / 'run'}")
    assert "wandb" not in told
    assert not (tmp_path / "run" / "wandb").exists()


def test_two_directories_of_one_config_never_share_an_id(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert identity(one, "abc") == identity(one, "abc")
    assert len({identity(one, "abc"), identity(two, "abc"), identity(one, "abd")}) == 3
    moved = one.rename(tmp_path / "moved")
    was = identity(moved, "abc")
    (moved / MIRROR_FILE).write_text("damaged")
    assert identity(moved, "abc") != was


# ---- what fails ------------------------------------------------------------------------------------------------------


class FakeWandb(types.ModuleType):
    def __init__(self, logged_in=False, fail_at=None):
        super().__init__("wandb")
        self.logged_in, self.Settings = logged_in, types.SimpleNamespace
        self.fail_at, self.started, self.logged, self.finished = fail_at, [], [], []
        self.step, self.offline, self.dir = 0, True, "/somewhere/offline-run/files"

    def login(self, prompt):
        assert prompt is False  # nobody is there to be asked
        if self.fail_at == "login":
            raise ConnectionError("no network")
        return self.logged_in

    def init(self, **arguments):
        self.started.append(arguments)
        if self.fail_at == "init" or (self.fail_at == "online" and arguments["mode"] == "online"):
            raise ConnectionError("no network")
        self.offline = arguments["mode"] == "offline"
        return self

    def log(self, values, step):
        if self.fail_at == "log":
            raise RuntimeError("lost")
        self.logged.append((step, values["loss"]))

    def finish(self, exit_code):
        if self.fail_at == "finish":
            raise RuntimeError("lost")
        self.finished.append(exit_code)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of all that TensorBoard reads from the run's event files."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(run / TENSORBOARD_FOLDER))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_reads_every_step_and_no_result_depends_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    plain, _ = trained(capsys, f"run_dir={tmp_path / 'plain'}")
    result, err = trained(capsys, f"run_dir={tmp_path / 'mirrored'}", "tracker.tensorboard=true")
    assert [result[key] for key in ("hash", "weights_sha256")] == [plain[key] for key in ("hash", "weights_sha256")]
    lines = read_metrics(tmp_path / "mirrored")
    losses = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines if "loss" in line]
    found = scalars(tmp_path / "mirrored")
    assert losses
    assert found["loss"] == losses
    assert "memory_bytes" in found
    assert "Traceback" not in err
    assert "nothing is mirrored" not in err
    again, err = trained(capsys, f"run_dir={tmp_path / 'plain'}", "tracker.tensorboard=true")
    assert again["weights_sha256"] == plain["weights_sha256"]
    assert "nothing is mirrored" in err


def test_a_resumed_run_has_every_step_once_in_tensorboard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    words = ["tracker.tensorboard=true", f"run_dir={tmp_path / 'run'}"]
    stopped_at_step_4(monkeypatch, capsys, words)
    assert [step for step, _ in scalars(tmp_path / "run")["loss"]] == [1, 2, 3, 4]
    trained(capsys, *words)
    assert [step for step, _ in scalars(tmp_path / "run")["loss"]] == [1, 2, 3, 4, 5, 6]


def test_an_absent_tensorboard_is_told_once_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    result, err = trained(capsys, f"run_dir={tmp_path / 'run'}", "tracker.tensorboard=true")
    assert result["step"] == 6
    assert err.count("tensorboard: ") == 1
    assert "metrics go on in the run directory alone" in err


def test_tensorboard_is_not_even_imported_when_off() -> None:
    code = "import sys, efftx.training.loop; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def track(monkeypatch, tmp_path, wandb, *, on=True):
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (tmp_path / "run-1").mkdir(exist_ok=True)
    said = []
    config = TrackerConfig(wandb=on)
    with Tracker(config, Mirrored(tmp_path / "run-1", "abc", {"seed": 0}), said.append) as tracker:
        tracker.log(1, {"loss": 2.0})
        tracker.log(2, {"loss": 1.0})
        tracker.finish()
    return said


def test_wandb_is_not_even_imported_when_off(monkeypatch, tmp_path):
    assert track(monkeypatch, tmp_path, None, on=False) == []  # None in sys.modules makes an import fail


@pytest.mark.parametrize(("logged_in", "mode"), [(False, "offline"), (True, "online")])
def test_the_mirror_is_offline_unless_logged_in(monkeypatch, tmp_path, logged_in, mode):
    wandb = FakeWandb(logged_in)
    said = track(monkeypatch, tmp_path, wandb)
    assert wandb.started[0]["mode"] == mode
    assert wandb.logged == [(1, 2.0), (2, 1.0)]
    assert wandb.finished == [0]
    assert bool(said) == (mode == "offline")


def test_the_mode_in_the_environment_wins(monkeypatch, tmp_path):
    wandb = FakeWandb(logged_in=True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    track(monkeypatch, tmp_path, wandb)
    assert wandb.started[0]["mode"] == "offline"


@pytest.mark.parametrize("fail_at", ["login", "online"])
def test_a_service_out_of_reach_is_told_and_the_mirror_is_offline(monkeypatch, tmp_path, fail_at):
    wandb = FakeWandb(logged_in=True, fail_at=fail_at)
    said = track(monkeypatch, tmp_path, wandb)
    assert "no network; the mirror is offline" in said[0]
    assert wandb.started[-1]["mode"] == "offline"
    assert len(wandb.logged) == 2
    assert "wandb sync /somewhere/offline-run" in said[-1]


def test_the_mirror_writes_nothing_on_the_terminal(monkeypatch, tmp_path):
    wandb = FakeWandb()
    track(monkeypatch, tmp_path, wandb)
    settings = vars(wandb.started[0]["settings"])
    assert (settings["silent"], settings["console"]) == (True, "off")


def test_an_online_run_logs_no_step_again_that_the_service_knows(monkeypatch, tmp_path):
    monkeypatch.setattr(mirror, "_logged", lambda run: [(step, {"loss": float(step)}) for step in range(1, 6)])
    wandb = FakeWandb(logged_in=True)
    wandb.step = 4
    track(monkeypatch, tmp_path, wandb)
    assert wandb.logged[:2] == [(4, 4.0), (5, 5.0)]


@pytest.mark.parametrize("fail_at", ["init", "log", "finish"])
def test_a_failure_of_wandb_is_told_once_and_stops_nothing(monkeypatch, tmp_path, fail_at):
    said = track(monkeypatch, tmp_path, FakeWandb(fail_at=fail_at))
    assert len(said) == 1
    assert said[0].startswith("wandb: ")
    assert "metrics go on" in said[0]


def test_an_absent_wandb_is_told_once(monkeypatch, tmp_path):
    assert len(track(monkeypatch, tmp_path, None)) == 1


@pytest.mark.parametrize(("error", "code"), [(None, 0), (ValueError("x"), 1)])
def test_a_training_that_fails_ends_its_mirror_as_failed(monkeypatch, tmp_path, error, code):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = Tracker(TrackerConfig(wandb=True), Mirrored(tmp_path, "a", {}), lambda text: None)
    tracker.__exit__(None, error, None)
    assert wandb.finished == [code]
