"""enwik8, the first 10^8 bytes of an English Wikipedia dump (Reformer, section 5), or a prefix of it.

The paper's code (tensor2tensor) trains on 89,621,832 bytes; the split here is the usual one of 90, 5 and 5 million.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from efftx.data.byte_corpus import bytes_vocab_size, bytes_wording, open_bytes, prepare_corpus, split_90_5_5
from efftx.data.dataset import DataConfig, Dataset, Source
from efftx.data.download import download
from efftx.data.prepared import Prepared, data_root
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.data.text_files import read_file, read_text
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
    # enwik5 and enwik6. Published are the first eight digits, 581bee97 and 369b6889; the other digits were computed
    # from a prefix of 4,150,000 bytes whose sums begin with these.
    prefixes={
        100_000: "581bee9758c531de3795885a1adb331b9c51bfdeefd9a63407815479e22a9072",
        1_000_000: "369b688978f649681136198fb96db14c1616756260c55fb4b65e9bc049552cad",
    },
)


def variant(text: bytes, sizes: tuple[int, int, int], origin: str, published: Published = ENWIK8) -> str:
    """The name of a text: `enwik8` if its SHA-256 is the published one, `enwik8[:n]` if it can be its first n bytes.

    It can be if its first bytes have the longest published sum that fits, and all of it is UTF-8 without NUL. A split
    other than 90/5/5 is added to the name. `UserError` for any other text, which calls the text `origin`.
    """
    name = published.name
    hint = f"Get {published.url} again, give a prefix of {name}, or use data=stdlib."
    if len(text) > published.n_bytes:
        message = f"{origin} is longer than {name} ({published.n_bytes:,} bytes)."
        raise UserError("wrong_checksum", message, hint)
    if len(text) == published.n_bytes:
        if hashlib.sha256(text).hexdigest() != published.sha256:
            message = f"{origin} has the size of {name} but not its SHA-256 ({published.sha256})."
            raise UserError("wrong_checksum", message, hint)
        called = name
    else:
        shortest = min(published.prefixes)
        if len(text) < shortest:
            message = (
                f"{origin} has {len(text):,} bytes; under {shortest:,} a prefix of {name} cannot be told from others."
            )
            raise UserError("wrong_checksum", message, hint)
        longest = max(size for size in published.prefixes if size <= len(text))
        if hashlib.sha256(memoryview(text)[:longest]).hexdigest() != published.prefixes[longest]:
            message = f"{origin} does not begin like {name}: wrong SHA-256 of its first {longest:,} bytes."
            raise UserError("wrong_checksum", message, hint)
        if b"\0" in text or not _is_cut_utf8(text):
            message = f"{origin} begins like {name} but is damaged further on: it is not UTF-8 text."
            raise UserError("wrong_checksum", message, hint)
        called = f"{name}[:{len(text)}]"
    usual = sizes == split_90_5_5(len(text))
    return called if usual else f"{called}[split {'+'.join(map(str, sizes))}]"


def _is_cut_utf8(text: bytes) -> bool:
    """Whether the text is UTF-8, its last character perhaps incomplete."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def prepare_enwik8(config: DataConfig, published: Published = ENWIK8) -> Prepared:
    """The text at `config.path`, or the whole of enwik8, downloaded; prepared once.

    The split is that of the folder given, else 90/5/5. `UserError` for no network, and for a file or folder that is
    missing, damaged or another text.
    """
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
    given = read_text(Path(config.path), published.n_bytes)
    sizes = given.sizes or split_90_5_5(len(given.content))
    called = variant(given.content, sizes, f"data.path={config.path}", published)
    sha256 = hashlib.sha256(given.content).hexdigest()
    return prepare_corpus(published.name, called, sha256, sizes, lambda: given.content, facts)


def archive_path(published: Published = ENWIK8) -> Path:
    """Where the downloaded archive lies, and where a user without a network can put it."""
    return data_root() / "downloads" / published.url.rpartition("/")[2]


def open_enwik8(config: SpanCorruptionConfig, objective: str = "lm") -> Dataset:
    """The text in rows of `config.length` tokens."""
    return open_bytes(prepare_enwik8(config), config, objective)


SOURCE = Source(
    name="enwik8",
    config=SpanCorruptionConfig,
    licence=LICENCE,
    variant=ENWIK8.name,
    open=open_enwik8,
    vocab_size=bytes_vocab_size,
    wording=bytes_wording,
    objectives=("lm", "span_corruption"),
    prepare=prepare_enwik8,
    n_bytes=ENWIK8.n_bytes,
    sha256=ENWIK8.sha256,
)
