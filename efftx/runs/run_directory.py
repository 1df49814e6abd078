"""A run's directory: who works in it, which config it belongs to, its metrics, its result."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from efftx.core.artifact import Mark, end_of_log, finite, read_document, read_log, seal_line, write_document
from efftx.core.files import DamagedFileError, sweep, sync, writing
from efftx.errors import UserError, nearest

CONFIG_FILE, RESULT_FILE = "config.json", "result.json"
METRICS_FILE, TIMINGS_FILE = "metrics.jsonl", "timings.jsonl"
OWNER_FILE = "owner.json"
LOGS = "logs"
_LOG_HINT = "Move it out of the way: the same training then goes on from its checkpoint, without the lines before."


def runs_root() -> Path:
    """Where runs live: EFFTX_RUNS, or ./runs."""
    return Path(os.path.expanduser(os.environ.get("EFFTX_RUNS") or "runs"))


def default_run_dir(model: str, data: str, config_hash: str) -> Path:
    """`<runs root>/<model>-<data>-<first 12 digits of the config's hash>`."""
    return runs_root() / f"{model}-{data}-{config_hash[:12]}"


def read_result(path: Path) -> dict[str, Any] | None:
    """The result of the run at `path`, or None where it has not come to its end; UserError if damaged."""
    document = _read_end(path)
    return None if document is None else {key: value for key, value in document.items() if key != LOGS}


def _read_end(path: Path) -> dict[str, Any] | None:
    return read_document(path / RESULT_FILE, "Remove it: the same training then goes on from its last checkpoint.")


def read_config(path: Path) -> tuple[dict[str, Any], str] | None:
    """The resolved config of the run at `path` and its hash, or None where there is no run; UserError if damaged."""
    hint = "Remove it: the same training writes it anew. Or give the run another directory with run_dir=."
    document = read_document(path / CONFIG_FILE, hint)
    return None if document is None else (document["config"], document["hash"])


def stored_config(path: Path) -> tuple[dict[str, Any], str]:
    """As `read_config`; UserError, with the nearest run that there is, where `path` is none."""
    stored = read_config(path)
    if stored is None:
        known = [str(file.parent) for file in runs_root().glob(f"*/{CONFIG_FILE}")]
        hint = nearest(str(path), known, at_most=5) or "Give the folder that `efftx train` printed."
        raise UserError("missing_file", f"{path} is not a run directory.", hint)
    return stored


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of the run's metrics.jsonl, in order; a line torn by a kill is left out.

    DamagedFileError where one has changed, or where a finished run lacks some.
    """
    return _read_log(path, METRICS_FILE)


def read_timings(path: Path) -> list[dict[str, Any]]:
    """The lines of the run's timings.jsonl, as `read_metrics`."""
    return _read_log(path, TIMINGS_FILE)


def _read_log(path: Path, name: str) -> list[dict[str, Any]]:
    document = _read_end(path) or {}  # before the log, which a run that ends meanwhile makes longer
    lines = list(read_log(path / name, hint=_LOG_HINT))
    if LOGS in document:  # results of earlier versions do not say how far their logs go
        mark = Mark(**document[LOGS][name])
        there = Mark() if mark.lines == 0 else next((after for _, after in lines if after.lines == mark.lines), None)
        if there != mark:
            lacking = f"it has {len(lines):,} of the {mark.lines:,} lines that the result knows of"
            why = lacking if there is None else "its lines are not those that the result knows of"
            raise DamagedFileError(
                path / name, why, "Take it from a copy, or remove the run's folder and train it anew."
            )
    return [record for record, _ in lines]


def set_aside(path: Path) -> None:
    """Move the run at `path`, where there is one, to `<name>.stale`, in place of an earlier one.

    UserError `run_in_use` where a process works in it.
    """
    if path.exists():
        with _held(path):
            aside = path.with_name(f"{path.name}.stale")
            shutil.rmtree(aside, ignore_errors=True)
            with writing(path):
                path.rename(aside)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """The lock of the run at `path`; UserError `run_in_use` names the process that has it."""
    lock = FileLock(path / ".lock")
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _in_use(path) from None
    try:
        yield
    finally:
        lock.release()


def _in_use(path: Path) -> UserError:
    owner = None
    with suppress(UserError):  # the owner has the lock but may not have written its name yet
        owner = read_document(path / OWNER_FILE)
    who = f"process {owner['pid']} on {owner['host']}, since {owner['start']}" if owner else "another process"
    return UserError(
        "run_in_use",
        f"run directory {path} is in use by {who}.",
        "Wait for it, stop it, or give this run a directory of its own with run_dir=.",
    )


class RunDirectory:
    """One process's hold on a run's directory, as a context manager.

    Entering makes the directory and takes its lock; UserError `run_in_use` names the process that has it,
    `other_config` the keys in which the run found there differs. A run that is done is only read: any number of
    processes may enter it at once, on a disk that cannot be written. What is written, every file with a checksum:

    * `config.json`, once: the resolved config and its hash;
    * `metrics.jsonl`: one line a `log`, deterministic values only;
    * `timings.jsonl`: one line a `log_timing`: what may differ from run to run;
    * `checkpoints/`: see `efftx.runs.checkpoint`;
    * `result.json`, at the end: its presence says that the run is done.

    A directory made here is removed again where an error comes before the first step.

    After a resume the metrics are those of a run never stopped: a checkpoint keeps what `sync` gave, and the run that
    goes on from it calls `resume_at` with that before its first `log`.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], config_hash: str) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._config = dict(config)
        self._hash = config_hash
        self._open = ExitStack()
        self._logs = {name: _Log(path / name) for name in (METRICS_FILE, TIMINGS_FILE)}
        self._made = False

    def __enter__(self) -> RunDirectory:
        if self.result is not None:
            sweep(
                self.path
            )  # the result is written once more, with the time of decoding: a kill may have fallen in that
            self._check_config()
            return self
        self._made = not self.path.exists()
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            undo.enter_context(_held(self.path))
            sweep(self.path)
            self._check_config()
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "start": _now()}
            with writing(self.path):
                write_document(self.path / OWNER_FILE, owner)
            undo.callback((self.path / OWNER_FILE).unlink, missing_ok=True)
            for log in self._logs.values():
                undo.callback(log.close)
            self._open = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._made and not self._has_begun():
            shutil.rmtree(self.path, ignore_errors=True)
        self._open.close()

    def _has_begun(self) -> bool:
        """Whether there is more here than a config: a logged step, a checkpoint or a result."""
        logged = any((self.path / name).exists() for name in (METRICS_FILE, RESULT_FILE))
        return logged or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    # ---- metrics

    def resume_at(self, marks: Mapping[str, Any] | None) -> list[str]:
        """Cut away what was logged after the `sync` that gave `marks`, and half a line left by a kill; None: all.

        Gives a sentence for every log that lacks lines from before. DamagedFileError where one of those has changed.
        """
        with writing(self.path):
            cut = [log.cut(Mark(**marks[name]) if marks else Mark()) for name, log in self._logs.items()]
        return [note for note in cut if note]

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl: deterministic values only; NaN and infinities become null."""
        self._append(METRICS_FILE, step, values)

    def log_timing(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to timings.jsonl: what may differ between two runs of the same config."""
        self._append(TIMINGS_FILE, step, values)

    def sync(self) -> dict[str, Any]:
        """Force the logged lines onto the disk; gives how far the logs go, for a checkpoint that claims their steps."""
        with writing(self.path):
            for log in self._logs.values():
                log.sync()
        return {name: asdict(log.mark) for name, log in self._logs.items()}

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        with writing(self.path):
            self._logs[name].append(finite({"step": step, **values}))

    # ---- the end

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as done and says how far its logs go."""
        marks = self.sync()
        with writing(self.path):
            write_document(self.path / RESULT_FILE, {**finite(dict(result)), LOGS: marks})

    @property
    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote, now or in an earlier process; None while the run is not done."""
        return read_result(self.path)

    # ---- entering

    def _check_config(self) -> None:
        stored = read_config(self.path)
        if stored is None:
            document = {"hash": self._hash, "config": self._config}
            with writing(self.path):
                write_document(self.path / CONFIG_FILE, document)
            return
        config, config_hash = stored
        if config_hash != self._hash:
            differing = "; ".join(_differences(config, self._config)) or "the data or the version of efftx"
            raise UserError(
                "other_config",
                f"{self.path} is the run directory of another config (there / here): {differing}.",
                "Give this run a directory of its own with run_dir=, or repeat the overrides the run was started with.",
            )


class FollowedRun:
    """A run's directory as those processes of a training see it that do not write: what they are told goes nowhere."""

    result = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def resume_at(self, marks: Mapping[str, Any] | None) -> list[str]:
        """Nothing is cut."""
        return []

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing is written."""

    log_timing = log

    def sync(self) -> dict[str, Any]:
        """Nothing is forced onto the disk."""
        return {}

    def finish(self, result: Mapping[str, Any]) -> None:
        """Nothing is written."""


class _Log:
    """One log of a run, and how far it goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark: Mark | None = None
        self._file: BinaryIO | None = None

    @property
    def mark(self) -> Mark:
        if self._mark is None:
            self._mark = end_of_log(self.path, hint=_LOG_HINT)
        return self._mark

    def cut(self, mark: Mark) -> str | None:
        """Leave what stands before `mark`; says what is missing of it."""
        there = end_of_log(self.path, mark.lines, _LOG_HINT)
        if there.lines == mark.lines and there != mark:
            raise DamagedFileError(self.path, "its lines are not those that the checkpoint knows of", _LOG_HINT)
        if self.path.exists() and self.path.stat().st_size != there.bytes:
            os.truncate(self.path, there.bytes)
            sync(self.path)
        self._mark = there
        if there.lines == mark.lines:
            return None
        lacking = f"{mark.lines - there.lines:,} of the {mark.lines:,} lines"
        return f"{self.path} was cut short: it lacks {lacking} that were there at the checkpoint"

    def append(self, content: Mapping[str, Any]) -> None:
        line, after = seal_line(content, self.mark)
        if self._file is None:
            self._file = open(self.path, "ab")  # noqa: SIM115 - closed by `close`
        self._file.write(line)
        self._file.flush()
        self._mark = after

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new or (key in there) != (key in here):
            yield f"{prefix}{key}={json.dumps(old)} / {json.dumps(new)}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
