"""C4, the web text that T5 and the Scaling Transformers are trained on (Raffel et al. 2020), or a part of it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from efftx.core.files import file_sha256
from efftx.data.byte_corpus import split_90_5_5
from efftx.data.dataset import Dataset, Source
from efftx.data.hub import HubTexts
from efftx.data.json_lines import find_json_lines, read_texts
from efftx.data.prepared import SPLITS, Prepared
from efftx.data.samples import LICENCE as SAMPLES_LICENCE
from efftx.data.samples import is_sample, resolve_path
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.data.token_corpus import open_tokens, prepare_tokens
from efftx.data.tokenizer import TextConfig, open_vocabulary, text_vocab_size, text_wording
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError

LICENCE = "ODC-BY 1.0; the texts are also under Common Crawl's terms of use"
ENGLISH = HubTexts("allenai/c4", "en", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2")
N_VALIDATION = 364_608
"""Documents of the published validation split, whose halves are valid and test."""

_LOCAL = (
    'Set data.path to a .jsonl file of documents ({"text": ...} a line), plain, .gz or .xz, or to a folder with '
    "train.jsonl, valid.jsonl and test.jsonl; efftx:samples/c4 is a small one that efftx brings along."
)


@dataclass
class C4Config(TextConfig, SpanCorruptionConfig):
    """The paper's values are length 512, target_length 256 and T5's vocabulary."""


@dataclass(frozen=True)
class Documents:
    """Where documents come from: `identity` (SHA-256) tells them from others, `read(split)` gives their texts.

    `facts` are licence and origin; `called` is what the variant says of them, from the number of documents a split.
    """

    identity: str
    facts: dict[str, Any]
    read: Callable[[str], Iterator[str]]
    called: Callable[[dict[str, int]], str]


def prepare_c4(config: C4Config) -> Prepared:
    """The documents as tokens, prepared once; `UserError` for no network, a missing or damaged file, a bad line."""
    return _prepare(config)[0]


def open_c4(config: C4Config, objective: str = "lm") -> Dataset:
    """Windows of the documents, packed: under lm nothing is padded, span corruption cuts each window's spans."""
    return open_tokens(*_prepare(config), config, objective)


def _prepare(config: C4Config) -> tuple[Prepared, Vocabulary]:
    if config.n_documents < 0:
        raise UserError("bad_value", f"data.n_documents={config.n_documents} must be 0 (all of them) or more.")
    path = resolve_path(config.path, config.name)
    documents = _on_the_hub(config.n_documents) if path is None else _local(path, config)
    vocabulary = open_vocabulary(config, documents.identity, lambda: documents.read("train"))
    prepared = prepare_tokens(
        config.name,
        documents.identity,
        vocabulary,
        documents.read,
        lambda counts: f"{config.name}[{documents.called(counts)},{vocabulary.name}]",
        documents.facts,
    )
    return prepared, vocabulary


def _on_the_hub(n_documents: int) -> Documents:
    """The first documents of the train split; valid and test are the first of each half of the validation split.

    They have a twentieth of `n_documents` each, all of their half where that is 0.
    """
    half = N_VALIDATION // 2
    held_out = min(half, max(1, n_documents // 20)) if n_documents else half

    def read(split: str) -> Iterator[str]:
        if split == "train":
            return ENGLISH.read("train", 0, n_documents or None, _LOCAL)
        return ENGLISH.read("validation", 0 if split == "valid" else half, held_out, _LOCAL)

    return Documents(
        identity=_identity("hub", ENGLISH.place, ENGLISH.subset, ENGLISH.revision, n_documents),
        facts={"licence": LICENCE, "origin": f"{ENGLISH.place} {ENGLISH.subset} at {ENGLISH.revision[:7]} on the Hub"},
        read=read,
        called=lambda counts: ENGLISH.subset + (f":{counts['train']}" if n_documents else ""),
    )


def _local(path: Path, config: C4Config) -> Documents:
    """The documents of a folder's three files, or of one file in three parts of 90, 5 and 5 % of its documents."""
    if not path.exists():
        raise UserError("missing_file", f"data.path={config.path} does not exist.", _LOCAL)
    at_most = config.n_documents or None
    if path.is_dir():
        files = [find_json_lines(path, split) for split in SPLITS]

        def read(split: str) -> Iterator[str]:
            file = files[SPLITS.index(split)]
            return islice(read_texts(file), at_most if split == "train" else None)
    else:
        files = [path]

        @cache
        def sizes() -> tuple[int, int, int]:
            return split_90_5_5(sum(1 for _ in islice(read_texts(path), at_most)))

        def read(split: str) -> Iterator[str]:
            train, valid, _ = sizes()
            starts = {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, at_most)}
            return islice(read_texts(path), *starts[split])

    try:
        sums = [file_sha256(file) for file in files]
    except OSError as error:
        raise UserError("missing_file", f"Cannot read {path}: {error.strerror or error}.", _LOCAL) from error
    sample = f"{config.path} " if is_sample(config.path) else ""
    return Documents(
        identity=_identity("folder" if path.is_dir() else "file", *sums, config.n_documents),
        facts={"licence": SAMPLES_LICENCE, "origin": "efftx"}
        if sample
        else {"licence": LICENCE, "origin": "local files"},
        read=read,
        called=lambda counts: sample + "+".join(str(counts[split]) for split in SPLITS) + " documents",
    )


def _identity(*words: str | int) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


SOURCE = Source(
    name="c4",
    config=C4Config,
    licence=LICENCE,
    variant="c4[en,t5-32000]",
    open=open_c4,
    vocab_size=text_vocab_size,
    wording=text_wording,
    objectives=("lm", "span_corruption"),
    prepare=prepare_c4,
)
