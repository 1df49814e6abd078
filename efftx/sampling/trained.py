"""A run's model as it is sampled: the newest checkpoint, and what its tokens stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from efftx.config.compose import from_dict
from efftx.config.schema import Config
from efftx.data.dataset import find_source
from efftx.data.rendering import Rendering
from efftx.errors import UserError
from efftx.machine import devices
from efftx.models.build import Model, build_model
from efftx.models.conversion import load_weights
from efftx.runs.checkpoint import load_latest
from efftx.runs.ema import evaluated_weights
from efftx.runs.pretrained import read_vocabulary_file
from efftx.runs.run_directory import CONFIG_FILE, stored_config
from efftx.sampling.request import Request


@dataclass(frozen=True)
class Trained:
    """A run's model, in eval mode, and what its tokens stand for."""

    run: Path
    config: Config
    model: Model
    rendering: Rendering
    step: int

    @property
    def tokenizer(self) -> Rendering:
        """What encodes a text as tokens and decodes them."""
        return self.rendering

    @property
    def is_language_model(self) -> bool:
        """Whether it goes on from a prompt; else it reads an input."""
        return self.config.stack == "decoder"


def load_run(run: Path, request: Request, tell: Callable[[str], None]) -> Trained:
    """The model of the run at `run` with the weights of its newest checkpoint, in their own dtype, on its device.

    Nothing of the data is opened: a run keeps its vocabulary. `tell` hears of a damaged checkpoint. UserError where
    there is no run or no checkpoint, where the weights are not those of its config, and for what does not compose.
    """
    config = _config_of(run)
    checkpoint = load_latest(run / "checkpoints", on_damage=tell, read_only=True)
    if checkpoint is None:
        hint = "A run writes one at its end, or every checkpoint.every steps: start the same training again."
        raise UserError("missing_file", f"The run {run} has no checkpoint.", hint)
    # A run of a GPU is sampled wherever it is asked for.
    device = devices.resolve_device("cpu" if config.device == "cpu" else "auto")
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    devices.set_determinism(request.threads or config.n_threads)
    rendering = find_source(config.data.name).rendering(config.data, config.objective, read_vocabulary_file(run))
    model = build_model(config, config.vocab_size, device, dtype)
    try:
        load_weights(model, evaluated_weights(checkpoint, config.ema.decay), None)
    except UserError as error:
        message = f"The checkpoint of {run} is not of the model in its {CONFIG_FILE} (model={config.model})."
        raise UserError(error.kind, f"{message} {error.message}", "Put the run's own files back together.") from error
    return Trained(run, config, model.eval(), rendering, checkpoint.step)


def _config_of(run: Path) -> Config:
    # The run has its own weights: where it began does not matter any more, and may be gone.
    return replace(from_dict(stored_config(run)[0]), pretrained=None)
