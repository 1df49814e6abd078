"""enwik8, the first 10^8 bytes of an English Wikipedia dump (Reformer, section 5), or a prefix of it.

The paper's code (tensor2tensor) trains on 89,621,832 bytes; the split here is the usual one of 90, 5 and 5 million.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from efftx.data.byte_corpus import bytes_rendering, bytes_vocab_size, open_bytes, prepare_corpus, split_90_5_5
from efftx.data.dataset import Dataset, Source
from efftx.data.download import download
from efftx.data.known_files import not_known
from efftx.data.prepared import Prepared, data_root
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.data.text import TextFilesConfig, open_text, prepare_text
from efftx.data.text_files import holds_splits, read_file, read_text
from efftx.errors import UserError

LICENCE = "Wikipedia text: GFDL and CC BY-SA"


@dataclass(frozen=True)
class Published:
    """What is known of a text: its archive's address, sizes, SHA-256 sums; `prefixes`: number of first bytes -> sum."""

    name: str
    url: str
    archive_bytes: int
    archive_sha256: str
    n_bytes: int
    sha256: str
    prefixes: dict[int, str]


ENWIK8 = Published(
    name="enwik8",
    url="http://mattmahoney.net/dc/enwik8.zip",
    archive_bytes=36_445_475,
    archive_sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    n_bytes=100_000_000,
    sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
    # enwik5 and enwik6. Published are the first eight digits, 581bee97 and 369b6889; the other digits and the longer
    # prefixes were computed from one of 4,150,000 bytes, whose sums begin with these.
    prefixes={
        100_000: "581bee9758c531de3795885a1adb331b9c51bfdeefd9a63407815479e22a9072",
        1_000_000: "369b688978f649681136198fb96db14c1616756260c55fb4b65e9bc049552cad",
        2_000_000: "f35c97c117cef50d6650f334befce5415f727139e28d2ff6524e05f1d90bbc68",
        3_000_000: "72953fccfeb78e55251024bd6ffbe269d1d8d730ce2e4fb028117a3613c45aac",
        4_000_000: "9f9ca3a41e2b87a0268d00380577e2c308e07959b22a94c8d7b1e8901bdefc37",
        4_150_000: "204482105f330f13c6490df36624bd9bc020dd24ba0854e005ada4d735ad6d7e",
    },
)


def variant(text: bytes, sizes: tuple[int, int, int], origin: str, published: Published = ENWIK8) -> str:
    """The name of a text: `enwik8` if its SHA-256 is the published one, `enwik8[:n]` if it is its first n bytes.

    It is that for the numbers of bytes whose sums are known. A split other than 90/5/5 is added to the name.
    `UserError` (`wrong_checksum`), which calls the text `origin`, for any other text.
    """
    name, n = published.name, len(text)
    hint = f"Get {published.url} again, give a prefix of {name}, or use data=stdlib."
    known = {**published.prefixes, published.n_bytes: published.sha256}
    if hashlib.sha256(text).hexdigest() == known.get(n):
        called = name if n == published.n_bytes else f"{name}[:{n}]"
        return called if sizes == split_90_5_5(n) else f"{called}[split {'+'.join(map(str, sizes))}]"
    longest = max((size for size in published.prefixes if size < n), default=0)
    if n > published.n_bytes:
        why = f"is longer than {name} ({published.n_bytes:,} bytes)"
    elif n in known:
        why = f"has not the SHA-256 of the first {n:,} bytes of {name} ({known[n]})"
    elif longest and hashlib.sha256(memoryview(text)[:longest]).hexdigest() == known[longest]:
        why = f"begins with the first {longest:,} bytes of {name}, but no sum of its {n:,} bytes is known"
    elif longest:
        why = f"does not begin like {name}"
    else:
        why = f"has {n:,} bytes; under {min(published.prefixes):,} a prefix of {name} cannot be told from others"
    raise UserError("wrong_checksum", f"{origin} {why}.", hint)


def prepare_enwik8(config: SpanCorruptionConfig, published: Published = ENWIK8) -> Prepared:
    """The text at `config.path`, or the whole of enwik8, downloaded; prepared once.

    The split is that of the folder given, else 90/5/5. A file or folder with another text is prepared as `data=text`
    would. `UserError` for no network, and for a file or folder that is missing or damaged.
    """
    prepared = _enwik8(config, published)
    return prepare_text(*prepared) if isinstance(prepared, tuple) else prepared


def _enwik8(config: SpanCorruptionConfig, published: Published) -> Prepared | tuple[TextFilesConfig, tuple[str, ...]]:
    """The text prepared, or what `data=text` is to read instead of it, and why."""
    facts = {"licence": LICENCE, "origin": published.url}
    if config.path is None:
        whole = split_90_5_5(published.n_bytes)

        def unpacked() -> bytes:
            archive = archive_path(published)
            hint = (
                f"Put {archive.name} at {archive}, or set data.path to the file, a prefix of it or a folder "
                "with train, valid and test, or use data=stdlib."
            )
            download(published.url, archive, published.archive_bytes, published.archive_sha256, hint)
            text = read_file(archive, published.n_bytes)
            if variant(text, whole, str(archive), published) != published.name:
                raise UserError("wrong_checksum", f"{archive} holds only a part of {published.name}.", hint)
            return text

        return prepare_corpus(published.name, published.name, published.sha256, whole, unpacked, facts)
    own = {field.name: getattr(config, field.name) for field in fields(config)} | {"name": "text"}
    as_own_text = TextFilesConfig(**own, tokenizer="bytes")
    if not holds_splits(config.path):
        return as_own_text, (not_known(config.path, published.name),)
    given = read_text(Path(config.path), published.n_bytes)
    sizes = given.sizes or split_90_5_5(len(given.content))
    try:
        called = variant(given.content, sizes, f"data.path={config.path}", published)
    except UserError as error:
        return as_own_text, (f"{error.message} {not_known(config.path, published.name)}",)
    sha256 = hashlib.sha256(given.content).hexdigest()
    return prepare_corpus(published.name, called, sha256, sizes, lambda: given.content, facts)


def archive_path(published: Published = ENWIK8) -> Path:
    """Where the downloaded archive lies, and where a user without a network can put it."""
    return data_root() / "downloads" / published.url.rpartition("/")[2]


def open_enwik8(config: SpanCorruptionConfig, objective: str = "lm") -> Dataset:
    """The text in rows of `config.length` tokens."""
    prepared = _enwik8(config, ENWIK8)
    if isinstance(prepared, tuple):
        return open_text(prepared[0], objective, prepared[1])
    return open_bytes(prepared, config, objective)


SOURCE = Source(
    name="enwik8",
    config=SpanCorruptionConfig,
    licence=LICENCE,
    variant=ENWIK8.name,
    open=open_enwik8,
    vocab_size=bytes_vocab_size,
    rendering=bytes_rendering,
    objectives=("lm", "span_corruption"),
    prepare=prepare_enwik8,
    n_bytes=ENWIK8.n_bytes,
    sha256=ENWIK8.sha256,
)
