"""Music as bytes: recordings in mu-law codes at 12 kHz (Sparse Transformers, table 4), or strings plucked by rule.

The paper's own recordings (Dieleman et al. 2018) are not published. Recordings stand one after another in a split, so
that a row may begin in one and end in the next.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from efftx.data.byte_corpus import bytes_vocab_size
from efftx.data.dataset import DataConfig, Dataset, Source, draw
from efftx.data.document_files import DocumentFiles, find_named
from efftx.data.documents import identity_of
from efftx.data.known_files import own_files
from efftx.data.prepared import SPLITS, Prepared, prepare_once
from efftx.data.rendering import Rendering
from efftx.data.samples import resolve_path
from efftx.data.sound import HINT, Sound, mu_law, read_recordings
from efftx.data.text_files import sums_of
from efftx.data.windows import LanguageModelRows, open_corpus

LICENCE = "the recordings belong to their authors; files are the user's own"
_FORMAT = r"\.(wav|flac|ogg|oga|opus|mp3|aiff?|npz)"
_FILES = re.compile(f".+{_FORMAT}", re.IGNORECASE)
_FORMS = re.compile(f"{_FORMAT}$", re.IGNORECASE)
_SECONDS = {"train": 160, "valid": 20, "test": 20}
_SCALE = (0, 3, 5, 7, 10)
"""Semitones of the minor pentatonic."""
_LOWEST = 110.0


@dataclass
class MusicConfig(DataConfig):
    """`rate`: samples a second, to which recordings are brought; the paper's is 12,000."""

    rate: int = 12_000


def prepare_music(config: MusicConfig) -> Prepared:
    """The recordings as codes, prepared once; without a path, or files in the usual place, the strings."""
    path = resolve_path(config.path, config.name)
    if path is None:
        return _plucked(config.rate)
    files = find_named(str(path), HINT, _FILES, "file of sound", _FORMS)
    sums = sums_of(files.all, HINT)
    called = own_files(files.all, sums)
    rule = f"{files.rule} of each recording" if files.rule else ""
    key = identity_of("music", called, config.rate, *files.by_split(sums))

    def write(folder: Path) -> dict[str, Any]:
        n_recordings, sizes = _write(folder, files, config.rate)
        seconds = "+".join(f"{sizes[split] / config.rate:.1f}" for split in SPLITS)
        counted = f"{n_recordings} recording{'s' * (n_recordings > 1)}, {seconds} s"
        facts = {"licence": LICENCE, "origin": "local files"}
        return _meta(folder, f"{called} {counted} at {config.rate} Hz{rule}", key, facts)

    prepared = prepare_once(f"music-{key[:12]}", write)
    return replace(prepared, meta=prepared.meta | {"notes": list(files.notes)})


def _write(folder: Path, files: DocumentFiles, rate: int) -> tuple[int, dict[str, int]]:
    """Writes each split's share of every recording of its files; gives their number and the samples a split."""
    number, sizes = 0, dict.fromkeys(SPLITS, 0)
    into = {split: (folder / f"{split}.bin").open("wb") for split in SPLITS}
    try:
        for group, paths in files.files.items():
            for codes_N in (codes for path in paths for codes in read_recordings(path, rate)):
                number += 1
                for split in SPLITS:
                    of, first, last = files.part(split)
                    if of == group:
                        share_N = codes_N[len(codes_N) * first // 100 : len(codes_N) * last // 100]
                        into[split].write(share_N.tobytes())
                        sizes[split] += len(share_N)
    finally:
        for file in into.values():
            file.close()
    return number, sizes


def _meta(folder: Path, called: str, key: str, facts: dict[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256()
    n_bytes = 0
    for split in SPLITS:
        content = (folder / f"{split}.bin").read_bytes()
        digest.update(hashlib.sha256(content).digest())
        n_bytes += len(content)
    variant = f"music[{called}]"
    return {
        "name": "music",
        "variant": variant,
        "bytes": n_bytes,
        "sha256": key,
        "tokens_sha256": digest.hexdigest(),
    } | facts


def _plucked(rate: int) -> Prepared:
    key = identity_of("music plucked", rate, *_SECONDS.values(), *_SCALE)

    def write(folder: Path) -> dict[str, Any]:
        for split, seconds in _SECONDS.items():
            (folder / f"{split}.bin").write_bytes(mu_law(plucked(split, seconds, rate) / 0x8000).tobytes())
        facts = {"licence": "generated, no licence needed", "origin": "efftx"}
        return _meta(folder, f"plucked strings at {rate} Hz", key, facts)

    prepared = prepare_once(f"music-{key[:12]}", write)
    note = "No recordings are given: the strings are plucked by rule, and a score on them says only that all works."
    return replace(prepared, meta=prepared.meta | {"notes": [note]})


def plucked(split: str, seconds: int, rate: int) -> np.ndarray:
    """Strings of a pentatonic scale, plucked up and down it, in samples of 16 bits (Karplus and Strong 1983).

    Whole numbers throughout, so that every machine gives the same: a string is noise of one period, each next period
    the mean of neighbouring samples of the one before.
    """
    out_N = np.zeros(seconds * rate, np.int64)
    rings = 2 * rate
    place, degree = 0, 5
    for note in range(len(out_N)):
        step, beats, loudness = draw("music plucked note", split, 0, note, 3, 2**20).tolist()
        if place >= len(out_N):
            break
        degree = min(max(degree + step % 7 - 3, 0), 14)
        semitones = 12 * (degree // len(_SCALE)) + _SCALE[degree % len(_SCALE)]
        period = max(round(rate / (_LOWEST * 2 ** (semitones / 12))), 2)
        string = draw("music plucked string", split, 0, note, period, 12_001) - 6_000
        sound = np.concatenate(list(_periods(string, -(-rings // period))))[: len(out_N) - place]
        out_N[place : place + len(sound)] += sound * (2 + loudness % 3) // 4
        place += (1 + beats % 3) * rate // 8
    return np.clip(out_N, -0x8000, 0x7FFF)


def _periods(string: np.ndarray, count: int) -> Iterator[np.ndarray]:
    for _ in range(count):
        yield string
        string = (string + np.roll(string, 1)) // 2


def open_music(config: MusicConfig, objective: str = "lm") -> Dataset:
    """The codes in rows of `config.length`."""
    corpus = open_corpus(prepare_music(config), "uint8", n_symbols=256, symbols="samples")
    return LanguageModelRows(corpus, config.length, vocab_size=256, unit="bits/dim")


def _rendering(config: MusicConfig, objective: str = "lm", model: bytes | None = None) -> Rendering:
    return Sound(config.rate)


SOURCE = Source(
    name="music",
    config=MusicConfig,
    licence=LICENCE,
    variant="music",
    open=open_music,
    vocab_size=bytes_vocab_size,
    rendering=_rendering,
    prepare=prepare_music,
)
