"""Summaries: scientific articles and their abstracts (Scaling Transformers, table 5), and two smaller corpora."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efftx.data.dataset import Source
from efftx.data.document_files import DocumentFiles, find_documents
from efftx.data.hub import HubRows
from efftx.data.json_lines import read_rows, whole_text
from efftx.data.known_files import are, not_known, own_files
from efftx.data.pairs import Corpus, Document, TextPairs, counted, prepare_pairs
from efftx.data.prepared import Prepared, data_root
from efftx.data.samples import is_sample, licence_and_origin, require_path, resolve_path
from efftx.data.text_files import kind_of, sums_of
from efftx.data.tokenizer import TextConfig, check_tokenizer, text_rendering, text_vocab_size
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError, nearest

CORPORA = {
    "arxiv": "scientific_papers/arxiv (Cohan et al. 2018): train.txt, val.txt, test.txt",
    "scitldr": "SciTLDR-A (Cachola et al. 2020): scitldr_a_train.jsonl, scitldr_a_valid.jsonl, scitldr_a_test.jsonl",
    "cnn_dailymail": "CNN / Daily Mail (Hermann et al. 2015): cnn_dailymail_train.jsonl, ..., one file to split, or "
    "the Hub's 3.0.0/train-00000-of-00003.parquet, ... (without a path it is read from the Hub)",
}
HUB = {"cnn_dailymail": HubRows("abisee/cnn_dailymail", "3.0.0", "96df5e686bee6baa90b8bee7c28b81fa3fa6223d")}
"""Corpora that the Hub has in whole."""
LICENCE = "the texts belong to their authors and publishers; files are the user's own"

# What files of summaries call the text and its summary; the first that a row has counts.
_SOURCES = ("source", "article", "article_text", "document", "dialogue", "text")
_SUMMARIES = ("summaries", "target", "highlights", "abstract", "abstract_text", "summary", "summary1")
# Of these keys a list holds several summaries, of any other the sentences of one text.
_SEVERAL = ("summaries", "target")
_SPLIT_WORDS = {"train": "train", "valid": "valid|val|validation|dev", "test": "test"}
_FILE = re.compile(r"(?P<stem>.+)\.(jsonl|json|txt)(\.gz|\.xz|\.bz2)?")
_SENTENCE_TAGS = re.compile(r"</?S>")


@dataclass
class SummarizationConfig(TextConfig):
    """The paper's values are corpus arxiv, 15,360 tokens of an article and 1,024 of its abstract, T5's vocabulary."""

    corpus: str = "arxiv"


def check_summarization(config: SummarizationConfig) -> None:
    """`UserError` for an unknown corpus or tokenizer."""
    check_tokenizer(config)
    if config.corpus not in CORPORA:
        message = f"data.corpus={config.corpus} is not a corpus."
        raise UserError("bad_value", message, nearest(config.corpus, CORPORA))


def prepare_summarization(config: SummarizationConfig) -> Prepared:
    """The documents as tokens, prepared once; `UserError` for a missing file, a bad line."""
    return _prepare(config)[0]


def open_summarization(config: SummarizationConfig, objective: str = "seq2seq") -> TextPairs:
    """The corpus in rows of `config.length` source and `config.target_length` summary tokens."""
    target_length = SOURCE.target_length(config, "seq2seq")
    prepared, vocabulary = _prepare(config)
    return TextPairs(prepared, vocabulary, config, target_length=target_length, metrics=("rouge",))


def _prepare(config: SummarizationConfig) -> tuple[Prepared, Vocabulary]:
    on_the_hub = HUB.get(config.corpus)
    if on_the_hub is not None and resolve_path(config.path, config.name) is None:
        return prepare_pairs(config, _on_the_hub(config.corpus, on_the_hub, _expected(config)))
    return prepare_pairs(config, _local(config))


def _on_the_hub(corpus: str, rows: HubRows, hint: str) -> Corpus:
    def read(split: str) -> Iterator[Document | None]:
        its = "validation" if split == "valid" else split
        return (as_document(row, f"{rows.place}, row {i}") for i, row in enumerate(rows.rows(its, hint), 1))

    return Corpus(
        sums=(),
        rule=["hub", rows.place, rows.subset, rows.revision],
        read=read,
        called=lambda counts: f"{corpus} {counted(counts)} documents",
        licence=LICENCE,
        origin=rows.origin,
    )


def _local(config: SummarizationConfig) -> Corpus:
    files = find_files(config)
    sums = sums_of(files.all, _expected(config))
    # The package's own texts are of no corpus, whatever the config says, and neither are files that are not known.
    sample = is_sample(config.path)
    known = not sample and are(f"{config.name} {config.corpus}", sums)
    corpus = str(config.path) if sample else config.corpus if known else own_files(files.all, sums)
    rule = " of one file 90/5/5" if len(files.all) == 1 else files.rule
    return Corpus(
        sums=files.by_split(sums),
        rule=[corpus],
        read=lambda split: files.read(split, read_documents),
        called=lambda counts: f"{corpus} {counted(counts)} documents{rule}",
        **licence_and_origin(config.path, LICENCE),
        notes=(*(() if sample or known else (not_known(config.path, config.corpus),)), *files.notes),
    )


def find_files(config: SummarizationConfig) -> DocumentFiles:
    """The files of train, valid and test, or those that are to be split.

    In a folder: `<corpus>_..._train.jsonl` and so on, else `train.jsonl` and so on, else `..._train.jsonl` and so on
    where there is one of each, else the one file whose name begins with the corpus; .json and .txt as well, plain or
    compressed; else shards as on the Hub, at any depth
    (`train-00000-of-00003.parquet`), of the Hub's own version where there is one. `UserError` where there are none.
    """
    hint = _expected(config)
    place = require_path(config, hint)
    path = resolve_path(place, config.name)
    assert path is not None
    if kind_of(path) != "folder":
        return find_documents(place, hint)
    stems = {file: match["stem"] for file in sorted(path.iterdir()) if (match := _FILE.fullmatch(file.name))}
    of_corpus = {file: stem for file, stem in stems.items() if re.match(rf"{config.corpus}([-_.]|$)", stem)}
    for candidates, before in ((of_corpus, r".*[-_.]"), (stems, ""), (stems, r".*[-_.]")):
        by_split = {
            split: [file for file, stem in candidates.items() if re.fullmatch(rf"{before}({words})", stem)]
            for split, words in _SPLIT_WORDS.items()
        }
        if all(len(files) == 1 for files in by_split.values()):
            return DocumentFiles(by_split)
    if len(of_corpus) == 1:
        return DocumentFiles({"train": list(of_corpus)})
    published = HUB.get(config.corpus)
    version = path / published.subset if published and (path / published.subset).is_dir() else path
    if any(version.rglob("train-*.parquet")):
        return find_documents(str(version), hint)
    message = f"The folder {path} has not one file for each split of data.corpus={config.corpus}, nor one in all."
    raise UserError("missing_file", message, hint)


def _expected(config: SummarizationConfig) -> str:
    return (
        f"data.corpus={config.corpus} is {CORPORA[config.corpus]}; a line is one JSON object. Set data.path to their "
        f"folder, or put them into {data_root() / config.name}. efftx:samples/summarization is a small corpus that "
        "efftx brings along."
    )


def read_documents(file: Path) -> Iterator[Document | None]:
    """The documents of a file in order, None for one without a source or a summary and for a blank line."""
    for number, row in enumerate(read_rows(file), 1):
        yield None if row is None else as_document(row, f"{file}, line {number}")


def as_document(row: dict[str, Any], place: str) -> Document | None:
    """A row as a document, None where its source or its summary is empty; `UserError` where it has no such keys."""
    source, summary = (next((key for key in keys if key in row), None) for keys in (_SOURCES, _SUMMARIES))
    if source is None or summary is None:
        known = f"the text is one of {', '.join(_SOURCES)}, its summary one of {', '.join(_SUMMARIES)}"
        raise UserError("bad_document", f"{place}: the document has no source with a summary.", f"Keys: {known}.")
    summaries = row[summary]
    if not isinstance(summaries, list) or summary not in _SEVERAL:
        summaries = [summaries]
    text, *targets = (_text(value, place) for value in (row[source], *summaries))
    targets = [target for target in targets if target]
    return Document(text, targets) if text and targets else None


def _text(value: Any, place: str) -> str:
    """A text as it stands or as a list of sentences, of which each becomes a line."""
    lines = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(line, str) for line in lines):
        raise UserError("bad_document", f"{place}: a text is neither a string nor a list of strings.")
    return whole_text("\n".join(_SENTENCE_TAGS.sub("", line).strip() for line in lines).strip(), place)


SOURCE = Source(
    name="summarization",
    config=SummarizationConfig,
    licence=LICENCE,
    variant="summarization[arxiv,t5-32000]",
    open=open_summarization,
    vocab_size=text_vocab_size,
    rendering=text_rendering,
    objectives=("seq2seq",),
    prepare=prepare_summarization,
    targets=lambda config: max(config.length // 4, 1),
    check=check_summarization,
    generates=True,
)
