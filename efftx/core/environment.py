"""What a record says about the machine and the code that made it: one form, written by a run and read by the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Environment:
    """Versions, processor, threads and code of a run; no host, user or path. What the system does not say is None.

    `instructions`: the vector instructions that PyTorch uses and the processor's family, model and stepping, since its
    name may be that of a whole line. `allocator`: the settings that change an allocator's behaviour. `kernels`: the
    compiler of the decoding kernels. `git_clean` is None where the code is not a checkout of its own, as `git_commit`.
    """

    efftx: str | None = None
    python: str | None = None
    torch: str | None = None
    system: str | None = None
    processor: str | None = None
    instructions: str | None = None
    cores: int | None = None
    threads: int | None = None
    gpu: str | None = None
    git_commit: str | None = None
    git_clean: bool | None = None
    allocator: Mapping[str, str] = field(default_factory=dict)
    kernels: str | None = None

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Environment:
        """The environment of a record; what an earlier version did not write is None."""
        return cls(**{f.name: recorded[f.name] for f in fields(cls) if f.name in recorded})

    @property
    def code(self) -> str:
        """The commit in twelve digits, with a word where the files differed from it; the version without a commit."""
        if self.git_commit is None:
            return f"efftx {self.efftx}" if self.efftx else ""
        return self.git_commit[:12] + (" with changes" if self.git_clean is False else "")

    @property
    def machine(self) -> str:
        """The machine and what ran on it, in one line: processor, cores, threads, GPU, versions, allocator."""
        settings = " ".join(f"{name}={value}" for name, value in sorted(self.allocator.items()))
        parts = {
            "": self.processor,
            "cores": self.cores,
            "threads": self.threads,
            "GPU": self.gpu,
            "torch": self.torch,
            "Python": self.python,
            "on": self.system,
            "allocator": settings,
            "kernels by": self.kernels,
        }
        return "; ".join(f"{name} {value}".strip() for name, value in parts.items() if value not in (None, ""))
