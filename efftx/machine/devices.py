"""Where and in which precision a run computes, what makes it repeatable, and what a record says about the machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import struct
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

import efftx
from efftx.config.schema import Config
from efftx.core.device_names import check_dtype, read_device
from efftx.core.environment import Environment
from efftx.core.memory import available_memory
from efftx.errors import UserError
from efftx.machine import allocator
from efftx.native import library

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

_PROCESSOR_WORDS = {"family": "cpu family", "model": "model", "stepping": "stepping"}


def resolve_device(name: str) -> torch.device:
    """The device that a name stands for; UserError for another name and for a GPU that is not here.

    A GPU that is named by its number becomes the process's current one, so that what asks for no number means it too.
    """
    kind, number = read_device(name)
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and n_gpus == 0:
        raise UserError(
            "no_device", f"device={name}: PyTorch finds no CUDA device here.", "Use device=cpu or device=auto."
        )
    if number is not None:
        if number >= n_gpus:
            highest = "cuda:0" if n_gpus == 1 else f"cuda:0 to cuda:{n_gpus - 1}"
            raise UserError("no_device", f"device={name}: there is no such GPU here.", f"There is {highest}.")
        torch.cuda.set_device(number)
        return torch.device("cuda", number)
    return torch.device("cuda" if kind != "cpu" and n_gpus else "cpu")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of products and activations; UserError for an unknown name, and for float16 without loss scaling."""
    check_dtype(name)
    if name == "float16" and device.type != "cuda":
        raise UserError(
            "bad_value",
            f"dtype=float16 needs loss scaling, which {device.type} does not have.",
            "Use dtype=float32, or device=cuda.",
        )
    return DTYPES[name]


def check_here(config: Config) -> None:
    """Raises UserError where this machine has not the device that `config` names, or not its dtype on it."""
    resolve_dtype(config.dtype, resolve_device(config.device))


def dtype_note(dtype: torch.dtype, device: torch.device) -> str:
    """One line to tell the user where a dtype is allowed but unwise on a device; empty where it is fine."""
    if dtype is torch.bfloat16 and device.type == "cpu":
        return "dtype=bfloat16: matrix products can be a hundred times slower than float32 on some CPUs"
    return ""


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights and optimiser state: float64 for float64, else float32, whatever the products run in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """The context for forward and loss: half-precision products for bfloat16 and float16, nothing for the other two."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(device.type, dtype)
    return contextlib.nullcontext()


LEAST_SCALE = 2.0**10


class LossScaler(torch.amp.GradScaler):
    """Dynamic loss scaling: a step with an infinity or a NaN is skipped and halves the scale, 1000 good ones double it.

    It begins at 2^16 and never falls below 2^10 (Sparse Transformers; the bounds are those of the authors' code).
    """

    def __init__(self, device: str, *, enabled: bool = True) -> None:
        super().__init__(device, init_scale=2.0**16, growth_interval=1000, enabled=enabled)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Takes the step's outcome into account, after `step`."""
        super().update(new_scale)
        if self.is_enabled() and self.get_scale() < LEAST_SCALE:
            super().update(LEAST_SCALE)


def grad_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Loss scaling as in Sparse Transformers (`LossScaler`), which is off except for float16.

    Switched off it hands loss, gradients and step through untouched, so that a loop needs no second path.
    """
    enabled = dtype is torch.float16 and device.type == "cuda"
    return LossScaler(device.type, enabled=enabled)


@contextmanager
def threads_of(n: int) -> Iterator[None]:
    """PyTorch has `n` threads meanwhile, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_determinism(threads: int | None) -> int:
    """Make operations repeat bit for bit at a fixed number of threads (None: as it is); gives that number.

    On the CPU an operation without a deterministic form is an error; where a GPU is present it is a warning.
    """
    if threads is not None:
        if threads < 1:
            raise UserError("bad_value", f"threads={threads} must be at least 1.")
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; without it cuBLAS may vary
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.backends.cudnn.benchmark = False
    # Filling every new tensor with NaN finds bugs in kernels, costs a pass over memory and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.get_num_threads()


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has left, those that PyTorch keeps of tensors that are gone among them; None if not known."""
    if device.type != "cuda":
        return available_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def step_seed(seed: int, step: int, micro: int = 0) -> int:
    """A 64-bit seed for one micro-batch of one step: the same on every machine, unrelated for neighbouring numbers."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, step, micro), digest_size=8, person=b"efftx step")
    return int.from_bytes(digest.digest(), "little")


def seed_step(seed: int, step: int, micro: int = 0) -> int:
    """Seed PyTorch's generators so that a step's randomness is a function of (seed, step, micro-batch) alone.

    With it nothing random has to be saved: a resumed run draws what the run never stopped draws. Gives the seed.
    """
    value = step_seed(seed, step, micro)
    torch.manual_seed(value)
    return value


def environment() -> Environment:
    """What a record says about where it was made."""
    root = Path(efftx.__file__).resolve().parent.parent
    commit, clean = _git_state(root)
    return Environment(
        efftx=efftx.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        system=platform.system(),
        processor=_processor(),
        instructions=_instructions(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        git_commit=commit,
        git_clean=clean,
        allocator=allocator.settings(),
        kernels=library.described(),
    )


def _processor() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    entries = _cpuinfo()
    of = [f"{word} {entries[key]}" for word, key in _PROCESSOR_WORDS.items() if key in entries]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *of])


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; {} elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    parts = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in parts}


def _git_state(root: Path) -> tuple[str | None, bool | None]:
    """Commit and cleanness of the code at `root`; (None, None) where it is not a checkout of its own.

    An installed package that lies inside somebody's repository must not claim that repository's commit.
    """
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changes = _git(root, "status", "--porcelain", "--", "efftx", "conf", "experiments", "pyproject.toml")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, not changes.strip()


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
