"""The Cartesian product of overrides as runs: validated first, finished ones skipped, failures told at the end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from efftx.config import Config, compose, expand_sweeps, launchers, parse_overrides, register_schema, to_config
from efftx.config_hash import config_hash
from efftx.data.dataset import open_dataset
from efftx.errors import Interrupted, UserError, nearest
from efftx.models.build import build_on_meta, dense_parameters
from efftx.shipped import shipped
from efftx.training.loop import train
from efftx.training.run_directory import default_run_dir, read_result

FAILURE_FILE = "failure.json"


@dataclass(frozen=True)
class Point:
    """One run of an ablation: its single-valued overrides, its configuration, where it lives, and its model's size.

    `dense_parameters` are those of the model without sparse parts that `d_ff_rule=equal` compares with.
    """

    overrides: list[str]
    config: Config
    hash: str
    run: Path
    parameters: int
    dense_parameters: int


def plan_points(overrides: Sequence[str], *, config_dirs: Iterable[str | Path] = ()) -> list[Point]:
    """All points, every one checked; UserError names the first that cannot be. Nothing is run."""
    if any(word.startswith("run_dir=") for word in overrides):
        raise UserError(
            "bad_override", "The runs of an ablation cannot share one run_dir.", "EFFTX_RUNS moves them all."
        )
    points = []
    for choice in expand_sweeps([word for word in overrides if not word.startswith("hydra")]):
        config = compose(choice, config_dirs=config_dirs)
        dataset = open_dataset(config.data, config.objective)
        digest = config_hash(config, dataset)
        run = default_run_dir(config.model, dataset.name, digest)
        sizes = (_n_parameters(config, dataset.vocab_size), dense_parameters(config, dataset.vocab_size))
        points.append(Point(choice, config, digest, run, *sizes))
    return points


def ablate(
    overrides: Sequence[str], *, config_dirs: Iterable[str | Path] = (), say: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Runs every point that is not done; one `{overrides, run, hash, state, parameters, parameters_against_dense,
    metrics, timings, error}` a point.

    `state` is `skipped` (done before), `done` or `failed`; a failing point does not stop the others. With an override
    `hydra/launcher=...` that launcher runs the points (joblib in parallel, submitit on a cluster), else they run here
    one after the other.
    """
    check_launcher(overrides)
    points = plan_points(overrides, config_dirs=config_dirs)
    before = {point.hash for point in points if read_result(point.run) is not None}
    launched = any(word.startswith("hydra/launcher=") for word in overrides)
    errors: dict[str, str] = {}
    if launched and before != {point.hash for point in points}:
        errors = _launch(overrides, points, config_dirs)
    for number, point in enumerate(points, start=1):
        if launched or point.hash in before or point.hash in errors or read_result(point.run) is not None:
            continue
        say(f"[{number}/{len(points)}] {' '.join(point.overrides)}")
        try:
            train(point.config, point.run)
        except Interrupted:
            raise
        except Exception as error:
            errors[point.hash] = _told(error)
            say(f"failed: {errors[point.hash]}")
    return [_line(point, point.hash in before, errors.get(point.hash)) for point in points]


def _n_parameters(config: Config, vocab_size: int) -> int:
    return sum(parameter.numel() for parameter in build_on_meta(config, vocab_size).parameters())


def check_launcher(overrides: Sequence[str]) -> None:
    """Raises UserError for a launcher that is not installed."""
    for name in (word.split("=", 1)[1] for word in overrides if word.startswith("hydra/launcher=")):
        known = launchers()
        if name not in known:
            raise UserError(
                "unknown_launcher",
                f"There is no launcher '{name}' here.",
                f"{nearest(name, known)} pip install 'efftx[joblib]' brings joblib; submitit and Ray have plugins too.",
            )


def _line(point: Point, was_done: bool, error: str | None) -> dict[str, Any]:
    result = read_result(point.run)
    state = "failed" if result is None else "skipped" if was_done else "done"
    return {
        "overrides": point.overrides,
        "run": str(point.run),
        "hash": point.hash,
        "state": state,
        "parameters": point.parameters,
        "parameters_against_dense": point.parameters / point.dense_parameters,
        "metrics": {} if result is None else result["metrics"],
        "timings": {} if result is None else result["timings"],
        "error": (error or "it ended without a result") if result is None else None,
    }


def _launch(overrides: Sequence[str], points: Sequence[Point], config_dirs: Iterable[str | Path]) -> dict[str, str]:
    """Runs all points through Hydra's launcher; gives the failures by the points' hashes."""
    register_schema()
    with tempfile.TemporaryDirectory(prefix="efftx-ablate-") as scratch:
        words = [str(o.input_line) for o in parse_overrides(overrides)]
        extra = ",".join(f"file://{Path(d).resolve()}" for d in config_dirs)
        own = [f"hydra.searchpath=[{extra}]"] if extra else []
        own += ["hydra.output_subdir=null", f"hydra.sweep.dir={scratch}", "hydra.sweep.subdir=${hydra.job.num}"]
        own += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        application = hydra.main(config_path=str(shipped("conf")), config_name="train", version_base="1.3")(_job)
        with _arguments(["efftx-ablate", "--multirun", *words, *own]), _environment("EFFTX_ABLATE_SCRATCH", scratch):
            application()
        failures = [json.loads(file.read_text()) for file in Path(scratch).glob(f"*.{FAILURE_FILE}")]
    return {failure["hash"]: failure["error"] for failure in failures}


def _job(raw: DictConfig) -> None:
    """One point inside a launcher's worker; a failure is written down, so that the others go on."""
    config = to_config(raw)
    digest = config_hash(config, open_dataset(config.data, config.objective))
    try:
        train(config, silent=True)
    except Exception as error:
        file = Path(os.environ["EFFTX_ABLATE_SCRATCH"]) / f"{digest}.{FAILURE_FILE}"
        file.write_text(json.dumps({"hash": digest, "error": _told(error)}))


def _told(error: Exception) -> str:
    """What `train` prints of this error: its message and its hint."""
    return (
        f"{error.message} {error.hint}".strip() if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    )


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    previous, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = previous


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if previous is None:
            del os.environ[name]
        else:
            os.environ[name] = previous
