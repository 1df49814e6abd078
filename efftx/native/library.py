"""`kernels.cpp` as a library: compiled once a machine by its own C++ compiler, kept, loaded through ctypes.

It is kept with its checksum beside it and compiled anew where it does not have that: to load half a library is to die.

Calls keep Python's lock, so that the `room` for intermediate results is one call's at a time.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor

from efftx.core.artifact import read_checked, write_checked
from efftx.core.cache import cache_root
from efftx.core.files import sweep
from efftx.core.lines import say
from efftx.errors import UserError

SOURCE = Path(__file__).with_name("kernels.cpp")
SOURCES = (SOURCE, *(Path(__file__).with_name(name) for name in ("vectors.h", "int4.h")))
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
COMPILERS = ("c++", "g++", "clang++")
SECONDS_TO_COMPILE, SECONDS_TO_NAME_ITSELF = 120, 20

_KEPT_IN, _MAKING = "native", ".making-"
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Kernels(NamedTuple):
    """`efftx_run`, what a compilation has settled, and the compiler's own name and version."""

    run: Callable[..., None]
    lanes: int
    chunk: int
    most_rows: int
    compiler: str


class NoKernelsError(Exception):
    """Why there are no compiled kernels, in words."""


@cache
def kernels() -> Kernels | None:
    """The library, compiled now if it never was on this machine; None where that cannot be, or `EFFTX_NATIVE` is 0.

    Why it cannot be is said once on stderr: PyTorch's own operations do the same, slower.
    """
    if os.environ.get("EFFTX_NATIVE", "1") == "0" or _has_other_threads():
        return None
    why = []
    try:
        for compiler in _compilers():
            try:
                return _made_by(compiler)
            except (OSError, AttributeError, subprocess.SubprocessError) as error:
                why.append(f"{shlex.join(compiler)}: {_reason(error)}")
    except NoKernelsError as error:
        why.append(str(error))
    message = f"decoding goes on without compiled kernels, slower ({'; '.join(why)})"
    say(f"note: {message}. EFFTX_NATIVE=0 asks for that.")
    return None


def described() -> str:
    """What a timing says of them: the compiler, or that there are none."""
    library = kernels()
    return "none" if library is None else f"{library.compiler}, {32 * library.lanes} bits a vector"


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
    """What to try: the one that CXX names, or those on the path; NoKernelsError where that is none."""
    named = os.environ.get("CXX")
    try:
        commands = [shlex.split(named)] if named else [[path] for name in COMPILERS if (path := shutil.which(name))]
    except ValueError as error:
        raise NoKernelsError(f"CXX={named}: {error}") from None
    if not any(commands):
        raise NoKernelsError(f"CXX={named} names nothing" if named else f"none of {', '.join(COMPILERS)} is here")
    return commands


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in str(error.stderr).splitlines() if line.strip()]
        return f"exit code {error.returncode}{f', {lines[0].strip()[:200]}' if lines else ''}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it has not ended after {error.timeout:g} seconds"
    return str(error)


def _made_by(compiler: list[str]) -> Kernels:
    """The library that `compiler` makes, as it lies in the cache or compiled into it."""
    version = _run([*compiler, "--version"], SECONDS_TO_NAME_ITSELF).strip().splitlines() or [compiler[0]]
    sources = [file.read_text(encoding="utf-8") for file in SOURCES]
    known = [*sources, *compiler, *FLAGS, version[0].strip(), _processor()]
    name = f"kernels-{hashlib.sha256(chr(0).join(known).encode()).hexdigest()[:16]}.so"
    file = cache_root() / _KEPT_IN / name
    if not _is_intact(file):
        file = _folder() / name
        _compile(compiler, file)
    return _loaded(file, version[0].strip())


def _is_intact(file: Path) -> bool:
    try:
        return read_checked(file) is not None
    except UserError:  # damaged, or not to be read
        return False


def _compile(compiler: list[str], file: Path) -> None:
    """Make the library, whole or not at all: one process at a time, the others wait and find it made."""
    with FileLock(file.parent / ".lock", timeout=SECONDS_TO_COMPILE + 1):
        for left in file.parent.glob(f"{_MAKING}*"):  # by a process that was killed; the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        sweep(file.parent)
        if not _is_intact(file):
            with tempfile.TemporaryDirectory(prefix=_MAKING, dir=file.parent) as folder:
                made = Path(folder) / file.name
                _run([*compiler, *FLAGS, str(SOURCE), "-o", str(made)], SECONDS_TO_COMPILE)
                write_checked(file, made.read_bytes())


def _run(command: list[str], seconds: float) -> str:
    """What a command says; when its time is over, it is ended with all the processes that it has started."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, err)
    return out


def _folder() -> Path:
    """Where libraries are compiled: the user's cache, or a folder of this process where that cannot be written."""
    folder = cache_root() / _KEPT_IN
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    own_folder = Path(tempfile.mkdtemp(prefix="efftx-native-"))
    atexit.register(shutil.rmtree, own_folder, ignore_errors=True)
    return own_folder


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
    most_rows = library.efftx_most_rows
    run.argtypes = [_POINTER, _POINTER, _INT, _INT, _POINTER, _INT, _INT, _POINTER, _INT]
    run.restype = None
    lanes.restype = chunk.restype = most_rows.restype = _INT
    return Kernels(run, lanes(), chunk(), most_rows(), version)
