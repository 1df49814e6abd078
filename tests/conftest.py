"""What every test may ask for: golden vectors, sample files, fresh roots, few threads."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

import efftx

GOLDEN = Path(__file__).parent / "golden"
Arrays = dict[str, Tensor]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds")
    torch.set_num_threads(1)
    settings.register_profile("efftx", deadline=None)  # how long an example takes is the machine's matter
    settings.load_profile("efftx")
    # All of efftx before any test: a module that is first imported while a test has patched another keeps the patch.
    for module in pkgutil.walk_packages(efftx.__path__, "efftx."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own that holds the roots of data, runs and results, none of them made yet."""
    for name in ("data", "runs", "results"):
        monkeypatch.setenv(f"EFFTX_{name.upper()}", str(tmp_path / name))
    return tmp_path


def restore(before: dict[str, str]) -> None:
    """The variables of this process are those of `before` again."""
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a command sets, changes or removes for the rest of its process (huge pages, offline modes) ends with it."""
    before = dict(os.environ)
    yield
    restore(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Every test begins with one thread, whatever the one before it trained with."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of large sample files that the repository does not hold."""
    folder = os.environ.get("EFFTX_SAMPLES")
    if not folder:
        pytest.skip("EFFTX_SAMPLES does not name the folder of sample files")
    if not Path(folder).is_dir():
        pytest.skip(f"EFFTX_SAMPLES={folder} is not a folder")
    return Path(folder)


def read_arrays(path: Path, dtype: torch.dtype) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def golden() -> Callable[..., Arrays]:
    """`golden(name, dtype=float64)`: the arrays of one file of the authors' outputs, floats in `dtype`."""

    def load(name: str, dtype: torch.dtype = torch.float64) -> Arrays:
        return read_arrays(GOLDEN / f"{name}.npz", dtype)

    return load


@pytest.fixture
def author_checkpoint(samples: Path) -> Callable[[str], Arrays]:
    """`author_checkpoint(name)`: a checkpoint that the authors trained, with inputs and logits, in float32."""

    def load(name: str) -> Arrays:
        path = samples / "golden" / "author_checkpoints" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"the sample files hold no {path.name}")
        return read_arrays(path, torch.float32)

    return load


@pytest.fixture
def one_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash attention draws one set of rotations a call and hashes every row of a batch by it."""
    from efftx.ops.lsh_hashing import make_rotations

    def alike(heads: tuple[int, int, int], *sizes: Any, **options: Any) -> Tensor:
        return make_rotations((1, *heads[1:]), *sizes, **options).expand(heads[0], -1, -1, -1, -1)

    monkeypatch.setattr("efftx.layers.lsh.make_rotations", alike)
