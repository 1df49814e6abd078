"""C4, the web text that T5 and the Scaling Transformers are trained on (Raffel et al. 2020), or a part of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from efftx.data.dataset import Dataset, Source
from efftx.data.document_files import find_documents
from efftx.data.documents import (
    Documents,
    DocumentsConfig,
    check_n_documents,
    counted_documents,
    identity_of,
    local_documents,
    open_documents,
    prepare_documents,
)
from efftx.data.hub import HubRows
from efftx.data.json_lines import read_texts
from efftx.data.known_files import are, not_known
from efftx.data.prepared import Prepared
from efftx.data.samples import is_sample, licence_and_origin, resolve_path
from efftx.data.text_files import kind_of, sums_of
from efftx.data.tokenizer import check_tokenizer, text_rendering, text_vocab_size

LICENCE = "ODC-BY 1.0; the texts are also under Common Crawl's terms of use"
ENGLISH = HubRows("allenai/c4", "en", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2")
N_VALIDATION = 364_608
"""Documents of the published validation split, whose halves are valid and test."""

_LOCAL = (
    'Set data.path to a .jsonl file of documents ({"text": ...} a line), plain, .gz or .xz, to a folder with '
    "train.jsonl, valid.jsonl and test.jsonl, or to one of the Hub's files (c4-train.00000-of-01024.json.gz, ...); "
    "efftx:samples/c4 is a small one that efftx brings along."
)


@dataclass
class C4Config(DocumentsConfig):
    """The paper's values are length 512, target_length 256 and T5's vocabulary."""


def prepare_c4(config: C4Config) -> Prepared:
    """The documents as tokens, prepared once; `UserError` for no network, a missing or damaged file, a bad line."""
    return prepare_documents(config, _documents(config))[0]


def open_c4(config: C4Config, objective: str = "lm") -> Dataset:
    """The documents in rows of `config.length` tokens."""
    return open_documents(config, _documents(config), objective)


def _documents(config: C4Config) -> Documents:
    check_n_documents(config)
    path = resolve_path(config.path, config.name)
    return _on_the_hub(config.n_documents) if path is None else _local(path, config)


def _on_the_hub(n_documents: int) -> Documents:
    """The first documents of the train split; valid and test are the first of each half of the validation split.

    They have a twentieth of `n_documents` each, all of their half where that is 0.
    """
    half = N_VALIDATION // 2
    held_out = min(half, max(1, n_documents // 20)) if n_documents else half

    def read(split: str) -> Iterator[str | None]:
        if split == "train":
            rows = ENGLISH.stream("train", 0, n_documents or None, _LOCAL)
        else:
            rows = ENGLISH.stream("validation", 0 if split == "valid" else half, held_out, _LOCAL)
        return (row["text"] for row in rows)

    return Documents(
        name="c4",
        identity=identity_of("hub", ENGLISH.place, ENGLISH.subset, ENGLISH.revision, n_documents),
        facts={"licence": LICENCE, "origin": ENGLISH.origin},
        read=read,
        called=lambda counts: ENGLISH.subset + (f":{counts['train']}" if n_documents else ""),
    )


def _local(path: Path, config: C4Config) -> Documents:
    """The documents of a user's files; a record calls them c4 only where their bytes are known to be of it."""
    english = path / ENGLISH.subset
    files = find_documents(str(english if kind_of(english) == "folder" else path), _LOCAL)
    sums = sums_of(files.all, _LOCAL)
    sample = is_sample(config.path)
    if not sample and not are("c4", sums):
        return local_documents(config, files, sums, notes=(not_known(config.path, "C4"),))
    return Documents(
        name="c4",
        identity=identity_of("local", *files.by_split(sums), config.n_documents),
        facts=licence_and_origin(config.path, LICENCE),
        read=lambda split: files.read(split, read_texts, config.n_documents or None),
        called=lambda counts: f"{config.path} " * sample + counted_documents(counts) + files.rule,
        notes=files.notes,
    )


SOURCE = Source(
    name="c4",
    config=C4Config,
    licence=LICENCE,
    variant="c4[en,t5-32000]",
    open=open_c4,
    vocab_size=text_vocab_size,
    rendering=text_rendering,
    objectives=("lm", "span_corruption"),
    prepare=prepare_c4,
    check=check_tokenizer,
)
