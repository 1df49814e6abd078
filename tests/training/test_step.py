"""One step: clipping is to the limit and never beyond, seeds are the run's, and the clock counts what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from efftx.config.compose import compose
from efftx.data.dataset import Batch
from efftx.errors import Interrupted, UserError
from efftx.evaluation.evaluate import Evaluated
from efftx.runs.run_directory import read_metrics
from efftx.training import evaluation, learner, loop, tracking
from efftx.training.evaluation import EVALUATION_SEED
from efftx.training.loop import train
from efftx.training.setting import Setting
from efftx.training.step import clip_gradients, loss_of

WORDS = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "dropout=0"]


def with_gradients(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return [*parameters, nn.Parameter(torch.zeros(3))]  # the last has none


@pytest.mark.parametrize(
    ("limit", "scale"),
    [(6.5, 0.5), (1.3, 0.1), (13.0, 1.0), (14.0, 1.0), (1e9, 1.0), (0.0, 1.0)],
)
def test_gradients_are_scaled_down_to_the_limit_together_and_never_up(limit: float, scale: float) -> None:
    parameters = with_gradients([3.0, 4.0], [-12.0])
    assert clip_gradients(parameters, limit).item() == 13.0
    assert parameters[0].grad is not None
    assert parameters[1].grad is not None
    assert parameters[0].grad.tolist() == pytest.approx([3.0 * scale, 4.0 * scale], rel=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([-12.0 * scale], rel=1e-5)
    if scale == 1.0 and limit != 13.0:
        assert parameters[1].grad.tolist() == [-12.0], "not a bit is touched below the limit"


@pytest.mark.parametrize("family", ["transformer", "scaling"])
def test_a_step_computes_no_accuracy(family: str) -> None:
    asked: list[Any] = []

    def model(*tokens: torch.Tensor, **options: Any) -> tuple[torch.Tensor, None]:
        asked.append((len(tokens), options))
        return torch.ones(2, 3), None

    inputs = torch.ones(2, 5, dtype=torch.int64) if family == "scaling" else None
    batch = Batch(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), inputs)
    assert loss_of(model, batch).item() == 1.0  # type: ignore[arg-type]
    assert asked == [(1 if inputs is None else 2, {"losses": True, "hits": False})]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_updates_by_clipped_gradients_and_logs_the_norm_before(
    accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits below, between and above the norms of the steps."""
    honest = learner.make_optimizer

    def watched(norms: list[float]) -> Callable[..., Any]:
        def make(*given: Any) -> Any:
            optimizer = honest(*given)

            def look(*_: Any) -> None:
                gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
                norms.append(float(torch.cat([g.flatten() for g in gradients]).double().norm()))

            optimizer.register_step_pre_hook(look)
            return optimizer

        return make

    def norms_of(limit: float) -> tuple[list[float], list[float]]:
        used: list[float] = []
        monkeypatch.setattr(learner, "make_optimizer", watched(used))
        words = [*WORDS, f"training.accumulation={accumulation}", "training.steps=4", f"training.clip_norm={limit}"]
        run = train(compose(words), tmp_path / str(limit), silent=True).run
        return used, [line["grad_norm"] for line in read_metrics(run) if "grad_norm" in line]

    free, logged = norms_of(0)
    assert free == pytest.approx(logged, rel=1e-5)
    between = (min(free) + max(free)) / 2
    for limit in (min(free) / 10, between, max(free) * 10):
        used, logged = norms_of(limit)
        assert used == pytest.approx([min(norm, limit) for norm in logged], rel=1e-4)
        assert logged[0] == pytest.approx(free[0], rel=1e-5)


def test_a_run_is_its_seed_in_weights_data_and_dropout(tmp_path: Path) -> None:
    words = [
        "model=transformer",
        "data=duplicate",
        "size=smoke",
        "threads=1",
        "dropout=0.3",
        "training.steps=2",
        "schedule.warmup=0",
    ]
    results = [
        train(compose([*words, f"seed={seed}", "evaluation.every=0"]), tmp_path / f"{i}", silent=True)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert results[0].first_losses == results[1].first_losses
    assert results[0].weights_sha256 == results[1].weights_sha256
    assert not set(results[0].first_losses) & set(results[2].first_losses)
    assert results[0].metrics != results[2].metrics


def test_a_step_is_seeded_by_the_run_and_an_evaluation_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: list[tuple[int, ...]] = []
    monkeypatch.setattr(loop.devices, "seed_step", lambda *numbers: seeded.append(numbers))
    words = [
        *WORDS,
        "training.steps=2",
        "schedule.warmup=0",
        "training.accumulation=2",
        "evaluation.every=1",
        "evaluation.batches=3",
    ]
    train(compose([*words, "seed=7"]), tmp_path / "run", silent=True)
    evaluated = [(EVALUATION_SEED, i) for i in range(3)]
    # Two micro-batches a step, a validation after each, and the test.
    assert seeded == [(7, 1, 0), (7, 1, 1), *evaluated, (7, 2, 0), (7, 2, 1), *evaluated, *evaluated]


def test_an_evaluation_draws_the_same_at_every_step_and_for_every_seed_but_not_in_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    honest = evaluation.evaluate

    def evaluate(model: nn.Module, over: Evaluated, *given: Any, **options: Any) -> dict[str, float]:
        def before(i: int) -> None:
            over.before_batch(i)
            drawn.append(float(torch.rand(())))

        return honest(model, replace(over, before_batch=before), *given, **options)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    for seed in (0, 1):
        words = [
            *WORDS,
            "training.steps=2",
            "schedule.warmup=0",
            "evaluation.every=1",
            "evaluation.batches=3",
            f"seed={seed}",
        ]
        train(compose(words), tmp_path / str(seed), silent=True)
    assert len(drawn) == 2 * 3 * 3
    assert drawn == drawn[:3] * 6
    assert len(set(drawn)) == 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both clocks of a training go on by half a second whenever they are read."""
    readings, ticks = count(), count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: 0.5 * next(readings)))
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: 0.5 * next(ticks)))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("accumulation", [1, 3])
def test_tokens_a_second_count_every_row_of_every_micro_batch(accumulation: int, tmp_path: Path) -> None:
    words = [*WORDS, f"training.accumulation={accumulation}", "training.steps=4", "training.batch_size=2"]
    result = train(compose([*words, "data.length=64"]), tmp_path / "run", silent=True)
    assert result.timings["train_seconds"] == 4 * 0.5
    assert result.timings["seconds_per_step"] == 0.5
    assert result.timings["tokens_per_second"] == accumulation * 2 * 64 / 0.5
    lines = [json.loads(line) for line in (tmp_path / "run" / "timings.jsonl").read_text().splitlines()]
    assert [line["tokens_per_second"] for line in lines] == [accumulation * 2 * 64 / 0.5] * 4


@pytest.mark.usefixtures("clock")
def test_both_ends_of_a_pair_count_among_its_tokens(tmp_path: Path) -> None:
    words = ["model=scaling", "data=copy_add", "data.length=12", "data.max_digits=6", "data.eval_min_digits=7"]
    config = compose([*words, "data.eval_max_digits=9", "size=smoke", "threads=1", "training.steps=4"])
    result = train(config, tmp_path / "run", silent=True)
    rows = config.training.batch_size
    assert result.timings["tokens_per_second"] == rows * (config.data.length + config.target_length) / 0.5


@pytest.mark.usefixtures("clock")
def test_the_time_before_a_resume_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORDS, "training.steps=6"]
    with monkeypatch.context() as patched:
        honest = loop.Progress.update

        def update(self: loop.Progress, step: int, *given: Any) -> None:
            honest(self, step, *given)
            if step == 4:
                stops[0].exit_code = 143

        stops: list[loop.StopRequest] = []

        class Stop(loop.StopRequest):
            def __enter__(self) -> Stop:
                stops.append(self)
                return super().__enter__()

        patched.setattr(loop, "StopRequest", Stop)
        patched.setattr(loop.Progress, "update", update)
        with pytest.raises(Interrupted):
            train(compose(words), tmp_path / "run", silent=True)
    result = train(compose(words), tmp_path / "run", silent=True)
    assert result.resumed_from == 4
    assert result.timings["train_seconds"] == 6 * 0.5
    assert result.timings["seconds_per_step"] == 0.5


def test_a_step_without_a_target_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Setting.micro_batches

    def none(*given: Any) -> list[Batch]:
        batches = honest(*given)
        return [Batch(b.tokens_BL, torch.zeros_like(b.weights_BL), b.inputs_BE) for b in batches]

    monkeypatch.setattr(Setting, "micro_batches", none)
    with pytest.raises(UserError, match="No token counts in the rows of step 1 of duplicate"):
        train(compose([*WORDS, "training.steps=4"]), tmp_path / "run", silent=True)
