"""A run's directory: who works in it, which config it belongs to, its metrics, its result."""

from __future__ import annotations

import datetime
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from filelock import FileLock, Timeout

from efftx.errors import UserError
from efftx.training import durable

CONFIG_FILE, RESULT_FILE = "config.json", "result.json"
METRICS_FILE, TIMINGS_FILE = "metrics.jsonl", "timings.jsonl"


def runs_root() -> Path:
    """Where runs live: EFFTX_RUNS, or ./runs."""
    return Path(os.environ.get("EFFTX_RUNS") or "runs")


def default_run_dir(model: str, data: str, config_hash: str) -> Path:
    """`<runs root>/<model>-<data>-<first 12 digits of the config's hash>`."""
    return runs_root() / f"{model}-{data}-{config_hash[:12]}"


def read_result(path: Path) -> dict[str, Any] | None:
    """The result of the run at `path`, or None where it has not come to its end; UserError if damaged."""
    return _read_json(path / RESULT_FILE)


def read_config(path: Path) -> tuple[dict[str, Any], str] | None:
    """The resolved config of the run at `path` and its hash, or None where there is no run; UserError if damaged."""
    document = _read_json(path / CONFIG_FILE)
    if document is None:
        return None
    if not isinstance(document.get("config"), dict) or not isinstance(document.get("hash"), str):
        raise _damaged(path / CONFIG_FILE)
    return document["config"], document["hash"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of the run's metrics.jsonl, in order; a line torn by a kill is left out."""
    file = path / METRICS_FILE
    return [record for _, record in _records(file)] if file.exists() else []


class RunDirectory:
    """One process's hold on a run's directory, as a context manager.

    Entering makes the directory and takes its lock; UserError `run_in_use` names the process that has it,
    `other_config` the keys in which the run found there differs. What is written:

    * `config.json`, once: the resolved config and its hash;
    * `metrics.jsonl`: one line a `log`, deterministic values only;
    * `timings.jsonl`: one line a `log_timing`: what may differ from run to run;
    * `checkpoints/`: see `efftx.training.checkpoint`;
    * `result.json`, at the end: its presence says that the run is done.

    After a resume at step s the metrics are those of a run never stopped if every line of a step is logged before the
    step's checkpoint: call `sync` between the two, and `resume_at` before the first `log`.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], config_hash: str) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._config = dict(config)
        self._hash = config_hash
        self._open = ExitStack()
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> RunDirectory:
        with durable.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            lock = FileLock(self.path / ".lock")
            with durable.writing(self.path):
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    raise self._in_use() from None
            undo.callback(lock.release)
            self._check_config()
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "start": _now()}
            with durable.writing(self.path):
                durable.write_atomically(self.path / "owner.json", json.dumps(owner).encode())
            undo.callback((self.path / "owner.json").unlink, missing_ok=True)
            self._open = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._open.close()

    # ---- metrics

    def resume_at(self, step: int | None) -> None:
        """Cut away, in one step, the metrics and timings after `step`, and half a line left by a kill; None: all.

        UserError where a line before the last one cannot be read.
        """
        for name in (METRICS_FILE, TIMINGS_FILE):
            file = self.path / name
            if file.exists():
                kept = [line for line, record in _records(file) if step is not None and record["step"] <= step]
                with durable.writing(self.path):
                    durable.write_atomically(file, "".join(kept).encode())

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl: deterministic values only; NaN and infinities become null."""
        self._append(METRICS_FILE, step, values)

    def log_timing(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to timings.jsonl: what may differ between two runs of the same config."""
        self._append(TIMINGS_FILE, step, values)

    def sync(self) -> None:
        """Force the logged lines onto the disk; to be called before a checkpoint that claims their steps."""
        with durable.writing(self.path):
            for file in self._files.values():
                os.fsync(file.fileno())

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        with durable.writing(self.path):
            if name not in self._files:
                self._files[name] = open(self.path / name, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
            self._files[name].write(json.dumps(_finite({"step": step, **values}), allow_nan=False) + "\n")
            self._files[name].flush()

    # ---- the end

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as done."""
        self.sync()
        with durable.writing(self.path):
            text = json.dumps(_finite(dict(result)), indent=1, allow_nan=False)
            durable.write_atomically(self.path / RESULT_FILE, text.encode())

    @property
    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote, now or in an earlier process; None while the run is not done."""
        return read_result(self.path)

    # ---- entering

    def _in_use(self) -> UserError:
        owner = None
        with suppress(OSError, ValueError):  # the owner has the lock but may not have written its name yet
            owner = json.loads((self.path / "owner.json").read_text())
        who = f"process {owner['pid']} on {owner['host']}, since {owner['start']}" if owner else "another process"
        return UserError(
            "run_in_use",
            f"run directory {self.path} is in use by {who}.",
            "Wait for it, stop it, or give this run a directory of its own with run_dir=.",
        )

    def _check_config(self) -> None:
        found = read_config(self.path)
        if found is None:
            document = {"hash": self._hash, "config": self._config}
            with durable.writing(self.path):
                durable.write_atomically(self.path / CONFIG_FILE, json.dumps(document, indent=1).encode())
            return
        config, config_hash = found
        if config_hash != self._hash:
            differing = "; ".join(_differences(config, self._config)) or "the data or the version of efftx"
            raise UserError(
                "other_config",
                f"{self.path} is the run directory of another config (there / here): {differing}.",
                "Give this run a directory of its own with run_dir=, or repeat the overrides the run was started with.",
            )


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line of a .jsonl file, as text and as what it says."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not line.endswith("\n") or not isinstance(record["step"], int):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                return
            raise UserError(
                "damaged_file",
                f"line {number} of {file} cannot be read.",
                "Remove that line, or start the run again in another directory with run_dir=.",
            ) from None
        yield line, record


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        document = None
    except OSError as error:
        raise UserError("cannot_read", f"cannot read {path}: {error.strerror}.") from error
    if not isinstance(document, dict):
        raise _damaged(path)
    return document


def _damaged(path: Path) -> UserError:
    return UserError("damaged_file", f"{path} is not what efftx wrote.", "Remove it, or use another run_dir=.")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new or (key in there) != (key in here):
            yield f"{prefix}{key}={json.dumps(old)} / {json.dumps(new)}"


def _finite(value: Any) -> Any:
    """The value with NaN and infinities, which JSON does not have, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
