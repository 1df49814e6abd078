"""A user's own documents: JSON lines or Parquet with a text in each row."""

from dataclasses import dataclass

from efftx.data.dataset import Dataset, Source
from efftx.data.document_files import find_documents
from efftx.data.documents import (
    LICENCE,
    Documents,
    DocumentsConfig,
    check_n_documents,
    local_documents,
    open_documents,
    prepare_documents,
)
from efftx.data.prepared import Prepared
from efftx.data.samples import require_path
from efftx.data.text_files import sums_of
from efftx.data.tokenizer import check_tokenizer, text_rendering, text_vocab_size

_HINT = (
    'Set data.path to a .jsonl file of documents ({"text": ...} a line), plain, .gz, .xz or .bz2, or .parquet, to a '
    "folder of such files, or to a pattern such as 'texts/*.jsonl'; data.field names the text's key."
)


@dataclass
class JsonlConfig(DocumentsConfig):
    """`field`: the key of the text in each row."""

    field: str = "text"


def _documents(config: JsonlConfig) -> Documents:
    check_n_documents(config)
    files = find_documents(require_path(config, _HINT), _HINT)
    return local_documents(config, files, sums_of(files.all, _HINT), field=config.field)


def prepare_jsonl(config: JsonlConfig) -> Prepared:
    """The documents as tokens, prepared once; `UserError` for a missing or damaged file, a bad line, a wrong field."""
    return prepare_documents(config, _documents(config))[0]


def open_jsonl(config: JsonlConfig, objective: str = "lm") -> Dataset:
    """The documents in rows of `config.length` tokens."""
    return open_documents(config, _documents(config), objective)


SOURCE = Source(
    name="jsonl",
    config=JsonlConfig,
    licence=LICENCE,
    variant="jsonl",
    open=open_jsonl,
    vocab_size=text_vocab_size,
    rendering=text_rendering,
    objectives=("lm", "span_corruption"),
    prepare=prepare_jsonl,
    check=check_tokenizer,
)
