"""What one training costs each of the devices that share it: as replicas (DDP), or in shards (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from efftx.config.schema import Config
from efftx.distributed.processes import cut_for
from efftx.errors import UserError
from efftx.layers.cost import n_parameters
from efftx.machine.devices import DTYPES, parameter_dtype

SHARED = ("parameters", "gradients", "optimizer_state")
"""What FSDP cuts over the devices."""


def usable(config: Config, count: int) -> int:
    """How many of `count` devices a training can use: the most to which the rows of its steps are dealt out evenly."""
    training = config.training
    for used in range(min(count, training.batch_size * training.accumulation), 1, -1):
        with suppress(UserError):
            cut_for(training.batch_size, training.accumulation, used)
            return used
    return 1


def per_device(config: Config, count: int) -> Config:
    """`config` as one of `count` devices runs it; UserError where its rows cannot be dealt out evenly."""
    cut = cut_for(config.training.batch_size, config.training.accumulation, count)
    micro_batches = config.training.accumulation * cut // count
    rows = config.training.batch_size // cut
    return replace(config, training=replace(config.training, batch_size=rows, accumulation=micro_batches))


def shared_plan(
    planned: Mapping[str, Any],
    model: Any,
    config: Config,
    asked: int,
    memory: Callable[[Config, str], dict[str, int]],
    kinds: Mapping[str, str],
) -> dict[str, Any]:
    """The part of a plan that is of `asked` devices, of what `planned` says of one; it uses those that have rows.

    `memory(config, kind)`: bytes by what they are of, on a cpu or cuda device; `kinds`: which of these each device is.
    `memory_bytes` are those of the planned device. Memory of `ddp` is that of one process with fewer rows; of `fsdp`
    weights, gradients and optimiser state are cut over the devices, or with `distributed.offload` in the memory of
    their hosts, and beside them stand the `gathered_bytes`; it fits where all weights do too, for a model is built
    whole on each device, or in each host's memory, and then cut. What the devices send each other takes no time here.
    """
    count = usable(config, asked)
    config_here = per_device(config, count)
    held = {kind: _held(memory(config_here, kind), model, config, count) for kind in set(kinds.values())}
    return {
        "devices": count,
        "devices_asked": asked,
        "rows": config_here.training.batch_size,
        "micro_batches": config_here.training.accumulation,
        "memory_bytes": held[kinds[planned["device"]]].totals,
        "hours_by_device": {name: hours / count for name, hours in planned["hours_by_device"].items()},
        "fits": {
            strategy: {
                name: max(held[kinds[name]].totals[strategy]["total"], held[kinds[name]].built) <= size
                for name, size in planned["memory_by_device"].items()
            }
            for strategy in ("ddp", "fsdp")
        },
    }


class _Held(NamedTuple):
    """Bytes that a device has at one time, by strategy and by what they are of, and of a model while it is built."""

    totals: dict[str, dict[str, int]]
    built: int


def _held(replica: Mapping[str, int], model: Any, config: Config, count: int) -> _Held:
    offloaded = "gathered" in replica
    dtype = parameter_dtype(DTYPES[config.dtype])
    gathered = gathered_bytes(model, dtype) if count > 1 or offloaded else 0
    parts = {} if offloaded else {name: -(-replica[name] // count) for name in SHARED}
    rest = {name: replica[name] for name in ("activations", "replay_state")}
    shards = {**parts, "gathered": gathered, **rest}
    held = {"ddp": {**{name: replica[name] for name in SHARED}, **rest}, "fsdp": shards}
    built = 0 if offloaded else replica["parameters"]
    return _Held({strategy: {**kinds, "total": sum(kinds.values())} for strategy, kinds in held.items()}, built)


def gathered_bytes(model: Any, dtype: torch.dtype) -> int:
    """What FSDP has whole on a device at one time: all outside the blocks and two blocks, with their gradients."""
    blocks = [n_parameters(block) for block in model.all_blocks()]
    outside = n_parameters(model) - sum(blocks)
    return dtype.itemsize * 2 * (outside + 2 * max(blocks))
