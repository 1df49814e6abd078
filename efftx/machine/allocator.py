"""The allocator of the process: what it is told, and what a record says of it."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

# What changes an allocator's behaviour, and with it a measurement of memory or time.
_SETTINGS = (
    "MALLOC_ARENA_MAX",
    "MALLOC_CONF",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "GLIBC_TUNABLES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "THP_MEM_ALLOC_ENABLE",
)
_FOR_GPUS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_told: dict[str, str] = {}


def keep_freed_memory() -> bool:
    """Has glibc keep the memory of tensors that are gone for the next ones; whether it does so now.

    Of itself it maps every block above 32 MiB anew and gives it back to the system, and the system fills it with zeros
    page by page, in every training step whose activations are that large. What the process holds grows by what lies
    unused between its tensors, and no result depends on it. Left alone where the environment sets an
    allocator or its options, and where the C library is another.
    """
    variables = settings()
    if _told or set(variables) - set(_FOR_GPUS) or platform.libc_ver()[0] != "glibc":
        return bool(_told)
    mallopt = ctypes.CDLL(None).mallopt
    if mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1):
        _told["mallopt"] = "freed memory is kept"
    return bool(_told)


def settings() -> dict[str, str]:
    """What the environment sets of the allocator, by the variable's name, and what this process has told it."""
    variables = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    preloaded = [Path(entry).name for entry in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()]
    if preloaded:
        variables["LD_PRELOAD"] = " ".join(preloaded)
    return {**variables, **_told}
