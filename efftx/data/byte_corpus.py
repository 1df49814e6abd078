"""Text as bytes: a memory-mapped uint8 array for each split, one token a byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from efftx.data.dataset import DataConfig, Dataset
from efftx.data.prepared import SPLITS, Prepared, prepare_once
from efftx.data.rendering import Pieces, RawBytes, Rendering
from efftx.data.span_corruption import SpanCorruption, SpanCorruptionConfig
from efftx.data.vocabulary import ByteVocabulary
from efftx.data.windows import LanguageModelRows, open_corpus


def split_90_5_5(n_bytes: int) -> tuple[int, int, int]:
    """Sizes of train, valid and test: 90, 5 and 5 percent, in this order, each border rounded down."""
    train_end, valid_end = n_bytes * 90 // 100, n_bytes * 95 // 100
    return train_end, valid_end - train_end, n_bytes - valid_end


def corpus_key(name: str, sha256: str, sizes: tuple[int, int, int]) -> str:
    """The name of a corpus's prepared folder; a split other than 90/5/5 shows in it."""
    usual = sizes == split_90_5_5(sum(sizes))
    return f"{name}-{sha256[:12]}" + ("" if usual else "-{}-{}-{}".format(*sizes))


def prepare_corpus(
    name: str, variant: str, sha256: str, sizes: tuple[int, int, int], read: Callable[[], bytes], facts: dict[str, Any]
) -> Prepared:
    """The text as one array for each split, prepared once.

    `read` gives the text of SHA-256 `sha256` and is called only if it must be written; `facts` (licence, origin) go
    into the meta data.
    """

    def write(folder: Path) -> dict[str, Any]:
        text = memoryview(read())
        start = 0
        for split, size in zip(SPLITS, sizes, strict=True):
            (folder / f"{split}.bin").write_bytes(text[start : start + size])
            start += size
        return {"name": name, "variant": variant, "bytes": len(text), "sha256": sha256, **facts}

    return prepare_once(corpus_key(name, sha256, sizes), write)


def open_bytes(prepared: Prepared, config: SpanCorruptionConfig, objective: str = "lm") -> Dataset:
    """A prepared byte corpus in rows of `config.length` tokens.

    lm: vocabulary 256, the bytes themselves, unit bits/dim. span_corruption: byte b is id 3 + b, 359 ids with the
    sentinels, unit nats/token. `UserError` if a split is shorter than a row.
    """
    corpus = open_corpus(prepared, "uint8", n_symbols=256, symbols="bytes")
    if objective == "span_corruption":
        return SpanCorruption(corpus, config, ByteVocabulary(), offset=ByteVocabulary.first)
    return LanguageModelRows(corpus, config.length, vocab_size=bytes_vocab_size(config), unit="bits/dim")


def bytes_vocab_size(config: DataConfig, objective: str = "lm") -> int:
    """The number of tokens that `open_bytes` gives."""
    return ByteVocabulary().size if objective == "span_corruption" else 256


def bytes_rendering(config: DataConfig, objective: str = "lm", model: bytes | None = None) -> Rendering:
    """What the tokens that `open_bytes` gives stand for."""
    return Pieces(ByteVocabulary()) if objective == "span_corruption" else RawBytes()
