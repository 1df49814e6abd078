"""An ablation's points through one of Hydra's launchers: joblib side by side here, submitit or Ray on a cluster."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from efftx.config.compose import parse_overrides, quoted, register_schema, search_path, to_config, with_implied
from efftx.core.artifact import read_document, write_document
from efftx.core.scratch import scratch_folder, sweep
from efftx.core.shipped import shipped
from efftx.errors import Interrupted, UserError, nearest
from efftx.parent import follow
from efftx.runs.run_directory import runs_root
from efftx.training.loop import train

LAUNCHER = "hydra/launcher"
LOCAL = ("basic", "joblib", "submitit_local")
"""Launchers whose workers are on this machine."""
LAUNCHED_BY = "EFFTX_LAUNCHED_BY"
_SCRATCH_PREFIX = ".ablate-"
POINTS = "points.json"
"""In the scratch folder: of every job, by its number, the point's key and its run directory."""
WATCHED_EVERY = 0.1
KILLED = "Its process was killed (out of memory, or by hand); the same command goes on from its last checkpoint."


def check_launcher(overrides: Sequence[str]) -> None:
    """Raises UserError for one of Hydra's keys that an ablation does not read, and for a launcher that is not here."""
    parsed = parse_overrides(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(
                "bad_override", f"'{override.input_line}': the points share one launcher.", "Name one value."
            )
    keys = {str(o.key_or_group): str(o.value()) for o in parsed}
    for key in keys:
        if key != LAUNCHER and not (key.startswith("hydra.launcher.") and LAUNCHER in keys):
            why = (
                f"without {LAUNCHER}= the points run here"
                if key.startswith("hydra.launcher")
                else "ablate never reads it"
            )
            hint = f"Of Hydra's own keys `efftx ablate` reads {LAUNCHER}= and that launcher's hydra.launcher.<key>=."
            raise UserError("dead_key", f"'{key}' would change nothing: {why}.", hint)
    if LAUNCHER in keys:
        known = launchers()
        if keys[LAUNCHER] not in known:
            raise UserError(
                "unknown_launcher",
                f"There is no launcher '{keys[LAUNCHER]}' here.",
                f"{nearest(keys[LAUNCHER], known)} pip install 'efftx[joblib]' brings joblib; submitit and Ray have "
                "plugins too.",
            )


def leaves_this_machine(overrides: Sequence[str]) -> bool:
    """Whether the launcher of Hydra's own `overrides` may run points on another machine; False where none is named."""
    named = [str(o.value()) for o in parse_overrides(overrides) if o.key_or_group == LAUNCHER]
    return bool(named) and named[-1] not in LOCAL


def launchers() -> list[str]:
    """The launchers of an ablation that are installed here: Hydra's own and those of its plugins."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        return sorted(GlobalHydra.instance().config_loader().get_group_options(LAUNCHER))


class Launched(NamedTuple):
    """One run for a launcher's worker: its overrides, and the run directory that whoever launched it will look into."""

    overrides: Sequence[str]
    run: Path


class _StoppedHere(BaseException):
    """A worker that is the launching process itself was told to stop: no launcher takes that for a failed point."""

    def __init__(self, error: Interrupted) -> None:
        super().__init__(error.message)
        self.error = error


def launch(
    points: Mapping[str, Launched], overrides: Sequence[str], config_dirs: Iterable[str | Path]
) -> dict[str, str]:
    """Runs the points, by key, through the launcher that Hydra's own `overrides` choose; failures by key.

    A worker that dies takes all of the launcher's workers with it: its point has failed, the others are launched again
    and go on from their checkpoints. Where it cannot be told whose worker died, each of those that ran is launched by
    itself.
    """
    sweep(runs_root(), _SCRATCH_PREFIX)  # where nothing is left to run, too
    left, failures = dict(points), dict[str, str]()
    alone: list[str] = []
    while left:
        batch = {alone[0]: left[alone[0]]} if alone else left
        broken, ended, killed = _launch(batch, overrides, config_dirs)
        failures |= ended.failures
        if broken is None:
            finished = set(batch)
        else:
            suspects = sorted(ended.started - ended.finished)
            victims = {killed} if killed in suspects else set(suspects if len(suspects) == 1 else ())
            if not suspects:
                raise UserError("launcher_failed", f"The launcher stopped: {broken}", "Check hydra.launcher.<key>=.")
            failures |= dict.fromkeys(victims, KILLED)
            finished = ended.finished | victims
            alone = alone if victims else suspects
        left = {digest: point for digest, point in left.items() if digest not in finished}
        alone = [digest for digest in alone if digest in left]
    return failures


class _Ended:
    """What the workers wrote into the scratch folder: which points began, which ended, and which failed with what."""

    def __init__(self, scratch: Path) -> None:
        self.started = {file.stem for file in scratch.glob("*.started")}
        self.failures = {file.stem: _read_failure(file) for file in scratch.glob("*.failed")}
        self.finished = {file.stem for file in scratch.glob("*.done")} | set(self.failures)


def _launch(
    points: Mapping[str, Launched], overrides: Sequence[str], config_dirs: Iterable[str | Path]
) -> tuple[Exception | None, _Ended, str | None]:
    """One launch: what broke the launcher, what the workers wrote, and the point whose worker was the first to die."""
    register_schema()
    with _scratch() as folder:
        runs = [[digest, str(point.run.resolve())] for digest, point in points.items()]
        write_document(folder / POINTS, {"points": runs})
        words = [*overrides, f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=${hydra.job.num}"]
        words += ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
        words += search_path(config_dirs)
        launched_by = json.dumps([socket.gethostname(), os.getpid()])
        previous = os.environ.get(LAUNCHED_BY)
        os.environ[LAUNCHED_BY] = launched_by
        broken: Exception | None = None
        try:
            GlobalHydra.instance().clear()
            with initialize_config_dir(str(shipped("conf")), version_base="1.3"), _FirstDeath(folder) as death:
                try:
                    hydra = GlobalHydra.instance().hydra
                    assert hydra is not None
                    config = hydra.compose_config("train", words, RunMode.MULTIRUN, with_log_configuration=False)
                    launcher = Plugins.instance().instantiate_launcher(
                        hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks()),
                        task_function=_job,
                        config=config,
                    )
                except (HydraException, OmegaConfBaseException, TypeError) as error:
                    text = " ".join(str(error).split())
                    raise UserError("bad_value", f"{LAUNCHER}: {text}", "Check hydra.launcher.<key>=.") from error
                try:
                    launcher.launch([with_implied(point.overrides) for point in points.values()], initial_job_idx=0)
                except _StoppedHere as stopped:
                    raise stopped.error from stopped
                except Exception as error:  # whatever a plugin raises when its workers are gone
                    broken = error
        finally:
            os.environ.pop(LAUNCHED_BY) if previous is None else os.environ.update({LAUNCHED_BY: previous})
        return broken, _Ended(folder), death.point


@contextmanager
def _scratch() -> Iterator[Path]:
    """A scratch folder among the runs: a cluster's workers share those with this machine, but not /tmp.

    If the folder of runs was made for it and is empty at the end, it is removed again.
    """
    root = runs_root()
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with scratch_folder(_SCRATCH_PREFIX, root.resolve()) as folder:
            yield folder
    finally:
        if made:
            with suppress(OSError):
                root.rmdir()


def _job(raw: DictConfig) -> None:
    """One point inside a launcher's worker; how it ended is written down, so that the others go on."""
    register_schema()
    host, launcher = json.loads(os.environ[LAUNCHED_BY])
    if host == socket.gethostname() and os.getppid() == launcher:
        follow(launcher)
    scratch = Path(HydraConfig.get().sweep.dir)  # not from the environment, which a worker that is used again keeps
    points = (read_document(scratch / POINTS) or {})["points"]
    digest, run = points[HydraConfig.get().job.num]
    (scratch / f"{digest}.started").write_text(json.dumps([host, os.getppid(), os.getpid()]))
    try:
        train(to_config(raw, parse_overrides(HydraConfig.get().overrides.task)), Path(run), silent=True)
    except Exception as error:
        write_failure(scratch / f"{digest}.failed", error)
        if isinstance(error, Interrupted) and os.getpid() == launcher:
            raise _StoppedHere(error) from error
    else:
        (scratch / f"{digest}.done").touch()


def write_failure(file: Path, error: Exception) -> None:
    """Write down what a point failed with, for the process that launched it."""
    write_document(file, {"error": error_text(error)})


def _read_failure(file: Path) -> str:
    try:
        document = read_document(file)
    except UserError as error:  # damaged or not to be read: that the point failed is still known
        return error.message
    return str(document["error"]) if document else f"{file} is gone."


def error_text(error: Exception) -> str:
    """What `train` prints of this error: its message and its hint."""
    if isinstance(error, Interrupted):
        return error.message
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


class _FirstDeath:
    """Watches the workers that are this process's own children, for `point`: whose worker was the first to die.

    joblib kills every worker as soon as one has died, so that afterwards nothing tells them apart. None where no worker
    died, where several did at once, and where the system has no process file descriptors (Linux has).
    """

    def __init__(self, scratch: Path) -> None:
        self.point: str | None = None
        self._scratch = scratch
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _FirstDeath:
        if hasattr(os, "pidfd_open"):
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        poll, point_of, pid_of = select.poll(), dict[int, str](), dict[int, int]()
        try:
            while not self._over.is_set():
                for pid, digest in self._working().items():
                    point_of[pid] = digest
                    if pid not in pid_of.values():
                        with suppress(ProcessLookupError):
                            handle = os.pidfd_open(pid)
                            pid_of[handle] = pid
                            poll.register(handle, select.POLLIN)
                dead = [handle for handle, _ in poll.poll(1000 * WATCHED_EVERY)]
                if not dead:
                    continue
                finished = _Ended(self._scratch).finished
                lost = [point_of[pid_of[handle]] for handle in dead if point_of[pid_of[handle]] not in finished]
                if lost:
                    self.point = lost[0] if len(lost) == 1 else None
                    return
                for handle in dead:
                    poll.unregister(handle)
        finally:
            for handle in pid_of:
                os.close(handle)

    def _working(self) -> dict[int, str]:
        """Process id -> the point that it began last, of this process's own children on this machine."""
        working: dict[int, str] = {}
        here = [socket.gethostname(), os.getpid()]
        for file in sorted(self._scratch.glob("*.started"), key=lambda path: path.stat().st_mtime):
            with suppress(ValueError):  # it is being written
                *parent, pid = json.loads(file.read_text())
                if parent == here:
                    working[pid] = file.stem
        return working
