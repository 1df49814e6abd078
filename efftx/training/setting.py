"""What a model is trained and evaluated with: config, data, device, precision and processes, settled at the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from efftx.config.schema import Config
from efftx.core.memory import allocating
from efftx.data.dataset import Batch, Dataset, open_dataset
from efftx.distributed.processes import ALONE, Processes, cut_for
from efftx.errors import UserError
from efftx.machine import devices
from efftx.models.build import Model, build_model
from efftx.ops.recompute_state import forked_rng
from efftx.training.fit import LESS, refuse_too_large
from efftx.training.step import Share, micro_batches, share_of


@dataclass(frozen=True)
class Setting:
    """One process's view of a training or of an evaluation; the same from the first step to the last."""

    config: Config
    dataset: Dataset
    device: torch.device
    dtype: torch.dtype
    processes: Processes = ALONE

    @property
    def own_config(self) -> Config:
        """The config as one process runs it: micro-batches cut, so that all processes have as many."""
        return _own(self.config, self.processes)

    @property
    def tokens_a_step(self) -> int:
        """Tokens that all processes read in one step, the source's among them."""
        rows = self.config.training.batch_size * self.config.training.accumulation
        return rows * (self.dataset.input_length + self.dataset.length)

    def build(self, device: torch.device | None = None) -> Model:
        """A model with fresh weights of the setting's precision, on `device` (None: the setting's).

        They are the same wherever it is: those that the setting's device draws.
        """
        dtype = devices.parameter_dtype(self.dtype)
        return build_model(self.config, self.dataset.vocab_size, device or self.device, dtype, self.device)

    def micro_batches(self, step: int) -> list[Batch]:
        """All micro-batches of a step, of every process: the rows of one batch as long as all of them together."""
        rows = self.own_config.training.batch_size
        step_rows = self.config.training.batch_size * self.config.training.accumulation
        return micro_batches(self.dataset.batch("train", self.config.seed, step - 1, step_rows), rows)

    def share(self, step: int) -> Share:
        """This process's micro-batches of a step, on its device."""
        return share_of(self.micro_batches(step), self.processes).to(self.device)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Computes in the setting's precision and draws no random number that training would draw."""
        with forked_rng(self.device), devices.autocast(self.device, self.dtype):
            yield


def settle(config: Config, processes: Processes = ALONE) -> Setting:
    """What `config` trains with; the process's threads and determinism are set by it.

    UserError where its device, precision or data is not to be had, where the processes cannot share a step evenly, and
    (OutOfMemory) where the model could not fit into this machine if it were empty.
    """
    if processes.count > 1 and ":" in config.device:
        message = f"device={config.device} is one GPU, and {processes.count} processes want one each."
        hint = "Use device=cuda; CUDA_VISIBLE_DEVICES says which GPUs."
        raise UserError("distributed", message, hint, common=True)
    device = devices.resolve_device(config.device)
    dtype = devices.resolve_dtype(config.dtype, device)
    devices.set_determinism(config.n_threads)
    with processes.together():
        own_config = _own(config, processes)
    with processes.together():
        refuse_too_large(own_config, device, processes, when_empty=True)
        with allocating(f"reading data={config.data.name} in rows of data.length={config.data.length}", LESS["data"]):
            dataset = open_dataset(config.data, config.objective)
    return Setting(config, dataset, device, dtype, processes)


def _own(config: Config, processes: Processes) -> Config:
    training = config.training
    cut = cut_for(training.batch_size, training.accumulation, processes.count)
    cut_training = replace(training, batch_size=training.batch_size // cut, accumulation=training.accumulation * cut)
    return replace(config, training=cut_training)
