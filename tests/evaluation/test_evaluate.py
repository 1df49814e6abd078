"""An evaluation weighs tokens, not batches, and leaves the model as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from efftx.data.dataset import Batch
from efftx.errors import UserError
from efftx.evaluation.evaluate import Evaluated, evaluate
from efftx.training.step import loss_of

CPU = torch.device("cpu")


class Rows:
    """Three batches of different weight; token 7 marks what the model gets right."""

    name, variant, checksum, vocab_size, length, unit = "rows", "rows", "0", 8, 2, "bits/dim"
    batches = (
        ([[7, 1], [7, 7]], [[1, 1], [1, 1]]),
        ([[7, 1], [1, 1]], [[0, 1], [0, 0]]),
        ([[7, 7], [1, 1]], [[0.5, 0.5], [0, 0]]),
    )

    def __init__(self, n_batches: int | None) -> None:
        self.count = n_batches
        self.asked: list[tuple[str, int, int, int]] = []

    def n_batches(self, split: str, batch_size: int) -> int | None:
        return self.count

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        self.asked.append((split, seed, step, batch_size))
        tokens, weights = self.batches[step]
        return Batch(torch.tensor(tokens), torch.tensor(weights, dtype=torch.float32))


class Guess(nn.Module):
    """Loses one nat at token 7 and three at any other."""

    def forward(self, tokens_BL: Tensor, *, losses: bool = False, hits: bool = True) -> tuple[Tensor, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        right = tokens_BL == 7
        return torch.where(right, 1.0, 3.0), right


def test_every_token_counts_by_its_weight_over_uneven_batches() -> None:
    rows = Rows(3)
    found = evaluate(Guess(), Evaluated(rows, "test", 2), CPU)
    # 3 of 4 right, then 0 of 1, then 1 of 1: four right tokens, two wrong ones.
    assert found == {
        "loss": pytest.approx((4 * 1 + 2 * 3) / 6),
        "bits_per_dim": pytest.approx((4 * 1 + 2 * 3) / 6 / math.log(2)),
        "accuracy": pytest.approx(100 * 4 / 6),
    }
    assert rows.asked == [("test", 0, i, 2) for i in range(3)]


def test_it_reads_as_many_batches_as_are_asked_for_and_no_more_than_there_are() -> None:
    for batches, n_batches, expected in ((1, 3, 1), (9, 2, 2), (2, None, 2)):
        rows = Rows(n_batches)
        evaluate(Guess(), Evaluated(rows, "valid", 2, batches), CPU)
        assert len(rows.asked) == expected


def test_a_split_without_end_needs_a_number_of_batches() -> None:
    with pytest.raises(ValueError, match="has no end"):
        evaluate(Guess(), Evaluated(Rows(None), "test", 2), CPU)


def test_rows_in_which_no_token_counts_are_told() -> None:
    rows = Rows(1)
    rows.batches = (([[7, 1]], [[0, 0]]),)  # type: ignore[assignment]
    with pytest.raises(UserError, match="No token counts in the first 1 batches of the test split of rows"):
        evaluate(Guess(), Evaluated(rows, "test", 1), CPU)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(training: bool) -> None:
    model = Guess().train(training)
    evaluate(model, Evaluated(Rows(1), "test", 2), CPU)
    assert model.training == training


def test_each_batch_is_announced_before_it_is_read() -> None:
    rows, announced = Rows(3), []

    def before(i: int) -> None:
        assert len(rows.asked) == i
        announced.append(i)

    evaluate(Guess(), Evaluated(rows, "test", 2, before_batch=before), CPU)
    assert announced == [0, 1, 2]


def test_hits_and_nats_are_summed_in_double_precision() -> None:
    class Even(nn.Module):
        def forward(self, tokens_BL: Tensor, *, losses: bool = False) -> tuple[Tensor, Tensor]:
            return torch.full((1, 4_000_000), 0.1), torch.ones(1, 4_000_000, dtype=torch.bool)

    class Long(Rows):
        def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
            return Batch(torch.zeros(1, 4_000_000, dtype=torch.int64), torch.ones(1, 4_000_000))

    found = evaluate(Even(), Evaluated(Long(1), "test", 1), CPU)
    assert found["loss"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)
    assert found["accuracy"] == 100.0


class Pairs(Rows):
    """Two batches with inputs; a row counts as right where all its tokens of positive weight are a 7."""

    unit = "nats/token"
    batches = (
        ([[7, 7], [7, 1]], [[1, 1], [1, 0]]),
        ([[7, 1], [1, 1]], [[1, 1], [0, 0]]),
    )

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        plain = super().batch(split, seed, step, batch_size)
        return Batch(plain.tokens_BL, plain.weights_BL, torch.full((2, 3), 5))


class Reads(Guess):
    """Guesses, and insists on the inputs."""

    def forward(
        self, tokens_BL: Tensor, inputs_BE: Tensor, *, losses: bool = False, hits: bool = True
    ) -> tuple[Tensor, Tensor]:
        assert torch.equal(inputs_BE, torch.full((2, 3), 5))
        return super().forward(tokens_BL, losses=losses, hits=hits)


def test_text_to_text_also_counts_whole_rows() -> None:
    found = evaluate(Reads(), Evaluated(Pairs(2), "test", 2), CPU)
    # Rows 7 7 and 7 - are right, 7 1 is not, and a row without weight is no row.
    assert found == {
        "loss": pytest.approx((4 * 1 + 1 * 3) / 5),
        "log_perplexity": pytest.approx((4 * 1 + 1 * 3) / 5),
        "accuracy": pytest.approx(100 * 4 / 5),
        "sequence_accuracy": pytest.approx(100 * 2 / 3),
    }


def test_the_loss_of_a_batch_with_inputs_reads_them() -> None:
    batch = Pairs(2).batch("train", 0, 0, 2)
    with torch.no_grad():
        assert loss_of(Reads().eval(), batch).item() == 1.0
    moved = batch.to(CPU)
    assert moved.inputs_BE is not None
    assert torch.equal(moved.inputs_BE, torch.full((2, 3), 5))
    assert Rows(1).batch("train", 0, 0, 2).to(CPU).inputs_BE is None
