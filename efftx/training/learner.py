"""What a training changes step by step: it goes whole into a checkpoint, and a resumed run takes it out again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from efftx.config.schema import Config
from efftx.distributed.processes import Processes
from efftx.distributed.wrap import is_sharded, own_part
from efftx.errors import NotFiniteError
from efftx.machine import devices
from efftx.models.build import Model
from efftx.models.conversion import copy_weights, load_weights
from efftx.optim.optimizers import make_optimizer
from efftx.runs.checkpoint import read_checkpoint, read_shards
from efftx.runs.ema import Average
from efftx.runs.optimizer_state import capture_optimizer, restore_optimizer
from efftx.runs.run_directory import FollowedRun, RunDirectory
from efftx.runs.saver import Saver
from efftx.training.step import Share, accumulate, clip_gradients


@dataclass
class State:
    """How far a training is, and what it has measured on the way; `train_seconds` are those of the steps alone."""

    step: int = 0
    first_losses: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    train_seconds: float = 0.0


@dataclass
class Learner:
    """The model that is trained, and all that its updates need and change.

    `wrapped`: what its forward pass goes through, as `distributed.wrap` made it of the model; the model itself alone.
    """

    model: Model
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average
    state: State = field(default_factory=State)

    @classmethod
    def of(cls, model: Model, wrapped: nn.Module, config: Config, device: torch.device) -> Self:
        """The learner of `model` as `config` has it trained, from its first step."""
        optimizer = make_optimizer(config.optimizer, model.named_parameters())
        scaler = devices.grad_scaler(device, devices.DTYPES[config.dtype])
        return cls(model, wrapped, optimizer, scaler, Average(model, config.ema.decay))

    def gradients(self, share: Share, config: Config, step: int) -> tuple[float, float]:
        """The clipped gradients of a step, in the parameters; gives its loss (nats a target) and the norm before."""
        loss = accumulate(self.wrapped, share, self.scaler, config, step)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(list(self.model.parameters()), config.training.clip_norm)
        return float(loss), float(norm)  # the loop's one deliberate wait for the device

    def update(self) -> None:
        """One update from the gradients, which are gone afterwards; none where loss scaling found one not finite."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, saver: Saver) -> None:
        """A checkpoint at this step. Raises NotFiniteError, and writes none, where a weight is a NaN or an infinity."""
        self._refuse_not_finite(saver.processes)
        saver.save(
            self.state.step,
            dict(self.model.named_parameters(remove_duplicate=False)),
            self.average.captured(capture_optimizer(self.optimizer)),
            self.meta(saver.run.sync()),
        )

    def meta(self, logs: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimiser; `score` is the validation loss at its step, if known.

        `logs`: how far they go, so that what comes after is cut away on a resume: a validation that was cut short is
        done again, and its line with it.
        """
        curve = self.state.curve
        score = curve[-1]["loss"] if curve and curve[-1]["step"] == self.state.step else None
        return {"state": asdict(self.state), "score": score, "scaler": self.scaler.state_dict(), "logs": logs}

    def resume(self, run: RunDirectory | FollowedRun, checkpoint: Path | None, processes: Processes) -> list[str]:
        """Goes on from `checkpoint`, or from the beginning where there is none; gives what to tell of it."""
        if checkpoint is None:
            processes.led(lambda: run.resume_at(None))
            return []
        parameters = dict(self.model.named_parameters())
        with processes.together():
            if any(map(is_sharded, parameters.values())):
                restored = read_shards(checkpoint, parameters)
                copy_weights(parameters, restored.model)
            else:
                restored = read_checkpoint(checkpoint)
                load_weights(self.model, restored.model, None)
            restore_optimizer(self.optimizer, self.average.restored(restored.optimizer))
        notes = list(processes.led(lambda: run.resume_at(restored.meta["logs"])))
        if restored.meta["scaler"]:
            self.scaler.load_state_dict(restored.meta["scaler"])
        self.state = State(**restored.meta["state"])
        return [*notes, f"going on from step {restored.step} of {run.path}"]

    def _refuse_not_finite(self, processes: Processes) -> None:
        broken = (name for name, p in self.model.named_parameters() if not bool(torch.isfinite(own_part(p)).all()))
        for name in processes.gather(next(broken, None)):
            if name is not None:
                raise NotFiniteError(
                    "not_finite",
                    f"The update of step {self.state.step} left a NaN or an infinity in {name}: no checkpoint of it is"
                    " written.",
                    "Lower optimizer.lr, set training.clip_norm, or use dtype=float32.",
                )
