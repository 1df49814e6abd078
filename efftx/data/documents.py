"""Documents as one stream of tokens: where they come from, what a record calls them, and how they are prepared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from efftx.data.dataset import Dataset
from efftx.data.document_files import DocumentFiles
from efftx.data.json_lines import read_texts
from efftx.data.known_files import own_files
from efftx.data.prepared import SPLITS, Prepared
from efftx.data.samples import licence_and_origin
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.data.token_corpus import open_tokens, prepare_tokens
from efftx.data.tokenizer import TextConfig, VocabularyConfig, open_vocabulary
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError

LICENCE = "the texts belong to their authors; files are the user's own"


@dataclass
class DocumentsConfig(TextConfig, SpanCorruptionConfig):
    """Documents as tokens, for a language model or under span corruption."""


@dataclass(frozen=True)
class Documents:
    """Where documents come from: which they are, and how they are read.

    name      of the data set.
    identity  SHA-256 in hex, another for other documents.
    facts     licence and origin of the data set.
    read      gives the texts of a split in order, and None for a line or file that holds no text.
    called    the words for them in the variant, from the number of documents in each split.
    comma     stands in the variant between those words and the vocabulary's name.
    notes     sentences for the user, about what was left out, say.
    at_most   so many documents of a user's training files are read (0: all).
    """

    name: str
    identity: str
    facts: dict[str, Any]
    read: Callable[[str], Iterator[str | None]]
    called: Callable[[dict[str, int]], str]
    notes: tuple[str, ...] = ()
    at_most: int = 0
    comma: str = ","


def prepare_documents(config: VocabularyConfig, documents: Documents) -> tuple[Prepared, Vocabulary]:
    """The documents as tokens, prepared once, and their vocabulary; `UserError` as `read`'s and the vocabulary's."""

    def texts() -> Iterator[str]:
        return (text for text in documents.read("train") if text is not None)

    vocabulary = open_vocabulary(config, documents.identity, texts)
    prepared = prepare_tokens(
        documents.name,
        documents.identity,
        vocabulary,
        documents.read,
        lambda counts: f"{documents.name}[{documents.called(counts)}{documents.comma}{vocabulary.name}]",
        documents.facts,
    )
    notes = [*documents.notes, *prepared.meta.get("notes", ())]
    counts, most = prepared.meta["documents"], documents.at_most
    if most and most in (counts["train"], sum(counts.values())):
        notes.append(f"No more than the first {most:,} documents are read: data.n_documents={most} (0: all).")
    return replace(prepared, meta=prepared.meta | {"notes": notes}), vocabulary


def open_documents(config: DocumentsConfig, documents: Documents, objective: str) -> Dataset:
    """Windows of the documents, packed: under lm nothing is padded, span corruption cuts each window's spans."""
    return open_tokens(*prepare_documents(config, documents), config, objective)


def check_n_documents(config: TextConfig) -> None:
    """`UserError` for a negative number of documents."""
    if config.n_documents < 0:
        raise UserError("bad_value", f"data.n_documents={config.n_documents} must be 0 (all of them) or more.")


def local_documents(
    config: DocumentsConfig,
    files: DocumentFiles,
    sums: Sequence[str],
    *,
    field: str = "text",
    notes: tuple[str, ...] = (),
) -> Documents:
    """The documents in a user's own files, whose text is `field` of each row; a record calls them jsonl."""
    name = own_files(files.all, sums) + ("" if field == "text" else f" {field}")
    return Documents(
        name="jsonl",
        identity=identity_of(name, field, *files.by_split(sums), config.n_documents),
        facts=licence_and_origin(config.path, LICENCE),
        read=lambda split: files.read(split, lambda file: read_texts(file, field), config.n_documents or None),
        called=lambda counts: f"{name} {counted_documents(counts)}{files.rule}",
        notes=(*notes, *files.notes),
        at_most=config.n_documents,
        comma=", ",
    )


def counted_documents(counts: dict[str, int]) -> str:
    """`3210+40+30 documents`: those of train, valid and test."""
    return "+".join(str(counts[split]) for split in SPLITS) + " documents"


def identity_of(*words: str | int) -> str:
    """SHA-256 in hex over words and numbers."""
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
