"""A text as one array of symbols for each split, cut into rows; rows of windows are the data of a language model.

Shape suffixes: B rows of a batch, L symbols of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from efftx.core.counts import count
from efftx.data.dataset import Batch, check_split, draw
from efftx.data.prepared import SPLITS, Prepared
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """A text's memory-mapped array for each split: symbols 0 to `n_symbols` - 1, called `symbols` (bytes, tokens).

    `notes` are what a user should hear of it.
    """

    name: str
    variant: str
    checksum: str
    arrays: Mapping[str, np.ndarray]
    n_symbols: int
    symbols: str
    notes: tuple[str, ...] = ()


def open_corpus(prepared: Prepared, dtype: str, n_symbols: int, symbols: str) -> Corpus:
    """The prepared arrays, mapped and not read; the checksum is the tokens' where they are not the text itself."""
    arrays = {split: np.memmap(prepared.path(split), dtype=dtype, mode="r") for split in SPLITS if prepared.size(split)}
    empty = np.empty(0, dtype)
    return Corpus(
        name=str(prepared.meta["name"]),
        variant=str(prepared.meta["variant"]),
        checksum=str(prepared.meta.get("tokens_sha256", prepared.meta["sha256"])),
        arrays={split: arrays.get(split, empty) for split in SPLITS},
        n_symbols=n_symbols,
        symbols=symbols,
        notes=tuple(prepared.meta.get("notes", ())),
    )


class Windows:
    """Rows of `length` symbols that stand one after another in a split.

    Training windows start anywhere in the train split, or where they are `whole` at a multiple of their length; row i
    of a batch does not depend on the batch size.
    Valid and test are cut into consecutive windows, each of which begins with the last `overlap` symbols of the one
    before; the last one is moved back to end with the split.
    `UserError` if a split is shorter than `length`, which the message calls `length_is`.
    """

    def __init__(self, corpus: Corpus, length: int, length_is: str, *, whole: bool = False, overlap: int = 0) -> None:
        self.corpus = corpus
        self.length = length
        self.overlap = overlap
        self._step = length if whole else 1
        shortest = min(SPLITS, key=lambda split: len(corpus.arrays[split]))
        if (n := len(corpus.arrays[shortest])) < length:
            there = count(n, corpus.symbols.removesuffix("s"))
            raise UserError(
                "bad_value",
                f"{length_is} is longer than the {shortest} split of {corpus.variant} ({there}).",
                f"A row can have at most {there}: set a smaller data.length, or give a text at least "
                f"{-(-length // n)} times as long."
                if n
                else "Give a longer text.",
            )

    def numbers(self, split: str, step: int, batch_size: int) -> np.ndarray:
        """The numbers of the windows in batch `step` of valid or test; `IndexError` past the end."""
        numbers = np.arange(step * batch_size, (step + 1) * batch_size)
        numbers = numbers[numbers < self.n_rows(split)]
        if step < 0 or len(numbers) == 0:
            raise IndexError(f"{split} of {self.corpus.variant} has no batch {step} of {batch_size} rows")
        return numbers

    def rows(self, split: str, seed: int, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [B, L] (int64) of batch `step`, and by how much each was moved back into the one before.

        A pure function of its arguments; valid and test ignore `seed`. `UserError` for a symbol that is none.
        """
        check_split(split)
        text = self.corpus.arrays[split]
        last = len(text) - self.length
        if split == "train":
            wanted = self._step * draw(self.corpus.variant, split, seed, step, batch_size, last // self._step + 1)
        else:
            wanted = (self.length - self.overlap) * self.numbers(split, step, batch_size)
        starts = np.minimum(wanted, last)
        rows_BL = np.empty((len(starts), self.length), dtype=np.int64)
        for row, start in enumerate(starts):
            rows_BL[row] = text[start : start + self.length]
        if (largest := int(rows_BL.max())) >= self.corpus.n_symbols:
            raise UserError(
                "unknown_token",
                f"{split} of {self.corpus.variant} holds token {largest}, and its vocabulary ends with "
                f"{self.corpus.n_symbols - 1}.",
                f"Make its arrays again: efftx data prepare {self.corpus.name}.",
            )
        return rows_BL, wanted - starts

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """Batches that cover valid or test once; None for train, which is drawn without end."""
        check_split(split)
        return None if split == "train" else -(-self.n_rows(split) // batch_size)

    def n_rows(self, split: str) -> int:
        """Windows that lie side by side in a split, which cover it; those of train are drawn, and need not."""
        return -(-(len(self.corpus.arrays[split]) - self.overlap) // (self.length - self.overlap))


class LanguageModelRows:
    """Windows of a text as targets: no symbol is padding, and in valid and test every symbol counts once.

    The last window of valid and test has weight 0 where it repeats the one before. `vocabulary` is what the tokens
    mean (None: they are the bytes themselves). `whole`: a split is made of rows, such as pictures, and none is cut.
    `min_context`: as in `with_minimum_context`.
    """

    chance_accuracy = None
    input_length = 0

    def __init__(
        self,
        corpus: Corpus,
        length: int,
        *,
        vocab_size: int,
        unit: str,
        vocabulary: Vocabulary | None = None,
        whole: bool = False,
        min_context: int = 0,
    ) -> None:
        self.name, self.variant, self.checksum = corpus.name, corpus.variant, corpus.checksum
        self.notes = corpus.notes
        self.vocab_size, self.unit, self.length = vocab_size, unit, length
        self.vocabulary = vocabulary
        self._windows = Windows(corpus, length, f"data.length={length}", whole=whole, overlap=min_context)

    def with_minimum_context(self, min_context: int, at_most: int | None) -> LanguageModelRows:
        """The same valid and test, in rows that slide by `length` - `min_context` symbols.

        The first `min_context` symbols of a row have weight 0, so that every symbol that counts has at least as many
        before it; it counts once, and the first of a split never (Sparse Transformers, table 3). `at_most`: of a split
        only so many symbols are read (None: all). ValueError for a context that leaves nothing of a row.
        """
        if not 0 <= min_context < self.length:
            raise ValueError(f"A row of {self.length} symbols cannot have a context of {min_context} before each.")
        corpus = self._windows.corpus
        held_out = {split: array if split == "train" else array[:at_most] for split, array in corpus.arrays.items()}
        return LanguageModelRows(
            replace(corpus, arrays=held_out),
            self.length,
            vocab_size=self.vocab_size,
            unit=self.unit,
            vocabulary=self.vocabulary,
            min_context=min_context,
        )

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch `step`, a pure function of its arguments; valid and test ignore `seed`.

        Shapes [batch_size, length]; the last batch of valid and test has the rows that are left. `IndexError` past it.
        """
        tokens_BL, moved_B = self._windows.rows(split, seed, step, batch_size)
        counts_BL = np.arange(self.length) >= moved_B[:, None] + (0 if split == "train" else self._windows.overlap)
        return Batch.of(tokens_BL, counts_BL)

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """Batches that cover valid or test once; None for train, which is drawn without end."""
        return self._windows.n_batches(split, batch_size)

    def stream(self, split: str) -> np.ndarray:
        """The whole split, token after token."""
        check_split(split)
        return self._windows.corpus.arrays[split]
