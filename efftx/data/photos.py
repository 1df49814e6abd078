"""Cuttings of five photographs that ship with the package: pictures on every machine, without a network.

Not a paper's data set, and small: a model of it says that pictures work, and which of two learns them faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from efftx.data.dataset import refuse_path
from efftx.data.documents import identity_of
from efftx.data.picture import box_filter
from efftx.data.picture_files import read_pixels
from efftx.data.pictures import Pictures, PicturesConfig, counted, picture_source, prepare_pictures, write_split
from efftx.data.prepared import SPLITS, Prepared
from efftx.data.samples import PHOTOS_LICENCE, PREFIX, resolve_path
from efftx.data.text_files import sums_of

CUTTING = 64
"""Pixels of a cutting's side; a larger `data.side` takes larger ones."""


def prepare_photos(config: PicturesConfig) -> Prepared:
    """Squares of the photographs, each split from photographs of its own, brought to `config.side` by a box filter.

    Those of train overlap by half, those of valid and test do not.
    """
    refuse_path(config)
    folder = resolve_path(f"{PREFIX}photos", config.name)
    assert folder is not None
    files = {split: sorted((folder / split).glob("*.png")) for split in SPLITS}
    sums = sums_of([file for split in SPLITS for file in files[split]], "Install efftx again.")

    def write(new: Path) -> tuple[dict[str, int], list[str]]:
        counts = {}
        for split in SPLITS:
            cuttings = (one for path in files[split] for one in _cuttings(path, config.side, half=split == "train"))
            counts[split] = write_split(new, split, cuttings)
        return counts, []

    pictures = Pictures(
        name="photos",
        identity=identity_of("photos", CUTTING, *sums),
        write=write,
        called=counted,
        facts={"licence": PHOTOS_LICENCE, "origin": "efftx"},
    )
    return prepare_pictures(pictures, config)


def _cuttings(path: Path, side: int, *, half: bool) -> Iterator[np.ndarray]:
    """The squares of a photograph row by row, beside each other or, where `half`, each half over the next."""
    size = max(CUTTING, side)
    step = max(size // 2, 1) if half else size
    for pixels in read_pixels(path, Counter()):
        height, width = pixels.shape[:2]
        for top in range(0, height - size + 1, step):
            for left in range(0, width - size + 1, step):
                yield box_filter(pixels[top : top + size, left : left + size], side)


SOURCE = replace(picture_source("photos", PHOTOS_LICENCE, "photos", prepare_photos), reads_files=False)
