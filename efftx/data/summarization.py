"""Summaries: scientific articles and their abstracts (Scaling Transformers, table 5), and two smaller corpora."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from efftx.data import samples
from efftx.data.byte_corpus import split_90_5_5
from efftx.data.dataset import Source
from efftx.data.json_lines import read_json_lines
from efftx.data.pairs import Corpus, Document, TextPairs, counted, find_path, prepare_pairs
from efftx.data.prepared import SPLITS, Prepared, data_root
from efftx.data.samples import is_sample
from efftx.data.tokenizer import TextConfig, text_vocab_size, text_wording
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError, nearest

CORPORA = {
    "arxiv": "scientific_papers/arxiv (Cohan et al. 2018): train.txt, val.txt, test.txt",
    "scitldr": "SciTLDR-A (Cachola et al. 2020): scitldr_a_train.jsonl, scitldr_a_valid.jsonl, scitldr_a_test.jsonl",
    "cnn_dailymail": "CNN / Daily Mail (Hermann et al. 2015): cnn_dailymail_train.jsonl, ..., or one file to split",
}
LICENCE = "the texts belong to their authors and publishers; files are the user's own"

_KEYS = (
    ("source", "summaries"),
    ("source", "target"),
    ("article", "highlights"),
    ("article", "abstract"),
    ("article_text", "abstract_text"),
)
# Of these keys a list holds several summaries, of any other the sentences of one text.
_SEVERAL = ("summaries", "target")
_SPLIT_WORDS = {"train": "train", "valid": "valid|val|validation|dev", "test": "test"}
_FILE = re.compile(r"(?P<stem>.+)\.(jsonl|json|txt)(\.gz|\.xz|\.bz2)?")
_SENTENCE_TAGS = re.compile(r"</?S>")


@dataclass
class SummarizationConfig(TextConfig):
    """The paper's values are corpus arxiv, 15,360 tokens of an article and 1,024 of its abstract, T5's vocabulary."""

    corpus: str = "arxiv"


def prepare_summarization(config: SummarizationConfig) -> Prepared:
    """The documents as tokens, prepared once; `UserError` for an unknown corpus, a missing file, a bad line."""
    return _prepare(config)[0]


def open_summarization(config: SummarizationConfig, objective: str = "seq2seq") -> TextPairs:
    """The corpus in rows of `config.length` source and `config.target_length` summary tokens."""
    target_length = SOURCE.target_length(config, "seq2seq")
    prepared, vocabulary = _prepare(config)
    return TextPairs(prepared, vocabulary, config, target_length=target_length, metrics=("rouge",))


def _prepare(config: SummarizationConfig) -> tuple[Prepared, Vocabulary]:
    if config.corpus not in CORPORA:
        message = f"data.corpus={config.corpus} is not a corpus."
        raise UserError("bad_value", message, nearest(config.corpus, CORPORA))
    files = find_files(config)
    # The package's own texts are of no corpus, whatever the config says.
    corpus = str(config.path) if is_sample(config.path) else config.corpus
    rule = " of one file 90/5/5" if len(files) == 1 else ""
    return prepare_pairs(
        config,
        Corpus(
            files=files,
            rule=corpus,
            read=lambda split: _documents(files, split),
            called=lambda counts: f"{corpus} {counted(counts)} documents{rule}",
            licence=samples.LICENCE if is_sample(config.path) else LICENCE,
            hint=_expected(config),
        ),
    )


def find_files(config: SummarizationConfig) -> list[Path]:
    """The files of train, valid and test, or the one file that is to be split.

    In a folder: `<corpus>_..._train.jsonl` and so on, else `train.jsonl` and so on, else the one file whose name begins
    with the corpus; .json and .txt as well, plain or compressed. `UserError` where there are none.
    """
    path = find_path(config, _expected(config))
    if not path.is_dir():
        return [path]
    stems = {file: match["stem"] for file in sorted(path.iterdir()) if (match := _FILE.fullmatch(file.name))}
    own = {file: stem for file, stem in stems.items() if re.match(rf"{config.corpus}([-_.]|$)", stem)}
    for candidates, before in ((own, r".*[-_.]"), (stems, "")):
        found = [
            [file for file, stem in candidates.items() if re.fullmatch(rf"{before}({_SPLIT_WORDS[split]})", stem)]
            for split in SPLITS
        ]
        if all(len(files) == 1 for files in found):
            return [files[0] for files in found]
    if len(own) == 1:
        return list(own)
    message = f"The folder {path} has not one file for each split of data.corpus={config.corpus}, nor one in all."
    raise UserError("missing_file", message, _expected(config))


def _expected(config: SummarizationConfig) -> str:
    return (
        f"data.corpus={config.corpus} is {CORPORA[config.corpus]}, one JSON object a line. Set data.path to their "
        f"folder, or put them into {data_root() / config.name}. efftx:samples/summarization is a small corpus that "
        "efftx brings along."
    )


def _documents(files: list[Path], split: str) -> Iterator[Document | None]:
    """The documents of a split in order, None for one without a source or a summary."""
    if len(files) > 1:
        return _read(files[SPLITS.index(split)])
    train, valid, _ = split_90_5_5(sum(1 for _ in read_json_lines(files[0])))
    starts = {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, None)}
    return islice(_read(files[0]), *starts[split])


def _read(file: Path) -> Iterator[Document | None]:
    for number, row in enumerate(read_json_lines(file), 1):
        place = f"{file}, line {number}"
        keys = next((keys for keys in _KEYS if all(key in row for key in keys)), None)
        if keys is None:
            known = ", or ".join(f'"{source}" and "{summary}"' for source, summary in _KEYS)
            raise UserError("bad_document", f"{place}: the document has no source with a summary.", f"Keys: {known}.")
        source, summaries = (row[key] for key in keys)
        if not isinstance(summaries, list) or keys[1] not in _SEVERAL:
            summaries = [summaries]
        text, *targets = (_text(value, place) for value in (source, *summaries))
        targets = [target for target in targets if target]
        yield Document(text, targets) if text and targets else None


def _text(value: Any, place: str) -> str:
    """A text as it stands or as a list of sentences, of which each becomes a line."""
    lines = value if isinstance(value, list) else [value]
    if not all(isinstance(line, str) for line in lines):
        raise UserError("bad_document", f"{place}: a text is neither a string nor a list of strings.")
    text = "\n".join(_SENTENCE_TAGS.sub("", line).strip() for line in lines).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError("bad_document", f"{place}: half of a surrogate pair is no text.") from error
    return text


SOURCE = Source(
    name="summarization",
    config=SummarizationConfig,
    licence=LICENCE,
    variant="summarization[arxiv,t5-32000]",
    open=open_summarization,
    vocab_size=text_vocab_size,
    wording=text_wording,
    objectives=("seq2seq",),
    prepare=prepare_summarization,
    targets=lambda config: max(config.length // 4, 1),
)
