"""Progress on a terminal and in a pipe, and stop requests."""

from __future__ import annotations

import io
import math
import mmap
import os
import pty
import re
import signal
import sys
import threading
import types

import pytest
import torch

from efftx.core.work import Work, current_work, part_of_work, working_on
from efftx.training import tracking
from efftx.training.tracking import Progress, StopRequest, memory_bytes


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(Progress, "_printed_at", -math.inf)


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now.seconds)
    return now


# ---- progress --------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_plain_lines_with_loss_speed_memory_and_time_left(clock):
    stream = io.StringIO()
    with Progress(100, unit="bits/dim", stream=stream) as progress:
        clock.seconds = 2.0
        progress.update(1, 3.25, tokens=1000)
        clock.seconds = 4.0
        progress.update(2, 3.0, tokens=1000)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("train  1/100  loss 3.2500 bits/dim  500 tokens/s  ")
    assert "MiB" in line
    assert line.endswith("ETA 0:03:18")
    assert progress.tokens_per_second == 500


def test_a_pipe_gets_the_first_step_and_one_line_an_interval(clock):
    stream = io.StringIO()
    with Progress(100, unit="nats/token", stream=stream, interval=10.0) as progress:
        for step in range(1, 101):
            clock.seconds += 1.0
            progress.update(step, 1.0, tokens=1)
    steps = [int(line.split()[1].split("/")[0]) for line in stream.getvalue().splitlines()]
    assert steps == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]


def test_many_short_runs_tell_no_more_in_a_pipe_than_a_long_one(clock):
    stream = io.StringIO()
    for number in range(1, 41):
        with working_on(Work(f"row {number}, seed 0", number, 40)), Progress(5, unit="x", stream=stream) as progress:
            for step in range(1, 6):
                clock.seconds += 0.1
                progress.update(step, 1.0, tokens=1)
                progress.validated(step, "loss 2.0")
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["row 1, seed 0 (1 of 40)", "row 21, seed 0 (21 of 40)"]


def test_a_validation_stands_in_the_next_line_of_a_pipe(clock):
    stream = io.StringIO()
    with Progress(100, unit="x", stream=stream) as progress:
        progress.update(1, 1.0, tokens=1)
        progress.validated(1, "accuracy (%) 12.0")
        clock.seconds = 10.0
        progress.update(2, 1.0, tokens=1)
        clock.seconds = 20.0
        progress.update(3, 1.0, tokens=1)
    before, at, after = stream.getvalue().splitlines()
    assert "  valid accuracy (%) 12.0 at step 1  ETA" in at
    assert "valid" not in before + after


def test_what_is_done_between_steps_is_named(clock):
    stream, terminal = io.StringIO(), Terminal()
    with Progress(9, unit="x", stream=stream) as progress, Progress(9, unit="x", stream=terminal, start=4) as bar:
        progress.doing("validating")
        progress.doing("evaluating")
        clock.seconds = 10.0
        progress.doing("evaluating")
        bar.doing("evaluating")
    assert stream.getvalue().splitlines() == ["train  0/9  validating", "train  0/9  evaluating"]
    assert "4/9  evaluating" in terminal.getvalue()


def test_a_part_of_the_work_says_of_what():
    stream = io.StringIO()
    with working_on(Work("LSH-4, seed 0", 3, 8)), part_of_work("pre-training for"):
        Progress(5, unit="x", stream=stream).update(1, 1.0, tokens=1)
    assert stream.getvalue().startswith("pre-training for LSH-4, seed 0 (3 of 8)  1/5  loss 1.0000 x  ")
    with part_of_work("pre-training for"):
        assert current_work() is None


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize(
    "name", ["LSH-4, seed 0", "Full shared-QK, seed 0", "a name as long as a line of this file, seed 0"]
)
def test_bar_name_place_and_time_left_fit_every_terminal(clock, monkeypatch, width, name):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with working_on(Work(name, 3, 24)), Progress(30000, unit="nats/token", stream=stream) as progress:
        progress.doing("validating")
        clock.seconds = 100.0
        progress.update(12345, 12.3456, tokens=10)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).rstrip("\r\n").split("\r")
    assert max(map(len, lines)) <= width
    last = lines[-1]
    assert "━" in last
    assert "(3 of 24)" in last
    assert "12345/30000" in last
    assert re.search(r"ETA \d:\d\d:\d\d", last)
    assert ("loss 12.3456" in last) == (width >= 80)
    assert ("LSH-4, seed 0" in last) == (name == "LSH-4, seed 0" and width >= 80)


def test_a_resumed_run_counts_its_time_from_where_it_resumed(clock):
    stream = io.StringIO()
    progress = Progress(100, unit="bits/dim", start=90, stream=stream)
    clock.seconds = 1.0
    progress.update(91, 1.0, tokens=10)
    assert "91/100" in stream.getvalue()
    assert stream.getvalue().endswith("ETA 0:00:09\n")


def test_speed_is_that_of_the_last_steps(clock):
    progress = Progress(1000, unit="x", stream=io.StringIO())
    for step in range(1, 201):
        clock.seconds += 10.0 if step <= 100 else 1.0
        progress.update(step, 1.0, tokens=7)
    assert progress.tokens_per_second == 7


def test_before_the_first_step_there_is_no_speed():
    assert Progress(10, unit="x", stream=io.StringIO()).tokens_per_second == 0.0


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with Progress(3, unit="bits/dim", stream=stream) as progress:
        progress.note("resumed at [step] 1")
        for step in (1, 2, 3):
            progress.update(step, 2.5, tokens=10)
    text = stream.getvalue()
    assert "━" in text
    assert "bits/dim" in text
    assert "resumed at [step] 1" in text
    assert "3/3" in text


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_silence_writes_nothing_and_still_measures(stream, clock):
    with Progress(10, unit="x", stream=stream, silent=True) as progress:
        clock.seconds = 1.0
        progress.update(1, 1.0, tokens=5)
        progress.note("text")
    assert stream.getvalue() == ""
    assert progress.tokens_per_second == 5


def test_progress_goes_to_stderr(capsys):
    with Progress(1, unit="x") as progress:
        progress.update(1, 1.0, tokens=1)
        progress.note("said")
    out, err = capsys.readouterr()
    assert out == ""
    assert "1/1" in err
    assert "said" in err


def test_memory_counts_what_is_resident():
    before = memory_bytes()
    with mmap.mmap(-1, 2**26) as held:  # pages of its own: an allocator may hand out some that are resident already
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert memory_bytes(torch.device("cpu")) - before > 2**25


# ---- stop requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_request_with_its_exit_code(number, code):
    with StopRequest() as stop:
        assert stop.exit_code is None
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        assert stop.exit_code == code


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_a_terminal_is_told_that_ctrl_c_was_noticed(monkeypatch, number, told):
    reader, writer = pty.openpty()
    with open(writer, "w") as terminal, StopRequest():
        monkeypatch.setattr(sys, "stderr", terminal)
        os.kill(os.getpid(), number)
        os.write(writer, b"end")
        assert os.read(reader, 1000).count(b"stopping at the end of this step") == told
    os.close(reader)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_is_immediate(first):
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked


def test_the_first_request_decides_and_a_second_sigterm_changes_nothing():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 130


def test_the_handlers_from_before_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) != before
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_outside_the_main_thread_it_never_asks():
    asked = []

    def work():
        with StopRequest() as stop:
            asked.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
