"""Text as bytes: windows of a memory-mapped uint8 array for each split, one token a byte.

Shape suffixes: B rows of a batch, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efftx.data.dataset import Batch, check_split, draw
from efftx.data.prepared import SPLITS, Prepared, prepare_once, write_durably
from efftx.errors import UserError


def split_90_5_5(n_bytes: int) -> tuple[int, int, int]:
    """Sizes of train, valid and test: 90, 5 and 5 percent, in this order, each border rounded down."""
    train_end, valid_end = n_bytes * 90 // 100, n_bytes * 95 // 100
    return train_end, valid_end - train_end, n_bytes - valid_end


def corpus_key(name: str, sha256: str, sizes: tuple[int, int, int]) -> str:
    """The name of a corpus's prepared folder; a split other than 90/5/5 shows in it."""
    usual = sizes == split_90_5_5(sum(sizes))
    return f"{name}-{sha256[:12]}" + ("" if usual else "-{}-{}-{}".format(*sizes))


def prepare_corpus(
    name: str, variant: str, sha256: str, sizes: tuple[int, int, int], read: Callable[[], bytes], facts: dict[str, Any]
) -> Prepared:
    """The text as one array for each split, prepared once.

    `read` gives the text of SHA-256 `sha256` and is called only if it must be written; `facts` (licence, origin) go
    into the meta data.
    """

    def write(folder: Path) -> dict[str, Any]:
        text = memoryview(read())
        start = 0
        for split, size in zip(SPLITS, sizes, strict=True):
            write_durably(folder / f"{split}.bin", text[start : start + size])
            start += size
        return {"name": name, "variant": variant, "bytes": len(text), "sha256": sha256, **facts}

    return prepare_once(corpus_key(name, sha256, sizes), write)


class ByteCorpus:
    """A prepared byte corpus in windows of `length` bytes; vocabulary 256, unit bits/byte.

    Training windows start anywhere in the train split; row i of a batch does not depend on the batch size.
    Valid and test are cut into consecutive windows; the last one is moved back to end with the split, and its bytes
    that were in the window before have weight 0: every byte counts once, none is padding.
    `UserError` if a split is shorter than `length`.
    """

    unit = "bits/byte"
    vocab_size = 256
    input_length = 0
    chance_accuracy = None

    def __init__(self, prepared: Prepared, length: int) -> None:
        self.name = str(prepared.meta["name"])
        self.variant = str(prepared.meta["variant"])
        self.checksum = str(prepared.meta["sha256"])
        self.length = length
        shortest = min(SPLITS, key=prepared.size)
        if prepared.size(shortest) < length:
            raise UserError(
                "bad_value",
                f"data.length={length} is longer than the {shortest} split of {self.variant} "
                f"({prepared.size(shortest):,} bytes).",
                f"Set data.length to at most {prepared.size(shortest)}, or give a longer text.",
            )
        self._bytes = {split: np.memmap(prepared.path(split), dtype=np.uint8, mode="r") for split in SPLITS}

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch `step`, a pure function of its arguments; valid and test ignore `seed`.

        Shapes [batch_size, length]; the last batch of valid and test has the rows that are left. `IndexError` past it.
        """
        check_split(split)
        text = self._bytes[split]
        if split == "train":
            starts = draw(self.variant, split, seed, step, batch_size, len(text) - self.length + 1)
        else:
            starts = self.length * np.arange(step * batch_size, (step + 1) * batch_size)
            starts = starts[starts < len(text)]
            if step < 0 or len(starts) == 0:
                raise IndexError(f"{split} of {self.variant} has no batch {step} of {batch_size} rows")
        tokens_BL = np.empty((len(starts), self.length), dtype=np.int64)
        weights_BL = torch.ones(len(starts), self.length)
        for row, start in enumerate(starts):
            counted_before = max(0, int(start) + self.length - len(text))
            begin = int(start) - counted_before
            tokens_BL[row] = text[begin : begin + self.length]
            weights_BL[row, :counted_before] = 0.0
        return Batch(torch.from_numpy(tokens_BL), weights_BL)

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """Batches that cover valid or test once; None for train, which is drawn without end."""
        check_split(split)
        if split == "train":
            return None
        n_windows = -(-len(self._bytes[split]) // self.length)
        return -(-n_windows // batch_size)
