"""Text-to-text data: documents with the answers to them, as tokens, in an order that only the seed decides.

A document is a source and one or more targets, of which training draws one and evaluation takes the first.

Shape suffixes: B rows of a batch, E input tokens of a row, L target tokens of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from efftx.data.dataset import Batch, DataConfig, check_split, draw
from efftx.data.document_files import take
from efftx.data.prepared import SPLITS, Prepared, prepare_once
from efftx.data.token_corpus import left_out_note
from efftx.data.tokenizer import TextConfig, open_vocabulary
from efftx.data.vocabulary import EOS, PAD, Vocabulary
from efftx.errors import UserError


@dataclass(frozen=True)
class Document:
    """A text and every right answer to it, at least one."""

    source: str
    targets: Sequence[str]


@dataclass(frozen=True)
class Count:
    """Documents of a split, and how many of its rows were none and are left out."""

    documents: int
    left_out: int


@dataclass(frozen=True)
class Corpus:
    """Where documents come from: the sums of each split's files after its name, in `rule` (plain JSON) what else
    decides which.

    `read(split)` streams them, None for a row that is none; `called` is what the variant says of them, from their
    counts. `notes` are what a user should hear of them.
    """

    sums: Sequence[str]
    rule: Any
    read: Callable[[str], Iterable[Document | None]]
    called: Callable[[dict[str, Count]], str]
    licence: str
    origin: str
    notes: tuple[str, ...] = ()


def prepare_pairs(config: TextConfig, corpus: Corpus) -> tuple[Prepared, Vocabulary]:
    """The documents of every split as tokens, and their targets also as text, prepared once; and the vocabulary.

    Of the training documents the first `config.n_documents` are taken (0: all). `UserError` for a negative number, a
    file that cannot be read, a split without documents, and all that a vocabulary can lack.
    """
    if config.n_documents < 0:
        raise UserError("bad_value", f"data.n_documents={config.n_documents} must be 0 (all of them) or more.")
    words = json.dumps([config.name, corpus.rule, list(corpus.sums), config.n_documents])
    identity = hashlib.sha256(words.encode()).hexdigest()

    def read(split: str) -> Iterator[Document | None]:
        return take(corpus.read(split), 0, (config.n_documents or None) if split == "train" else None)

    def texts() -> Iterator[str]:
        for document in read("train"):
            if document is not None:
                yield from (document.source, *document.targets)

    vocabulary = open_vocabulary(config, identity, texts)
    dtype = "<u2" if vocabulary.n_pieces <= 1 << 16 else "<u4"
    sha256 = hashlib.sha256(f"efftx pairs {identity} {vocabulary.checksum}".encode()).hexdigest()

    def write(folder: Path) -> dict[str, Any]:
        digest = hashlib.sha256()
        counts = {split: _write_split(folder, split, read(split), vocabulary, dtype, digest) for split in SPLITS}
        if empty := [split for split in SPLITS if not counts[split].documents]:
            message = f"There are no documents for {' and '.join(empty)} in {config.name}[{corpus.called(counts)}]."
            raise UserError("bad_value", message, "Give more documents, or a folder with a file for each split.")
        return {
            "name": config.name,
            "variant": f"{config.name}[{corpus.called(counts)},{vocabulary.name}]",
            "bytes": sum((folder / _TOKENS.format(split)).stat().st_size for split in SPLITS),
            "sha256": sha256,
            "tokens_sha256": digest.hexdigest(),
            "dtype": dtype,
            "vocabulary": vocabulary.name,
            "documents": {split: count.documents for split, count in counts.items()},
            "notes": [left_out_note(n)] if (n := sum(count.left_out for count in counts.values())) else [],
            "licence": corpus.licence,
            "origin": corpus.origin,
        }

    prepared = prepare_once(f"{config.name}-{sha256[:12]}", write)
    notes = [*corpus.notes, *prepared.meta.get("notes", ())]
    return replace(prepared, meta=prepared.meta | {"notes": notes}), vocabulary


def counted(counts: dict[str, Count]) -> str:
    """`1992+619+618`, and how many rows are left out if any are."""
    left_out = sum(count.left_out for count in counts.values())
    return "+".join(str(counts[split].documents) for split in SPLITS) + (f" ({left_out} left out)" if left_out else "")


def _write_split(
    folder: Path, split: str, documents: Iterable[Document | None], vocabulary: Vocabulary, dtype: str, digest: Any
) -> Count:
    """Streams one split to `folder`: tokens, the end of each text, the texts of each document, and targets as text."""
    text_ends, document_ends, n_tokens, left_out = [0], [0], 0, 0
    with open(folder / _TOKENS.format(split), "wb") as tokens, open(folder / _TARGETS.format(split), "wb") as targets:
        for document in documents:
            if document is None:
                left_out += 1
                continue
            for text in (document.source, *document.targets):
                ids = np.asarray(vocabulary.encode(text), dtype=dtype)
                tokens.write(ids.tobytes())
                digest.update(ids.tobytes())
                n_tokens += len(ids)
                text_ends.append(n_tokens)
            document_ends.append(len(text_ends) - 1)
            targets.write(json.dumps(list(document.targets)).encode() + b"\n")
    for pattern, ends in ((_TEXTS, text_ends), (_DOCUMENTS, document_ends)):
        borders = np.asarray(ends, dtype="<i8").tobytes()
        (folder / pattern.format(split)).write_bytes(borders)
        digest.update(borders)
    return Count(len(document_ends) - 1, left_out)


_TOKENS, _TEXTS, _DOCUMENTS, _TARGETS = "{}.tokens.bin", "{}.texts.bin", "{}.documents.bin", "{}.targets.jsonl"


class _Split:
    """One prepared split, mapped and not read."""

    def __init__(self, folder: Path, split: str, dtype: str) -> None:
        self.text_ends = np.memmap(folder / _TEXTS.format(split), dtype="<i8", mode="r")
        self.document_ends = np.memmap(folder / _DOCUMENTS.format(split), dtype="<i8", mode="r")
        tokens = folder / _TOKENS.format(split)
        # A file without bytes cannot be mapped: the texts of its documents are empty.
        self.tokens = np.memmap(tokens, dtype=dtype, mode="r") if tokens.stat().st_size else np.empty(0, dtype)
        self.targets_path = folder / _TARGETS.format(split)
        self._references: list[list[str]] | None = None

    @property
    def n_documents(self) -> int:
        return len(self.document_ends) - 1

    def n_targets(self, document: int) -> int:
        return int(self.document_ends[document + 1] - self.document_ends[document]) - 1

    def text(self, document: int, which: int) -> np.ndarray:
        """The tokens of the source (0) or of target `which` - 1."""
        text = int(self.document_ends[document]) + which
        return np.asarray(self.tokens[self.text_ends[text] : self.text_ends[text + 1]], dtype=np.int64)

    def fits(self, source: int, target: int) -> np.ndarray:
        """Which documents have so many tokens at most, in their source and in every target."""
        lengths = np.diff(self.text_ends)
        first = np.asarray(self.document_ends[:-1])
        longest = np.maximum.reduceat(np.where(np.isin(np.arange(len(lengths)), first), 0, lengths), first)
        fits: np.ndarray = (lengths[first] <= source) & (longest <= target)
        return fits

    def references(self, document: int) -> list[str]:
        if self._references is None:
            lines = self.targets_path.read_text("utf-8").splitlines()
            self._references = [json.loads(line) for line in lines]
        return list(self._references[document])


class TextPairs:
    """Prepared documents as rows: the source is cut to `data.length` - 1 tokens, the target to `target_length` - 1.

    Both end with the end of sequence and are padded with 0; weights are 1 up to and with the target's end. Unit
    nats/token. Training goes through the documents in a new order every epoch, which only the seed decides, as it
    decides the target of a document that has several; valid and test come in order with their first target.
    `metrics` are what answers are judged by. Where all targets are labels, `label_targets` are their tokens with the
    end of sequence, and chance is the test split's most frequent label. `UserError` where there is no room for a label.
    """

    unit = "nats/token"

    def __init__(
        self,
        prepared: Prepared,
        vocabulary: Vocabulary,
        config: DataConfig,
        *,
        target_length: int,
        metrics: tuple[str, ...],
        labels: Sequence[str] = (),
        leaves_out_long: bool = False,
    ) -> None:
        meta = prepared.meta
        self.name, self.variant, self.checksum = str(meta["name"]), str(meta["variant"]), str(meta["tokens_sha256"])
        self.notes = tuple(meta.get("notes", ()))
        self.vocabulary, self.vocab_size = vocabulary, vocabulary.size
        self.input_length, self.length = config.length, target_length
        self.metrics = metrics
        self.label_targets = [[*vocabulary.encode(label), EOS] for label in labels]
        if self.length < (least := max(map(len, self.label_targets), default=1)):
            message = f"data.target_length={target_length} has no room for the labels of {self.variant}."
            raise UserError("bad_value", message, f"Set data.target_length to at least {least}, or to 0.")
        self._splits = {split: _Split(prepared.folder, split, str(meta["dtype"])) for split in SPLITS}
        self._training = np.arange(self._splits["train"].n_documents)
        if leaves_out_long:
            self._leave_out_long()

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch `step`, a pure function of its arguments; valid and test ignore `seed`.

        Shapes [B, L] and [B, E]; the last batch of valid and test has the rows that are left. `IndexError` past it.
        """
        check_split(split)
        its = self._splits[split]
        numbers = range(step * batch_size, (step + 1) * batch_size)
        if split == "train":
            rows = [self._drawn(seed, *divmod(number, len(self._training))) for number in numbers]
        else:
            rows = [(document, 0) for document in numbers if document < its.n_documents]
            if step < 0 or not rows:
                raise IndexError(f"{split} of {self.variant} has no batch {step} of {batch_size} rows")
        tokens_BL = np.full((len(rows), self.length), PAD, dtype=np.int64)
        inputs_BE = np.full((len(rows), self.input_length), PAD, dtype=np.int64)
        weights_BL = np.zeros((len(rows), self.length), dtype=np.float32)
        for row, (document, target) in enumerate(rows):
            _fill(inputs_BE[row], its.text(document, 0))
            weights_BL[row, : _fill(tokens_BL[row], its.text(document, 1 + target))] = 1.0
        return Batch.of(tokens_BL, weights_BL, inputs_BE)

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """Batches that cover valid or test once; None for train, whose epochs follow one another without end."""
        check_split(split)
        return None if split == "train" else -(-self._splits[split].n_documents // batch_size)

    def n_rows(self, split: str) -> int:
        """Rows of an epoch: every document of a split once, of train those that are not left out."""
        check_split(split)
        return len(self._training) if split == "train" else self._splits[split].n_documents

    def n_documents(self, split: str) -> int:
        """How many documents a split has."""
        return self._splits[split].n_documents

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids up to the first end of sequence."""
        before = list(ids)
        return self.vocabulary.decode(before[: before.index(EOS)] if EOS in before else before)

    def source(self, split: str, i: int) -> str:
        """The whole text of document i, as its tokens give it back."""
        return self.vocabulary.decode(self._splits[split].text(i, 0).tolist())

    def references(self, split: str, i: int) -> list[str]:
        """Every target of document i of a split, as it was written."""
        return self._splits[split].references(i)

    def _leave_out_long(self) -> None:
        """Trains on what a row holds whole; notes say what is left out or cut. UserError where nothing is left."""
        fits = self._splits["train"].fits(self.input_length - 1, self.length - 1)
        self._training = np.flatnonzero(fits)
        if not len(self._training):
            message = f"No training pair of {self.variant} fits into data.length={self.input_length} tokens."
            raise UserError("bad_value", message, "Set data.length and data.target_length larger.")
        if n_long := len(fits) - len(self._training):
            self.notes += (f"{n_long:,} of {len(fits):,} training pairs are longer than a row and left out.",)
        for split in ("valid", "test"):
            fits = self._splits[split].fits(self.input_length - 1, 1 << 62)
            if n_cut := int((~fits).sum()):
                self.notes += (f"{n_cut:,} of {len(fits):,} sources of {split} are cut to data.length.",)

    @cached_property
    def chance_accuracy(self) -> float | None:
        """Of the most frequent label of the whole test split, in %; None where there are no labels."""
        if not self.label_targets:
            return None
        n = self._splits["test"].n_documents
        return 100.0 * max(Counter(self.references("test", i)[0] for i in range(n)).values()) / n

    def _drawn(self, seed: int, epoch: int, place: int) -> tuple[int, int]:
        """The document at a place of an epoch, and which of its targets."""
        its = self._splits["train"]
        order, choice = _epoch(self.name, seed, epoch, len(self._training))
        document = int(self._training[order[place]])
        return document, int(choice[place]) % its.n_targets(document)


@lru_cache(maxsize=4)
def _epoch(name: str, seed: int, epoch: int, n_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """A permutation of the documents, and a large random number for each place."""
    keys = draw(f"{name} order", "train", seed, epoch, n_documents, 1 << 62)
    return np.argsort(keys, kind="stable"), draw(f"{name} target", "train", seed, epoch, n_documents, 1 << 62)


def _fill(row: np.ndarray, ids: np.ndarray) -> int:
    """Writes as many ids as leave room for the end of sequence, and this; gives their number."""
    n = min(len(ids), len(row) - 1)
    row[:n] = ids[:n]
    row[n] = EOS
    return n + 1
