"""Processes as /proc shows them, for tests that kill one and look for what it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def children_of(pid: int) -> list[int]:
    """The ids of the processes that `pid` started and that are still there."""
    return [int(p) for task in Path(f"/proc/{pid}/task").glob("*/children") for p in task.read_text().split()]


def descendants_of(pid: int) -> list[int]:
    """The ids of the processes that `pid` started, of those that they started, and so on."""
    return [found for child in children_of(pid) for found in (child, *descendants_of(child))]


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or only its exit code."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def wait_until(holds: Callable[[], Any], seconds: float = 240) -> Any:
    """What `holds` gives as soon as that is true; AssertionError if it is not within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not come about")
