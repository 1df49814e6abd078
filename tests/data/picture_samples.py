"""Pictures that the tests of data=images make, and what becomes of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efftx.data.dataset import open_dataset
from efftx.data.pictures import PicturesConfig

SIDE = 4


def config(path: Path | None, side: int = SIDE, name: str = "images") -> PicturesConfig:
    return PicturesConfig(name, 3 * side * side, str(path) if path else None, side=side)


def pictures(count: int, side: int = SIDE, first: int = 0) -> np.ndarray:
    """Different pictures: the first byte of number i is i."""
    values = np.random.RandomState(0).randint(0, 256, (count, side, side, 3)).astype(np.uint8)
    values[:, 0, 0, 0] = np.arange(first, first + count)
    return values


def encoded(array: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(array).save(packed, form, **options)
    return packed.getvalue()


def rows_of(path: Path, split: str, side: int = SIDE) -> np.ndarray:
    """All pictures of valid or test, (n, side, side, 3)."""
    dataset = open_dataset(config(path, side))
    batches = [dataset.batch(split, 0, i, 2).tokens_BL for i in range(dataset.n_batches(split, 2) or 0)]
    return np.concatenate([batch.numpy() for batch in batches]).reshape(-1, side, side, 3)


def saved(**arrays: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue()
