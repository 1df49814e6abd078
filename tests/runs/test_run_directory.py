"""A run's directory: one owner, one config, metrics that a kill and a resume leave as they would have been."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from efftx.core import files
from efftx.core.artifact import Mark, seal_line
from efftx.core.files import DamagedFileError
from efftx.errors import UserError
from efftx.runs import run_directory
from efftx.runs.run_directory import (
    METRICS_FILE,
    RunDirectory,
    default_run_dir,
    read_config,
    read_metrics,
    read_result,
    read_timings,
    runs_root,
    set_aside,
)

CONFIG = {"model": "reformer", "seed": 0, "lsh": {"n_hashes": 4, "n_buckets": [8, 8]}}


def run_at(path, config=None, config_hash="a" * 64):
    return RunDirectory(path, CONFIG if config is None else config, config_hash)


def lines(path, name="metrics.jsonl"):
    found = [json.loads(line) for line in (path / name).read_text().splitlines()]
    assert all(line.pop("checksum") for line in found)
    return found


def write_lines(path, *contents):
    """A log as a run writes it; gives the bytes of its lines."""
    mark, written = Mark(), []
    for content in contents:
        line, mark = seal_line(content, mark)
        written.append(line)
    path.write_bytes(b"".join(written))
    return written


# ---- where -----------------------------------------------------------------------------------------------------------


def test_runs_live_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFTX_RUNS", str(tmp_path))
    assert runs_root() == tmp_path
    assert default_run_dir("reformer", "enwik8", "0123456789abcdef") == tmp_path / "reformer-enwik8-0123456789ab"


@pytest.mark.parametrize("value", [None, ""])
def test_runs_live_in_the_working_directory_otherwise(monkeypatch, value):
    monkeypatch.delenv("EFFTX_RUNS", raising=False)
    if value is not None:
        monkeypatch.setenv("EFFTX_RUNS", value)
    assert runs_root() == Path("runs")


# ---- the lock --------------------------------------------------------------------------------------------------------


def test_a_second_owner_is_told_who_is_there(tmp_path):
    with run_at(tmp_path / "run"):
        with pytest.raises(UserError) as caught, run_at(tmp_path / "run"):
            pass
        assert caught.value.kind == "run_in_use"
        assert str(os.getpid()) in caught.value.message
        assert socket.gethostname() in caught.value.message
    with run_at(tmp_path / "run"):
        pass


def test_a_run_is_set_aside_once_nobody_works_in_it(tmp_path):
    with run_at(tmp_path / "run"):
        with pytest.raises(UserError) as caught:
            set_aside(tmp_path / "run")
        assert caught.value.kind == "run_in_use"
        assert str(os.getpid()) in caught.value.message
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for _ in range(2):
        with run_at(tmp_path / "run") as run:
            run.log(1, {"loss": 1.0})
        set_aside(tmp_path / "run")
        assert [path.name for path in tmp_path.iterdir()] == ["run.stale"]
    set_aside(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run.stale"]


@pytest.mark.parametrize("begun", [False, True])
def test_an_error_leaves_a_new_directory_only_if_a_step_was_logged(tmp_path, begun):
    def fails():
        with run_at(tmp_path / "run") as run:
            if begun:
                run.log(1, {"loss": 1.0})
            raise UserError("bad_value", "it cannot be built")

    with pytest.raises(UserError):
        fails()
    assert (tmp_path / "run").exists() == begun


def test_an_error_leaves_a_directory_that_was_there(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError), run_at(tmp_path / "run"):
        raise UserError("bad_value", "it cannot be built")
    assert (tmp_path / "run" / "config.json").exists()


OWNER = """
import sys, time
from pathlib import Path
from efftx.runs.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1]), {}, "a" * 64) as run:
    run.log(1, {"loss": 1.0})
    print("ready", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_its_death_frees_the_run(tmp_path):
    path = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(UserError) as caught, run_at(path, {}):
                pass
            assert f"process {process.pid} " in caught.value.message
        finally:
            process.send_signal(signal.SIGKILL)
    with run_at(path, {}) as run:
        assert lines(path) == [{"step": 1, "loss": 1.0}]
        run.resume_at(None)
        assert lines(path) == []


def test_an_owner_who_has_not_yet_written_its_name_is_another_process(tmp_path):
    with run_at(tmp_path):
        (tmp_path / "owner.json").unlink()
        with pytest.raises(UserError) as caught, run_at(tmp_path):
            pass
        assert "another process" in caught.value.message


def test_an_error_inside_frees_the_run(tmp_path):
    with pytest.raises(RuntimeError), run_at(tmp_path):
        raise RuntimeError
    with run_at(tmp_path):
        pass
    assert not (tmp_path / "owner.json").exists()


# ---- the config ------------------------------------------------------------------------------------------------------


def test_the_config_is_written_once_and_read_back(tmp_path):
    with run_at(tmp_path):
        pass
    assert read_config(tmp_path) == (CONFIG, "a" * 64)
    with run_at(tmp_path, {**CONFIG, "run_dir": "elsewhere"}):  # the same hash: what differs cannot change a result
        pass
    assert read_config(tmp_path) == (CONFIG, "a" * 64)


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    with run_at(tmp_path):
        pass
    other = {"model": "reformer", "seed": 1, "lsh": {"n_hashes": 8, "n_buckets": [8, 8]}, "new": None}
    with pytest.raises(UserError) as caught, run_at(tmp_path, other, "b" * 64):
        pass
    assert caught.value.kind == "other_config"
    assert "seed=0 / 1" in caught.value.message
    assert "lsh.n_hashes=4 / 8" in caught.value.message
    assert "new=" in caught.value.message
    assert "n_buckets" not in caught.value.message
    assert "model" not in caught.value.message
    with run_at(tmp_path):  # the refusal left neither a lock nor another config
        assert read_config(tmp_path) == (CONFIG, "a" * 64)


def test_another_hash_of_the_same_keys_blames_the_data(tmp_path):
    with run_at(tmp_path):
        pass
    with pytest.raises(UserError) as caught, run_at(tmp_path, CONFIG, "b" * 64):
        pass
    assert "the data" in caught.value.message


@pytest.mark.parametrize("content", ["{", "[1]", "", "[" * 200_000, '{"config": {}, "hash": "a"}'])
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_damaged_config_or_result_is_one_message(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught, run_at(tmp_path):
        pass
    assert caught.value.kind == "damaged_file"


def test_a_directory_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught, run_at(tmp_path / "file" / "run"):
        pass
    assert caught.value.kind == "cannot_write"


def test_no_run_has_no_config_and_no_result(tmp_path):
    assert read_config(tmp_path / "absent") is None
    assert read_result(tmp_path / "absent") is None
    assert read_metrics(tmp_path / "absent") == []


# ---- metrics ---------------------------------------------------------------------------------------------------------


def log_steps(run, first, last):
    for step in range(first, last + 1):
        run.log(step, {"loss": 1 / (step + 1), "name": "train"})
        run.log_timing(step, {"seconds": os.getpid() / 7})


def test_a_line_is_on_its_way_as_soon_as_it_is_logged(tmp_path):
    with run_at(tmp_path) as run:
        run.log(1, {"loss": 0.1 + 0.2})
        assert lines(tmp_path) == [{"step": 1, "loss": 0.1 + 0.2}]


def test_a_killed_and_resumed_run_has_the_lines_of_one_never_stopped(tmp_path):
    with run_at(tmp_path / "whole") as run:
        log_steps(run, 1, 9)
    with run_at(tmp_path / "killed") as run:
        log_steps(run, 1, 4)
        marks = json.loads(json.dumps(run.sync()))  # as a checkpoint keeps them
        log_steps(run, 5, 6)
        with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
            file.write('{"step": 7, "lo')
    with run_at(tmp_path / "killed") as run:
        assert run.resume_at(marks) == []
        log_steps(run, 5, 9)
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert [line["step"] for line in lines(tmp_path / "killed", "timings.jsonl")] == list(range(1, 10))


def test_lines_that_the_checkpoint_knows_of_and_the_log_lacks_are_told(tmp_path):
    with run_at(tmp_path) as run:
        log_steps(run, 1, 5)
        marks = run.sync()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-1])  # the last line has lost its end
    (tmp_path / "timings.jsonl").unlink()
    with run_at(tmp_path) as run:
        metrics, timings = run.resume_at(marks)
        run.log(6, {})
    assert "metrics.jsonl was cut short: it lacks 1 of the 5 lines" in metrics
    assert "timings.jsonl was cut short: it lacks 5 of the 5 lines" in timings
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 6]


def test_the_log_of_another_run_is_noticed(tmp_path):
    with run_at(tmp_path) as run:
        log_steps(run, 1, 2)
        marks = run.sync()
    write_lines(tmp_path / "metrics.jsonl", {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25})
    with run_at(tmp_path) as run, pytest.raises(UserError, match=r"metrics\.jsonl is damaged: its lines are not"):
        run.resume_at(marks)


def test_what_was_logged_after_the_checkpoint_goes_even_at_its_own_step(tmp_path):
    with run_at(tmp_path) as run:
        log_steps(run, 1, 2)
        marks = run.sync()
        run.log(2, {"valid_loss": 1.0})
    with run_at(tmp_path) as run:
        assert run.resume_at(marks) == []
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_resume_from_nothing_starts_the_metrics_anew(tmp_path):
    with run_at(tmp_path) as run:
        log_steps(run, 0, 3)
    with run_at(tmp_path) as run:
        run.resume_at(None)
    assert lines(tmp_path) == lines(tmp_path, "timings.jsonl") == []


def test_a_kill_while_the_metrics_are_cut_loses_none(tmp_path, monkeypatch):
    with run_at(tmp_path) as run:
        log_steps(run, 1, 2)
        marks = run.sync()
        log_steps(run, 3, 5)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, run_at(tmp_path) as run:
        patch.setattr(os, "truncate", die)
        with pytest.raises(KeyboardInterrupt):
            run.resume_at(marks)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not list(tmp_path.glob(".metrics*"))


@pytest.mark.parametrize(
    "act",
    [
        lambda run: run.resume_at({"metrics.jsonl": asdict(Mark(3)), "timings.jsonl": {}}),
        lambda run: run.log(4, {}),
        lambda run: read_metrics(run.path),
    ],
)
def test_a_line_that_has_changed_is_named(tmp_path, act):
    first, second, third = write_lines(tmp_path / "metrics.jsonl", {"step": 1}, {"step": 2}, {"step": 3})
    (tmp_path / "metrics.jsonl").write_bytes(first + second.replace(b"2", b"3", 1) + third)
    with run_at(tmp_path) as run, pytest.raises(UserError) as caught:
        act(run)
    assert caught.value.kind == "damaged_file"
    assert "line 2" in caught.value.message


def test_what_json_cannot_hold_becomes_null(tmp_path):
    with run_at(tmp_path) as run:
        run.log(1, {"loss": float("nan"), "curve": [float("inf"), 1.0], "nested": {"x": float("-inf")}})
    assert lines(tmp_path) == [{"step": 1, "loss": None, "curve": [None, 1.0], "nested": {"x": None}}]


def test_metrics_are_read_without_a_torn_end(tmp_path):
    whole, torn = write_lines(tmp_path / "metrics.jsonl", {"step": 1, "loss": 2.0}, {"step": 2})
    (tmp_path / "metrics.jsonl").write_bytes(whole + torn[:9])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_run_that_ends_while_its_log_is_read_has_lost_nothing(tmp_path, monkeypatch):
    with run_at(tmp_path) as run:
        run.log(0, {"loss": 0})
        read = run_directory.read_log

        def ends_behind_the_first_line(*given, **rest):
            for line in read(*given, **rest):
                yield line
                if run.result is None:
                    run.log(1, {"loss": 1})
                    run.finish({"step": 2})

        monkeypatch.setattr(run_directory, "read_log", ends_behind_the_first_line)
        assert next(line["step"] for line in read_metrics(tmp_path)) == 0


def test_a_finished_run_misses_lines_that_its_logs_have_lost(tmp_path):
    with run_at(tmp_path) as run:
        for step in range(4):
            run.log(step, {"loss": step})
        run.finish({"step": 4})
    log = tmp_path / METRICS_FILE
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (whole[:-1] + b"\x0b", b"".join(lines[:2]), whole[:-1]):
        log.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match="of the 4 lines that the result knows of"):
            read_metrics(tmp_path)
    log.unlink()
    with pytest.raises(DamagedFileError, match="it has 0 of the 4 lines"):
        read_metrics(tmp_path)
    log.write_bytes(whole)
    assert len(read_metrics(tmp_path)) == 4
    assert read_timings(tmp_path) == []
    assert read_result(tmp_path) == {"step": 4}


@pytest.mark.parametrize("act", [lambda run: run.sync(), lambda run: run.finish({"step": 1})])
def test_logged_lines_are_forced_to_the_disk_before_anything_claims_them(tmp_path, monkeypatch, act):
    with run_at(tmp_path) as run:
        run.log(1, {})
        run.log_timing(1, {})
        synced, fsync = [], os.fsync
        monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
        act(run)
        logs = {(tmp_path / name).stat().st_ino for name in ("metrics.jsonl", "timings.jsonl")}
        assert set(synced[:2]) == logs


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_a_result_marks_the_run_as_done(tmp_path):
    with run_at(tmp_path) as run:
        assert run.result is None
        run.log(1, {"loss": 2.0})
        run.finish({"metrics": {"loss": 1 / 3}, "step": 1})
        assert run.result == {"metrics": {"loss": 1 / 3}, "step": 1}
    assert read_result(tmp_path) == {"metrics": {"loss": 1 / 3}, "step": 1}


def test_a_result_that_cannot_be_written_leaves_none(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with run_at(tmp_path) as run:
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError) as caught:
            run.finish({"step": 1})
        monkeypatch.undo()
        assert "No space left" in caught.value.message
        assert run.result is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_a_run_that_is_done_is_read_by_many_at_once_and_nothing_is_written(tmp_path):
    with run_at(tmp_path) as run:
        run.finish({"step": 1})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())}
    with run_at(tmp_path) as one, run_at(tmp_path) as other:
        assert one.result == other.result == {"step": 1}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())} == before
    with pytest.raises(UserError, match="another config"), run_at(tmp_path, CONFIG, "b" * 64):
        pass


def test_what_a_killed_owner_left_half_written_is_swept(tmp_path):
    (tmp_path / ".result.json.1-0.tmp").write_text("{")
    with run_at(tmp_path):
        assert not list(tmp_path.glob(".*.tmp"))


def test_a_killed_owner_that_wrote_the_result_once_more_leaves_nothing_either(tmp_path):
    with run_at(tmp_path) as run:
        run.finish({"step": 1})
    (tmp_path / ".result.json.1-0.tmp").write_text("{")
    with run_at(tmp_path) as run:
        assert run.result == {"step": 1}
        assert not list(tmp_path.glob(".*.tmp"))
