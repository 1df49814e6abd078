"""One step of training: gradients over the micro-batches, clipping, update. Everything but files and signals."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from efftx.config.schema import Config
from efftx.data.dataset import Batch
from efftx.distributed.processes import ALONE, Processes
from efftx.distributed.wrap import whole
from efftx.machine import devices


def weighted_mean(values_BL: Tensor, weights_BL: Tensor, total: Tensor | None = None) -> Tensor:
    """The mean of `values` under `weights`, a scalar; `total` in place of the weights' own sum."""
    return (values_BL * weights_BL).sum() / (weights_BL.sum() if total is None else total)


def micro_batches(batch: Batch, rows: int) -> list[Batch]:
    """`batch` cut into batches of `rows` rows, in their order."""
    cuts = [slice(first, first + rows) for first in range(0, len(batch.tokens_BL), rows)]
    return [batch.map(itemgetter(cut)) for cut in cuts]


def total_weight(batches: Sequence[Batch]) -> Tensor:
    """The sum of the weights of all batches, a scalar: what each micro-batch's loss is divided by."""
    first, *others = [batch.weights_BL.sum() for batch in batches]
    return sum(others, start=first)


@dataclass(frozen=True)
class Share:
    """What one process does of a step: micro-batches, their numbers in it, and what their losses are divided by.

    `total`: the weights of all micro-batches of the step, of all processes, over the number of processes, since
    gradients are averaged over these; a scalar.
    """

    batches: list[Batch]
    numbers: list[int]
    total: Tensor

    def to(self, device: torch.device) -> Share:
        """The same with its tensors on `device`."""
        return Share([batch.to(device) for batch in self.batches], self.numbers, self.total.to(device))


def share_of(batches: Sequence[Batch], processes: Processes = ALONE) -> Share:
    """The process's share of a step: of its micro-batches every `count`-th, so that all processes have equally many."""
    numbers = range(processes.rank, len(batches), processes.count)
    return Share([batches[i] for i in numbers], list(numbers), total_weight(batches) / processes.count)


def clip_gradients(parameters: Sequence[nn.Parameter], clip_norm: float) -> Tensor:
    """The gradients' joint Euclidean norm, a scalar; where it exceeds a positive `clip_norm`, they are scaled to it.

    Of gradients in parts the norm of the whole: every process calls this.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=False)
    if clip_norm > 0:
        scale = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    return whole(norm)


def loss_of(model: nn.Module, batch: Batch, total: Tensor | None = None) -> Tensor:
    """Cross entropy in nats summed over the tokens, by their weights, over `total`; a scalar with its graph.

    `total`: the weights of all micro-batches of a step, so that the step's loss is their losses' sum and every target
    counts alike, whichever micro-batch it is in. None: the batch's own, for its mean.
    """
    nll, _ = model(*batch.model_inputs, losses=True, hits=False)  # nobody reads the accuracy of training
    return weighted_mean(nll, batch.weights_BL, total)


def accumulate(model: nn.Module, share: Share, scaler: torch.amp.GradScaler, config: Config, step: int) -> Tensor:
    """Adds the step's gradients, scaled by `scaler`, to the parameters' own; gives its loss in nats a target.

    Of several processes the gradients are those of all, and the mean of what they are given is the loss. The config's
    seed, the step's number and the micro-batch's fix what is drawn at random on the way (dropout, hashing), whoever
    draws it.
    """
    device, dtype = share.total.device, devices.DTYPES[config.dtype]
    loss = torch.zeros((), device=device)
    for i, (number, batch) in enumerate(zip(share.numbers, share.batches, strict=True)):
        devices.seed_step(config.seed, step, number)
        with _gradients_shared(model, last=i == len(share.batches) - 1):
            with devices.autocast(device, dtype):
                micro_loss = loss_of(model, batch, share.total)
            scaler.scale(micro_loss).backward()
        loss = loss + micro_loss.detach()
    return loss


def _gradients_shared(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Replicas average the gradients of all micro-batches at once, in the backward pass of the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
