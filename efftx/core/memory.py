"""Memory that is not enough: how much there is, and the one message where an allocation fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from efftx.errors import OutOfMemory

# What PyTorch's allocators say in a RuntimeError; numpy and Python raise MemoryError.
_SAID = ("out of memory", "can't allocate memory", "bad_alloc", "cannot allocate memory")

_ELSEWHERE = "End other programs, or use a machine with more memory."


@contextmanager
def allocating(what: str, less: str, *, begun: bool = False) -> Iterator[None]:
    """Turns a failed allocation of PyTorch, numpy or Python, on CPU or GPU, into OutOfMemory.

    `what` was being allocated, `less` names options that make it smaller, empty where there is none; `begun`: a
    training had made its first step. Every other error passes.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(what, less, begun=begun) from error


def out_of_memory(what: str, less: str, *, begun: bool = False) -> OutOfMemory:
    """The error that says which allocation failed, and what makes it smaller."""
    way_on = f"Set {less}; `efftx plan` says what a training takes." if less else _ELSEWHERE
    stays = " The last checkpoint is kept." if begun else ""
    return OutOfMemory(
        f"Out of memory: {what}.{stays}",
        way_on,
        begun=begun,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: MemoryError, or what PyTorch raises in its place."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _SAID)


def total_memory() -> int | None:
    """Bytes of memory that the machine has; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def available_memory() -> int | None:
    """Bytes of memory that are free or can be freed at once; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return None
