"""Trivial answers to a data set, in the metrics of its models: what one must beat before it has learned anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from efftx.data.dataset import Dataset
from efftx.errors import UserError, nearest
from efftx.evaluation import glue
from efftx.evaluation.bleu import bleu
from efftx.evaluation.compressed import png_bits, xz_bits
from efftx.evaluation.metrics import in_unit
from efftx.evaluation.ngram import NGram, Tokens, marked
from efftx.evaluation.rouge import lead, rouge, usual_sentences
from efftx.evaluation.word_classifiers import fit_jaccard, fit_naive_bayes, words

MOST_TRAINING = 1 << 26
"""Of a longer training split an n-gram table counts this many tokens, the first: 67.1 M of the 90 M of enwik8 whole."""
MOST_VALIDATION = 1 << 20
"""No more validation tokens than this choose the smoothing."""
DRAWN = 1 << 22
"""Tokens of training rows that are drawn where a training split has no end."""
AT_ONCE = 64
"""Rows of a batch that is read to be counted."""

Split = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class Question:
    """What a trivial answer is asked: its `kind`, and the first `rows` rows of the test split (None: all).

    order    of an n-gram: 1, 2 or 3.
    codec    of what is compressed: xz or png.
    fields   cuts a source into its sentences, where a kind compares them.
    """

    kind: str
    rows: int | None = None
    order: int = 1
    codec: str = "xz"
    fields: Split | None = None


@runtime_checkable
class Stream(Protocol):
    """A data set whose rows are windows of one text a split."""

    def stream(self, split: str) -> np.ndarray:
        """The whole split, token after token."""
        ...


@runtime_checkable
class Countable(Protocol):
    """A data set whose training split has a length in rows."""

    def n_rows(self, split: str) -> int:
        """As many rows as an epoch has, or where rows are drawn anywhere in a text as would fill it side by side."""
        ...


@runtime_checkable
class Pictures(Protocol):
    """A data set whose rows are pictures, row-major, channels last."""

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        ...


class Texts(Protocol):
    """A data set of sources and right answers to them."""

    metrics: tuple[str, ...]
    label_targets: Sequence[Sequence[int]]

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """How many batches cover the split once."""
        ...

    def n_documents(self, split: str) -> int:
        """How many there are."""
        ...

    def source(self, split: str, i: int) -> str:
        """The text of document i."""
        ...

    def references(self, split: str, i: int) -> list[str]:
        """Every right answer to document i."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids up to the first end of sequence."""
        ...


def trivial_answer(dataset: Dataset, question: Question) -> dict[str, float]:
    """The metrics of a trivial answer on the test split, with the names that a model's have.

    ngram         an interpolated n-gram table of the training split's targets (`ngram.NGram`), its smoothing chosen on
                  validation; contexts begin with the row, as a model's do. `loss` and the loss in its unit.
    compressed    the test tokens, bytes, through xz or, picture by picture, PNG.
    majority      the most frequent label of the test rows.
    naive_bayes   naive Bayes on the source's words; the data set's own metrics.
    jaccard       a threshold, chosen in training, on the words that the two sentences of a source share.
    lead          the first sentences of the source, as many as a reference has in the median of validation: ROUGE.
    copy          its first words, as many as a reference has in the median of validation: ROUGE; of a translation the
                  source as it stands: BLEU.

    UserError where the data set is of another kind.
    """
    if question.kind not in ANSWERS:
        message = f"There is no trivial answer '{question.kind}'."
        raise UserError("unknown_gate", message, nearest(question.kind, ANSWERS))
    return ANSWERS[question.kind](dataset, question)


def _ngram(dataset: Dataset, question: Question) -> dict[str, float]:
    order, vocab_size = question.order, dataset.vocab_size
    valid, _ = _flat(_rows(dataset, "valid", MOST_VALIDATION // dataset.length + 1), vocab_size, order)
    test, counts = _flat(_rows(dataset, "test", question.rows), vocab_size, order)
    train = _training(dataset, order)
    model = NGram(train, valid, vocab_size, order)
    nats = model.nats(test, counts)
    discounts = {f"discount_{k}": d for k, d in enumerate(model.discounts, 1) if d is not None}
    return {
        "loss": nats,
        **in_unit(nats, dataset.unit),
        **discounts,
        "training_tokens": float((train != vocab_size).sum()),
    }


def _training(dataset: Dataset, order: int) -> Tokens:
    """Targets of the training split: the whole of a text, else those of `n_rows` rows; of endless data DRAWN tokens.

    Under span corruption the rows are drawn as a model's are: some of the text is in none of them, some in several, and
    of each only the spans that were taken out are targets.
    """
    if isinstance(dataset, Stream):
        return np.asarray(dataset.stream("train")[:MOST_TRAINING], dtype=np.int64)
    most = (MOST_TRAINING if isinstance(dataset, Countable) else DRAWN) // dataset.length + 1
    n_rows = min(most, dataset.n_rows("train")) if isinstance(dataset, Countable) else most
    return _flat(_rows(dataset, "train", n_rows), dataset.vocab_size, order)[0]


def _rows(dataset: Dataset, split: str, most: int | None) -> Iterator[tuple[Tokens, NDArray[np.bool_]]]:
    """The targets of each row up to the last that counts, and which of them count; `most` rows at most."""
    covering = dataset.n_batches(split, AT_ONCE)
    if covering is None and most is None:
        raise ValueError(f"the split '{split}' of {dataset.name} has no end: say how many rows")
    n = 0
    for step in range(covering if covering is not None else -(-(most or 0) // AT_ONCE)):
        batch = dataset.batch(split, 0, step, AT_ONCE)
        for tokens, weights in zip(batch.tokens_BL.numpy(), batch.weights_BL.numpy(), strict=True):
            if most is not None and n >= most:
                return
            n += 1
            counts = weights > 0
            end = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
            yield tokens[:end], counts[:end]


def _flat(
    rows: Iterator[tuple[Tokens, NDArray[np.bool_]]], vocab_size: int, order: int
) -> tuple[Tokens, NDArray[np.bool_]]:
    """The rows as one array with marks, and which of its tokens, the marks left out, count."""
    pairs = list(rows)
    counts = [counts for _, counts in pairs]
    return marked((tokens for tokens, _ in pairs), vocab_size, order), np.concatenate(counts or [np.zeros(0, bool)])


def _compressed(dataset: Dataset, question: Question) -> dict[str, float]:
    if dataset.unit != "bits/dim" or dataset.vocab_size > 256:
        raise _not_for(dataset, "compressed", "Its tokens are no bytes.")
    rows = list(_rows(dataset, "test", question.rows))
    if question.codec == "png":
        if not isinstance(dataset, Pictures):
            raise _not_for(dataset, "compressed with codec png", "Its rows are no pictures.")
        shape = dataset.picture_shape
        bits = png_bits(np.stack([tokens for tokens, _ in rows]).astype(np.uint8).reshape(-1, *shape))
    else:
        bits = xz_bits(b"".join(tokens[counts].astype(np.uint8).tobytes() for tokens, counts in rows))
    nats = bits * math.log(2.0)
    return {"loss": nats, **in_unit(nats, dataset.unit)}


def _labels(dataset: Dataset, kind: str) -> tuple[Texts, list[str]]:
    texts = cast(Texts, dataset)
    if not getattr(dataset, "label_targets", None):
        raise _not_for(dataset, kind, "Its answers are no labels.")
    return texts, [texts.decode(target) for target in texts.label_targets]


def _documents(texts: Texts, split: str, rows: int | None) -> range:
    n = texts.n_documents(split)
    return range(n if rows is None else min(n, rows))


def _answers(texts: Texts, split: str, rows: int | None = None) -> list[str]:
    return [texts.references(split, i)[0] for i in _documents(texts, split, rows)]


def _sources(texts: Texts, split: str, rows: int | None = None) -> list[str]:
    return [texts.source(split, i) for i in _documents(texts, split, rows)]


def _majority(dataset: Dataset, question: Question) -> dict[str, float]:
    texts, _ = _labels(dataset, "majority")
    actual = _answers(texts, "test", question.rows)
    return {"accuracy": 100.0 * max(Counter(actual).values()) / len(actual)}


def _naive_bayes(dataset: Dataset, question: Question) -> dict[str, float]:
    texts, labels = _labels(dataset, "naive_bayes")
    words_of = {split: [words(source) for source in _sources(texts, split)] for split in ("train", "valid")}
    model = fit_naive_bayes(words_of["train"], _answers(texts, "train"), words_of["valid"], _answers(texts, "valid"))
    test = [words(source) for source in _sources(texts, "test", question.rows)]
    return _scored(texts, labels, model.predict(test), _answers(texts, "test", question.rows))


def _jaccard(dataset: Dataset, question: Question) -> dict[str, float]:
    texts, labels = _labels(dataset, "jaccard")
    fields = question.fields

    def pairs(split: str, rows: int | None = None) -> list[tuple[list[str], list[str]]]:
        parts = [fields(source) if fields else () for source in _sources(texts, split, rows)]
        if any(len(part) != 2 for part in parts):
            raise _not_for(dataset, "jaccard", "Its sources are not two sentences each.")
        return [(words(part[0]), words(part[1])) for part in parts]

    rule = fit_jaccard(pairs("train"), _answers(texts, "train"))
    return _scored(
        texts, labels, rule.predict(pairs("test", question.rows)), _answers(texts, "test", question.rows)
    ) | {"threshold": rule.threshold}


def _scored(texts: Texts, labels: list[str], predicted: list[str], actual: list[str]) -> dict[str, float]:
    numbers = [[labels.index(label) for label in of_texts] for of_texts in (predicted, actual)]
    return {metric: glue.METRICS[metric](*numbers) for metric in texts.metrics}


def _lead(dataset: Dataset, question: Question) -> dict[str, float]:
    return _summaries(dataset, question, "lead", lambda texts: usual_sentences(_answers(texts, "valid")), lead)


def _copy(dataset: Dataset, question: Question) -> dict[str, float]:
    if getattr(dataset, "metrics", ()) == ("bleu",):
        texts = cast(Texts, dataset)
        sources = _sources(texts, "test", question.rows)
        return bleu(sources, [texts.references("test", i) for i in range(len(sources))])

    def usual(texts: Texts) -> int:
        return max(1, round(median(len(answer.split()) for answer in _answers(texts, "valid"))))

    return _summaries(dataset, question, "copy", usual, lambda source, n: " ".join(source.split()[:n]))


def _summaries(
    dataset: Dataset,
    question: Question,
    kind: str,
    usual: Callable[[Texts], int],
    shorten: Callable[[str, int], str],
) -> dict[str, float]:
    texts = cast(Texts, dataset)
    if getattr(dataset, "metrics", ()) != ("rouge",):
        raise _not_for(dataset, kind, "Its answers are no summaries.")
    n, sources = usual(texts), _sources(texts, "test", question.rows)
    outputs = [shorten(source, n) for source in sources]
    return rouge(outputs, [texts.references("test", i) for i in range(len(outputs))])


def _not_for(dataset: Dataset, kind: str, why: str) -> UserError:
    return UserError("bad_gate", f"{dataset.variant} has no trivial answer of kind {kind}.", why)


ANSWERS: dict[str, Callable[[Dataset, Question], dict[str, float]]] = {
    "ngram": _ngram,
    "compressed": _compressed,
    "majority": _majority,
    "naive_bayes": _naive_bayes,
    "jaccard": _jaccard,
    "lead": _lead,
    "copy": _copy,
}
