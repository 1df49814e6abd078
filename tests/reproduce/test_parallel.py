"""Trainings side by side: each row in a process of its own, a failure told, a signal passed on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.errors import Interrupted, UserError
from efftx.reproduce import parallel
from efftx.reproduce.parallel import Task, run_tasks
from efftx.study.experiments import load_experiments, narrow, select
from efftx.study.sweeps import Run, planned


def tasks(count: int) -> list[Task]:
    return [Task("paper/item", Run(f"row {i}", i, "smoke"), False) for i in range(count)]


def answer_with(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Every task runs `script` in place of efftx, with its seed as the argument."""
    monkeypatch.setattr(Task, "command", lambda self: [sys.executable, "-c", script, str(self.run.seed)])


def test_the_outcomes_come_in_the_order_of_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(
        monkeypatch,
        "import json, sys; print(json.dumps({'items': [{'ran': int(sys.argv[1]), 'skipped': 0, 'failures': []}]}))",
    )
    assert [outcome["ran"] for outcome in run_tasks(tasks(3), jobs=2)] == [0, 1, 2]


def test_a_process_without_an_answer_is_a_failure_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "print('Killed')")
    (outcome,) = run_tasks(tasks(1), jobs=2)
    assert outcome["failures"][0]["row"] == "row 0"


def test_a_mistake_told_by_a_process_is_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, 'print(\'{"error": {"message": "no such row"}}\')')
    (outcome,) = run_tasks(tasks(1), jobs=2)
    assert outcome["failures"][0]["message"] == "no such row"


def test_what_a_process_says_of_its_progress_is_told_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says = "print('LSH-4, seed', sys.argv[1], sys.stderr.isatty(), file=sys.stderr)"
    answer_with(
        monkeypatch, f'import sys; {says}; print(\'{{"items": [{{"ran": 1, "skipped": 0, "failures": []}}]}}\')'
    )
    assert [outcome["ran"] for outcome in run_tasks(tasks(2), jobs=2)] == [1, 1]
    told = capsys.readouterr().err.splitlines()
    assert sorted(line for line in told if "LSH" in line) == ["LSH-4, seed 0 False", "LSH-4, seed 1 False"]
    assert [line for line in told if "done" in line] == ["1 of 2 runs done", "2 of 2 runs done"]


@pytest.mark.parametrize("code", ["sys.exit(143)", "sys.exit(130)", "os.kill(os.getpid(), 15)"])
def test_a_run_that_was_stopped_is_not_told_as_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    answer_with(monkeypatch, f"import os, sys; {code}")
    with suppress(Interrupted):
        run_tasks(tasks(2), jobs=2)
    assert "done" not in capsys.readouterr().err


def test_one_stopped_by_a_signal_stops_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, 'import sys; print(\'{"error": {"message": "stopped"}}\'); sys.exit(143)')
    with pytest.raises(Interrupted) as stopped:
        run_tasks(tasks(2), jobs=2)
    assert stopped.value.exit_code == 143


def test_one_that_was_stopped_stops_those_beside_it_and_starts_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = f"import pathlib, sys, time; pathlib.Path({str(tmp_path)!r}, sys.argv[1]).touch(); "
    script += "time.sleep(300 if int(sys.argv[1]) else 0.5); sys.exit(130)"
    answer_with(monkeypatch, script)
    with pytest.raises(Interrupted) as stopped:
        run_tasks(tasks(3), jobs=2)
    assert stopped.value.exit_code == 130
    assert {file.name for file in tmp_path.iterdir()} == {"0", "1"}


@pytest.mark.parametrize("ends", ["sys.exit(0)", "os.kill(os.getpid(), 15)"])
def test_a_signal_ends_the_command_however_its_processes_end(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """A training that is told to stop while it is evaluated, or while it still imports torch."""
    # The first of them signals this process, which by then listens.
    script = "import os, sys, time; sys.argv[1] == '0' and os.kill(os.getppid(), 15); time.sleep(0.5)"
    answer_with(monkeypatch, f"{script}; {ends}")
    monkeypatch.setattr(subprocess.Popen, "send_signal", lambda self, number: None)
    with pytest.raises(Interrupted) as stopped:
        run_tasks(tasks(3), jobs=2)
    assert stopped.value.exit_code == 143


def test_a_process_that_was_killed_is_one_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    assert [len(outcome["failures"]) for outcome in run_tasks(tasks(2), jobs=1)] == [1, 1]


def test_no_task_starts_once_the_pool_is_stopped() -> None:
    workers = parallel._WorkerPool()
    workers.stop(143)
    assert workers.run(tasks(1)[0])["ran"] == 0


def test_a_signal_while_the_pool_is_being_stopped_stops_it_too() -> None:
    workers = parallel._WorkerPool()

    def interrupted_stop() -> None:
        with workers.lock:
            workers.stop(143)

    stopping = threading.Thread(target=interrupted_stop, daemon=True)
    stopping.start()
    stopping.join(timeout=5.0)
    assert not stopping.is_alive()


def test_an_experiment_is_narrowed_to_the_rows_that_are_asked_for() -> None:
    chosen = select(load_experiments(), ["reformer/table2", "reformer/figure1"])
    (narrowed,) = narrow(chosen, ["LSH-4"])
    assert (narrowed.id, {run.row for run in planned(narrowed, "cpu")}) == ("reformer/table2", {"LSH-4"})
    with pytest.raises(UserError, match="LSH-5") as caught:
        narrow(chosen, ["LSH-5"])
    assert "LSH-" in caught.value.hint


def test_two_rows_of_a_table_run_side_by_side_and_give_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "reformer/table2", "--row", "Full", "--row", "LSH-1", "size=smoke", "--json"]
    records = {}
    for jobs in (1, 2):
        monkeypatch.setenv("EFFTX_RESULTS", str(tmp_path / f"results{jobs}"))
        monkeypatch.setenv("EFFTX_RUNS", str(tmp_path / f"runs{jobs}"))
        assert main([*words, f"jobs={jobs}"]) == 0
        (line,) = json.loads(capsys.readouterr().out)["items"]
        assert (line["ran"], line["skipped"], line["failed"]) == (2, 0, 0)
        files = sorted((tmp_path / f"results{jobs}" / "records").rglob("*.json"))
        read = [json.loads(file.read_text()) for file in files]
        records[jobs] = {
            (r["row"], key, column): value
            for r in read
            for key in ("hash", "first_losses", "metrics")
            for column, value in (r[key].items() if key == "metrics" else [("", r[key])])
        }
    assert records[1].keys() == records[2].keys()
    differing = {where: (value, records[2][where]) for where, value in records[1].items() if value != records[2][where]}
    assert not differing
