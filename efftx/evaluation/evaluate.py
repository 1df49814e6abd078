"""Evaluation of a model on a split: loss in the paper's unit, and accuracy."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from efftx.data.dataset import Batch, Dataset
from efftx.distributed.processes import ALONE, Processes
from efftx.errors import UserError
from efftx.evaluation.controller import controller_statistics
from efftx.evaluation.metrics import accuracy, in_unit


@dataclass(frozen=True)
class Evaluated:
    """What of a data set is evaluated: the first `batches` batches of `split` (0: all), of `batch_size` rows each.

    `before_batch(i)` is called before batch i, so that what is drawn in a forward pass (hash rotations) is the same at
    every evaluation.
    """

    dataset: Dataset
    split: str
    batch_size: int
    batches: int = 0
    before_batch: Callable[[int], object] = lambda i: None

    def n_batches(self) -> int:
        """How many batches there are; ValueError where the split has no end and `batches` does not say."""
        covering = self.dataset.n_batches(self.split, self.batch_size)
        if covering is None and not self.batches:
            message = f"The split '{self.split}' of {self.dataset.name} has no end: say how many batches to evaluate."
            raise ValueError(message)
        return self.batches if covering is None else min(self.batches or covering, covering)

    def batch(self, i: int) -> Batch:
        """Batch `i`."""
        self.before_batch(i)
        return self.dataset.batch(self.split, 0, i, self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(self.n_batches()))


def evaluate(
    model: nn.Module, over: Evaluated, device: torch.device, *, processes: Processes = ALONE
) -> dict[str, float]:
    """`loss` in nats, the loss in its unit, and `accuracy`.

    Where the data set has inputs also `sequence_accuracy`: % of rows of which every token of positive weight is right.
    Where the model has sparse feed-forward layers also their `controller_statistics`, over the first batch. The model
    is left in the mode it was in. Of several processes each takes its part of the batches, and all give the same.
    UserError where no token has a positive weight.
    """
    dataset, count = over.dataset, over.n_batches()
    was_training = model.training
    model.eval()
    nats = hits = total = whole_rows = rows = 0.0
    choices: dict[str, float] = {}
    with torch.no_grad():
        # Every process runs the model as often as the others, which wait for it; what it runs beyond the end is 0.
        for n in range(math.ceil(count / processes.count)):
            i = n * processes.count + processes.rank
            batch = over.batch(min(i, count - 1)).to(device)
            weights = batch.weights_BL.double()
            if n == 0:
                choices = controller_statistics(model, batch.tokens_BL, weights, batch.inputs_BE)
            if i >= count:
                weights = torch.zeros_like(weights)
            nll, correct = model(*batch.model_inputs, losses=True)
            nats += float((nll.double() * weights).sum())
            hits += float((correct.double() * weights).sum())
            total += float(weights.sum())
            if batch.inputs_BE is not None:
                counts = weights > 0
                whole_rows += float(((correct.bool() | ~counts).all(1) & counts.any(1)).sum())
                rows += float(counts.any(1).sum())
    nats, hits, total, whole_rows, rows = processes.totals(nats, hits, total, whole_rows, rows)
    choices = processes.of_leader(choices)
    model.train(was_training)
    if not total:
        raise UserError(
            "no_targets",
            f"No token counts in the first {count} batches of the {over.split} split of {dataset.variant}.",
            "Evaluate more of them with evaluation.batches, or see that the rows have targets.",
            common=True,
        )
    loss = nats / total
    metrics = {"loss": loss, **in_unit(loss, dataset.unit), "accuracy": accuracy(hits, total)}
    if rows:
        metrics["sequence_accuracy"] = accuracy(whole_rows, rows)
    return {**metrics, **choices}
