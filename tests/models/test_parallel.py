"""A reversible model trains alike in one process, under DDP, and with its blocks sharded by FSDP2."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from efftx.config.compose import compose
from efftx.models.build import build_model
from efftx.models.decoder import Decoder
from tests.tolerances import relative_error

STEPS, ROWS, LENGTH, PROCESSES = 3, 4, 32, 2
OVERRIDES = (
    *("model=reformer", "data=duplicate", "size=smoke", f"data.length={LENGTH}", "dropout=0", "dtype=float64"),
    *("attention=[local,full]", "chunking.ff=12", "n_layers=3", "positions.axial_shape=[8,8]"),
)
SAME_SUMS = 1e-10


def make_model() -> Decoder:
    return build_model(compose(OVERRIDES), 23, torch.device("cpu"), torch.float64)


def batch(step: int) -> Tensor:
    return torch.randint(0, 23, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, own_rows: slice) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, foreach=False)
    losses = []
    for step in range(STEPS):
        tokens = batch(step)[own_rows]
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def losses_of_share(rank: int) -> dict[str, list[Tensor]]:
    share = ROWS // PROCESSES
    own_rows = slice(rank * share, (rank + 1) * share)
    results = {"ddp": train(DistributedDataParallel(make_model()), own_rows)}
    sharded = make_model()
    mesh = dist.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert any(type(p).__name__ == "DTensor" for p in sharded.blocks[0].parameters())
    results["fsdp2"] = train(sharded, own_rows)
    return results


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    for name, losses in losses_of_share(rank).items():
        mean = torch.stack(losses)
        dist.all_reduce(mean)
        if rank == 0:
            torch.save(mean / PROCESSES, Path(folder) / f"{name}.pt")
    gc.collect()  # models hold the group, and its threads are to end here: at the interpreter's end they abort it
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    expected = torch.stack(train(make_model(), slice(None)))
    assert expected.unique().numel() == STEPS
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=PROCESSES)
    for name in ("ddp", "fsdp2"):
        losses = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert relative_error(losses, expected) <= SAME_SUMS, f"{name}: {losses.tolist()}, alone {expected.tolist()}"
