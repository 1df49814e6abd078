"""enwik8, the first 10^8 bytes of an English Wikipedia dump (Reformer, section 5), or a prefix of it.

The paper's code (tensor2tensor) trains on 89,621,832 bytes; the split here is the usual one of 90, 5 and 5 million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from efftx.data import enwiki2016
from efftx.data.byte_corpus import (
    bytes_rendering,
    bytes_vocab_size,
    corpus_key,
    open_bytes,
    prepare_corpus,
    split_90_5_5,
)
from efftx.data.dataset import Dataset, Source
from efftx.data.download import download
from efftx.data.known_files import not_known
from efftx.data.prepared import SPLITS, Prepared, data_root, prepare_once
from efftx.data.samples import resolve_path
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.data.text import TextFilesConfig, open_text, prepare_text
from efftx.data.text_files import find_files, holds_splits, kind_of, local_path, read_file, read_text
from efftx.errors import UserError, nearest

LICENCE = "Wikipedia text: GFDL and CC BY-SA"


@dataclass
class Enwik8Config(SpanCorruptionConfig):
    """`n_bytes`: only the first so many bytes of enwik8 (0: all that is given), split 90/5/5.

    `extra`: a further text that is added to the training split (`enwiki2016`); valid and test stay those of enwik8.
    """

    n_bytes: int = 0
    extra: str | None = None


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


@dataclass(frozen=True)
class _Known:
    """A text that is known to be enwik8 or a prefix of it; `read` gives its bytes."""

    variant: str
    sha256: str
    sizes: tuple[int, int, int]
    read: Callable[[], bytes]


def prepare_enwik8(config: Enwik8Config, published: Published = ENWIK8) -> Prepared:
    """The text at `config.path` or at its usual place, else the whole of enwik8, downloaded; prepared once.

    The split is that of the folder given, else 90/5/5. A file or folder with another text is prepared as `data=text`
    would. `UserError` for no network, for a file or folder that is missing or damaged, and for `n_bytes` or `extra`
    where they do not fit the text.
    """
    prepared = _enwik8(config, published)
    return prepare_text(*prepared) if isinstance(prepared, tuple) else prepared


def _enwik8(config: Enwik8Config, published: Published) -> Prepared | tuple[TextFilesConfig, tuple[str, ...]]:
    """The text prepared, or what `data=text` is to read instead of it, and why."""
    text = _known_text(config, published)
    facts = {"licence": LICENCE, "origin": published.url}
    if not isinstance(text, _Known):
        return text
    if config.extra is None:
        return prepare_corpus(published.name, text.variant, text.sha256, text.sizes, text.read, facts)
    return _with_extra(published.name, text, facts)


def check_enwik8(config: Enwik8Config, published: Published = ENWIK8) -> None:
    """`UserError` for a number of bytes whose sum is not known, and for an unknown extra text."""
    sums = {**published.prefixes, published.n_bytes: published.sha256}
    if config.n_bytes and config.n_bytes not in sums:
        known = ", ".join(map(str, sorted(sums)))
        message = f"data.n_bytes={config.n_bytes}: the SHA-256 of so many bytes of {published.name} is not known."
        raise UserError("bad_value", message, f"Known: {known}; 0 takes all that is given.")
    if config.extra is not None and config.extra != enwiki2016.NAME:
        message = f"data.extra={config.extra}: there is no such text to add to {published.name}."
        raise UserError("bad_value", message, nearest(config.extra, [enwiki2016.NAME]))


def _known_text(config: Enwik8Config, published: Published) -> _Known | tuple[TextFilesConfig, tuple[str, ...]]:
    """The text that `config` means, or what `data=text` is to read instead of it, and why."""
    n_bytes, name = config.n_bytes or published.n_bytes, published.name
    sums = {**published.prefixes, published.n_bytes: published.sha256}
    usual = resolve_path(None, name)
    path = config.path if config.path is not None or usual is None else str(usual)
    if path is None:
        called = f"{name}[:{n_bytes}]" if config.n_bytes else name
        return _Known(called, sums[n_bytes], split_90_5_5(n_bytes), lambda: _downloaded(published)[:n_bytes])
    why = ""
    place = path if holds_splits(path) else _its_file(path, name)
    if holds_splits(place):
        text = read_text(Path(place), published.n_bytes)
        content, sizes = text.content, text.sizes or split_90_5_5(len(text.content))
        if config.n_bytes:
            content, sizes = content[:n_bytes], split_90_5_5(min(n_bytes, len(content)))
        try:
            called = variant(content, sizes, f"data.path={path}", published)
        except UserError as error:
            why = f"{error.message} "
        else:
            if config.n_bytes and len(content) < n_bytes:
                message = f"data.n_bytes={n_bytes}: data.path={path} has only {len(content):,} bytes."
                raise UserError("bad_value", message, "Give a longer prefix, or leave data.n_bytes out.")
            return _Known(called, hashlib.sha256(content).hexdigest(), sizes, lambda: content)
    if config.n_bytes or config.extra is not None:
        find_files(path, f"Give {name}, a prefix of it, or a folder with either.")  # a path mistyped is told as that
        key = "n_bytes" if config.n_bytes else "extra"
        message = f"data.{key} goes with {name} alone. {why}".rstrip()
        raise UserError("wrong_checksum", message, f"Give {name} or a prefix of it, or leave data.{key} out.")
    settings = {f.name: getattr(config, f.name) for f in fields(SpanCorruptionConfig)} | {"name": "text", "path": path}
    return TextFilesConfig(**settings, tokenizer="bytes"), (f"{why}{not_known(config.path, name)}",)


def _its_file(folder: str, name: str) -> str:
    """The file of a folder that has the text's own name, as it is or packed; `folder` itself where there is none."""
    files = (local_path(folder) / f"{name}{suffix}" for suffix in ("", ".zip", ".xz", ".gz", ".bz2"))
    return next((str(file) for file in files if kind_of(file) == "file"), folder)


def _with_extra(name: str, text: _Known, facts: dict[str, Any]) -> Prepared:
    """`text` with enwiki2016 after its training split; the checksum is over those of both."""
    sha256 = hashlib.sha256(f"{text.sha256}{enwiki2016.SHA256}".encode()).hexdigest()

    def write(folder: Path) -> dict[str, Any]:
        content, train_end = text.read(), text.sizes[0]
        added, n_left_out = enwiki2016.without_pages_of(enwiki2016.read_enwiki2016(), content[train_end:])
        valid_end = train_end + text.sizes[1]
        pieces = (content[:train_end] + added, content[train_end:valid_end], content[valid_end:])
        for split, piece in zip(SPLITS, pieces, strict=True):
            (folder / f"{split}.bin").write_bytes(piece)
        called = f"{text.variant} + {enwiki2016.NAME}" + (f"[-{n_left_out} pages]" if n_left_out else "")
        note = f"{n_left_out} pages of {enwiki2016.NAME} that stand in valid or test were left out."
        return {
            "name": name,
            "variant": called,
            "bytes": len(content) + len(added),
            "sha256": sha256,
            "licence": f"{facts['licence']}; {enwiki2016.LICENCE}",
            "origin": f"{facts['origin']} {enwiki2016.URL}",
            **({"notes": [note]} if n_left_out else {}),
        }

    return prepare_once(corpus_key(name, sha256, text.sizes), write)


def _downloaded(published: Published) -> bytes:
    archive = archive_path(published)
    hint = (
        f"`efftx data prepare {published.name}` downloads it where there is a network. Or put {archive.name} at "
        f"{archive}, or set data.path to the file, a prefix of it or a folder with train, valid and test, or use "
        "data=stdlib."
    )
    download(published.url, archive, published.archive_bytes, published.archive_sha256, hint)
    text = read_file(archive, published.n_bytes)
    if variant(text, split_90_5_5(published.n_bytes), str(archive), published) != published.name:
        raise UserError("wrong_checksum", f"{archive} holds only a part of {published.name}.", hint)
    return text


def archive_path(published: Published = ENWIK8) -> Path:
    """Where the downloaded archive lies, and where a user without a network can put it."""
    return data_root() / "downloads" / published.url.rpartition("/")[2]


def open_enwik8(config: Enwik8Config, objective: str = "lm") -> Dataset:
    """The text in rows of `config.length` tokens."""
    prepared = _enwik8(config, ENWIK8)
    if isinstance(prepared, tuple):
        return open_text(prepared[0], objective, prepared[1])
    return open_bytes(prepared, config, objective)


SOURCE = Source(
    name="enwik8",
    config=Enwik8Config,
    licence=LICENCE,
    variant=ENWIK8.name,
    open=open_enwik8,
    vocab_size=bytes_vocab_size,
    rendering=bytes_rendering,
    objectives=("lm", "span_corruption"),
    prepare=prepare_enwik8,
    check=check_enwik8,
    n_bytes=ENWIK8.n_bytes,
    sha256=ENWIK8.sha256,
)
