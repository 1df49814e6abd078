"""The duplication task of Reformer (section 5, table 2): repeat a random word.

Shape suffixes: B rows of a batch, L tokens of a row.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from efftx.data.dataset import Batch, DataConfig, Source, draw
from efftx.data.prepared import SPLITS
from efftx.data.rendering import Numbers
from efftx.errors import UserError


@dataclass
class DuplicateConfig(DataConfig):
    """The paper's values are length 1024 and 127 symbols."""

    n_symbols: int = 127


@dataclass(frozen=True)
class Duplicate:
    """Rows `0 w 0 w` of `length` tokens, w uniform in {1 .. n_symbols}^(length/2 - 1).

    Weights are 1 on the second w (positions length/2 + 1 to length - 1) and 0 before it; the second 0 is foreseeable
    from its position alone and does not count. Row i of a batch does not depend on the batch size.
    Each split is a random stream of its own.
    """

    length: int
    n_symbols: int
    input_length: int = 0
    name: str = "duplicate"
    unit: str = "nats/token"

    def __post_init__(self) -> None:
        if self.length < 4 or self.length % 2:
            raise UserError(
                "bad_value",
                f"data.length={self.length} must be even and at least 4 for data=duplicate.",
                "A row is `0 w 0 w`, two halves of equal length.",
            )
        if self.n_symbols < 2:
            raise UserError("bad_value", f"data.n_symbols={self.n_symbols} must be at least 2.")

    @property
    def variant(self) -> str:
        """The name with length and number of symbols."""
        return f"duplicate[length={self.length},n_symbols={self.n_symbols}]"

    @property
    def vocab_size(self) -> int:
        """The symbols and the 0."""
        return self.n_symbols + 1

    @property
    def chance_accuracy(self) -> float:
        """Accuracy of a guess in %, 0.8 at the paper's 127 symbols."""
        return 100.0 / self.n_symbols

    @property
    def checksum(self) -> str:
        """SHA-256 over the variant and the first row of each split: another generator has another checksum."""
        digest = hashlib.sha256(self.variant.encode())
        for split in SPLITS:
            batch = self.batch(split, 0, 0, 1)
            digest.update(batch.tokens_BL.numpy().astype("<i8").tobytes())
            digest.update(batch.weights_BL.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch `step` of a split's stream, a pure function of its arguments; valid and test ignore `seed`."""
        half = self.length // 2
        drawn = draw(self.variant, split, seed, step, batch_size * (half - 1), self.n_symbols)
        tokens_BL = np.zeros((batch_size, self.length), dtype=np.int64)
        tokens_BL[:, 1:half] = 1 + drawn.reshape(batch_size, half - 1)
        tokens_BL[:, half:] = tokens_BL[:, :half]
        weights_BL = np.zeros((batch_size, self.length), np.float32)
        weights_BL[:, half + 1 :] = 1.0
        return Batch.of(tokens_BL, weights_BL)

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """None: there are always more."""
        return None


def open_duplicate(config: DuplicateConfig, objective: str = "lm") -> Duplicate:
    """The task at the configured length and number of symbols."""
    return Duplicate(config.length, config.n_symbols)


SOURCE = Source(
    name="duplicate",
    config=DuplicateConfig,
    licence="generated, no licence needed",
    variant="duplicate",
    open=open_duplicate,
    vocab_size=lambda config, objective="lm": open_duplicate(config).vocab_size,
    rendering=lambda config, objective="lm", model=None: Numbers(open_duplicate(config).vocab_size),
    endless=True,
    separators=lambda config: (0,),
)
