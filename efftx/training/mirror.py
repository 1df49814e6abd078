"""The mirror of a run's metrics in Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from efftx.config.settings import TrackerConfig
from efftx.core.artifact import read_document, write_document
from efftx.core.files import DamagedFileError
from efftx.errors import Interrupted
from efftx.runs.run_directory import read_metrics, read_timings
from efftx.training.tracking import memory_bytes

MIRROR_FILE = "wandb.json"
"""In a run's directory: the number that makes the mirror's id its own."""
_WAIT_ONLINE = 30.0
"""Seconds that a training waits for the service before it mirrors offline."""


class Tracker:
    """A mirror of the metrics in wandb, off by default, as a context manager.

    Online for those who are logged in, offline otherwise; WANDB_MODE decides where it is set. A run that goes on after
    a stop keeps its id, and its earlier steps are logged again from its own metrics.jsonl: an offline folder holds the
    whole run. No failure of wandb stops or changes a training: the first is told to `warn`, once, and ends the mirror.
    """

    def __init__(
        self,
        config: TrackerConfig,
        *,
        run: Path,
        run_hash: str,
        run_config: Mapping[str, Any],
        warn: Callable[[str], None],
        device: torch.device | None = None,
    ) -> None:
        self._warn, self._device = warn, device
        self._run: Any = None
        if config.wandb and os.environ.get("WANDB_MODE") != "disabled":
            self._try(lambda: self._start(config, run, run_hash, run_config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Mirror one line of metrics, with the memory in use."""
        if self._run is not None:
            line = {**values, "memory_bytes": memory_bytes(self._device)}
            self._try(lambda: self._run.log(line, step=step))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(0 if error is None else error.exit_code if isinstance(error, Interrupted) else 1)

    def finish(self, exit_code: int = 0) -> None:
        """Close the mirror and say where an offline one lies; harmless where it is off."""
        if self._run is not None:
            self._try(lambda: self._close(self._run, exit_code))
            self._run = None

    def _close(self, run: Any, exit_code: int) -> None:
        offline, folder = run.offline, Path(run.dir).parent
        run.finish(exit_code=exit_code)
        if offline:
            self._warn(f"wandb: the run was mirrored offline, all its steps into {folder}")
            self._warn(f"wandb: `wandb sync {folder}` sends it")

    def _start(self, config: TrackerConfig, run: Path, run_hash: str, run_config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")  # slow, so only for those who asked for it
        arguments = {
            "entity": config.entity,
            "project": config.project,
            "group": config.group,
            "tags": list(config.tags),
            "name": run.name,
            "id": identity(run, run_hash),
            "resume": "allow",
            "dir": str(run),
            "config": dict(run_config),
            # stdout belongs to --json, stderr to the progress
            "settings": wandb.Settings(silent=True, console="off", init_timeout=_WAIT_ONLINE),
        }
        mode = os.environ.get("WANDB_MODE") or self._mode(wandb)
        try:
            self._run = wandb.init(mode=mode, **arguments)
        except Exception as error:
            if mode == "offline":
                raise
            self._offline(error)
            self._run = wandb.init(mode="offline", **arguments)
        for step, values in _logged(run):
            if step >= self._run.step:  # an online run knows its earlier steps already
                self._run.log(values, step=step)

    def _mode(self, wandb: Any) -> str:
        try:
            return "online" if wandb.login(prompt=False) else "offline"
        except Exception as error:  # credentials that cannot be used now, most often for want of a network
            self._offline(error)
            return "offline"

    def _offline(self, error: Exception) -> None:
        self._warn(f"wandb: {_words_of(error)}; the mirror is offline")

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, the training matters more
            self._run = None
            self._warn(f"wandb: {_words_of(error)}; metrics go on in the run directory alone")


def identity(run: Path, run_hash: str) -> str:
    """The mirror's id: of the run's config and of its directory, so that two directories never share one.

    The directory's part is drawn once and kept in it, so that a resumed or moved run stays the same.
    """
    try:
        found = read_document(run / MIRROR_FILE)
    except DamagedFileError:
        found = None
    if found is None:
        found = {"directory": secrets.token_hex(16)}
        write_document(run / MIRROR_FILE, found)
    return hashlib.sha256(f"{run_hash} {found['directory']}".encode()).hexdigest()[:16]


def _logged(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """What the run has logged so far, a step an entry, in order."""
    steps: dict[int, dict[str, Any]] = {}
    for record in (*read_metrics(run), *read_timings(run)):
        values = {key: value for key, value in record.items() if key != "step" and value is not None}
        steps.setdefault(record["step"], {}).update(values)
    return sorted(steps.items())


def _words_of(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
