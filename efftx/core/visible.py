"""Text for a terminal: nothing in it is a command."""

from __future__ import annotations

_PICTURES = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
}


def visible(text: str) -> str:
    """`text` with control characters, but line ends and tabs, as Unicode's pictures of them: for a terminal.

    A model of bytes can say any, a file can be called by any, and a terminal would obey them.
    """
    return text.translate(_PICTURES)
