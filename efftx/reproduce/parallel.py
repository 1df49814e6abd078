"""Trainings side by side, each row and seed in a process of its own that is `efftx reproduce` itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

from efftx.core.lines import say, shortened, width_of
from efftx.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, Interrupted
from efftx.parent import with_parent
from efftx.study.sweeps import Run


@dataclass(frozen=True)
class Task:
    """A run of one item for a process of its own; `again`: its record is stale. `options` are further words for it."""

    id: str
    run: Run
    again: bool
    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The words that a user would type for it."""
        run = self.run
        words = ["reproduce", self.id, "--row", run.row, f"seeds={run.seed}", f"size={run.size}", "--yes", "--json"]
        words += [] if run.value is None else [f"swept={run.value!r}"]
        return [sys.executable, "-m", "efftx", *words, *self.options, *(["--stale"] if self.again else [])]


_STOPPED = {
    EXIT_INTERRUPTED: EXIT_INTERRUPTED,
    EXIT_TERMINATED: EXIT_TERMINATED,
    -signal.SIGINT: EXIT_INTERRUPTED,
    -signal.SIGTERM: EXIT_TERMINATED,
}
"""Exit codes of a process that was told to stop, at a step boundary or before it listened, and the command's own."""


@dataclass
class _WorkerPool:
    """The processes now at work, so that all can be told to stop; `stopped_with` is the exit code once they were."""

    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    # Reentrant: a signal handler may stop the workers while the same thread is stopping them.
    lock: threading.RLock = field(default_factory=threading.RLock)
    n_tasks: int = 0
    n_done: int = 0
    stopped_with: int | None = None

    def run(self, task: Task) -> dict[str, Any]:
        with self.lock:
            if self.stopped_with is not None:
                return {"returncode": self.stopped_with, "ran": 0, "skipped": 0, "failures": []}
            process = subprocess.Popen(
                task.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=with_parent(os.environ)
            )
            self.processes.append(process)
        # What it says of its progress is read through a pipe, so that no two bars fight for one terminal.
        reader = threading.Thread(target=_tell_on, args=(process.stderr,), daemon=True)
        reader.start()
        with process:
            out = process.stdout.read() if process.stdout else ""
            process.wait()
            reader.join(timeout=5.0)  # but not for ever: a process of its own may hold the pipe
        with self.lock:
            if process.returncode in _STOPPED:
                self.stop(_STOPPED[process.returncode])
            elif process.returncode != -signal.SIGKILL:
                self.n_done += 1
                say(f"{self.n_done} of {self.n_tasks} runs done")
        return {"returncode": process.returncode, **_reading(out, task)}

    def stop(self, code: int) -> None:
        """Tell all to stop at their next step; the first `code` counts."""
        with self.lock:
            if self.stopped_with is None:
                self.stopped_with = code
            for process in self.processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)


_PROGRESS = re.compile("  ETA [^ ].*$")


def _tell_on(lines: IO[str] | None) -> None:
    for line in lines or ():
        text, width = line.rstrip("\n"), width_of(sys.stderr)
        say(shortened(text, width) if width and _PROGRESS.search(text) else text)


def run_tasks(tasks: Sequence[Task], jobs: int) -> list[dict[str, Any]]:
    """Runs the tasks, `jobs` at a time; `{returncode, ran, skipped, failures}` of each, in their order.

    Where one was stopped by a signal, or this process is, the others are told to stop at their next step, and
    Interrupted is raised once they have.
    """
    workers = _WorkerPool(n_tasks=len(tasks))
    previous = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.signal(signal.SIGTERM, lambda number, frame: workers.stop(EXIT_TERMINATED))
    try:
        with ThreadPoolExecutor(jobs) as pool:
            try:
                outcomes = list(pool.map(workers.run, tasks))
            except BaseException:
                workers.stop(EXIT_INTERRUPTED)
                raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)
    if workers.stopped_with is not None:
        raise Interrupted(workers.stopped_with, "Stopped at a step boundary; the same command goes on from there.")
    return outcomes


def failure(run: Run, message: str) -> dict[str, Any]:
    """What an item's line says of a run that failed."""
    swept = {} if run.value is None else {"swept": run.value}
    return {"row": run.row, "seed": run.seed, **swept, "message": message}


def _reading(out: str, task: Task) -> dict[str, Any]:
    try:
        answer = json.loads(out)
    except json.JSONDecodeError:
        answer = {"error": {"message": "its process ended without an answer"}}
    if "error" in answer:
        return {"ran": 0, "skipped": 0, "failures": [failure(task.run, answer["error"]["message"])]}
    (line,) = answer["items"]
    return {key: line[key] for key in ("ran", "skipped", "failures")}
