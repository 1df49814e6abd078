"""A step of training gives one process's losses under DDP, and with the blocks sharded by FSDP2.

The step is the product's own: its loss over targets of unequal weight, its clipping, its optimiser.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from efftx.config.compose import compose
from efftx.data.dataset import Batch
from efftx.models.build import build_model
from efftx.models.decoder import Decoder
from efftx.optim.optimizers import make_optimizer
from efftx.optim.settings import OptimizerConfig
from efftx.training.step import clip_gradients, loss_of, micro_batches, total_weight
from tests.tolerances import relative_error

STEPS, ROWS, LENGTH, PROCESSES = 4, 8, 32, 2
SMALL = ("data=duplicate", "size=smoke", f"data.length={LENGTH}", "dropout=0", "dtype=float64")
MODELS = {
    "reversible": (
        "model=reformer",
        "attention=[local,full]",
        "chunking.ff=12",
        "n_layers=3",
        "positions.axial_shape=[8,8]",
    ),
    "strided": ("model=sparse_transformer", "attention=[strided]", "n_layers=2", "recompute.enabled=true"),
}
OPTIMIZER = OptimizerConfig(name="adamw", lr=0.01)
CLIP_NORM = 0.3
SAME_SUMS = 1e-10


def make_model(name: str) -> Decoder:
    return build_model(compose([*MODELS[name], *SMALL]), 23, torch.device("cpu"), torch.float64)


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    tokens_BL = torch.randint(0, 23, (ROWS, LENGTH), generator=generator)
    lengths_B = torch.randint(1, LENGTH + 1, (ROWS, 1), generator=generator)
    return Batch(tokens_BL, (torch.arange(LENGTH) < lengths_B).double())


def train(model: nn.Module, rank: int, processes: int) -> list[Tensor]:
    """Each step's share of the loss; gradients are averaged over the processes, so that each divides by less."""
    optimizer = make_optimizer(OPTIMIZER, model.named_parameters())
    parameters, losses = list(model.parameters()), []
    for step in range(STEPS):
        whole = batch(step)
        own = micro_batches(whole, ROWS // processes)[rank]
        share = torch.zeros((), dtype=torch.float64)
        for micro in micro_batches(own, 2):
            loss = loss_of(model, micro, total_weight([whole]) / processes)
            loss.backward()
            share += loss.detach() / processes
        norm = clip_gradients(parameters, CLIP_NORM)
        assert float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm) > CLIP_NORM
        optimizer.step()
        optimizer.zero_grad()
        losses.append(share)
    return losses


def losses_of_share(rank: int) -> dict[str, list[Tensor]]:
    results = {}
    mesh = dist.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    for name in MODELS:
        results[f"{name}-ddp"] = train(DistributedDataParallel(make_model(name)), rank, PROCESSES)
        sharded = make_model(name)
        for block in sharded.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        assert any(type(p).__name__ == "DTensor" for p in sharded.blocks[0].parameters())
        results[f"{name}-fsdp2"] = train(sharded, rank, PROCESSES)
    return results


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    for name, losses in losses_of_share(rank).items():
        total = torch.stack(losses)
        dist.all_reduce(total)
        if rank == 0:
            torch.save(total, Path(folder) / f"{name}.pt")
    gc.collect()  # models hold the group, and its threads are to end here: at the interpreter's end they abort it
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=PROCESSES)
    for name in MODELS:
        expected = torch.stack(train(make_model(name), 0, 1))
        assert expected.unique().numel() == STEPS
        for way in ("ddp", "fsdp2"):
            losses = torch.load(tmp_path / f"{name}-{way}.pt", weights_only=True)
            told = f"{name}, {way}: {losses.tolist()}, alone {expected.tolist()}"
            assert relative_error(losses, expected) <= SAME_SUMS, told
