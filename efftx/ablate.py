"""The Cartesian product of overrides as runs: validated first, finished ones skipped, failures told at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efftx.config.compose import expand_sweeps, parse_overrides, split_hydra
from efftx.config.schema import Config
from efftx.core.work import Work, working_on
from efftx.data.dataset import open_dataset
from efftx.errors import Interrupted, UserError
from efftx.launch import Launched, check_launcher, error_text, launch, leaves_this_machine
from efftx.layers.cost import n_parameters
from efftx.machine.devices import check_here
from efftx.models.build import build_on_meta, dense_parameters
from efftx.runs.pretrained import compose_run, run_hash
from efftx.runs.run_directory import default_run_dir, read_result
from efftx.training.loop import train


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

    @property
    def key(self) -> str:
        """What tells it from the others: two models may be one by their hash, and are trained under both names."""
        return self.run.name


def plan_points(
    overrides: Sequence[str], *, config_dirs: Iterable[str | Path] = (), elsewhere: bool = False
) -> list[Point]:
    """All points, every one checked; UserError names the first that cannot be. Nothing is run.

    `elsewhere`: they may run on another machine, which has devices that this one lacks.
    """
    if any(override.key_or_group == "run_dir" for override in parse_overrides(overrides)):
        raise UserError(
            "bad_override", "The runs of an ablation cannot share one run_dir.", "EFFTX_RUNS moves them all."
        )
    points = []
    for choice in expand_sweeps(overrides):
        config = compose_run(choice, config_dirs=config_dirs)
        if not elsewhere:
            check_here(config)
        dataset = open_dataset(config.data, config.objective)
        digest = run_hash(config, dataset)
        run = default_run_dir(config.model, dataset.name, digest)
        vocab_size = dataset.vocab_size
        sizes = (n_parameters(build_on_meta(config, vocab_size)), dense_parameters(config, vocab_size))
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
    words, hydras = split_hydra(overrides)
    check_launcher(hydras)
    points = plan_points(words, config_dirs=config_dirs, elsewhere=leaves_this_machine(hydras))
    before = {point.key for point in points if read_result(point.run) is not None}
    errors: dict[str, str] = {}
    if hydras:
        left = {p.key: Launched(p.overrides, p.run) for p in points if p.key not in before}
        errors = launch(left, hydras, config_dirs)
    for number, point in enumerate(points, start=1):
        if hydras or point.key in before or point.key in errors or read_result(point.run) is not None:
            continue
        varied = [word for word in point.overrides if any(word not in other.overrides for other in points)]
        work = Work(" ".join(varied or point.overrides), number, len(points))
        say(f"[{number}/{len(points)}] {work.name}")
        try:
            with working_on(work):
                train(point.config, point.run)
        except Interrupted:
            raise
        except Exception as error:
            errors[point.key] = error_text(error)
            say(f"failed: {errors[point.key]}")
    return [_line(point, point.key in before, errors.get(point.key)) for point in points]


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
