"""Tensors that several processes have in parts, in files of safetensors through `torch.distributed.checkpoint`.

A folder holds one file a process, in whose header it stands which part of which tensor is where; so it is read again in
parts of any number of processes, or whole in one. A folder of ordinary safetensors files is read in the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from efftx.core import files
from efftx.core.files import DamagedFileError
from efftx.distributed.processes import Processes

SUFFIX = ".safetensors"


def write_parts(folder: Path, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Every process writes its parts of `tensors` into `folder`; an unsharded tensor is written once.

    Called by all; UserError in all of them where one cannot write.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    values = {name: tensor.detach() for name, tensor in tensors.items()}
    try:
        dcp.save(values, storage_writer=writer, process_group=processes.group)
    except CheckpointException as error:
        reasons = [why for why, _ in error.failures.values()]
        refused = next((why for why in reasons if isinstance(why, OSError)), None)
        if refused is None:
            raise RuntimeError(f"a part was not written: {reasons[0]!r}") from error
        refusal = files.write_error(folder, refused)
        refusal.common = True
        raise refusal from error


def files_of(folder: Path, rank: int) -> list[Path]:
    """The files that the process of this rank has written into `folder`."""
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*{SUFFIX}"))


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors in `folder`, each of them whole, on the CPU; DamagedFileError where a part is missing."""
    into = {name: torch.empty(meta.size, dtype=meta.properties.dtype) for name, meta in _described(folder).items()}
    _load(into, folder)
    return into


def read_like(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of these names, each process its part of what `like` has in parts.

    `like[name]` of another shape than the tensor in the folder says where it belongs, not how it is cut: all have it.
    """
    described = _described(folder)
    into: dict[str, Tensor] = {}
    for name, beside in like.items():
        size, dtype = described[name].size, described[name].properties.dtype
        same = beside.shape == size
        into[name] = torch.zeros_like(beside, dtype=dtype) if same else torch.zeros(size, dtype=dtype)
    _load(into, folder)
    for name, beside in like.items():
        if isinstance(beside, DTensor) and not isinstance(into[name], DTensor) and into[name].dim():
            into[name] = distribute_tensor(into[name], beside.device_mesh, [Replicate()], src_data_rank=None)
    return into


def names_in(folder: Path) -> list[str]:
    """The names of the tensors in `folder`."""
    return list(_described(folder))


def _described(folder: Path) -> dict[str, TensorStorageMetadata]:
    described = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: meta for name, meta in described.items() if isinstance(meta, TensorStorageMetadata)}


def _load(into: dict[str, Tensor], folder: Path) -> None:
    """Fills the tensors, without a word to other processes: each reads what it needs."""
    if not into:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            dcp.load(into, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        except CheckpointException as error:
            why, _ = next(iter(error.failures.values()))
            raise DamagedFileError(folder, str(why)) from error
