"""What a command gives, and how it reaches the console: as JSON, or as people read it."""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NamedTuple

from efftx.core.artifact import finite
from efftx.core.lines import in_lines

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160

_ASCII = {
    **{"–": "-", "—": "-", "×": "x", "±": "+/-", "≤": "<=", "≥": ">=", "−": "-", "…": "...", "·": ".", "→": "->"},
    **{"─": "-", "━": "-", "│": "|", "≈": "~", "✓": "+", "✗": "x", "∅": "0", "○": "o", "†": "*"},
}


class Outcome(NamedTuple):
    """What a command gives: its JSON object, how people see it, and the exit code.

    Not `shown`: another process of the same command shows the same.
    """

    json: dict[str, Any]
    show: Callable[[Console], None]
    exit_code: int = 0
    shown: bool = True


def as_json(content: Any) -> str:
    """`content` as one JSON text in ASCII; a NaN or an infinity, which JSON does not have, becomes null."""
    return json.dumps(finite(content), indent=1, allow_nan=False)


def console() -> Console:
    """stdout for people: as wide as the terminal, or in a pipe as COLUMNS says, 160 where it says nothing.

    A path or a name is written as it is: nothing in a string is markup, styles come as rich's Text.
    """
    from rich.console import Console  # `efftx --help` needs none

    fits_itself = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=None if fits_itself else PIPE_WIDTH, markup=False, emoji=False)


def show_error(message: str, hint: str) -> None:
    """A user's mistake on stderr, in words."""
    from rich.console import Console
    from rich.text import Text

    behind = "\n" + " " * len("efftx: ")
    body, way_on = (behind.join(in_lines(text, sys.stderr, len("efftx: "))) for text in (message, hint))
    shown = Text.assemble(("efftx:", "bold red"), f" {body}", f"{behind}{way_on}" if hint else "")
    Console(stderr=True, soft_wrap=True, highlight=False).print(shown)


def tolerate_any_console() -> None:
    """Lets stdout and stderr write in whatever encoding they have; what that lacks becomes ASCII or a question mark."""
    codecs.register_error("efftx", _replaced)
    for name in ("COLUMNS", "LINES"):
        # rich takes whatever Unicode calls a digit for a number, and prints nothing at all in no columns.
        if not re.fullmatch(r"[1-9][0-9]{0,5}", os.environ.get(name, "1")):
            del os.environ[name]
    # A closed stdout or stderr is None.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="efftx")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(c, "?") for c in error.object[error.start : error.end]), error.end
