"""What goes wrong in one process is told once, ends all of them, and costs no checkpoint."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.commands import COMMANDS
from efftx.runs.checkpoint import load_latest
from efftx.runs.run_directory import read_metrics, read_result
from tests.processes import wait_until

from .launched import free_port, torchrun

WORDS = ("model=transformer", "data=duplicate", "size=smoke", "threads=1", "training.batch_size=4")
LONG = ("training.steps=100000", "checkpoint.every=5", "evaluation.every=0")
TEXT = "The quick brown fox jumps over the lazy dog. " * 400


class Group:
    """The processes of one training, started one by one: each may have an environment and limits of its own."""

    def __init__(
        self,
        words: Sequence[str],
        each: Sequence[Mapping[str, str]] = ({}, {}),
        limits: Sequence[Callable[[], object] | None] = (None, None),
    ) -> None:
        port = str(free_port())
        common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(each))}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "efftx", "train", *words],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), **own},
                preexec_fn=limit,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank, (own, limit) in enumerate(zip(each, limits, strict=True))
        ]

    def ended(self) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each."""
        found = []
        for process in self.processes:
            out, err = process.communicate(timeout=240)
            found.append((process.returncode, out, err))
        return found


def checkpoint_of(run: Path) -> Path | None:
    return next(iter(sorted((run / "checkpoints").glob("step-????????"))), None)


@pytest.mark.slow
def test_torchrun_shows_and_writes_everything_once(tmp_path: Path) -> None:
    words = [*WORDS, "training.steps=6", f"run_dir={tmp_path / 'run'}"]
    first = torchrun(words)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("training time") == 1
    assert len(re.findall(r"\b1/6\b", first.stderr)) == 1
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]
    told = "2 processes: what is drawn at random (dropout, hashing) is drawn as with training.batch_size=2"
    assert first.stderr.count(told) == 1
    again = torchrun([*words, "--json"])
    assert json.loads(again.stdout)["step"] == json.loads(again.stdout)["resumed_from"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "strategy"), [(0, "fsdp"), (1, "ddp")])
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(
    killed: int, strategy: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [*WORDS, *LONG, f"run_dir={run}", f"distributed.strategy={strategy}"]
    group = Group(words)
    wait_until(lambda: checkpoint_of(run))
    group.processes[killed].kill()
    ends = group.ended()
    code, _, err = ends[1 - killed]
    assert ends[killed][0] == -signal.SIGKILL
    assert code == 1
    assert "another process of this training has ended" in err
    assert "the same command goes on from the last checkpoint" in err
    assert "Traceback" not in err
    found = load_latest(run / "checkpoints")
    assert found is not None
    again = Group(words)
    wait_until(lambda: len(read_metrics(run)) > found.step + 5 if (run / "metrics.jsonl").exists() else False)
    for process in again.processes:
        process.send_signal(signal.SIGTERM)
    (code, _, err), (other, _, other_err) = again.ended()
    assert code == other == 143
    assert f"going on from step {found.step}" in err
    assert "Stopped at step" in err
    assert "Stopped" not in other_err
    steps = [line["step"] for line in read_metrics(run)]
    assert steps == [*range(1, len(steps) + 1)]


@pytest.mark.slow
def test_a_process_without_the_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "here" / f"{split}.txt").write_text(TEXT)
    places = [{"WHERE": str(tmp_path / name)} for name in ("here", "not-here")]
    words = ["model=transformer", "data=text", "size=smoke", "threads=1", "training.batch_size=4"]
    words += ["data.path='${oc.env:WHERE}'", f"run_dir={tmp_path / 'run'}"]
    (code, _, err), (other, _, other_err) = Group(words, places).ended()
    assert code == other == 2
    assert "Process 1 of 2: " in err
    assert str(tmp_path / "not-here") in err
    assert other_err.strip() == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_other_data_are_refused(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for split in ("train", "valid", "test"):
            (tmp_path / name / f"{split}.txt").write_text(TEXT + name)
    places = [{"WHERE": str(tmp_path / name)} for name in ("here", "there")]
    words = ["model=transformer", "data=text", "size=smoke", "threads=1", "training.batch_size=4"]
    words += ["data.path='${oc.env:WHERE}'", f"run_dir={tmp_path / 'run'}"]
    (code, _, err), (other, _, other_err) = Group(words, places).ended()
    assert code == other == 2
    assert "Process 1 of 2 reads other data" in err
    assert other_err.strip() == ""


def small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "full"), [("ddp", 0), ("fsdp", 1)])
def test_a_full_disk_of_one_process_is_told_once_and_leaves_nothing_half_written(
    strategy: str, full: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    limits = [small_files if rank == full else None for rank in (0, 1)]
    words = [*WORDS, "training.steps=6", f"run_dir={run}", f"distributed.strategy={strategy}"]
    (code, _, err), (other, _, other_err) = Group(words, limits=limits).ended()
    assert code == other == 2, err + other_err
    assert "File too large" in err
    assert "Traceback" not in err
    assert other_err.strip() == ""
    assert [*(run / "checkpoints").iterdir()] == []
    assert [end[0] for end in Group(words).ended()] == [0, 0]
    assert read_result(run) is not None


@pytest.mark.slow
def test_two_trainings_of_one_directory_are_refused_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*WORDS, *LONG, f"run_dir={run}"]
    first = Group(words)
    wait_until(lambda: checkpoint_of(run))
    (code, _, err), (other, _, other_err) = Group(words).ended()
    assert code == other == 2
    assert "is in use by process" in err
    assert other_err.strip() == ""
    first.processes[0].send_signal(signal.SIGTERM)  # one of them is told, and both stop
    assert [end[0] for end in first.ended()] == [143, 143]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["training.batch_size=3"], 2, "2 processes cannot share 1 micro-batches of 3 rows evenly"),
        (["optimizer.lr=1e30", "training.steps=30"], 3, "gave loss"),
        (["distributed.strategy=fspd"], 2, "Did you mean 'fsdp'?"),
    ],
)
def test_what_all_processes_find_is_told_by_one(words: list[str], code: int, says: str, tmp_path: Path) -> None:
    (first, out, err), (second, other_out, other_err) = Group([*WORDS, *words, f"run_dir={tmp_path / 'run'}"]).ended()
    assert first == second == code
    assert says in err
    assert "Traceback" not in err
    assert out == other_out == other_err.strip() == ""


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if not command.distributed])
def test_no_other_command_is_started_several_times(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command]) == 2
    assert "WORLD_SIZE=2" in capsys.readouterr().err


def test_processes_that_were_not_started_by_torchrun_are_told_how(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", *WORDS]) == 2
    err = capsys.readouterr().err
    assert "RANK is not set" in err
    assert "torchrun" in err


EARLY_END = """
import sys, time
from datetime import timedelta
from efftx import cli
from efftx.distributed import processes

processes.LONGEST_MEETING = timedelta(seconds=5)
if sys.argv[1] == "before":
    sys.exit(cli.main(["train", *sys.argv[2:]]))
honest = processes.other_group
def ending(found):
    import os
    if found.rank == 1:
        os._exit(9)
    return honest(found)
import efftx.runs.saver
efftx.runs.saver.other_group = ending
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_process_that_ends_before_a_group_has_met_does_not_hold_the_others(when: str, tmp_path: Path) -> None:
    """The second is never started, or ends between the first group and that of the thread that writes checkpoints."""
    words = [*WORDS, "checkpoint.asynchronous=true", f"run_dir={tmp_path / 'run'}"]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", EARLY_END, when, *words],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(1 if when == "before" else 2)
    ]
    _, err = started[0].communicate(timeout=120)
    assert "Traceback" not in err
    assert started[0].returncode == (2 if when == "before" else 1), err
    assert ("do not meet" if when == "before" else "another process of this training has ended") in err
    for other in started[1:]:
        other.communicate(timeout=120)
        assert other.returncode == 9
