"""CIFAR-10 (Krizhevsky 2009), 60,000 photographs of 32 x 32 pixels: Sparse Transformers, tables 1 and 2."""

from __future__ import annotations

import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from efftx.data.documents import identity_of
from efftx.data.hub import HubRows
from efftx.data.known_files import not_known
from efftx.data.picture import square_of
from efftx.data.picture_files import find_pictures, picture_of_row
from efftx.data.pictures import (
    Pictures,
    PicturesConfig,
    counted,
    own_pictures,
    picture_source,
    prepare_pictures,
    write_split,
)
from efftx.data.prepared import Prepared
from efftx.data.samples import resolve_path
from efftx.data.text_files import kind_of, open_regular, sums_of
from efftx.errors import UserError

LICENCE = "none stated; its authors ask to be cited"
HUB = HubRows("uoft-cs/cifar10", "plain_text", "0b2714987fa478483af9968de7c934580d0bb9a2")
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
"""That of https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, 170,052,171 bytes."""
N_VALID = 2000
"""The paper trains on 48,000 and validates on 2,000."""
SPLIT_SEED = 11172018
"""That of the authors' later code, which holds out the first of this permutation."""
_SIDE = 32
_HINT = f"Put {ARCHIVE} at data.path, or pictures of your own, or use data=photos."


def check_cifar10(config: PicturesConfig) -> None:
    """`UserError` for a side that is more than a picture has."""
    if config.side > _SIDE:
        message = f"data.side={config.side} is more than the {_SIDE} pixels of CIFAR-10's pictures."
        raise UserError("bad_value", message, f"Set data.side={_SIDE} or less.")


def prepare_cifar10(config: PicturesConfig) -> Prepared:
    """The published pictures, from the Hub or from their authors' archive, or what else lies at `config.path`."""
    path = resolve_path(config.path, config.name)
    if path is None:
        return prepare_pictures(published(_on_the_hub, HUB.revision, HUB.origin, config.side), config)
    archive = path / ARCHIVE if kind_of(path) == "folder" and kind_of(path / ARCHIVE) == "file" else path
    if archive.name == ARCHIVE and sums_of([archive], _HINT) == [ARCHIVE_SHA256]:
        return prepare_pictures(
            published(lambda split: _in_archive(archive, split), ARCHIVE_SHA256, ARCHIVE, config.side), config
        )
    files = find_pictures(str(path))
    notes = (not_known(config.path, "CIFAR-10"),)
    return prepare_pictures(own_pictures(config, files, sums_of(files.all, _HINT), notes), config)


def published(read: Callable[[str], Iterator[np.ndarray]], version: str, origin: str, side: int) -> Pictures:
    """CIFAR-10 as `read("train")` and `read("test")` give it; of the training pictures N_VALID are held out."""

    def squares(split: str) -> list[np.ndarray]:
        pictures = (square_of(pixels, side, Counter()) for pixels in read(split))
        return [square for square in pictures if square is not None]

    def write(folder: Path) -> tuple[dict[str, int], list[str]]:
        train = squares("train")
        # RandomState's streams are frozen, unlike those of Generator.
        order = np.random.RandomState(SPLIT_SEED).permutation(len(train))
        parts = {"valid": order[:N_VALID], "train": order[N_VALID:]}
        counts = {split: write_split(folder, split, (train[i] for i in part)) for split, part in parts.items()}
        return counts | {"test": write_split(folder, "test", squares("test"))}, []

    return Pictures(
        name="cifar10",
        identity=identity_of("cifar10", version, N_VALID, SPLIT_SEED),
        write=write,
        called=counted,
        facts={"licence": LICENCE, "origin": origin},
    )


def _on_the_hub(split: str) -> Iterator[np.ndarray]:
    # Undecoded: `datasets` would make a picture of each by its own rules.
    for number, row in enumerate(HUB.rows(split, _HINT, undecoded="img"), 1):
        yield picture_of_row(row, f"{HUB.origin}, {split} {number}", Counter())


def _in_archive(archive: Path, split: str) -> Iterator[np.ndarray]:
    """The pictures of the authors' binary files: a label and three planes of 32 x 32 bytes each."""
    wanted = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    try:
        with open_regular(archive) as file, tarfile.open(fileobj=file, mode="r:gz") as members:
            for name in wanted:
                content = members.extractfile(f"cifar-10-batches-bin/{name}")
                assert content is not None
                rows = np.frombuffer(content.read(), np.uint8).reshape(-1, 1 + 3 * _SIDE**2)
                for planes in rows[:, 1:].reshape(-1, 3, _SIDE, _SIDE):
                    yield planes.transpose(1, 2, 0)
    except (OSError, tarfile.TarError, zlib.error, EOFError, KeyError, ValueError) as error:
        raise UserError("damaged_file", f"{archive} is damaged: {error}.", "Get the file again.") from error


SOURCE = picture_source(
    "cifar10", LICENCE, "cifar10", prepare_cifar10, n_bytes=60_000 * 3 * _SIDE**2, check=check_cifar10
)
