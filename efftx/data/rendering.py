"""What the tokens of a data set become for people (a text, or files that show or play them), and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from efftx.data.vocabulary import EOS, UNK, Vocabulary
from efftx.errors import UserError

_SHOWN = 20
_SENTINEL = re.compile(r"<extra_id_(\d+)>")


class Rendering(Protocol):
    """What people give for tokens, and what tokens become: the answer of the data set, for whoever shows them.

    `kind` says what that is: text. `eos` is the token that ends a row (None: none does). `ends_inputs`: an encoder's
    input has it at its end. `form` says what is to be given, for a hint.
    """

    @property
    def kind(self) -> str:
        """What tokens become: text."""
        ...

    @property
    def eos(self) -> int | None:
        """The token that ends a row."""
        ...

    @property
    def ends_inputs(self) -> bool:
        """Whether an encoder's input has `eos` at its end."""
        ...

    @property
    def form(self) -> str:
        """What is to be given, such as `any text`."""
        ...

    def encode(self, given: str) -> list[int]:
        """The tokens of what was given, without an end; UserError where there are none for a part of it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; padding and ends give nothing. What is cut within a character gives U+FFFD there."""
        ...

    def files(self, rows: Sequence[Sequence[int]]) -> list[tuple[str, bytes]]:
        """Rows of tokens as files: the end of each one's name and its bytes. A text is shown as it is, and has none."""
        ...


class Text:
    """What all texts have in common."""

    kind = "text"

    def files(self, rows: Sequence[Sequence[int]]) -> list[tuple[str, bytes]]:
        """An empty list: a text is shown as it is."""
        return []


class RawBytes(Text):
    """Byte b is token b, as in a language model of bytes."""

    eos: int | None = None
    ends_inputs = False
    form = "any text"

    def encode(self, text: str) -> list[int]:
        """The bytes of UTF-8."""
        return list(_utf8(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of bytes; wrong UTF-8 decodes to U+FFFD."""
        return bytes(ids).decode(errors="replace")


class Pieces(Text):
    """The pieces of a vocabulary; `<extra_id_0>` in a text is the first sentinel, as T5 writes it."""

    eos: int | None = EOS
    ends_inputs = True
    form = "any text"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """The pieces; UserError for a character that none has, and for a sentinel past the last."""
        _utf8(text)
        ids: list[int] = []
        for i, part in enumerate(_SENTINEL.split(text)):  # every second part is a sentinel's number
            ids += [self._sentinel(part)] if i % 2 else self._pieces(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of pieces, sentinel i as `<extra_id_i>`."""
        return self.vocabulary.decode(ids)

    def _pieces(self, text: str) -> list[int]:
        ids = self.vocabulary.encode(text)
        if UNK in ids:
            unknown = [c for c in dict.fromkeys(text) if UNK in self.vocabulary.encode(c)]
            shown = " ".join(unknown[:5]) or text
            message = f"The vocabulary {self.vocabulary.name} has no piece for: {shown}"
            raise UserError("unknown_token", message, "Write it in characters that the training text has.")
        return ids

    def _sentinel(self, number: str) -> int:
        if number not in map(str, range(self.vocabulary.n_sentinels)):  # other scripts have digits too
            shown = number if len(number) <= _SHOWN else f"{number[:_SHOWN]}..."
            message = f"<extra_id_{shown}> is no token of the vocabulary {self.vocabulary.name}."
            raise UserError("unknown_token", message, f"The last one is <extra_id_{self.vocabulary.n_sentinels - 1}>.")
        return self.vocabulary.sentinel(int(number))


class Numbers(Text):
    """Tokens that stand for nothing else, written as numbers with blanks between them."""

    eos: int | None = None
    ends_inputs = False

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @property
    def form(self) -> str:
        """Numbers and their range."""
        return f"numbers from 0 to {self.vocab_size - 1} with blanks between them, such as '0 3 1 2 0'"

    def encode(self, text: str) -> list[int]:
        """The numbers; UserError for a word that is none, or one beyond the vocabulary."""
        for word in text.split():
            if not re.fullmatch("[0-9]{1,18}", word) or int(word) >= self.vocab_size:
                shown = word if len(word) <= _SHOWN else f"{word[:_SHOWN]}..."
                message = f"'{shown}' is no token: the vocabulary has {self.vocab_size}."
                raise UserError("unknown_token", message, f"Write {self.form}.")
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The numbers."""
        return " ".join(map(str, ids))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # what a shell hands on of bytes that are no UTF-8
        raise UserError("unknown_token", "The text is not UTF-8.", "Write it in UTF-8.") from error
