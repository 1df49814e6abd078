"""`kernels.cpp` as a library: compiled once a machine by its own C++ compiler, kept, loaded through ctypes.

Calls keep Python's lock, so that the `room` for intermediate results is one call's at a time.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
SOURCES = (SOURCE, Path(__file__).with_name("vectors.h"))
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
COMPILERS = ("c++", "g++", "clang++")
SECONDS_TO_COMPILE = 120

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Kernels(NamedTuple):
    """`efftx_run`, what a compilation has settled, and the compiler's own name and version."""

    run: Callable[..., None]
    lanes: int
    chunk: int
    compiler: str


@cache
def kernels() -> Kernels | None:
    """The library, compiled now if it never was on this machine; None where that cannot be, or `EFFTX_NATIVE` is 0."""
    if os.environ.get("EFFTX_NATIVE", "1") == "0" or _has_other_threads():
        return None
    for compiler in _compilers():
        try:
            return _loaded(_compiled(compiler), _version(compiler))
        except (OSError, subprocess.SubprocessError, AttributeError):
            continue
    return None


def described() -> str:
    """What a timing says of them: the compiler, or that there are none."""
    found = kernels()
    return "none" if found is None else f"{found.compiler}, {32 * found.lanes} bits a vector"


def usable(*tensors: Tensor | None) -> bool:
    """Whether the kernels are there and can read these where they lie: float32, on the CPU, contiguous."""
    plain = all(
        t is None or (t.dtype is torch.float32 and t.device.type == "cpu" and t.is_contiguous()) for t in tensors
    )
    return plain and kernels() is not None


_room: list[Tensor] = []


def room(n: int) -> int:
    """The address of room for `n` floats, the same for every call."""
    if not _room or _room[0].numel() < n:
        with torch.inference_mode(False):
            _room[:] = [torch.empty(n)]
    return _room[0].data_ptr()


def _has_other_threads() -> bool:
    """Whether this PyTorch brings Intel's or LLVM's OpenMP: a second team of threads beside it would be in its way."""
    if sys.platform != "linux":
        return False
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return "libiomp5" in maps or "libomp." in maps or "libomp-" in maps


def _compilers() -> list[list[str]]:
    """What to try: the one that CXX names, or those on the path."""
    if named := os.environ.get("CXX"):
        return [shlex.split(named)]
    return [[path] for name in COMPILERS if (path := shutil.which(name))]


def _version(compiler: list[str]) -> str:
    said = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    return said.splitlines()[0].strip() if said.strip() else compiler[0]


def _compiled(compiler: list[str]) -> Path:
    """The library's file: as it lies in the cache, or compiled into it."""
    sources = [file.read_text(encoding="utf-8") for file in SOURCES]
    known = [*sources, *compiler, *FLAGS, _version(compiler), _processor()]
    digest = hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]
    file = _folder() / f"kernels-{digest}.so"
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # whole or not at all, whoever else compiles it
            made = Path(folder) / file.name
            command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
            subprocess.run(command, capture_output=True, check=True, timeout=SECONDS_TO_COMPILE)
            os.replace(made, file)
    return file


def _folder() -> Path:
    """Where compiled libraries are kept: the user's cache, or a folder of this process where that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "efftx" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="efftx-native-"))


def _processor() -> str:
    """What the compiler's `native` depends on."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return " ".join(os.uname())


def _loaded(file: Path, version: str) -> Kernels:
    """The functions of a compiled library. PyTorch is imported by now: its threads are the library's too."""
    library: Any = ctypes.PyDLL(str(file))
    run, lanes, chunk = library.efftx_run, library.efftx_lanes, library.efftx_chunk
    run.argtypes = [_POINTER, _POINTER, _INT, _POINTER, _INT, _INT, _POINTER, _INT]
    run.restype = None
    lanes.restype = chunk.restype = _INT
    return Kernels(run, lanes(), chunk(), version)
