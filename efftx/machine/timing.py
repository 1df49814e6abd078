"""Time: one timing at a time on a machine, all sides of a comparison in turns, and what the machine can do at best."""

from __future__ import annotations

import gc
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from efftx.core.files import read_file, write_atomically
from efftx.core.lines import say
from efftx.errors import UserError
from efftx.machine.devices import environment
from efftx.native.program import reading

WARM_UP = 1
IN_TURNS = "in turns (A, B, ..., A, B, ...), medians"
MATMUL_WIDTH = 2048
READ_BYTES = 2**30
"""Far above any last-level cache, so that it is memory that is read."""
STATISTICS = Path("/proc/stat")
"""Its first line: cpu, then user, nice, system, idle, iowait, irq, softirq, steal."""


@dataclass(frozen=True)
class Timing:
    """The median in seconds, and `spread`, largest minus smallest over the median."""

    seconds: float
    spread: float


def percentile(seconds: Sequence[float], share: float) -> float:
    """The smallest of them that at least `share` of them do not exceed; the slowest where they are too few for it."""
    rank = math.ceil(share * len(seconds) - 1e-9)  # a share has no exact float: 0.07 of 100 is above 7
    return sorted(seconds)[max(0, rank - 1)]


def stolen_seconds() -> float | None:
    """Steal time since the machine started, in seconds summed over its processors; None where Linux does not say it.

    While it grows the hypervisor runs something else on a processor that this virtual machine wants. In steps of 10 ms.
    """
    try:
        with STATISTICS.open("rb") as file:
            return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def lock_path() -> Path:
    """The file that whoever times on this machine locks: in the folder for temporary files, open to all users."""
    return Path(tempfile.gettempdir()) / "efftx-timing.lock"


def _owner_path() -> Path:
    """Who holds the lock, for whoever waits; beside it, since opening a lock file empties it."""
    return lock_path().with_suffix(".owner")


def _holder() -> str:
    try:
        return f" ({read_file(_owner_path(), 1000).decode()})"
    except (OSError, UserError, UnicodeDecodeError):
        return ""


@contextmanager
def exclusive(at_most: float | None = None) -> Iterator[None]:
    """No other timing on this machine runs meanwhile; waits for one that does. May be nested in a thread.

    Raises UserError where the lock file cannot be opened, and after `at_most` seconds of waiting (None: never).
    """
    lock = FileLock(lock_path(), mode=0o666, is_singleton=True)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if at_most is None:
                say(f"waiting for another timing on this machine{_holder()}")
            lock.acquire(timeout=-1 if at_most is None else at_most)
        with suppress(OSError):  # another user's name, which this one may not replace
            write_atomically(_owner_path(), f"process {os.getpid()}, since {time.strftime('%H:%M:%S')}".encode())
    except Timeout as error:
        raise UserError(
            "busy", f"Another timing runs on this machine{_holder()}.", "Try again when it has ended."
        ) from error
    except OSError as error:
        raise UserError(
            "no_lock", f"{lock_path()} cannot be locked: {error}.", "Set TMPDIR to a folder that you can write to."
        ) from error
    try:
        yield
    finally:
        lock.release()


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device, warm_up: int = WARM_UP
) -> dict[str, Timing]:
    """Seconds of each call: `warm_up` uncounted turns, then `repeats` turns A, B, ..., A, B, ...; under `exclusive`.

    Turns let a disturbance of the machine hit all sides alike. The garbage collector waits meanwhile.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with exclusive(), no_garbage_collection():
        for turn in range(-warm_up, repeats):
            for name, call in calls.items():
                _wait_for(device)
                started = time.perf_counter()
                call()
                _wait_for(device)
                if turn >= 0:
                    samples[name].append(time.perf_counter() - started)
    return {name: _summary(values) for name, values in samples.items()}


def _summary(seconds: list[float]) -> Timing:
    median = statistics.median(seconds)
    return Timing(median, (max(seconds) - min(seconds)) / median if median else 0.0)


def matmul_call(
    device: torch.device, width: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], object], float]:
    """A call that multiplies two square matrices (default 2048 wide), and its FLOPs; draws from no generator in use."""
    width = width or MATMUL_WIDTH
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(width, width, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * width**3


def read_bandwidth(device: torch.device, *, repeats: int = 3) -> float:
    """Bytes a second read from memory: 1 GiB of it."""
    x = torch.ones(READ_BYTES // 4, device=device)
    timed = interleaved({"read": reading(x)}, repeats=repeats, device=device)["read"]
    return READ_BYTES / timed.seconds


def matmul_rate(
    device: torch.device, *, repeats: int = 3, width: int | None = None, dtype: torch.dtype = torch.float32
) -> float:
    """FLOP/s of a square product (`matmul_call`) by itself; a comparison measures it in turns with its rows."""
    call, flops = matmul_call(device, width, dtype)
    return flops / interleaved({"matmul": call}, repeats=repeats, device=device)["matmul"].seconds


def machine(device: torch.device, *, repeats: int, warm_up: int = WARM_UP, order: str = IN_TURNS) -> dict[str, Any]:
    """What a timing says of its circumstances: versions, threads, allocator, load, and how it was taken."""
    return {
        **asdict(environment()),
        "device": str(device),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "warm_up": warm_up,
        "repeats": repeats,
        "order": order,
        "lock": str(lock_path()),
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """The garbage collector waits meanwhile."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
