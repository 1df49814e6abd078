"""Pictures as rows of bytes: a user's own (`data=images`), and what all sets of pictures have in common.

A row is one square picture, row by row of its pixels, red, green and blue of each after one another (H, W, C).
Shape suffixes: S pixels of a picture's side; the last axis is red, green, blue.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from efftx.core.files import file_sha256
from efftx.data.byte_corpus import bytes_vocab_size
from efftx.data.dataset import DataConfig, Dataset, Source
from efftx.data.document_files import DocumentFiles
from efftx.data.documents import identity_of
from efftx.data.known_files import own_files
from efftx.data.picture import conversion_notes, grid_png, square_of
from efftx.data.picture_files import HINT, find_pictures, read_pixels, read_squares
from efftx.data.prepared import SPLITS, Prepared, prepare_once
from efftx.data.rendering import Rendering
from efftx.data.samples import find_path, licence_and_origin
from efftx.data.text_files import local_path, sums_of
from efftx.data.windows import LanguageModelRows, open_corpus
from efftx.errors import UserError

LICENCE = "the pictures belong to their authors; files are the user's own"


@dataclass
class PicturesConfig(DataConfig):
    """Pictures of `side` x `side` pixels; a row is 3 side^2 bytes, which `length` is set to."""

    side: int = 64


@dataclass(frozen=True)
class Pictures:
    """Where pictures come from: `identity` (SHA-256) tells them from others, `write(folder)` makes a file a split.

    `write` gives how many pictures each split has and the notes; `called` is what the variant says of them, from their
    number a split. `facts` are licence and origin.
    """

    name: str
    identity: str
    write: Callable[[Path], tuple[dict[str, int], list[str]]]
    called: Callable[[dict[str, int]], str]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


def row_length(config: PicturesConfig) -> int:
    """Bytes of one picture; a side below 1 is refused by its own range."""
    return 3 * max(config.side, 1) ** 2


def prepare_pictures(pictures: Pictures, config: PicturesConfig) -> Prepared:
    """The pictures as one array of bytes a split, prepared once; `UserError` where a split would have none."""
    key = identity_of(pictures.identity, config.side)

    def write(folder: Path) -> dict[str, Any]:
        counts, notes = pictures.write(folder)
        if empty := next((split for split in SPLITS if not counts[split]), None):
            message = f"The {empty} split of data={config.name} would have no picture"
            message += f" of {config.side} x {config.side} pixels or more (of {sum(counts.values())} in all)."
            raise UserError("bad_value", message, " ".join([*notes, "Give more or larger pictures."]))
        digest = hashlib.sha256("".join(file_sha256(folder / f"{split}.bin") for split in SPLITS).encode())
        return {
            "name": pictures.name,
            "variant": f"{pictures.name}[{pictures.called(counts)},{config.side}x{config.side}]",
            "bytes": sum(counts.values()) * row_length(config),
            "sha256": key,
            "tokens_sha256": digest.hexdigest(),
            "pictures": counts,
            "notes": notes,
            **pictures.facts,
        }

    prepared = prepare_once(f"{pictures.name}-{key[:12]}", write)
    return replace(prepared, meta=prepared.meta | {"notes": [*pictures.notes, *prepared.meta["notes"]]})


class PictureRows(LanguageModelRows):
    """Rows of one picture each."""

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Height, width and colours of each."""
        side = math.isqrt(self.length // 3)
        return side, side, 3


def open_pictures(prepared: Prepared, config: PicturesConfig) -> Dataset:
    """Rows of one picture each, every byte of which is a target."""
    corpus = open_corpus(prepared, "uint8", n_symbols=256, symbols="bytes")
    return PictureRows(corpus, row_length(config), vocab_size=256, unit="bits/dim", whole=True)


def write_split(folder: Path, split: str, pictures: Iterable[np.ndarray]) -> int:
    """Writes the bytes of pictures one after another to a split's file; gives how many there are."""
    count = 0
    with (folder / f"{split}.bin").open("wb") as file:
        for picture in pictures:
            file.write(np.ascontiguousarray(picture).tobytes())
            count += 1
    return count


def hold_out(folder: Path, count: int, n_bytes: int, n_valid: int) -> dict[str, int]:
    """Moves the last `n_valid` of the `count` training pictures to the valid split; gives how many each then has."""
    n_train = max(count - n_valid, 0)
    train = folder / "train.bin"
    with train.open("rb") as file, (folder / "valid.bin").open("wb") as valid:
        file.seek(n_train * n_bytes)
        shutil.copyfileobj(file, valid)
    os.truncate(train, n_train * n_bytes)
    return {"train": n_train, "valid": count - n_train}


def own_pictures(
    config: PicturesConfig, files: DocumentFiles, sums: Sequence[str], notes: tuple[str, ...] = ()
) -> Pictures:
    """The pictures in a user's own files, by the splits that their names say; a record calls them images."""
    called, side = own_files(files.all, sums), config.side

    def write(folder: Path) -> tuple[dict[str, int], list[str]]:
        done: Counter[str] = Counter()
        counts = {}
        for group, paths in files.files.items():
            squares = (square for path in paths for square in read_squares(path, side, done))
            counts[group] = write_split(folder, f"all {group}", squares)
        cut = {split: _cut(folder, split, *files.part(split), counts, 3 * side * side) for split in SPLITS}
        for group in files.files:
            (folder / f"all {group}.bin").unlink()
        return cut, conversion_notes(done)

    return Pictures(
        name="images",
        identity=identity_of(called, *files.by_split(sums)),
        write=write,
        called=lambda counts: f"{called} {counted(counts)}{files.rule}",
        facts=licence_and_origin(config.path, LICENCE),
        notes=(*notes, *files.notes),
    )


def _cut(folder: Path, split: str, group: str, first: int, last: int, counts: dict[str, int], n_bytes: int) -> int:
    """Writes the pictures from `first` to `last` per cent of a group to a split's file; gives how many they are."""
    start, end = counts[group] * first // 100, counts[group] * last // 100
    everything = folder / f"all {group}.bin"
    pictures = np.memmap(everything, np.uint8, "r").reshape(-1, n_bytes) if counts[group] else np.empty((0, n_bytes))
    return write_split(folder, split, pictures[start:end])


def counted(counts: dict[str, int]) -> str:
    """`799+100+100 pictures`: those of train, valid and test."""
    return "+".join(str(counts[split]) for split in SPLITS) + " pictures"


class Picture:
    """Tokens as a picture of `side` x `side` pixels."""

    kind = "picture"
    eos: int | None = None
    ends_inputs = False
    form = "the path of a picture"

    def __init__(self, side: int) -> None:
        self.side = side

    def encode(self, given: str) -> list[int]:
        """The bytes of the picture at a path, cut to its centre square and brought to `side` by a box filter.

        `UserError` for a file that is missing or no picture, and for one that is smaller.
        """
        done: Counter[str] = Counter()
        pixels = next(iter(read_pixels(local_path(given), done)), None)
        square = None if pixels is None else square_of(pixels, self.side, done)
        if square is None:
            message = f"{given} holds no picture of {self.side} x {self.side} pixels or more."
            raise UserError("bad_picture", message, "Give a larger one.")
        return [int(value) for value in square.reshape(-1)]

    def decode(self, ids: Sequence[int]) -> str:
        """The bytes as numbers."""
        return " ".join(map(str, ids))

    def files(self, rows: Sequence[Sequence[int]]) -> list[tuple[str, bytes]]:
        """One PNG with all the pictures; what a row lacks of a picture is grey."""
        squares = []
        for row in rows:
            values = np.full(3 * self.side**2, 0x80, np.uint8)
            values[: len(row)] = row
            squares.append(values.reshape(self.side, self.side, 3))
        return [(".png", grid_png(squares))]


def picture_rendering(config: PicturesConfig, objective: str = "lm", model: bytes | None = None) -> Rendering:
    """What the tokens of `open_pictures` become."""
    return Picture(config.side)


def picture_source(
    name: str,
    licence: str,
    variant: str,
    prepare: Callable[[Any], Prepared],
    *,
    config: type[PicturesConfig] = PicturesConfig,
    n_bytes: int | None = None,
    check: Callable[[Any], None] = lambda config: None,
) -> Source:
    """The source of a set of pictures, of which `prepare` makes one array a split; `check` as a `Source` has it."""

    def open_prepared(config: PicturesConfig, objective: str = "lm") -> Dataset:
        return open_pictures(prepare(config), config)

    return Source(
        name=name,
        config=config,
        licence=licence,
        variant=variant,
        open=open_prepared,
        vocab_size=bytes_vocab_size,
        rendering=picture_rendering,
        prepare=prepare,
        n_bytes=n_bytes,
        row_length=row_length,
        check=check,
    )


def prepare_images(config: PicturesConfig) -> Prepared:
    """The user's pictures as arrays of bytes, prepared once."""
    files = find_pictures(str(find_path(config, HINT)))
    return prepare_pictures(own_pictures(config, files, sums_of(files.all, HINT)), config)


SOURCE = picture_source("images", LICENCE, "images", prepare_images)
