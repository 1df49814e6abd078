"""No process outlives the one that started it, however that one ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

PARENT = "EFFTX_PARENT"
"""Names, in a started process's environment, the process whose end is also its own."""
EVERY = 0.5
"""Seconds between two looks at whether the parent is alive."""
GRACE = 5.0
"""Seconds in which a training reaches the end of its step and writes a checkpoint."""


def with_parent(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that shall end with this one."""
    return {**environment, PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Where `PARENT` is given, watch for its end from now on; read once, so that it is not inherited further."""
    named = os.environ.pop(PARENT, "")
    if named.isdecimal():
        follow(int(named))


def follow(parent: int) -> None:
    """SIGTERM to this process as soon as `parent` is no longer its parent; `GRACE` seconds later it is ended.

    A watching thread and not PR_SET_PDEATHSIG: that signal comes when the thread that started the process ends.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
