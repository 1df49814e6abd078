"""The exponential moving average of a model's weights, by which the authors' later code evaluates (`ema.decay`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from efftx.errors import UserError
from efftx.runs.checkpoint import Checkpoint
from efftx.runs.optimizer_state import OptimizerState

_KEY = "ema"
"""What a checkpoint calls it, as if it were the optimiser's: `<parameter name>.ema`."""


class Average:
    """The average of the weights that train: `decay` of what it was and the rest of what they are, after each step.

    It begins as the weights are. With a decay of 0 there is none, and nothing here does anything.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad} if decay else {}
        self._tensors: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Makes the average what the weights are now."""
        self._tensors = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """One step on."""
        for name, parameter in self._parameters.items():
            self._tensors[name].lerp_(parameter, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights for as long as this lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Values and not memory: what wraps a model (FSDP) knows its parameters by where they lie.
        for name, parameter in self._parameters.items():
            trained = parameter.detach().clone()
            parameter.copy_(self._tensors[name])
            self._tensors[name].copy_(trained)

    def captured(self, state: OptimizerState) -> OptimizerState:
        """The optimiser's state with the average beside it, for a checkpoint."""
        return replace(state, tensors=state.tensors | {f"{name}.{_KEY}": t for name, t in self._tensors.items()})

    def restored(self, state: OptimizerState) -> OptimizerState:
        """Takes the average from a checkpoint's state, bit for bit; gives what is the optimiser's alone."""
        for name, tensor in self._tensors.items():
            tensor.copy_(state.tensors[f"{name}.{_KEY}"])
        tensors = {key: tensor for key, tensor in state.tensors.items() if key.rpartition(".")[2] != _KEY}
        return replace(state, tensors=tensors)


def evaluated_weights(checkpoint: Checkpoint, decay: float) -> dict[str, Tensor]:
    """The weights that a checkpoint is evaluated and sampled by: those trained, or with a `decay` their average.

    UserError where there is none, since the training had no decay.
    """
    if not decay:
        return checkpoint.model
    average = {name: checkpoint.optimizer.tensors.get(f"{name}.{_KEY}") for name in checkpoint.model}
    if all(tensor is None for tensor in average.values()):
        message = f"ema.decay={decay:g}, but the checkpoint {checkpoint.path} has no moving average of its weights."
        raise UserError("other_config", message, "Train with ema.decay, or evaluate with ema.decay=0.")
    # The average has one name of a tied weight, which is one tensor in the checkpoint under all its names.
    of_tensor = {id(checkpoint.model[name]): tensor for name, tensor in average.items() if tensor is not None}
    return {name: of_tensor.get(id(tensor), tensor) for name, tensor in checkpoint.model.items()}
