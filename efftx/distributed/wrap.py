"""What of a model is shared out, and how: replicas whose gradients are averaged (DDP), or shards (FSDP2)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from efftx.config.settings import DistributedConfig
from efftx.distributed.processes import Processes
from efftx.models.build import Model


def wrap(model: Model, config: DistributedConfig, processes: Processes, device: torch.device) -> nn.Module:
    """What the losses of a training are taken of; `model` itself where it trains alone, or in shards.

    ddp: a replica a process, gradients averaged as the backward pass makes them. fsdp: the weights, gradients and
    optimiser state of every block, and what is left of the model, cut over the processes; a block's weights are
    gathered where it runs. With `offload` they stay in the host's memory, where `model` is, and are gathered on
    `device`: one process does so too, in its `group_of_one`.
    """
    if processes.count == 1 and not config.offload:
        return model
    if config.strategy == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    # What the model returns, losses, is a view, and is multiplied out of place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    mesh = init_device_mesh(device.type, (processes.count,))
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.offload else OffloadPolicy()
    for block in model.all_blocks():
        fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)
    register_fsdp_forward_method(model, "hidden")
    return model


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process has only its part of it."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor: where it is sharded every process calls this."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()
