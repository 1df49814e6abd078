"""Text as it comes, token by token: what is shown is never taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CUT = "\ufffd"
_LONGEST_CUT = 3
"""Of a character of UTF-8 at most three bytes can have come without the last, and each may show as one U+FFFD."""


class TextStream:
    """The text that follows `prompt`, given out as soon as no later token can change it.

    `decode` gives the text of tokens, U+FFFD where a character is not whole. Pieces are joined as `decode` joins them:
    a blank before a word is there although the word alone is decoded without it. All that `push` and `finish` give is,
    one after the other, what `decode` says of all tokens after what it says of the prompt.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(prompt)
        self._shown = len(decode(self._ids))
        # Decoding begins here, not at the prompt's first token, else a long text would cost the square of its length.
        self._whole_at = 0 if self._shown == 0 else len(self._ids)

    def push(self, token: int) -> str:
        """What one more token makes sure."""
        self._ids.append(token)
        text = self._decode(self._ids)
        n_cut = len(text) - len(text.rstrip(_CUT))
        new = self._give(text, len(text) - min(n_cut, _LONGEST_CUT))
        # Tokens that say nothing alone, such as padding or a blank, are no place to begin: the pieces after them would
        # lose or gain a blank.
        if n_cut == 0 and new and (alone := self._decode(self._ids[self._whole_at :])):
            self._ids = self._ids[self._whole_at :]
            self._whole_at, self._shown = len(self._ids), len(alone)
        return new

    def finish(self) -> str:
        """What was held back."""
        text = self._decode(self._ids)
        return self._give(text, len(text))

    def _give(self, text: str, end: int) -> str:
        new = text[self._shown : end]
        self._shown = max(self._shown, end)
        return new
