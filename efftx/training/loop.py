"""The training loop, read top to bottom, and the evaluation of a finished run under another configuration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from efftx.bench.timing import exclusive
from efftx.data.dataset import Dataset, open_dataset
from efftx.decoding.latency import decoding_latency
from efftx.errors import Interrupted, NotFiniteError, UserError
from efftx.evaluation.evaluate import evaluate
from efftx.evaluation.generation import evaluate_generation, scored_by
from efftx.evaluation.metrics import HEADINGS, shown
from efftx.models.build import Model, build_model
from efftx.models.carry import carry_weights
from efftx.training import devices
from efftx.training.checkpoint import (
    capture_optimizer,
    load_latest,
    restore_optimizer,
    save_checkpoint,
    weights_sha256,
)
from efftx.training.optimizers import make_optimizer
from efftx.training.pretrained import keep_vocabulary, load_pretrained, with_vocabulary_of
from efftx.training.run_directory import RunDirectory, default_run_dir, read_config
from efftx.training.schedules import learning_rate
from efftx.training.step import clip_gradients, loss_of, move, set_learning_rate
from efftx.training.tracking import Progress, StopRequest, Tracker

if TYPE_CHECKING:
    from efftx.config import Config

EVALUATION_SEED = 1_000_003
"""What is drawn while evaluating (hash rotations) comes from this number and the batch's, whatever the run's seed."""
LATENCY_WAITS = 10.0
"""Seconds that a finished training waits for another timing: that of another training takes one."""
N_FIRST_LOSSES = 3
"""A record keeps the losses of so many first steps, so that a replay takes seconds."""


@dataclass
class TrainResult:
    """What a training gave: `metrics` (on the test split) and `curve` (validation) are the same on every run of the
    same configuration, bit for bit on the CPU; `timings` are not.
    """

    run: Path
    hash: str
    step: int
    resumed_from: int | None
    metrics: dict[str, float]
    timings: dict[str, float]
    weights_sha256: str
    first_losses: list[float]
    curve: list[dict[str, float]]
    data: dict[str, str]


@dataclass
class _State:
    """What a checkpoint carries beside weights and optimiser."""

    step: int = 0
    first_losses: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    train_seconds: float = 0.0


def train(
    config: Config, run_dir: Path | None = None, *, steps: int | None = None, silent: bool = False
) -> TrainResult:
    """Trains as `config` says and evaluates; goes on from the run directory's last checkpoint where there is one.

    A new training starts from the weights of `config.pretrained` where that is given.
    `run_dir`: default runs/<model>-<data>-<hash>. `steps`: stop after so many, for a replay; no evaluation then.
    Raises UserError for a user's mistake, NotFiniteError before an update by a NaN or an infinity, and Interrupted
    after SIGTERM or Ctrl-C, its checkpoint written.
    """
    from efftx.config import to_dict
    from efftx.config_hash import config_hash

    device = devices.resolve_device(config.device)
    dtype = devices.resolve_dtype(config.dtype, device)
    devices.set_determinism(config.n_threads)
    dataset = open_dataset(config.data, config.objective)
    digest = config_hash(config, dataset)
    path = run_dir or (Path(config.run_dir) if config.run_dir else default_run_dir(config.model, dataset.name, digest))
    replaying = steps is not None
    total = config.training.steps if steps is None else min(steps, config.training.steps)

    with ExitStack() as stack:
        run = stack.enter_context(RunDirectory(path, to_dict(config), digest))
        keep_vocabulary(path, dataset)
        if run.result is not None:
            return _as_result(run.result, path, resumed_from=run.result["step"])
        model = build_model(config, dataset.vocab_size, device, devices.parameter_dtype(dtype))
        optimizer = make_optimizer(config.optimizer, model.named_parameters())
        scaler = devices.grad_scaler(device, dtype)
        notes: list[str] = [note for note in [devices.dtype_note(dtype, device)] if note]
        state, resumed_from = _resume(run, model, optimizer, scaler, notes)
        if config.pretrained is not None and resumed_from is None:
            load_pretrained(model, Path(config.pretrained), dataset)
        if config.compile:
            _compile(model, dataset, config, device, dtype)

        progress = stack.enter_context(
            Progress(
                total, unit=dataset.unit, start=state.step, label=path.name, device=device, silent=silent or replaying
            )
        )
        for note in notes:
            progress.note(note)
        tracker = Tracker(config.tracker, run=path, run_config=to_dict(config), warn=progress.note)
        stop = stack.enter_context(StopRequest())
        parameters = list(model.parameters())
        rows = config.training.batch_size
        tokens_a_step = rows * config.training.accumulation * (dataset.input_length + dataset.length)
        to_unit = math.log(2.0) if dataset.unit.startswith("bits") else 1.0

        model.train()
        while state.step < total and not _reached(state, config):
            step = state.step + 1
            started = time.perf_counter()
            rate = learning_rate(config.schedule, config.optimizer.lr, step, config.training.steps)
            set_learning_rate(optimizer, rate)
            batches = move(_micro_batches(dataset, config, step), device)
            loss = torch.zeros((), device=device)
            for micro, batch in enumerate(batches):
                devices.seed_step(config.seed, step, micro)
                with devices.autocast(device, dtype):
                    micro_loss = loss_of(model, batch) / len(batches)
                scaler.scale(micro_loss).backward()
                loss = loss + micro_loss.detach()
            scaler.unscale_(optimizer)
            norm = clip_gradients(parameters, config.training.clip_norm)
            nats, grad_norm = float(loss), float(norm)  # the loop's one deliberate wait for the device
            if not math.isfinite(nats) or not (math.isfinite(grad_norm) or scaler.is_enabled()):
                _stop_not_finite(run, step, nats, grad_norm, state)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            state.step = step
            state.train_seconds += time.perf_counter() - started
            if step <= N_FIRST_LOSSES:
                state.first_losses.append(nats)
            progress.update(step, nats / to_unit, tokens_a_step)
            line = {"loss": nats, "grad_norm": grad_norm, "lr": rate}
            run.log(step, line)
            run.log_timing(step, {"tokens_per_second": progress.tokens_per_second})
            tracker.log(step, line)
            if replaying:
                continue

            at_end = step == total
            if at_end or (config.evaluation.every and step % config.evaluation.every == 0):
                found = _evaluate(model, dataset, "valid", config, device, dtype)
                state.curve.append({"step": step, **found})
                run.log(step, {f"valid_{name}": value for name, value in found.items()})
                tracker.log(step, {f"valid_{name}": value for name, value in found.items()})
                told = ", ".join(f"{HEADINGS.get(k, k)} {v:.4f}" for k, v in shown(found).items())
                progress.note(f"step {step}: valid {told}")
                at_end = at_end or _reached(state, config)
            if stop.asked or at_end or (config.checkpoint.every and step % config.checkpoint.every == 0):
                _save(run, model, optimizer, scaler, state, config)
            if stop.asked and not at_end:
                assert stop.exit_code is not None
                raise Interrupted(stop.exit_code, f"Stopped at step {step}; the same command goes on from {path}.")

        metrics = {} if replaying else _evaluate(model, dataset, "test", config, device, dtype, final=True)
        digest_of_weights = weights_sha256(dict(model.named_parameters()))
        latency = {} if replaying else _latency(model, dataset, device, progress.note)
        result = TrainResult(
            run=path,
            hash=digest,
            step=state.step,
            resumed_from=resumed_from,
            metrics=metrics,
            timings={
                "train_seconds": state.train_seconds,
                "seconds_per_step": state.train_seconds / max(state.step, 1),
                "tokens_per_second": state.step * tokens_a_step / state.train_seconds if state.train_seconds else 0.0,
                **latency,
            },
            weights_sha256=digest_of_weights,
            first_losses=state.first_losses,
            curve=state.curve,
            data={"name": dataset.name, "variant": dataset.variant, "checksum": dataset.checksum} | scored_by(dataset),
        )
        if not replaying:
            tracker.log(state.step, {f"test_{name}": value for name, value in metrics.items()})
            run.finish({**asdict(result), "run": None, "environment": asdict(devices.environment())})
        tracker.finish()
        return result


def evaluate_run(run: Path, config: Config, *, carry: str | None = None, split: str = "test") -> dict[str, float]:
    """Metrics on `split` of the weights that the run at `run` ended with, in the model that `config` describes.

    The two models have the same parameters, or `carry` names how they carry over (`models.carry`). UserError where
    the run has no checkpoint or the parameters differ.
    """
    device = devices.resolve_device(config.device)
    dtype = devices.resolve_dtype(config.dtype, device)
    devices.set_determinism(config.n_threads)
    config = with_vocabulary_of(config, run)
    dataset = open_dataset(config.data, config.objective)
    checkpoint = load_latest(run / "checkpoints", read_only=True)
    if checkpoint is None:
        raise UserError("missing_file", f"The run {run} has no checkpoint.", "Train it first: `efftx train`.")
    model = build_model(config, dataset.vocab_size, device, devices.parameter_dtype(dtype))
    carry_weights(model, checkpoint.model, carry)
    return _evaluate(model, dataset, split, config, device, dtype, final=True)


def read_run(run: Path) -> tuple[dict[str, Any], str]:
    """The resolved configuration of the run at `run` and its hash; UserError where there is none."""
    found = read_config(run)
    if found is None:
        raise UserError("missing_file", f"{run} is not a run directory.", "Give the folder that `efftx train` printed.")
    return found


def _compile(model: Model, dataset: Dataset, config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Replaces the model's losses by compiled ones; tries them once, so that a machine that cannot is told at once."""
    model.token_losses = torch.compile(model.token_losses)  # type: ignore[method-assign]
    batch = dataset.batch("train", config.seed, 0, config.training.batch_size)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), devices.autocast(device, dtype):
            loss_of(model, move([batch], device)[0]).backward()
    except torch._dynamo.exc.TorchDynamoException as error:
        why = str(error).strip().splitlines()[0]
        hint = "torch.compile needs a C++ compiler on the CPU (g++); compile=false does without."
        raise UserError("cannot_compile", f"compile=true: {why}", hint) from error
    model.zero_grad(set_to_none=True)


def _reached(state: _State, config: Config) -> bool:
    goal = config.evaluation.stop_at_accuracy
    return goal > 0 and bool(state.curve) and state.curve[-1]["accuracy"] >= goal


def _micro_batches(dataset: Dataset, config: Config, step: int) -> Sequence[Any]:
    count, rows = config.training.accumulation, config.training.batch_size
    return [dataset.batch("train", config.seed, (step - 1) * count + i, rows) for i in range(count)]


def _evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    *,
    final: bool = False,
) -> dict[str, float]:
    """Loss and accuracies; of a `final` evaluation also what is measured on generated text, where the data asks."""
    measures = (evaluate, evaluate_generation) if final else (evaluate,)
    found: dict[str, float] = {}
    for measure in measures:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), devices.autocast(device, dtype):
            found |= measure(
                model,
                dataset,
                split,
                batch_size=config.training.batch_size,
                batches=config.evaluation.batches,
                device=device,
                before_batch=lambda i: devices.seed_step(EVALUATION_SEED, i),
            )
    # What a majority would score stands beside a classifier's accuracy; a generated task's level is the experiment's.
    if final and dataset.chance_accuracy is not None and getattr(dataset, "label_targets", None):
        found["chance_accuracy"] = dataset.chance_accuracy
    return found


def _latency(model: Model, dataset: Dataset, device: torch.device, note: Callable[[str], object]) -> dict[str, float]:
    """What a token costs to decode, on the first row of the test split, in float32 or what the weights are in.

    Empty, and why is noted, where another timing holds the machine or the caches do not fit: a finished training loses
    nothing over it.
    """
    batch = dataset.batch("test", 0, 0, 1)
    inputs = None if batch.inputs_BE is None else batch.inputs_BE.to(device)
    try:
        with exclusive(at_most=LATENCY_WAITS):
            return decoding_latency(model, batch.tokens_BL[0].to(device), inputs)
    except UserError as error:
        note(f"decoding was not timed: {error.message}")
        return {}


def _save(
    run: RunDirectory,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: _State,
    config: Config,
) -> None:
    logs = run.sync()
    score = state.curve[-1]["loss"] if state.curve and state.curve[-1]["step"] == state.step else None
    meta = {"state": asdict(state), "score": score, "scaler": scaler.state_dict(), "logs": logs}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    save_checkpoint(
        run.checkpoints, state.step, tensors, capture_optimizer(optimizer), meta, keep=config.checkpoint.keep
    )


def _resume(
    run: RunDirectory,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    notes: list[str],
) -> tuple[_State, int | None]:
    checkpoint = load_latest(run.checkpoints, on_damage=notes.append)
    notes += run.resume_at(None if checkpoint is None else checkpoint.meta["logs"])
    if checkpoint is None:
        return _State(), None
    carry_weights(model, checkpoint.model, None)
    restore_optimizer(optimizer, checkpoint.optimizer)
    if checkpoint.meta["scaler"]:
        scaler.load_state_dict(checkpoint.meta["scaler"])
    notes.append(f"going on from step {checkpoint.step} of {run.path}")
    return _State(**checkpoint.meta["state"]), checkpoint.step


def _stop_not_finite(run: RunDirectory, step: int, loss: float, grad_norm: float, state: _State) -> None:
    run.sync()
    raise NotFiniteError(
        "not_finite",
        f"Step {step} gave loss {loss} and gradient norm {grad_norm}; the weights are those of step {state.step}.",
        "Lower optimizer.lr, set training.clip_norm, or use dtype=float32; metrics.jsonl in the run directory "
        f"({run.path}) has the last values.",
    )


def _as_result(saved: dict[str, Any], path: Path, *, resumed_from: int) -> TrainResult:
    fields = {key: saved[key] for key in TrainResult.__dataclass_fields__ if key in saved}
    return TrainResult(**{**fields, "run": path, "resumed_from": resumed_from})
