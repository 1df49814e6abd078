"""What is being worked on, for whoever shows progress: `LSH-4, seed 0`, and which of how many runs that is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Work:
    """A name, and its place among all that a command runs; `of` is 0 where it is alone."""

    name: str
    number: int = 0
    of: int = 0

    @property
    def place(self) -> str:
        """`(3 of 8)`; empty where there is nothing else."""
        return f"({self.number} of {self.of})" if self.of > 1 else ""

    def __str__(self) -> str:
        return f"{self.name} {self.place}".strip()


_CURRENT: ContextVar[Work | None] = ContextVar("efftx_work", default=None)


def current_work() -> Work | None:
    """What the caller has been told that it works on."""
    return _CURRENT.get()


@contextlib.contextmanager
def working_on(work: Work) -> Iterator[None]:
    """Within, this is worked on."""
    token = _CURRENT.set(work)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def part_of_work(name: str) -> Iterator[None]:
    """Within, a part of what is worked on: `pre-training for LSH-4, seed 0`; nothing where nothing was said."""
    whole = current_work()
    with working_on(replace(whole, name=f"{name} {whole.name}")) if whole else contextlib.nullcontext():
        yield
