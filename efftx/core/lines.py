"""Lines on stderr, or another stream: no wider than a terminal is, and unbroken in a pipe."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """A line on stderr, in several where a terminal is narrower."""
    stream = stream if stream is not None else sys.stderr
    print("\n".join(in_lines(text, stream)), file=stream, flush=True)


def in_lines(text: str, stream: TextIO, indent: int = 0) -> list[str]:
    """`text` as `stream` shows it `indent` from the left: broken at spaces on a terminal, as it is elsewhere."""
    width = width_of(stream)
    if width is None:
        return text.split("\n")
    from efftx.core.grid import wrapped  # imports rich

    return wrapped(text, max(1, width - indent))


def shortened(line: str, width: int) -> str:
    """A line of progress in at most `width` columns: of its parts, two spaces apart, the last but one goes first."""
    parts = line.split("  ")
    while len("  ".join(parts)) > width and len(parts) > 3:
        del parts[-2]
    shown = "  ".join(parts)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def width_of(stream: TextIO) -> int | None:
    """The columns of the terminal that `stream` is, COLUMNS where that is set; None where it is none."""
    if not stream.isatty():
        return None
    if (columns := os.environ.get("COLUMNS", "")).isdecimal():
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # a terminal of a test, which has no file
        return None
