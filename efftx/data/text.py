"""A user's own text: one file, a folder or a pattern, as bytes or in a vocabulary's pieces."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from efftx.data.byte_corpus import bytes_rendering, bytes_vocab_size, open_bytes, prepare_corpus
from efftx.data.dataset import Dataset, Source
from efftx.data.document_files import COMPRESSED, N_NAMED, find_named, other_forms
from efftx.data.documents import LICENCE, Documents, identity_of, prepare_documents
from efftx.data.known_files import own_files
from efftx.data.prepared import SPLITS, Prepared
from efftx.data.rendering import Rendering
from efftx.data.samples import licence_and_origin, require_path
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.data.text_files import kind_of, local_path, read_file, sums_of, utf8_text
from efftx.data.token_corpus import open_tokens
from efftx.data.tokenizer import VocabularyConfig, check_tokenizer, text_rendering, text_vocab_size
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError

MOST_BYTES = 1 << 31
"""A text is read at once: a longer one is better read as documents, one at a time."""
_AT_ONCE = 1 << 24
"""Bytes that are decoded at once to see that they are text."""

_HINT = (
    "Set data.path to a text file (plain, .gz, .xz, .bz2 or .zip), to a folder of them, or to a pattern such as "
    "'texts/*.txt'."
)

_ANY = re.compile(r".*", re.DOTALL)
_CONVERT = "Convert it: iconv -f LATIN1 -t UTF-8 (or from what it is, such as UTF-16LE)."


@dataclass
class TextFilesConfig(VocabularyConfig, SpanCorruptionConfig):
    """Under `tokenizer=bytes` a language model reads the bytes themselves, otherwise paragraphs as documents."""


_AS_THEY_ARE = re.compile("(?!)")
"""Of no ending: whether two files hold the same text is seen in what they hold."""


@dataclass(frozen=True)
class OwnText:
    """The text of each split; `called` is what a variant says of its files, `rule` of its split.

    `is_whole`: the splits are parts of one text, cut by the rule alone.
    """

    splits: dict[str, bytes]
    called: str
    rule: str
    is_whole: bool
    notes: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of train, valid and test."""
        train, valid, test = (len(self.splits[split]) for split in SPLITS)
        return train, valid, test

    @cached_property
    def checksum(self) -> str:
        """SHA-256 in hex of the text, and where file names say the split, which the text does not, of its sizes."""
        digest = hashlib.sha256()
        for part in self.splits.values():
            digest.update(part)
        return digest.hexdigest() if self.is_whole else identity_of(digest.hexdigest(), *self.sizes)

    def paragraphs(self, split: str) -> Iterator[str]:
        """What stands between blank lines, without the ends of its outermost lines."""
        for paragraph in self.splits[split].decode().replace("\r\n", "\n").split("\n\n"):
            if paragraph.strip():
                yield paragraph.strip("\n")


def read_own_text(given: str, hint: str = _HINT) -> OwnText:
    """The files one after another, in the order of their paths, a line end between them; what is no text is skipped.

    Files named by split are found and cut as those of data=jsonl (`DocumentFiles`), at ends of lines. `UserError` for
    what is no UTF-8, for no text in all or in the files of a split, and for more than MOST_BYTES.
    """
    named = find_named(given, hint, _ANY, "file", _AS_THEY_ARE)
    files = sorted(named.all)
    sums = dict(zip(files, sums_of(files, hint), strict=True))
    texts = _read_texts(files, given)
    if not texts:
        raise UserError("bad_value", f"data.path={given} holds no text: it is empty or blank.", hint)
    notes = (f"{n} of {len(files)} files hold no text and are left out.",) if (n := len(files) - len(texts)) else ()
    read = _without_packed(texts)
    again = other_forms(local_path(given), texts, read)
    wholes = {split: _joined([texts[file] for file in its if file in read]) for split, its in named.files.items()}
    if blank := next((split for split, whole in wholes.items() if not whole), None):
        its = ", ".join(map(str, named.files[blank][:N_NAMED]))
        message = f"{blank} of data.path={given} holds no text: {its}."
        raise UserError("bad_value", message, "Fill the files, or take them out of the folder.")
    parts = {}
    for split in SPLITS:
        whole, first, last = named.part(split)
        parts[split] = cut_at_lines(wholes[whole], first, last)
    of_corpus = [file for file in files if file in read or file not in texts]
    called = own_files(of_corpus, [sums[file] for file in of_corpus])
    return OwnText(parts, called, named.rule, named.is_whole, (*named.notes, *again, *notes))


def _read_texts(files: list[Path], given: str) -> dict[Path, bytes]:
    """What each file holds, without those that are blank; `UserError` as `read_own_text`."""
    too_long = UserError(
        "bad_value",
        f"data.path={given} has more than {MOST_BYTES:,} bytes.",
        "Make documents of it, one a line, and use data=jsonl.",
    )
    if sum(file.stat().st_size for file in files if kind_of(file) == "file") > MOST_BYTES:
        raise too_long
    texts = {}
    room = MOST_BYTES
    for file in files:
        content = utf8_text(read_file(file, room), file)
        room -= len(content)
        if room < 0:
            raise too_long
        _check_utf8(content, file)
        if content.strip():
            texts[file] = content
    return texts


def cut_at_lines(text: bytes, first: int, last: int) -> bytes:
    """A text in UTF-8 from `first` to `last` per cent of its bytes.

    A border moves on to the end of its line, or where that is more than a hundredth of the text away, of its character.
    """
    return text[_border(text, first) : _border(text, last)]


def _without_packed(texts: dict[Path, bytes]) -> set[Path]:
    """The files but a.zip or a.txt.gz where the text that it holds stands beside it, in a.txt or packed as well."""
    held: dict[Path, list[bytes]] = {}
    kept = set()
    for file in sorted(texts, key=lambda file: bool(COMPRESSED.search(file.name))):  # plain ones first
        is_packed, unpacked = bool(COMPRESSED.search(file.name)), file.with_suffix("")
        if is_packed and texts[file] in held.get(unpacked, ()):
            continue
        for name in {unpacked} if is_packed else {unpacked, file}:
            held.setdefault(name, []).append(texts[file])
        kept.add(file)
    return kept


def _joined(texts: list[bytes]) -> bytes:
    return b"".join(text if text.endswith(b"\n") or text is texts[-1] else text + b"\n" for text in texts)


def _border(text: bytes, percent: int) -> int:
    place = len(text) * percent // 100
    if percent in (0, 100):
        return place
    if (end := text.find(b"\n", place, place + len(text) // 100)) >= 0:
        return end + 1
    while place < len(text) and text[place] & 0xC0 == 0x80:  # within a character
        place += 1
    return place


def _check_utf8(content: bytes, file: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), _AT_ONCE):  # a text of 2 GB would be 8 GB as one str
        before = start - len(decoder.getstate()[0])  # of a character that the last part ended in
        try:
            decoder.decode(content[start : start + _AT_ONCE], start + _AT_ONCE >= len(content))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, before + error.start) + 1
            raise UserError("bad_document", f"{file}, line {line} is not UTF-8.", _CONVERT) from error
    if (place := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, place) + 1
        raise UserError("bad_document", f"{file}, line {line} holds a NUL, so that it is no UTF-8 text.", _CONVERT)


def prepare_text(config: TextFilesConfig, notes: tuple[str, ...] = ()) -> Prepared:
    """The text as bytes or tokens, prepared once."""
    return _prepare(config, notes)[0]


def open_text(config: TextFilesConfig, objective: str = "lm", notes: tuple[str, ...] = ()) -> Dataset:
    """The text in rows of `config.length` tokens; a user hears `notes` of it."""
    prepared, vocabulary = _prepare(config, notes)
    if vocabulary is None:
        return open_bytes(prepared, config, objective)
    return open_tokens(prepared, vocabulary, config, objective)


def _prepare(config: TextFilesConfig, notes: tuple[str, ...]) -> tuple[Prepared, Vocabulary | None]:
    text = read_own_text(require_path(config, _HINT))
    facts: dict[str, str] = licence_and_origin(config.path, LICENCE)
    # The names are in the variant, so that the same bytes under another name are another corpus.
    identity = identity_of(text.called, text.checksum, *text.sizes)
    if config.tokenizer == "bytes" and config.tokenizer_path is None:
        variant = f"text[{text.called} {sum(text.sizes):,} bytes{text.rule}]"
        prepared = prepare_corpus(
            "text",
            variant,
            identity,
            text.sizes,
            lambda: b"".join(text.splits.values()),
            facts | {"tokens_sha256": text.checksum},
        )
        return replace(prepared, meta=prepared.meta | {"notes": [*notes, *text.notes]}), None
    documents = Documents(
        name="text",
        identity=identity,
        facts=facts,
        read=text.paragraphs,
        called=lambda counts: f"{text.called} {sum(text.sizes):,} bytes{text.rule}",
        notes=(*notes, *text.notes),
        comma=", ",
    )
    return prepare_documents(config, documents)


def _vocab_size(config: TextFilesConfig, objective: str = "lm") -> int:
    size: Callable[[TextFilesConfig, str], int] = bytes_vocab_size if config.tokenizer == "bytes" else text_vocab_size
    return size(config, objective)


def _rendering(config: TextFilesConfig, objective: str = "lm", model: bytes | None = None) -> Rendering:
    if config.tokenizer == "bytes":
        return bytes_rendering(config, objective, model)
    return text_rendering(config, objective, model)


SOURCE = Source(
    name="text",
    config=TextFilesConfig,
    licence=LICENCE,
    variant="text",
    open=open_text,
    vocab_size=_vocab_size,
    rendering=_rendering,
    objectives=("lm", "span_corruption"),
    prepare=prepare_text,
    check=check_tokenizer,
)
