"""Evaluation by what a model says: summaries against their references, and labels by their likelihood.

Shape suffixes: B rows of a batch, E input tokens of a row, L target tokens of a row, K labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from efftx.data.dataset import Batch, Dataset
from efftx.data.vocabulary import EOS
from efftx.decoding.beam import Beam, beam_search
from efftx.decoding.generate import generate, most_likely
from efftx.decoding.session import CachedSession, PreparedModel
from efftx.decoding.uncached import greedy
from efftx.errors import UserError
from efftx.evaluation import glue
from efftx.evaluation.bleu import bleu, signatures
from efftx.evaluation.evaluate import Evaluated
from efftx.evaluation.rouge import TOKENIZER, lead, rouge, usual_sentences
from efftx.models.encoder_decoder import EncoderDecoder


class TextToText(Protocol):
    """What a data set with `metrics` offers; document i of valid and test is row i of the batches one after another."""

    name: str
    length: int
    metrics: tuple[str, ...]
    label_targets: Sequence[Sequence[int]]

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch `step` of a split."""
        ...

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """How many batches cover the split once."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids up to the first end of sequence."""
        ...

    def source(self, split: str, i: int) -> str:
        """The text that is to be summarised or translated."""
        ...

    def references(self, split: str, i: int) -> list[str]:
        """Every right answer to document i."""
        ...


@dataclass(frozen=True)
class TextMetric:
    """A metric of generated text.

    `score(hypotheses, dataset, split)` gives values in %, where hypothesis i answers document i; `says()` gives what a
    record states of the scoring.
    """

    score: Callable[[Sequence[str], TextToText, str], dict[str, float]]
    says: Callable[[], Mapping[str, str]]


def evaluate_generation(
    model: nn.Module,
    over: Evaluated,
    device: torch.device,
    *,
    beam: int = 1,
    length_penalty: float = 0.0,
) -> dict[str, float]:
    """The data set's own metrics in %; one that has none gives an empty result.

    A metric of TEXT_METRICS is of what the model says: by greedy decoding, or with `beam` above 1 the best of such a
    search under `length_penalty`. Otherwise a row's label is the one whose tokens are the likeliest (the sum of their
    log-probabilities), `accuracy`, `f1` and `matthews` are of labels, and `chance_accuracy` is that of the rows' most
    frequent label. The model is left in the mode it was in. UserError for a beam and a model with a layer that does
    not decode from caches.
    """
    metrics: tuple[str, ...] = getattr(over.dataset, "metrics", ())
    if not metrics:
        return {}
    if over.dataset.n_batches(over.split, over.batch_size) is None:
        message = f"The split '{over.split}' of {over.dataset.name} has no end, so that its rows are no documents."
        raise ValueError(message)
    texts = cast(TextToText, over.dataset)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if metrics[0] not in TEXT_METRICS:
                return _labels(model, texts, over, device)
            outputs = _said(model, texts, over, device, beam, length_penalty)
            return {
                k: v for metric in metrics for k, v in TEXT_METRICS[metric].score(outputs, texts, over.split).items()
            }
    finally:
        model.train(was_training)


def scored_by(dataset: Dataset) -> dict[str, str]:
    """What a record says of scoring beside the data's name, such as `rouge_tokenizer` where the metric is ROUGE."""
    metrics = (metric for metric in getattr(dataset, "metrics", ()) if metric in TEXT_METRICS)
    return {key: value for metric in metrics for key, value in TEXT_METRICS[metric].says().items()}


def rank(model: nn.Module, inputs_BE: Tensor, label_targets: Sequence[Sequence[int]], length: int) -> Tensor:
    """Log-probability of each label under teacher forcing, (B, K); `length` is the number of tokens in a target row."""
    log_probability = []
    for target in label_targets:
        tokens_BL = _padded([target] * inputs_BE.shape[0], length, inputs_BE.device)
        nll_BL, _ = model(tokens_BL, inputs_BE, losses=True)
        log_probability.append(-nll_BL[:, : len(target)].double().sum(1))
    return torch.stack(log_probability, 1)


def _said(
    model: nn.Module,
    dataset: TextToText,
    batches: Iterable[Batch],
    device: torch.device,
    beam: int,
    length_penalty: float,
) -> list[str]:
    """What the model answers to each row."""
    outputs: list[str] = []
    # A copy: laying weights out for decoding moves them, and this model may go on training.
    prepared = _prepared(copy.deepcopy(model)) if isinstance(model, EncoderDecoder) else None
    if prepared is None and beam > 1:
        message = f"evaluation.beam={beam} needs a model that decodes from caches."
        raise UserError("not_decodable", message, "Use evaluation.beam=1, greedy decoding.")
    for batch in batches:
        inputs_BE, n = _inputs(batch, device), dataset.length
        if prepared is None:
            outputs += map(dataset.decode, greedy(model, inputs_BE, n))
        elif beam > 1:
            for row_E in inputs_BE:
                session = CachedSession(prepared, n, beam, row_E.expand(beam, -1))
                (best,) = beam_search(session, [], Beam(beam, length_penalty), n, EOS)
                outputs.append(dataset.decode(best.tokens))
        else:
            session = CachedSession(prepared, n, len(inputs_BE), inputs_BE)
            rows = generate(session, [[]] * len(inputs_BE), most_likely, n, EOS)
            outputs += (dataset.decode(row.tokens) for row in rows)
    return outputs


def _rouge(hypotheses: Sequence[str], dataset: TextToText, split: str) -> dict[str, float]:
    """ROUGE, and `lead_...`, that of a source's first sentences, as many as a reference of valid has in the median."""
    references = [dataset.references(split, i) for i in range(len(hypotheses))]
    n_lead = usual_sentences(dataset.references("valid", i)[0] for i in range(dataset.n_batches("valid", 1) or 0))
    leads = [lead(dataset.source(split, i), n_lead) for i in range(len(hypotheses))]
    of_leads = {f"lead_{metric}": value for metric, value in rouge(leads, references).items()}
    return rouge(hypotheses, references) | of_leads


def _bleu(hypotheses: Sequence[str], dataset: TextToText, split: str) -> dict[str, float]:
    """BLEU, and `copy_bleu`, that of a source as it stands, which shares names and numbers with its translation."""
    references = [dataset.references(split, i) for i in range(len(hypotheses))]
    sources = [dataset.source(split, i) for i in range(len(hypotheses))]
    return bleu(hypotheses, references) | {"copy_bleu": bleu(sources, references)["bleu"]}


TEXT_METRICS = {
    "rouge": TextMetric(_rouge, lambda: {"rouge_tokenizer": TOKENIZER}),
    "bleu": TextMetric(_bleu, signatures),
}
"""Metrics of generated text, by the name that a data set asks for them by."""


def _prepared(model: EncoderDecoder) -> PreparedModel | None:
    """The model laid out for decoding; None for one with a layer that has no such form: every token is a full pass."""
    try:
        return PreparedModel(model)
    except UserError as error:
        if error.kind != "not_decodable":
            raise
        return None


def _labels(model: nn.Module, dataset: TextToText, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    predicted: list[int] = []
    actual: list[int] = []
    targets_KL = _padded(dataset.label_targets, dataset.length, device)
    for batch in batches:
        scores_BK = rank(model, _inputs(batch, device), dataset.label_targets, dataset.length)
        predicted += scores_BK.argmax(1).tolist()
        is_label_BK = (batch.tokens_BL.to(device)[:, None] == targets_KL).all(2)
        if not is_label_BK.any(1).all():
            raise ValueError(f"A target of {dataset.name} is none of its labels.")
        actual += is_label_BK.int().argmax(1).tolist()
    majority = [max(set(actual), key=actual.count)] * len(actual)
    chance = {"chance_accuracy": glue.METRICS["accuracy"](majority, actual)}
    return {metric: glue.METRICS[metric](predicted, actual) for metric in dataset.metrics} | chance


def _inputs(batch: Batch, device: torch.device) -> Tensor:
    if batch.inputs_BE is None:
        raise ValueError("Text-to-text data needs inputs, but a batch has none.")
    return batch.inputs_BE.to(device)


def _padded(rows: Sequence[Sequence[int]], length: int, device: torch.device) -> Tensor:
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device)
