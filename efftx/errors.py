"""The one way to tell a user what is wrong: a sentence, a hint, and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2
EXIT_NOT_FINITE = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class UserError(Exception):
    """A mistake that the user can mend: shown as one message, without a traceback, exit code 2.

    `kind` is a short machine-readable word (`unknown_key`, `bad_value`, `missing_file`, ...), `message` says what is
    wrong and where, `hint` what to do about it. `common`: all processes of a training raise it alike, so that one of
    them tells it.
    """

    exit_code = EXIT_USER_ERROR
    common = False

    def __init__(self, kind: str, message: str, hint: str = "", *, common: bool = False) -> None:
        super().__init__(f"{message} {hint}".strip())  # so that a traceback, in Python, has the hint too
        self.kind = kind
        self.message = message
        self.hint = hint
        self.common = self.common or common


class NotFiniteError(UserError):
    """Training or evaluation met a NaN or an infinity; what was written before it is kept. Exit code 3."""

    exit_code = EXIT_NOT_FINITE
    common = True


class OutOfMemory(UserError):  # noqa: N818 - as the field calls it
    """An allocation failed. Exit code 4 where a training had `begun`, its last checkpoint kept; else 2."""

    def __init__(self, message: str, hint: str = "", *, begun: bool = False) -> None:
        super().__init__("out_of_memory", message, hint)
        self.exit_code = EXIT_OUT_OF_MEMORY if begun else EXIT_USER_ERROR


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """Training stopped at a step boundary on SIGINT or SIGTERM: its checkpoint is written, but for a replay."""

    common = True

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message


def nearest(name: str, known: Iterable[str], *, at_most: int = 40) -> str:
    """A hint that names the closest known word, or those that `name` is a part of (`lsh` of `lsh-2`, `table2` of
    `reformer/table2`); where none is close, it lists all of them if they are `at_most`."""
    names = sorted(set(known))
    if name and (whole := [n for n in names if n.endswith((f"/{name}", f".{name}")) or n.startswith(f"{name}-")]):
        return f"Did you mean {' or '.join(repr(n) for n in whole)}?"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(names)}." if 0 < len(names) <= at_most else ""
