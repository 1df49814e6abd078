"""What a model says is judged by the data set's own metrics; labels by their likelihood, not by what is said."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.config.compose import compose
from efftx.data.dataset import Batch
from efftx.data.vocabulary import EOS
from efftx.decoding.beam import Beam, beam_search
from efftx.decoding.session import PreparedModel
from efftx.decoding.uncached import UncachedSession
from efftx.errors import UserError
from efftx.evaluation.evaluate import Evaluated
from efftx.evaluation.generation import _said, evaluate_generation, rank
from efftx.layers.feedforward import FeedForward
from efftx.models.build import build_model
from efftx.models.encoder_decoder import EncoderDecoder

CPU = torch.device("cpu")
WORDS = ["", "", "<unk>", "alpha", "beta.", "gamma", "delta."]
N_ROWS = 5


class Documents:
    """Five documents `word beta. gamma delta.`; row i begins with word 3 + i % 2, the summary is that word."""

    name, variant, checksum, vocab_size, unit = "documents", "documents", "0", len(WORDS), "nats/token"
    length, input_length, chance_accuracy = 4, 5, None
    label_targets: Sequence[Sequence[int]] = ([3, 1], [4, 5, 1])
    batch_labels: Sequence[int] = (0, 1, 0, 1, 0)

    def __init__(self, *metrics: str) -> None:
        self.metrics = metrics

    def n_batches(self, split: str, batch_size: int) -> int | None:
        return -(-N_ROWS // batch_size)

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        assert seed == 0
        rows = range(N_ROWS)[step * batch_size : (step + 1) * batch_size]
        targets = [[*self.label_targets[self.batch_labels[i]], 0, 0][:4] for i in rows]
        tokens = torch.tensor(targets)
        return Batch(tokens, (tokens != 0).float(), torch.tensor([[3 + i % 2, 4, 5, 6, 1] for i in rows]))

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[i] for i in ids if i > 1)

    def source(self, split: str, i: int) -> str:
        return self.decode([3 + i % 2, 4, 5, 6])

    def references(self, split: str, i: int) -> list[str]:
        return [WORDS[3 + i % 2], "never said"]


class Says(nn.Module):
    """Says the first input and ends."""

    def forward(self, tokens_BL: Tensor, inputs_BE: Tensor) -> Tensor:
        assert not self.training
        words_BL = torch.cat([inputs_BE[:, :1], torch.ones_like(inputs_BE)], 1)[:, : tokens_BL.shape[1]]
        return F.one_hot(words_BL, len(WORDS)).float()


class Prefers(nn.Module):
    """Gives every token 0.5 nats, but label 0 (token 3) `first` nats where the first input is 3, else `other`."""

    def __init__(self, first: float, other: float) -> None:
        super().__init__()
        self.first, self.other = first, other

    def forward(self, tokens_BL: Tensor, inputs_BE: Tensor, *, losses: bool = False) -> tuple[Tensor, Tensor]:
        assert tokens_BL.shape[1] == Documents.length
        nats_B1 = torch.where(inputs_BE[:, :1] == 3, self.first, self.other)
        nats_BL = torch.where(tokens_BL == 3, nats_B1, 0.5)
        nats_BL[tokens_BL == 0] = 1e6  # padding is no part of a label
        return nats_BL, tokens_BL > 0


def test_summaries_are_decoded_and_compared_with_every_reference() -> None:
    found = evaluate_generation(Says(), Evaluated(Documents("rouge"), "test", 2), CPU)
    assert found["rouge1"] == found["rougeLsum"] == pytest.approx(100.0)
    assert found["rouge2"] == 0.0


def test_the_lead_of_the_source_stands_beside_them() -> None:
    # Three rows `alpha beta.` against `alpha`, F = 2 / 3, and two rows `beta.` against `beta.`.
    found = evaluate_generation(Says(), Evaluated(Documents("rouge"), "test", 5), CPU)
    assert found["lead_rouge1"] == pytest.approx((3 * 200 / 3 + 2 * 100) / 5)
    assert set(found) == {f"{lead}{metric}" for lead in ("", "lead_") for metric in ("rouge1", "rouge2", "rougeL")} | {
        "rougeLsum",
        "lead_rougeLsum",
    }


def test_the_lead_is_as_long_as_a_reference_of_valid_usually_is() -> None:
    class Longer(Documents):
        """References of valid with 1, 2, 2, 2 and 5 sentences; on test the first two sentences are the reference."""

        def references(self, split: str, i: int) -> list[str]:
            return ["A. " * (1, 2, 2, 2, 5)[i]] if split == "valid" else ["alpha beta. gamma delta."]

    found = evaluate_generation(Says(), Evaluated(Longer("rouge"), "test", 1, 1), CPU)
    assert found["lead_rouge1"] == pytest.approx(100.0)


def test_the_likeliest_label_wins_though_it_may_be_the_longer_one() -> None:
    # Label 1 costs 3 * 0.5 = 1.5 nats; label 0 0.6 + 0.5 where the input says so, else 1.1 + 0.5.
    metrics = ("accuracy", "f1", "matthews")
    found = evaluate_generation(Prefers(0.6, 1.1), Evaluated(Documents(*metrics), "test", 2), CPU)
    assert found == dict.fromkeys(metrics, pytest.approx(100.0)) | {"chance_accuracy": pytest.approx(60.0)}


def test_a_model_that_always_gives_one_label_has_no_correlation() -> None:
    found = evaluate_generation(Prefers(0.6, 0.6), Evaluated(Documents("accuracy", "matthews"), "test", 2), CPU)
    assert found == {"accuracy": pytest.approx(60.0), "matthews": 0.0, "chance_accuracy": pytest.approx(60.0)}


@pytest.mark.parametrize(("split", "batches", "chance"), [("test", 1, 50.0), ("test", 2, 50.0), ("valid", 0, 60.0)])
def test_chance_is_the_usual_label_of_the_rows_that_are_judged(split: str, batches: int, chance: float) -> None:
    over = Evaluated(Documents("accuracy"), split, 2, batches)
    assert evaluate_generation(Prefers(0.6, 0.6), over, CPU)["chance_accuracy"] == pytest.approx(chance)


def test_labels_are_ranked_by_the_sum_of_their_log_probabilities() -> None:
    inputs = torch.tensor([[3, 4, 5, 6, 1], [4, 4, 5, 6, 1]])
    scores = rank(Prefers(0.25, 4.0), inputs, Documents.label_targets, Documents.length)
    assert scores.tolist() == [[-0.75, -1.5], [-4.5, -1.5]]


def test_only_so_many_batches_are_read_as_are_asked_for() -> None:
    announced: list[int] = []
    model = Prefers(0.6, 0.6)
    for batches in (2, 9):
        over = Evaluated(Documents("accuracy"), "test", 2, batches, before_batch=announced.append)
        evaluate_generation(model, over, CPU)
    assert announced == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(training: bool) -> None:
    model = Says().train(training)
    evaluate_generation(model, Evaluated(Documents("rouge"), "test", 2, 1), CPU)
    assert model.training == training


def test_a_data_set_without_such_metrics_is_not_read() -> None:
    class Plain:
        name = "plain"

    for dataset in (Plain(), Documents()):
        assert evaluate_generation(Says(), Evaluated(dataset, "test", 2), CPU) == {}  # type: ignore[arg-type]


def test_a_target_that_is_no_label_is_a_mistake_of_the_data_set() -> None:
    class Strange(Documents):
        label_targets = ([3, 1], [4, 5, 1], [5, 1])
        batch_labels = (0, 1, 2, 1, 0)

        def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
            batch = super().batch(split, seed, step, batch_size)
            batch.tokens_BL[batch.tokens_BL == 5] = 6
            return batch

    with pytest.raises(ValueError, match="none of its labels"):
        evaluate_generation(Prefers(0.6, 1.1), Evaluated(Strange("accuracy"), "test", 5), CPU)


def talkative() -> EncoderDecoder:
    """An encoder-decoder whose weights are drawn so that it says words, and a beam others than greedy decoding."""
    words = ["model=scaling", "data=stdlib", "size=smoke", "sparse_ff.N=0", "positions.kind=none", "dropout=0"]
    model = build_model(compose(words), len(WORDS), CPU, torch.float64)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    assert isinstance(model, EncoderDecoder)
    return model.eval()


def said_by(model: EncoderDecoder, beam: int = 1, length_penalty: float = 0.0) -> list[str]:
    dataset = Documents("rouge")
    with torch.no_grad():
        return _said(model, dataset, Evaluated(dataset, "test", 2), CPU, beam, length_penalty)


def test_a_layer_without_a_form_for_decoding_is_scored_by_full_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = talkative()
    decoded = said_by(model)
    assert any(decoded)
    scores = evaluate_generation(model, Evaluated(Documents("rouge"), "test", 2), CPU)
    monkeypatch.delattr(FeedForward, "new_cache")
    with pytest.raises(UserError, match="FeedForward cannot be decoded: it has no method `new_cache`"):
        PreparedModel(model)
    assert said_by(model) == decoded
    assert evaluate_generation(model, Evaluated(Documents("rouge"), "test", 2), CPU) == scores
    with pytest.raises(UserError, match=r"evaluation\.beam=2 needs a model that decodes from caches"):
        said_by(model, 2)


@pytest.mark.parametrize("length_penalty", [0.0, 3.0])
def test_a_beam_says_the_best_that_is_found_under_its_penalty_up_to_the_end(length_penalty: float) -> None:
    model, dataset = talkative(), Documents("rouge")
    texts = []
    for i in range(N_ROWS):
        inputs_BE = dataset.batch("test", 0, i, 1).inputs_BE
        assert inputs_BE is not None
        session = UncachedSession(model, dataset.length, inputs_BE.expand(3, -1))
        (best,) = beam_search(session, [], Beam(3, length_penalty), dataset.length, EOS)
        texts.append(dataset.decode(best.tokens))
    assert said_by(model, 3, length_penalty) == texts
    assert texts not in (said_by(model), said_by(model, 3, 3.0 - length_penalty))
