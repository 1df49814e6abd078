"""Mirrors of a run's metrics: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import torch

from efftx.config.settings import TrackerConfig
from efftx.core.artifact import read_document, write_document
from efftx.core.files import DamagedFileError
from efftx.errors import Interrupted
from efftx.runs.run_directory import read_metrics, read_timings
from efftx.training.tracking import memory_bytes

MIRROR_FILE = "wandb.json"
"""In a run's directory: the number that makes the mirror's id its own."""
TENSORBOARD_FOLDER = "tensorboard"
_WAIT_ONLINE = 30.0
"""Seconds that a training waits for the service before it mirrors offline."""


class Mirrored(NamedTuple):
    """The run whose metrics are mirrored: its directory, its hash, its configuration as `to_dict` gives it."""

    path: Path
    hash: str
    config: Mapping[str, Any]


class Tracker:
    """The mirrors of the metrics that are switched on, none by default, as a context manager.

    A run that goes on after a stop mirrors its earlier steps again, from its own metrics.jsonl. No failure of a mirror
    stops or changes a training: the first is told to `warn`, once, and ends that mirror.
    """

    def __init__(
        self,
        config: TrackerConfig,
        run: Mirrored,
        warn: Callable[[str], None],
        device: torch.device | None = None,
    ) -> None:
        self._warn, self._device = warn, device
        self._mirrors: dict[str, _Mirror] = {}
        if config.wandb and os.environ.get("WANDB_MODE") != "disabled":
            self._begin("wandb", lambda: _Wandb(config, run, warn))
        if config.tensorboard:
            self._begin("tensorboard", lambda: _TensorBoard(run.path))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Mirror one line of metrics, with the memory in use."""
        line = {**values, "memory_bytes": memory_bytes(self._device)}
        for name, each in list(self._mirrors.items()):
            self._try(name, partial(each.log, step, line))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(0 if error is None else error.exit_code if isinstance(error, Interrupted) else 1)

    def finish(self, exit_code: int = 0) -> None:
        """Close the mirrors and say where they lie; harmless where none is on."""
        for name, each in list(self._mirrors.items()):
            self._try(name, partial(each.close, exit_code))
            self._mirrors.pop(name, None)

    def _begin(self, name: str, make: Callable[[], _Mirror]) -> None:
        def begin() -> None:
            self._mirrors[name] = make()

        self._try(name, begin)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, the training matters more
            self._mirrors.pop(name, None)
            self._warn(f"{name}: {_words_of(error)}; metrics go on in the run directory alone")


class _Mirror(Protocol):
    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """One step's values."""

    def close(self, exit_code: int) -> None:
        """The end of the training, which the process leaves with this code."""


class _TensorBoard:
    """Event files in the run's folder `tensorboard`: they hold the whole run, and replace those of an earlier try."""

    def __init__(self, run: Path) -> None:
        # Slow, and a package that only those need who asked for it.
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        folder = run / TENSORBOARD_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = writer(str(folder))
        for step, values in _logged(run):
            self.log(step, values)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self, exit_code: int) -> None:
        self._writer.close()


class _Wandb:
    """A run in Weights & Biases.

    Online for those who are logged in, offline otherwise; WANDB_MODE decides where it is set. A run that goes on keeps
    its id.
    """

    def __init__(
        self,
        config: TrackerConfig,
        run: Mirrored,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        wandb = importlib.import_module("wandb")  # slow, so only for those who asked for it
        arguments = {
            "entity": config.entity,
            "project": config.project,
            "group": config.group,
            "tags": list(config.tags),
            "name": run.path.name,
            "id": identity(run.path, run.hash),
            "resume": "allow",
            "dir": str(run.path),
            "config": dict(run.config),
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
        for step, values in _logged(run.path):
            if step >= self._run.step:  # an online run knows its earlier steps already
                self._run.log(values, step=step)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(values, step=step)

    def close(self, exit_code: int) -> None:
        offline, folder = self._run.offline, Path(self._run.dir).parent
        self._run.finish(exit_code=exit_code)
        if offline:
            self._warn(f"wandb: the run was mirrored offline, all its steps into {folder}")
            self._warn(f"wandb: `wandb sync {folder}` sends it")

    def _mode(self, wandb: Any) -> str:
        try:
            return "online" if wandb.login(prompt=False) else "offline"
        except Exception as error:  # credentials that cannot be used now, most often for want of a network
            self._offline(error)
            return "offline"

    def _offline(self, error: Exception) -> None:
        self._warn(f"wandb: {_words_of(error)}; the mirror is offline")


def identity(run: Path, run_hash: str) -> str:
    """The mirror's id: of the run's config and of its directory, so that two directories never share one.

    The directory's part is drawn once and kept in it, so that a resumed or moved run stays the same.
    """
    try:
        document = read_document(run / MIRROR_FILE)
    except DamagedFileError:
        document = None
    if document is None:
        document = {"directory": secrets.token_hex(16)}
        write_document(run / MIRROR_FILE, document)
    return hashlib.sha256(f"{run_hash} {document['directory']}".encode()).hexdigest()[:16]


def _logged(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """What the run has logged so far, a step an entry, in order."""
    steps: dict[int, dict[str, Any]] = {}
    for record in (*read_metrics(run), *read_timings(run)):
        values = {key: value for key, value in record.items() if key != "step" and value is not None}
        steps.setdefault(record["step"], {}).update(values)
    return sorted(steps.items())


def _words_of(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
