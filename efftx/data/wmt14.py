"""Sentences and their translations: WMT 2014, English and German (Reformer, table 4), or a user's own."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from efftx.data.dataset import Source
from efftx.data.document_files import COMPRESSED, SPLIT_OF, DocumentFiles, find_documents, once, other_forms
from efftx.data.hub import HubRows
from efftx.data.json_lines import read_rows, whole_text
from efftx.data.known_files import are, not_known, own_files
from efftx.data.pairs import Corpus, Document, TextPairs, counted, prepare_pairs
from efftx.data.prepared import Prepared, data_root
from efftx.data.samples import is_sample, licence_and_origin, require_path, resolve_path
from efftx.data.text_files import kind_of, read_lines, sums_of
from efftx.data.tokenizer import TextConfig, check_tokenizer, text_rendering, text_vocab_size
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError

HUB = HubRows("wmt/wmt14", "de-en", "b199e406369ec1b7634206d3ded5ba45de2fe696")
LICENCE = "WMT's sentences are free for research; files are the user's own"
_PACKED = r"\.gz|\.xz|\.bz2"
_NEWSTEST = {"newstest2013": "valid", "newstest2014": "test"}
LONGEST = 128
"""Pieces of a sentence in either language, its end among them, as in the paper: more are cut off."""


@dataclass
class WMTConfig(TextConfig):
    """`source` and `target`: the languages, as files and the Hub's rows call them."""

    source: str = "en"
    target: str = "de"


def check_wmt14(config: WMTConfig) -> None:
    """`UserError` for what is no pair of languages, and for an unknown tokenizer."""
    check_tokenizer(config)
    for key in ("source", "target"):
        if not re.fullmatch("[a-z]{2,3}", getattr(config, key)):
            message = f"data.{key}={getattr(config, key)} is no language, such as en or de."
            raise UserError("bad_value", message)
    if config.source == config.target:
        raise UserError("bad_value", f"data.source and data.target are both {config.source}.")


def prepare_wmt14(config: WMTConfig) -> Prepared:
    """The pairs as tokens, prepared once; `UserError` for a missing file, a bad line, files that are not parallel."""
    return _prepare(config)[0]


def open_wmt14(config: WMTConfig, objective: str = "seq2seq") -> TextPairs:
    """Pairs in rows of `config.length` source and `config.target_length` target tokens.

    A pair of the training split that a row would cut is left out; of valid and test the source is cut, and said so.
    """
    target_length = SOURCE.target_length(config, "seq2seq")
    prepared, vocabulary = _prepare(config)
    return TextPairs(prepared, vocabulary, config, target_length=target_length, metrics=("bleu",), leaves_out_long=True)


def _prepare(config: WMTConfig) -> tuple[Prepared, Vocabulary]:
    if resolve_path(config.path, config.name) is None:
        return prepare_pairs(config, _on_the_hub(config))
    return prepare_pairs(config, _local(config))


def _on_the_hub(config: WMTConfig) -> Corpus:
    def read(split: str) -> Iterator[Document | None]:
        its = "validation" if split == "valid" else split
        rows = enumerate(HUB.rows(its, _expected(config)), 1)
        return (as_pair(row, config, f"{HUB.place}, row {i}") for i, row in rows)

    return Corpus(
        sums=(),
        rule=["hub", HUB.place, HUB.subset, HUB.revision, config.source, config.target],
        read=read,
        called=lambda counts: f"{config.source}-{config.target} {counted(counts)} pairs",
        licence=LICENCE,
        origin=HUB.origin,
    )


def _local(config: WMTConfig) -> Corpus:
    hint = _expected(config)
    place = require_path(config, hint)
    path = resolve_path(place, config.name)
    assert path is not None
    parallel = find_parallel(path, config)
    files = parallel or find_documents(place, hint)
    partners = {file: _partner(file, config) for file in files.all} if parallel else {}
    everything = [*files.all, *partners.values()]
    sums = sums_of(everything, hint)
    known = not is_sample(config.path) and are(config.name, sums)
    corpus = f"{config.path} " if is_sample(config.path) else "" if known else f"{own_files(files.all, sums)} "
    rule = " of one file 90/5/5" if len(files.all) == 1 else files.rule

    def pairs(file: Path) -> Iterator[Document | None]:
        return read_parallel(file, partners[file]) if partners else read_pairs(file, config)

    return Corpus(
        sums=[*files.by_split(sums), *sums[len(files.all) :]],
        rule=[corpus, config.source, config.target],
        read=lambda split: files.read(split, pairs),
        called=lambda counts: f"{corpus}{config.source}-{config.target} {counted(counts)} pairs{rule}",
        **licence_and_origin(config.path, LICENCE),
        notes=(*(() if known or is_sample(config.path) else (not_known(config.path, config.name),)), *files.notes),
    )


def find_parallel(folder: Path, config: WMTConfig) -> DocumentFiles | None:
    """The source's files of a folder of parallel texts, by split; None where there are none.

    `train.en` and `train.de`, plain or compressed; newstest2013 is valid, newstest2014 test. `UserError` for a file
    without its partner. Where no file is of training all are.
    """
    if kind_of(folder) != "folder":
        return None
    by_split: dict[str, list[Path]] = {}
    stems = {file: match["stem"] for file in sorted(folder.iterdir()) if (match := _of_the_source(file, config))}
    read = once(list(stems), COMPRESSED)
    for file in read:
        if not _partner(file, config).is_file():
            message = f"{file} has no {_partner(file, config).name} beside it."
            hint = "Parallel texts are two files whose names differ in the language's ending."
            raise UserError("missing_file", message, hint)
        words = re.split("[^a-z0-9]+", stems[file].lower())
        split = next((split for word in words if (split := _NEWSTEST.get(word) or SPLIT_OF.get(word))), "train")
        by_split.setdefault(split, []).append(file)
    if not by_split:
        return None
    notes = other_forms(folder, stems, read)
    if "train" not in by_split:  # as everywhere: what there is is cut 90/5/5
        return DocumentFiles({"train": read}, notes)
    return DocumentFiles({split: by_split[split] for split in ("train", "valid", "test") if split in by_split}, notes)


def _of_the_source(file: Path, config: WMTConfig) -> re.Match[str] | None:
    return re.fullmatch(rf"(?P<stem>.+)\.{config.source}(?P<packed>{_PACKED})?", file.name)


def _partner(file: Path, config: WMTConfig) -> Path:
    match = _of_the_source(file, config)
    assert match is not None
    return file.with_name(f"{match['stem']}.{config.target}{match['packed'] or ''}")


def read_parallel(source: Path, target: Path) -> Iterator[Document | None]:
    """The pairs of two files line by line, None where one of the lines is empty; `UserError` if one has more lines."""
    for number, (line, its) in enumerate(zip_longest(read_lines(source), read_lines(target)), 1):
        if line is None or its is None:
            longer, shorter = (target, source) if line is None else (source, target)
            message = f"{longer} has a line {number}, and {shorter} ends before it."
            raise UserError("bad_document", message, "Line n of the one is the translation of line n of the other.")
        yield _pair(_decoded(line, source, number), _decoded(its, target, number), f"{source}, line {number}")


def _decoded(line: bytes, file: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError("bad_document", f"{file}, line {number} is not UTF-8.", "Convert it with iconv.") from error


def read_pairs(file: Path, config: WMTConfig) -> Iterator[Document | None]:
    """The pairs of a file of rows in order, None for one with an empty side and for a blank line."""
    for number, row in enumerate(read_rows(file), 1):
        yield None if row is None else as_pair(row, config, f"{file}, line {number}")


def as_pair(row: dict[str, Any], config: WMTConfig, place: str) -> Document | None:
    """A row with a key for each language, or the Hub's `translation` of them; None where one of them is empty."""
    inner = row.get("translation", row)
    texts = [inner.get(language) if isinstance(inner, dict) else None for language in (config.source, config.target)]
    if not all(isinstance(text, str) for text in texts):
        raise UserError("bad_document", f"{place}: the row has no texts '{config.source}' and '{config.target}'.")
    return _pair(str(texts[0]), str(texts[1]), place)


def _pair(source: str, target: str, place: str) -> Document | None:
    source, target = (whole_text(text.strip(), place) for text in (source, target))
    return Document(source, [target]) if source and target else None


def _expected(config: WMTConfig) -> str:
    return (
        f"Set data.path to a folder of json lines with the keys {config.source} and {config.target} (train.jsonl, "
        f"valid.jsonl, test.jsonl), or of parallel texts (train.{config.source}, train.{config.target}, ...), or put "
        f"them into {data_root() / config.name}; without either WMT 2014 is read from the Hub."
    )


SOURCE = Source(
    name="wmt14",
    config=WMTConfig,
    licence=LICENCE,
    variant="wmt14[en-de]",
    open=open_wmt14,
    vocab_size=text_vocab_size,
    rendering=text_rendering,
    objectives=("seq2seq",),
    prepare=prepare_wmt14,
    targets=lambda config: config.length,
    check=check_wmt14,
    own_length=LONGEST,
    generates=True,
)
