"""The training loop, read top to bottom."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efftx.config.schema import Config, to_dict
from efftx.config.settings import TrackerConfig
from efftx.config.sizes import unequal
from efftx.core.memory import allocating
from efftx.data.dataset import Dataset, notes_of
from efftx.distributed.processes import ALONE, Processes, group_of_one
from efftx.distributed.wrap import whole, wrap
from efftx.errors import Interrupted, NotFiniteError, UserError
from efftx.evaluation.generation import scored_by
from efftx.evaluation.metrics import heading, shown
from efftx.layers.cost import n_parameters
from efftx.machine import devices
from efftx.machine.allocator import keep_freed_memory
from efftx.models.build import Model, build_on_meta, dense_parameters
from efftx.models.conversion import load_weights
from efftx.models.reach import unreached
from efftx.optim.schedules import learning_rate
from efftx.runs.checkpoint import find_latest, weights_sha256
from efftx.runs.pretrained import keep_vocabulary, load_pretrained, resolved, run_hash
from efftx.runs.run_directory import FollowedRun, RunDirectory, default_run_dir
from efftx.runs.saver import Saver
from efftx.training.evaluation import evaluate_split, gathered, latency_of, unsharded
from efftx.training.fit import LESS, refuse_too_large
from efftx.training.learner import Learner
from efftx.training.mirror import Mirrored, Tracker
from efftx.training.setting import Setting, settle
from efftx.training.step import Share, loss_of, set_learning_rate
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
    perturbation: int | None = None,
) -> TrainResult:
    """Trains as `config` says and evaluates; goes on from the run directory's last checkpoint where there is one.

    A new training starts from the weights of `config.pretrained`, in its vocabulary, where that is given.
    Where `config.imported` is given the run has no step of its own: `weights`, under this package's names, are kept and
    evaluated. `run_dir`: default runs/<model>-<data>-<hash>. `steps`: stop after so many, for a replay; no evaluation
    then. `processes`: each calls this alike, and does its share of every step (`distributed.strategy` says how); the
    leader writes and shows, and all give the same result. `perturbation`: the seed of a draw that moves about half
    of the weights by a unit or two in their last place before the first step: what does rounding alone change?
    Raises UserError for a user's mistake, NotFiniteError before an update by a NaN or an infinity, and Interrupted
    after SIGTERM or Ctrl-C, its checkpoint written, but in a replay.
    """
    keep_freed_memory()
    setting = settle(resolved(config), processes)
    config, dataset, device = setting.config, setting.dataset, setting.device
    with processes.together():
        digest = run_hash(config, dataset)
    _refuse_other_data(processes, digest)
    path = run_dir or (Path(config.run_dir) if config.run_dir else default_run_dir(config.model, dataset.name, digest))
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
            refuse_too_large(setting.own_config, device, processes)
        processes.led(lambda: keep_vocabulary(path, dataset))
        if config.distributed.offload and processes.count == 1:
            stack.enter_context(group_of_one())
        learner, resumed_from, notes = _begin(setting, run, weights, perturbation)
        saver = stack.enter_context(Saver(run, config.checkpoint, processes))
        if resumed_from is None and _last_step(config, steps) == 0:  # imported weights, or those of another run
            learner.save(saver)
        if config.compile:
            with allocating(_work_of(setting.own_config, 1), LESS["step"]):
                _compile(learner.model, setting)

        shown, total = processes.leads and steps is None, _last_step(config, steps)
        start, silent = learner.state.step, silent or not shown
        progress = Progress(total, unit=dataset.unit, start=start, label=path.name, device=device, silent=silent)
        stack.enter_context(progress)
        for note in notes:
            progress.note(note)
        tracked, mirrored = config.tracker if shown else TrackerConfig(), Mirrored(path, digest, to_dict(config))
        tracker = stack.enter_context(Tracker(tracked, mirrored, progress.note, device))
        stop = stack.enter_context(StopRequest())
        training = Training(setting, learner, saver, progress, tracker, stop, total, digest)
        seconds_before = learner.state.train_seconds
        if steps is None:
            training.train()
            result = training.evaluate()
        else:
            training.replay()
            result = training.result({})
        return replace(result, resumed_from=resumed_from, seconds_before=seconds_before)


@dataclass
class Training:
    """One process's part of a training: from the step that its learner is at to the step `total`.

    All processes call its methods alike. `digest`: the hash of config and data.
    """

    setting: Setting
    learner: Learner
    saver: Saver
    progress: Progress
    tracker: Tracker
    stop: StopRequest
    total: int
    digest: str

    def train(self) -> None:
        """All steps, with validations and checkpoints where they are due; Interrupted where it is asked to stop."""
        config, state, processes = self.setting.config, self.learner.state, self.setting.processes
        self.learner.model.train()
        if self._lacks_validation():
            self._validate()
        while state.step < self.total and not self._reached():
            self._step()

            # Written before anything is evaluated, so that nothing that happens there can lose a step.
            evaluates = self._lacks_validation()
            asked = processes.highest(self.stop.exit_code or 0)
            saves = asked or evaluates or (config.checkpoint.every and state.step % config.checkpoint.every == 0)
            if saves:
                self.learner.save(self.saver)
            if evaluates and not asked:
                self._validate()
            ended = state.step == self.total or self._reached()
            asked = processes.highest(self.stop.exit_code or 0)
            if asked and (self._lacks_validation() or not ended):
                if not saves:  # the request came after the first look
                    self.learner.save(self.saver)
                self.saver.finish()
                path = self.saver.run.path
                raise Interrupted(asked, f"Stopped at step {state.step}; the same command goes on from {path}.")
        self.saver.finish()

    def replay(self) -> None:
        """The steps alone; Interrupted where it is asked to stop, with nothing kept."""
        self.learner.model.train()
        while self.learner.state.step < self.total:
            self._step()
            if asked := self.setting.processes.highest(self.stop.exit_code or 0):
                step = self.learner.state.step
                raise Interrupted(asked, f"Stopped at step {step} of a replay, of which nothing is kept.")

    def evaluate(self) -> TrainResult:
        """The result of the training that is at its end, on the test split; kept in the run's directory."""
        setting, processes, run = self.setting, self.setting.processes, self.saver.run
        self.progress.doing("evaluating")
        with self.learner.average.in_place():
            metrics = evaluate_split(self.learner.model, setting, "test", final=True)
        result = self.result(metrics)
        self.tracker.log(result.step, {f"test_{name}": value for name, value in metrics.items()})
        document = {**asdict(result), "run": None, "environment": asdict(devices.environment())}
        document["processes"] = processes.count
        del document["seconds_before"]  # it is of this process, and not of the run
        # Before decoding is timed: whatever happens there, even a crash, takes no result.
        processes.led(lambda: run.finish(document))
        weights = gathered(self.learner.model, processes)

        def timed() -> Model:
            return unsharded(self.learner.model, weights, setting)

        note = self.progress.note
        result.timings |= processes.led(lambda: latency_of(timed, setting.dataset, setting.device, note))
        processes.led(lambda: run.finish({**document, "timings": result.timings}))
        if asked := processes.highest(self.stop.exit_code or 0):  # while it was evaluated or timed
            raise Interrupted(asked, f"Stopped; the run at {run.path} is done, and the same command shows it.")
        return result

    def result(self, metrics: dict[str, float]) -> TrainResult:
        """How far the training has come, with these metrics."""
        state, dataset = self.learner.state, self.setting.dataset
        tokens = state.step * self.setting.tokens_a_step
        return TrainResult(
            run=self.saver.run.path,
            hash=self.digest,
            step=state.step,
            resumed_from=None,
            metrics=metrics,
            timings={
                "train_seconds": state.train_seconds,
                "seconds_per_step": state.train_seconds / max(state.step, 1),
                "tokens_per_second": tokens / state.train_seconds if state.train_seconds else 0.0,
            },
            weights_sha256=weights_sha256(dict(self.learner.model.named_parameters()), gather=whole),
            first_losses=state.first_losses,
            curve=state.curve,
            data={"name": dataset.name, "variant": dataset.variant, "checksum": dataset.checksum} | scored_by(dataset),
        )

    def _step(self) -> None:
        """One update, and what is told of it; NotFiniteError before an update by a NaN or an infinity."""
        setting, learner, state = self.setting, self.learner, self.learner.state
        config, step, started = setting.config, state.step + 1, time.perf_counter()
        rate = learning_rate(config.schedule, config.optimizer.lr, step, config.training.steps)
        set_learning_rate(learner.optimizer, rate)
        with allocating(_work_of(config, step), LESS["step"], begun=state.step > 0):
            share = setting.share(step)
            own_loss, grad_norm = learner.gradients(share, config, step)
            nats = setting.processes.totals(own_loss)[0] / setting.processes.count
            if not math.isfinite(nats) or not (math.isfinite(grad_norm) or learner.scaler.is_enabled()):
                _refuse_no_targets(share, step, setting.dataset)
                _stop_not_finite(self.saver.run, step, nats, grad_norm)
            self.saver.finish()
            learner.update()
        state.step = step
        state.train_seconds += time.perf_counter() - started
        if step <= N_FIRST_LOSSES:
            state.first_losses.append(nats)

        to_unit = math.log(2.0) if setting.dataset.unit.startswith("bits") else 1.0
        self.progress.update(step, nats / to_unit, setting.tokens_a_step)
        line = {"loss": nats, "grad_norm": grad_norm, "lr": rate}
        speed = {"tokens_per_second": self.progress.tokens_per_second}
        self.saver.run.log(step, line)
        self.saver.run.log_timing(step, speed)
        self.tracker.log(step, line | speed)

    def _validate(self) -> None:
        """The curve's point at this step, whose checkpoint is on the disk and gets the point in turn."""
        state, run, average = self.learner.state, self.saver.run, self.learner.average
        self.progress.doing("validating")
        if average.decay:
            self.saver.finish()
        with average.in_place():
            metrics = evaluate_split(self.learner.model, self.setting, "valid")
        state.curve.append({"step": state.step, **metrics})
        named = {f"valid_{name}": value for name, value in metrics.items()}
        run.log(state.step, named)
        self.tracker.log(state.step, named)
        words = ", ".join(f"{heading(k)} {v:z.4f}" for k, v in shown(metrics).items())
        self.progress.validated(state.step, words)
        self.saver.save_meta(state.step, self.learner.meta(run.sync()))

    def _lacks_validation(self) -> bool:
        """Whether the curve has a point at this step that is not there yet."""
        state, every = self.learner.state, self.setting.config.evaluation.every
        due = state.step == self.total or bool(every and state.step % every == 0)
        return state.step > 0 and due and not (state.curve and state.curve[-1]["step"] == state.step)

    def _reached(self) -> bool:
        """Whether the last validation has the accuracy at which the training is to stop."""
        goal, curve = self.setting.config.evaluation.stop_at_accuracy, self.learner.state.curve
        return goal > 0 and bool(curve) and curve[-1]["accuracy"] >= goal


def _last_step(config: Config, steps: int | None) -> int:
    """The step a training ends at: its last, or of a replay the last of `steps`; an imported model has none."""
    last = 0 if config.imported else config.training.steps
    return last if steps is None else min(last, steps)


def _begin(
    setting: Setting, run: RunDirectory | FollowedRun, weights: Mapping[str, Tensor] | None, perturbation: int | None
) -> tuple[Learner, int | None, list[str]]:
    """The learner as it goes on, the step of the checkpoint that it goes on from, if any, and what to tell of it."""
    notes, processes = _notes_of(setting), setting.processes
    what = f"the weights and optimiser state of a model of d_model={setting.config.d_model}"
    with allocating(what, LESS["model"]):
        checkpoint = processes.led(lambda: find_latest(run.checkpoints, on_damage=notes.append))
        learner = _learner(setting, weights, run.path, perturbation, from_the_first=checkpoint is None)
        notes += _notes_of_model(setting, learner.model)
        notes += learner.resume(run, checkpoint, processes)
    return learner, None if checkpoint is None else learner.state.step, notes


def _learner(
    setting: Setting,
    weights: Mapping[str, Tensor] | None,
    path: Path,
    perturbation: int | None,
    *,
    from_the_first: bool,
) -> Learner:
    """The learner before its first step; a checkpoint, where it does not begin `from_the_first`, brings its weights."""
    config, processes = setting.config, setting.processes
    with processes.together():
        model = setting.build(torch.device("cpu") if config.distributed.offload else None)
        if config.pretrained is not None and from_the_first:
            load_pretrained(model, Path(config.pretrained), setting.dataset)
        if config.imported is not None and from_the_first:
            _load_imported(model, weights, path)
        if perturbation is not None:
            _perturb(model, perturbation)
    return Learner.of(model, wrap(model, config.distributed, processes, setting.device), config, setting.device)


def _notes_of(setting: Setting) -> list[str]:
    """What to tell of precision, threads, data and processes before a training."""
    notes = [devices.dtype_note(setting.dtype, setting.device), _threads_note(setting), *notes_of(setting.dataset)]
    training = setting.own_config.training
    if training.batch_size != setting.config.training.batch_size:
        notes.append(
            f"{setting.processes.count} processes: what is drawn at random (dropout, hashing) is drawn as with "
            f"training.batch_size={training.batch_size} training.accumulation={training.accumulation}"
        )
    return [note for note in notes if note]


def _threads_note(setting: Setting) -> str:
    """Threads are a key of the run, for its numbers depend on them; who asks for others is told."""
    asked, threads = os.environ.get("OMP_NUM_THREADS", ""), setting.config.n_threads
    return "" if asked in ("", str(threads)) else f"threads={threads} is used, and not OMP_NUM_THREADS={asked}"


def _notes_of_model(setting: Setting, model: Model) -> list[str]:
    """What to tell of a model before it is trained."""
    config = setting.config
    n_dense = dense_parameters(config, setting.dataset.vocab_size)
    notes = (unequal(config, n_parameters(model), n_dense), unreached(config))
    return [note for note in notes if note]


def _load_imported(model: Model, weights: Mapping[str, Tensor] | None, path: Path) -> None:
    if weights is None:
        raise UserError(
            "missing_file",
            f"The weights that imported= names are not in {path}.",
            "`efftx import` makes such a run; training from it is pretrained=<its directory>.",
        )
    load_weights(model, weights, None)


def _perturb(model: Model, seed: int) -> None:
    """Multiplies each weight by 1 + e of its own, e normal around 0 with half a float's relative rounding (eps / 2)."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            e = torch.randn(weight.shape, generator=draws).to(weight) * (torch.finfo(weight.dtype).eps / 2)
            weight.mul_(1.0 + e)


def _compile(model: Model, setting: Setting) -> None:
    """Compiles the model's forward pass; tries it once, so that a machine that cannot is told at once."""
    model.compile()
    config, device = setting.own_config, setting.device
    batch = setting.dataset.batch("train", config.seed, 0, config.training.batch_size)
    try:
        with setting.apart():
            loss_of(model, batch.to(device)).backward()
    except torch._dynamo.exc.TorchDynamoException as error:
        why = str(error).strip().splitlines()[0]
        hint = "torch.compile needs a C++ compiler on the CPU (g++); compile=false does without."
        raise UserError("cannot_compile", f"compile=true: {why}", hint) from error
    model.zero_grad(set_to_none=True)


def _refuse_other_data(processes: Processes, digest: str) -> None:
    """UserError where the processes do not read the same data, under the same configuration."""
    for rank, other in enumerate(processes.gather(digest)):
        if other != processes.of_leader(digest):
            message = f"Process {rank} of {processes.count} reads other data, or has another configuration."
            hint = "The data root and the overrides are to be the same for all."
            raise UserError("distributed", message, hint, common=True)


def _work_of(config: Config, step: int) -> str:
    rows = f"{config.training.batch_size} rows of {config.data.length} tokens"
    return f"activations and gradients of step {step}, {rows} through {config.n_layers} layers"


def _refuse_no_targets(share: Share, step: int, dataset: Dataset) -> None:
    if not float(share.total) > 0:
        raise UserError(
            "no_targets",
            f"No token counts in the rows of step {step} of {dataset.variant}: there is nothing to learn from them.",
            "See that the rows have targets, or take more of them at once with training.batch_size.",
            common=True,
        )


def _stop_not_finite(run: RunDirectory | FollowedRun, step: int, loss: float, grad_norm: float) -> None:
    run.sync()
    raise NotFiniteError(
        "not_finite",
        f"Step {step} gave loss {loss} and gradient norm {grad_norm}; the weights are those of step {step - 1}.",
        "Lower optimizer.lr, set training.clip_norm, or use dtype=float32"
        + (f"; metrics.jsonl in the run directory ({run.path}) has the last values." if step > 1 else "."),
    )


def _as_result(saved: dict[str, Any], path: Path, *, resumed_from: int) -> TrainResult:
    fields = {key: saved[key] for key in TrainResult.__dataclass_fields__ if key in saved}
    before = saved["timings"]["train_seconds"]
    return TrainResult(**{**fields, "run": path, "resumed_from": resumed_from, "seconds_before": before})
