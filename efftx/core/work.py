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
    """What `working_on` has set here; None outside it."""
    return _CURRENT.get()


@contextlib.contextmanager
def working_on(work: Work) -> Iterator[None]:
    """Makes `work` what `current_work` gives in this context."""
    token = _CURRENT.set(work)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def part_of_work(name: str) -> Iterator[None]:
    """Puts `name` before the current work's: `pre-training for LSH-4, seed 0`; does nothing where there is none."""
    whole = current_work()
    with working_on(replace(whole, name=f"{name} {whole.name}")) if whole else contextlib.nullcontext():
        yield
