"""Whether a training fits into memory, asked before anything is allocated, and what makes it smaller."""

from __future__ import annotations

from dataclasses import replace

import torch

from efftx.config.schema import Config
from efftx.core.memory import out_of_memory, total_memory
from efftx.distributed.processes import ALONE, Processes
from efftx.layers.cost import n_parameters
from efftx.machine import devices
from efftx.models.build import build_on_meta
from efftx.plan.memory import activation_bytes, optimizer_bytes, parameter_bytes

LESS = {
    "data": "a smaller data.length or a smaller training.batch_size",
    "model": "a smaller d_model or a smaller n_layers",
    "vocabulary": "a smaller data.vocab_size or a smaller d_model",
    "step": "a smaller training.batch_size (with a larger training.accumulation the gradient is the same) or "
    "reversible.enabled=true",
}
"""Overrides that make less of what each part of a training allocates."""
SURE = 0.25
"""The share of the estimated activations that a training needs for sure: half precision and fused kernels need less."""


def refuse_too_large(
    config: Config, device: torch.device, processes: Processes = ALONE, *, when_empty: bool = False
) -> None:
    """Raises OutOfMemory where weights, gradients and optimiser state, or the activations, surely do not fit.

    `config` as one process runs it; those on one machine share its memory, but not a GPU. Counted on the meta device;
    what is found to fit may still fail where it is allocated. `when_empty`: by all the memory that the device has,
    whatever is free of it now, which a run that was finished there passes.
    """
    on_gpu = device.type == "cuda"
    if when_empty:
        available: int | None = torch.cuda.mem_get_info(device)[1] if on_gpu else total_memory()
    else:
        available = devices.free_memory(device)
    if available is None:
        return
    free = available if on_gpu else available // processes.here
    vocab_size = config.vocab_size
    model = build_on_meta(config, vocab_size)
    parameters = list(model.parameters())
    dtype, trained = devices.parameter_dtype(devices.DTYPES[config.dtype]), [p for p in parameters if p.requires_grad]
    held = parameter_bytes(parameters, dtype) + parameter_bytes(trained, dtype)
    held += optimizer_bytes(config.optimizer.name, trained, dtype, average=config.ema.decay > 0)
    if config.distributed.strategy == "fsdp":
        held = max(held // processes.count, parameter_bytes(parameters, dtype))  # it is built whole, then cut
    if config.distributed.offload and device.type != "cpu":
        held = 0  # in the host's memory
    if held > free:
        what = f"weights, gradients and optimiser state of {n_parameters(model):,} parameters"
        embedding = 2 * vocab_size * config.d_model if hasattr(config.data, "vocab_size") else 0
        most_is_embedding = embedding > n_parameters(model) / 2
        raise out_of_memory(
            _sentence(what, held, free, when_empty), LESS["vocabulary" if most_is_embedding else "model"]
        )
    activations = int(SURE * activation_bytes(replace(config, device=device.type), vocab_size))
    if held + activations > free:
        what = f"activations of {config.training.batch_size} rows of {config.data.length} tokens"
        raise out_of_memory(
            _sentence(what, activations, free - held, when_empty), f"{LESS['step']}, or a smaller data.length"
        )


def _sentence(what: str, needed: int, left: int, when_empty: bool) -> str:
    state = "would be free on an empty machine" if when_empty else "are free"
    return f"{what} take {needed / 1e9:,.1f} GB at least, and {left / 1e9:,.1f} GB {state}"
