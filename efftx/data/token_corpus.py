"""A text as tokens: documents one after another in one array a split, each ended by the end of sequence.

Both objectives read the same array: rows are windows of it, which may hold several documents or a part of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from efftx.data.dataset import Dataset
from efftx.data.prepared import SPLITS, Prepared, prepare_once
from efftx.data.span_corruption import SpanCorruption, SpanCorruptionConfig
from efftx.data.vocabulary import EOS, Vocabulary
from efftx.data.windows import LanguageModelRows, open_corpus
from efftx.errors import UserError


def prepare_tokens(
    name: str,
    identity: str,
    vocabulary: Vocabulary,
    documents: Callable[[str], Iterable[str | None]],
    variant: Callable[[dict[str, int]], str],
    facts: dict[str, Any],
) -> Prepared:
    """The documents of every split as tokens, prepared once.

    `identity` (SHA-256 in hex) says which documents these are, of which None is left out and counted; `variant` names
    the data from the number of documents a split; `facts` (licence, origin) go into the meta data. `UserError` for a
    split without documents.
    """
    dtype = "<u2" if vocabulary.n_pieces <= 1 << 16 else "<u4"
    sha256 = hashlib.sha256(f"efftx tokens {name} {identity} {vocabulary.checksum}".encode()).hexdigest()

    def write(folder: Path) -> dict[str, Any]:
        digest = hashlib.sha256()
        counts, left_out, n_bytes = {}, 0, 0
        for split in SPLITS:
            counted = _write_split(folder / f"{split}.bin", documents(split), vocabulary, dtype, digest)
            counts[split], n_bytes, left_out = counted[0], n_bytes + counted[1], left_out + counted[2]
        if empty := [split for split in SPLITS if not counts[split]]:
            message = f"There are no documents for {' and '.join(empty)} in {variant(counts)}."
            raise UserError("bad_value", message, "Give at least 20 documents, or a folder that holds the splits.")
        return {
            "name": name,
            "variant": variant(counts),
            "bytes": n_bytes,
            "sha256": sha256,
            "tokens_sha256": digest.hexdigest(),
            "dtype": dtype,
            "vocabulary": vocabulary.name,
            "documents": counts,
            "notes": [left_out_note(left_out)] if left_out else [],
            **facts,
        }

    return prepare_once(f"{name}-{sha256[:12]}", write)


def left_out_note(count: int) -> str:
    """What a user hears of lines and rows that are no documents."""
    what = "line or row that is blank or lacks" if count == 1 else "lines or rows that are blank or lack"
    return f"Left out: {count:,} {what} a text or a label."


def open_tokens(prepared: Prepared, vocabulary: Vocabulary, config: SpanCorruptionConfig, objective: str) -> Dataset:
    """Prepared tokens in rows of `config.length`, unit nats/token; the checksum is that of the tokens.

    `UserError` if a split is shorter than a row.
    """
    corpus = open_corpus(prepared, str(prepared.meta["dtype"]), n_symbols=vocabulary.n_pieces, symbols="tokens")
    if objective == "span_corruption":
        return SpanCorruption(corpus, config, vocabulary)
    return LanguageModelRows(
        corpus, config.length, vocab_size=vocabulary.size, unit="nats/token", vocabulary=vocabulary
    )


def _write_split(
    path: Path, documents: Iterable[str | None], vocabulary: Vocabulary, dtype: str, digest: Any
) -> tuple[int, int, int]:
    """Streams one split to `path` and into `digest`; gives its documents, the bytes of their text, those left out."""
    n_documents = n_bytes = left_out = 0
    with path.open("wb") as file:
        for text in documents:
            if text is None:
                left_out += 1
                continue
            tokens = np.asarray([*vocabulary.encode(text), EOS], dtype=dtype).tobytes()
            file.write(tokens)
            digest.update(tokens)
            n_documents += 1
            n_bytes += len(text.encode())
        digest.update(f"{path.name} ends after {file.tell()} bytes of {dtype}".encode())
    return n_documents, n_bytes, left_out
