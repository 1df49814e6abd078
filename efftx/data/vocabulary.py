"""What the tokens of a text stand for: pieces of text, then the sentinels that mark where text was taken out.

In every vocabulary id 0 is padding, 1 the end of a sequence, 2 an unknown piece; the sentinels are the last ids of the
table in T5's order, the first sentinel the highest id.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

PAD, EOS, UNK = 0, 1, 2
N_SENTINELS = 100
_BYTES_FROM = 3


class Vocabulary(ABC):
    """Text to ids and back; `name` says which vocabulary it is, `checksum` (SHA-256 in hex) which exactly."""

    n_sentinels = N_SENTINELS
    name: str
    n_pieces: int
    checksum: str

    @property
    def size(self) -> int:
        """Pieces and sentinels: the ids are 0 to size - 1."""
        return self.n_pieces + self.n_sentinels

    def sentinel(self, i: int) -> int:
        """The id of sentinel i, size - 1 for the first; `ValueError` if there is none."""
        if not 0 <= i < self.n_sentinels:
            raise ValueError(f"There is no sentinel {i}: the vocabulary has {self.n_sentinels}.")
        return self.size - 1 - i

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an end of sequence."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: padding and end of sequence give nothing, sentinel i `<extra_id_i>` as in T5.

        `ValueError` for an id outside the table.
        """
        text, run = "", list[int]()
        for token in ids:
            if not 0 <= token < self.size:
                raise ValueError(f"{token} is no id of {self.name}, which has {self.size}.")
            if token >= self.n_pieces:
                text += self._decode_pieces(run) + f"<extra_id_{self.size - 1 - token}>"
                run = []
            elif token not in (PAD, EOS):
                run.append(token)
        return text + self._decode_pieces(run)

    @abstractmethod
    def _decode_pieces(self, ids: list[int]) -> str:
        """The text of pieces alone."""


class ByteVocabulary(Vocabulary):
    """The bytes of UTF-8: byte b is id 3 + b. Every text comes back as it was; wrong UTF-8 decodes to U+FFFD."""

    name = "bytes"
    first = _BYTES_FROM
    n_pieces = _BYTES_FROM + 256
    checksum = hashlib.sha256(b"efftx bytes: 0 padding, 1 end of sequence, 2 unknown, byte b is 3 + b").hexdigest()

    def encode(self, text: str) -> list[int]:
        """One id a byte."""
        return [_BYTES_FROM + byte for byte in text.encode()]

    def _decode_pieces(self, ids: list[int]) -> str:
        return bytes(token - _BYTES_FROM for token in ids if token != UNK).decode(errors="replace")
