"""One timing at a time on a machine, sides in turns, medians."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from efftx.errors import UserError
from efftx.machine import timing

CPU = torch.device("cpu")
TRY_TO_LOCK = """
import sys
from filelock import FileLock, Timeout
try:
    FileLock(sys.argv[1]).acquire(timeout=0)
except Timeout:
    sys.exit(7)
"""


def _another_process_gets_the_lock() -> bool:
    done = subprocess.run([sys.executable, "-c", TRY_TO_LOCK, str(timing.lock_path())], check=False, timeout=60)
    assert done.returncode in (0, 7)
    return done.returncode == 0


def test_what_the_host_kept_is_the_eighth_column_of_all_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stat"
    monkeypatch.setattr(timing, "STATISTICS", file)
    assert timing.stolen_seconds() is None
    for content in ("cpu  1 2 3 4 5 6 7\n", "cpu  1 2 3 4 5 6 7 many\n", ""):  # older than Linux 2.6.11; nonsense
        file.write_text(content)
        assert timing.stolen_seconds() is None
    file.write_text("cpu  61 5 11 14 16 0 60 892 3 4\ncpu0 1 1 1 1 1 1 1 400 1 1\n")
    monkeypatch.setattr(timing.os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    assert timing.stolen_seconds() == 8.92


def test_while_one_times_no_other_process_gets_the_lock() -> None:
    seen: list[bool] = []
    timing.interleaved({"a": lambda: seen.append(_another_process_gets_the_lock())}, repeats=1, device=CPU, warm_up=0)
    assert seen == [False]
    assert _another_process_gets_the_lock()


def test_a_second_timing_waits_until_the_first_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[str] = []

    def second() -> None:
        timing.interleaved({"b": lambda: events.append("second")}, repeats=1, device=CPU, warm_up=0)

    thread = threading.Thread(target=second)
    with timing.exclusive():
        thread.start()
        thread.join(0.3)
        with timing.exclusive():  # may be nested
            events.append("first")
    thread.join(30)
    assert events == ["first", "second"]
    assert "waiting" in capsys.readouterr().err


def test_the_lock_is_given_back_after_an_error() -> None:
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        timing.interleaved({"a": fail}, repeats=1, device=CPU)
    assert _another_process_gets_the_lock()


def test_a_lock_that_cannot_be_opened_is_the_users_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "efftx-timing.lock").mkdir()
    with pytest.raises(UserError, match="cannot be locked"), timing.exclusive():
        pass


def test_sides_take_turns_and_warm_ups_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    order: list[str] = []
    costs = {"a": iter([100.0, 1.0, 5.0, 2.0]), "b": iter([100.0, 10.0, 10.0, 10.0])}

    def call(name: str) -> None:
        order.append(name)
        now[0] += next(costs[name])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    timed = timing.interleaved({"a": lambda: call("a"), "b": lambda: call("b")}, repeats=3, device=CPU, warm_up=1)

    assert order == ["a", "b"] * 4
    assert timed["a"] == timing.Timing(seconds=2.0, spread=(5.0 - 1.0) / 2.0)
    assert timed["b"] == timing.Timing(seconds=10.0, spread=0.0)


def test_the_bounds_are_the_work_over_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MATMUL_WIDTH", 8)
    monkeypatch.setattr(timing, "READ_BYTES", 4096)
    ticks = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))  # every call takes a second
    assert timing.matmul_rate(CPU) == 2 * 8**3
    assert timing.read_bandwidth(CPU) == 4096


@pytest.mark.parametrize(
    ("n", "share", "nearest_rank"),
    [(10, 0.9, 9), (100, 0.99, 99), (200, 0.99, 198), (10, 0.99, 10), (100, 0.07, 7), (1, 0.5, 1), (4, 0.0, 1)],
)
def test_a_percentile_is_the_smallest_time_that_its_share_does_not_exceed(
    n: int, share: float, nearest_rank: int
) -> None:
    seconds = [float(i) for i in range(n, 0, -1)]
    assert timing.percentile(seconds, share) == nearest_rank
    assert timing.percentile(seconds, 1.0) == n


def test_a_result_says_under_which_circumstances_it_was_timed() -> None:
    said = timing.machine(CPU, repeats=3)
    assert said["threads"] == torch.get_num_threads()
    assert {"allocator", "warm_up", "repeats", "processor", "torch", "lock"} <= set(said)
