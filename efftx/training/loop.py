"""The training loop, read top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efftx.config.schema import Config, to_dict
from efftx.config.settings import TrackerConfig
from efftx.config.sizes import unequal
from efftx.core.memory import allocating
from efftx.data.dataset import Batch, Dataset, notes_of, open_dataset
from efftx.distributed.processes import ALONE, Processes, cut_for, group_of_one
from efftx.distributed.wrap import whole, wrap
from efftx.errors import Interrupted, NotFiniteError, UserError
from efftx.evaluation.generation import scored_by
from efftx.evaluation.metrics import heading, shown
from efftx.layers.positions import off_the_grid
from efftx.machine import devices
from efftx.machine.allocator import keep_freed_memory
from efftx.models.build import Model, build_model, build_on_meta, dense_parameters
from efftx.models.conversion import load_weights
from efftx.models.reach import unreached
from efftx.optim.optimizers import make_optimizer
from efftx.optim.schedules import learning_rate
from efftx.runs.checkpoint import find_latest, weights_sha256
from efftx.runs.ema import Average
from efftx.runs.pretrained import keep_vocabulary, load_pretrained, resolved, run_hash
from efftx.runs.run_directory import FollowedRun, RunDirectory, default_run_dir
from efftx.runs.saver import Saver
from efftx.training.evaluation import evaluate_split, gathered, latency_of, unsharded
from efftx.training.fit import LESS, refuse_too_large
from efftx.training.learner import Learner, State
from efftx.training.mirror import Tracker
from efftx.training.step import (
    Share,
    accumulate,
    clip_gradients,
    loss_of,
    micro_batches,
    move,
    set_learning_rate,
    share_of,
)
from efftx.training.tracking import Progress, StopRequest

N_FIRST_LOSSES = 3
"""A record keeps the losses of so many first steps, so that a replay takes seconds."""


@dataclass
class TrainResult:
    """What a training gave: `metrics` (on the test split) and `curve` (validation) are the same on every run of the
    same configuration, bit for bit on the CPU; `timings` are not. `seconds_before`: of the training's, what earlier
    processes had spent.
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
    seconds_before: float = 0.0


def train(
    config: Config,
    run_dir: Path | None = None,
    *,
    steps: int | None = None,
    silent: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    processes: Processes = ALONE,
) -> TrainResult:
    """Trains as `config` says and evaluates; goes on from the run directory's last checkpoint where there is one.

    A new training starts from the weights of `config.pretrained`, in its vocabulary, where that is given.
    Where `config.imported` is given the run has no step of its own: `weights`, under this package's names, are kept and
    evaluated. `run_dir`: default runs/<model>-<data>-<hash>. `steps`: stop after so many, for a replay; no evaluation
    then. `processes`: each calls this alike, and does its share of every step (`distributed.strategy` says how); the
    leader writes and shows, and all give the same result.
    Raises UserError for a user's mistake, NotFiniteError before an update by a NaN or an infinity, and Interrupted
    after SIGTERM or Ctrl-C, its checkpoint written.
    """
    config = resolved(config)
    if processes.count > 1 and ":" in config.device:
        message = f"device={config.device} is one GPU, and {processes.count} processes want one each."
        error = UserError("distributed", message, "Use device=cuda; CUDA_VISIBLE_DEVICES says which GPUs.")
        error.common = True
        raise error
    device = devices.resolve_device(config.device)
    dtype = devices.resolve_dtype(config.dtype, device)
    devices.set_determinism(config.n_threads)
    keep_freed_memory()
    with processes.together():
        cut = cut_for(config.training.batch_size, config.training.accumulation, processes.count)
    own_config = replace(config, training=replace(config.training, batch_size=config.training.batch_size // cut))
    with processes.together():
        refuse_too_large(own_config, device, processes, when_empty=True)
        with allocating(f"reading data={config.data.name} in rows of data.length={config.data.length}", LESS["data"]):
            dataset = open_dataset(config.data, config.objective)
            digest = run_hash(config, dataset)
    _refuse_other_data(processes, digest)
    path = run_dir or (Path(config.run_dir) if config.run_dir else default_run_dir(config.model, dataset.name, digest))
    replaying = steps is not None
    total = 0 if config.imported else config.training.steps
    if replaying:
        total = min(total, steps or 0)

    if weights is not None:
        load_weights(build_on_meta(config, dataset.vocab_size), weights, None)  # refused before anything is written

    with ExitStack() as stack:
        run: RunDirectory | FollowedRun = FollowedRun(path)
        with processes.together():
            if processes.leads:
                run = stack.enter_context(RunDirectory(path, to_dict(config), digest))
        done = processes.led(lambda: run.result)
        if done is not None:
            with suppress(UserError):  # a lost vocabulary is written anew where it can be; the result needs none
                processes.led(lambda: keep_vocabulary(path, dataset))
            return _as_result(done, path, resumed_from=done["step"])
        with processes.together():
            refuse_too_large(own_config, device, processes)
        processes.led(lambda: keep_vocabulary(path, dataset))
        notes = [note for note in (devices.dtype_note(dtype, device), *notes_of(dataset)) if note]
        if cut > 1:
            notes.append(_told_of_cut(own_config, cut, processes))
        with allocating(f"the weights and optimiser state of a model of d_model={config.d_model}", LESS["model"]):
            checkpoint = processes.led(lambda: find_latest(run.checkpoints, on_damage=notes.append))
            with processes.together():
                place = torch.device("cpu") if config.distributed.offload else device
                model = build_model(config, dataset.vocab_size, place, devices.parameter_dtype(dtype))
                if config.pretrained is not None and checkpoint is None:
                    load_pretrained(model, Path(config.pretrained), dataset)
                if config.imported is not None and checkpoint is None:
                    _keep_imported(model, weights, path)
            if config.distributed.offload and processes.count == 1:
                stack.enter_context(group_of_one())
            wrapped = wrap(model, config.distributed, processes, device)
            optimizer = make_optimizer(config.optimizer, model.named_parameters())
            scaler = devices.grad_scaler(device, dtype)
            n_parameters = sum(parameter.numel() for parameter in model.parameters())
            size_note = unequal(config, n_parameters, dense_parameters(config, dataset.vocab_size))
            grid_note = off_the_grid(config.positions, getattr(dataset, "picture_shape", None))
            notes += [note for note in (size_note, unreached(config), grid_note) if note]
            average = Average(model, config.ema.decay)
            learner = Learner(model, optimizer, scaler, average)
            notes += learner.resume(run, checkpoint, processes)
        state = learner.state
        resumed_from, seconds_before = None if checkpoint is None else state.step, state.train_seconds
        saver = stack.enter_context(Saver(run, config.checkpoint, processes))
        if config.imported is not None and checkpoint is None:
            learner.save(saver)
        if config.compile:
            with allocating(_work_of(own_config, 1), LESS["step"]):
                _compile(model, dataset, own_config, device, dtype)

        progress = stack.enter_context(
            Progress(
                total,
                unit=dataset.unit,
                start=state.step,
                label=path.name,
                device=device,
                silent=silent or replaying or not processes.leads,
            )
        )
        for note in notes:
            progress.note(note)
        tracker = stack.enter_context(
            Tracker(
                config.tracker if processes.leads and not replaying else TrackerConfig(),
                run=path,
                run_hash=digest,
                run_config=to_dict(config),
                warn=progress.note,
                device=device,
            )
        )
        stop = stack.enter_context(StopRequest())
        parameters = list(model.parameters())
        tokens_a_step = config.training.batch_size * config.training.accumulation
        tokens_a_step *= dataset.input_length + dataset.length
        to_unit = math.log(2.0) if dataset.unit.startswith("bits") else 1.0

        def validate() -> None:
            """The curve's point at this step, whose checkpoint is on the disk and gets the point in turn."""
            progress.doing("validating")
            if average.decay:
                saver.finish()
            with average.in_place():
                found = evaluate_split(model, dataset, "valid", config, device, dtype, processes=processes)
            state.curve.append({"step": state.step, **found})
            named = {f"valid_{name}": value for name, value in found.items()}
            run.log(state.step, named)
            tracker.log(state.step, named)
            told = ", ".join(f"{heading(k)} {v:.4f}" for k, v in shown(found).items())
            progress.validated(state.step, told)
            saver.save_meta(state.step, learner.meta(run.sync()))

        model.train()
        if _lacks_validation(state, config, total) and not replaying:
            validate()
        while state.step < total and not _reached(state, config):
            step = state.step + 1
            started = time.perf_counter()
            rate = learning_rate(config.schedule, config.optimizer.lr, step, config.training.steps)
            set_learning_rate(optimizer, rate)
            with allocating(_work_of(config, step), LESS["step"], begun=state.step > 0):
                share = share_of(_batches(dataset, own_config, step, cut), processes).to(device)
                loss = accumulate(wrapped, share, scaler, config.seed, step, device, dtype)
                scaler.unscale_(optimizer)
                norm = clip_gradients(parameters, config.training.clip_norm)
                own_loss, grad_norm = float(loss), float(norm)  # the loop's one deliberate wait for the device
                nats = processes.totals(own_loss)[0] / processes.count
                if not math.isfinite(nats) or not (math.isfinite(grad_norm) or scaler.is_enabled()):
                    _refuse_no_targets(share, step, dataset)
                    _stop_not_finite(run, step, nats, grad_norm, state)
                saver.finish()
                learner.update()

            state.step = step
            state.train_seconds += time.perf_counter() - started
            if step <= N_FIRST_LOSSES:
                state.first_losses.append(nats)
            progress.update(step, nats / to_unit, tokens_a_step)
            line = {"loss": nats, "grad_norm": grad_norm, "lr": rate}
            run.log(step, line)
            speed = {"tokens_per_second": progress.tokens_per_second}
            run.log_timing(step, speed)
            tracker.log(step, line | speed)
            if replaying:
                continue

            # Written before anything is evaluated, so that nothing that happens there can lose a step.
            evaluates = _lacks_validation(state, config, total)
            asked = processes.highest(stop.exit_code or 0)
            if asked or evaluates or (config.checkpoint.every and step % config.checkpoint.every == 0):
                learner.save(saver)
            if evaluates and not asked:
                validate()
            ended = step == total or _reached(state, config)
            asked = processes.highest(stop.exit_code or 0)
            if asked and (_lacks_validation(state, config, total) or not ended):
                saver.finish()
                raise Interrupted(asked, f"Stopped at step {step}; the same command goes on from {path}.")

        progress.doing("evaluating")
        saver.finish()
        with average.in_place():
            metrics = (
                {}
                if replaying
                else evaluate_split(model, dataset, "test", config, device, dtype, final=True, processes=processes)
            )
        digest_of_weights = weights_sha256(dict(model.named_parameters()), gather=whole)
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
            },
            weights_sha256=digest_of_weights,
            first_losses=state.first_losses,
            curve=state.curve,
            data={"name": dataset.name, "variant": dataset.variant, "checksum": dataset.checksum} | scored_by(dataset),
            seconds_before=seconds_before,
        )
        if not replaying:
            tracker.log(state.step, {f"test_{name}": value for name, value in metrics.items()})
            found = {**asdict(result), "run": None, "environment": asdict(devices.environment())}
            found["processes"] = processes.count
            del found["seconds_before"]  # it is of this process, and not of the run
            # Before decoding is timed: whatever happens there, even a crash, takes no result.
            processes.led(lambda: run.finish(found))
            weights_on_leader = gathered(model, processes)

            def timed() -> Model:
                return unsharded(model, weights_on_leader, config, dataset, device, dtype)

            result.timings |= processes.led(lambda: latency_of(timed, dataset, device, progress.note))
            processes.led(lambda: run.finish({**found, "timings": result.timings}))
        if asked := processes.highest(stop.exit_code or 0):  # while it was evaluated or timed
            raise Interrupted(asked, f"Stopped; the run at {path} is done, and the same command shows it.")
        return result


def _keep_imported(model: nn.Module, weights: Mapping[str, Tensor] | None, path: Path) -> None:
    if weights is None:
        raise UserError(
            "missing_file",
            f"The weights that imported= names are not in {path}.",
            "`efftx import` makes such a run; training from it is pretrained=<its directory>.",
        )
    load_weights(model, weights, None)


def _compile(model: Model, dataset: Dataset, config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Compiles the model's forward pass; tries it once, so that a machine that cannot is told at once."""
    model.compile()
    batch = dataset.batch("train", config.seed, 0, config.training.batch_size)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), devices.autocast(device, dtype):
            loss_of(model, move([batch], device)[0]).backward()
    except torch._dynamo.exc.TorchDynamoException as error:
        why = str(error).strip().splitlines()[0]
        hint = "torch.compile needs a C++ compiler on the CPU (g++); compile=false does without."
        raise UserError("cannot_compile", f"compile=true: {why}", hint) from error
    model.zero_grad(set_to_none=True)


def _reached(state: State, config: Config) -> bool:
    goal = config.evaluation.stop_at_accuracy
    return goal > 0 and bool(state.curve) and state.curve[-1]["accuracy"] >= goal


def _lacks_validation(state: State, config: Config, total: int) -> bool:
    """Whether the curve has a point at this step that is not there yet."""
    due = state.step == total or bool(config.evaluation.every and state.step % config.evaluation.every == 0)
    return state.step > 0 and due and not (state.curve and state.curve[-1]["step"] == state.step)


def _batches(dataset: Dataset, config: Config, step: int, cut: int = 1) -> list[Batch]:
    """The micro-batches of a step: the rows of one batch that has as many as all of them together.

    `config` as one process runs it, its micro-batches cut into `cut`.
    """
    rows, count = config.training.batch_size, config.training.accumulation * cut
    return micro_batches(dataset.batch("train", config.seed, step - 1, rows * count), rows)


def _told_of_cut(config: Config, cut: int, processes: Processes) -> str:
    rows, count = config.training.batch_size, config.training.accumulation * cut
    return (
        f"{processes.count} processes: what is drawn at random (dropout, hashing) is drawn as with "
        f"training.batch_size={rows} training.accumulation={count}"
    )


def _refuse_other_data(processes: Processes, digest: str) -> None:
    """UserError where the processes do not read the same data, under the same configuration."""
    for rank, other in enumerate(processes.gather(digest)):
        if other != processes.of_leader(digest):
            message = f"Process {rank} of {processes.count} reads other data, or has another configuration."
            error = UserError("distributed", message, "The data root and the overrides are to be the same for all.")
            error.common = True
            raise error


def _work_of(config: Config, step: int) -> str:
    rows = f"{config.training.batch_size} rows of {config.data.length} tokens"
    return f"activations and gradients of step {step}, {rows} through {config.n_layers} layers"


def _refuse_no_targets(share: Share, step: int, dataset: Dataset) -> None:
    if not float(share.total) > 0:
        error = UserError(
            "no_targets",
            f"No token counts in the rows of step {step} of {dataset.variant}: there is nothing to learn from them.",
            "See that the rows have targets, or take more of them at once with training.batch_size.",
        )
        error.common = True
        raise error


def _stop_not_finite(run: RunDirectory | FollowedRun, step: int, loss: float, grad_norm: float, state: State) -> None:
    run.sync()
    raise NotFiniteError(
        "not_finite",
        f"Step {step} gave loss {loss} and gradient norm {grad_norm}; the weights are those of step {state.step}.",
        "Lower optimizer.lr, set training.clip_norm, or use dtype=float32"
        + (f"; metrics.jsonl in the run directory ({run.path}) has the last values." if state.step else "."),
    )


def _as_result(saved: dict[str, Any], path: Path, *, resumed_from: int) -> TrainResult:
    fields = {key: saved[key] for key in TrainResult.__dataclass_fields__ if key in saved}
    before = saved["timings"]["train_seconds"]
    return TrainResult(**{**fields, "run": path, "resumed_from": resumed_from, "seconds_before": before})
