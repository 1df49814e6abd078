"""How weights start: the authors' choices, drawn from PyTorch's random state in the order of the modules."""

from __future__ import annotations

import torch
from torch import nn


def glorot_(layer: nn.Linear) -> None:
    """Glorot-uniform weight and zero bias, in place."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


STARTED_BY_THEIR_OWNER = (nn.Linear, nn.ParameterList)
"""Modules whose weights the module that holds them starts, in its own `reset_parameters`."""


def materialize(module: nn.Module, device: torch.device, seed: int) -> None:
    """Gives a module built on the meta device its memory and its first weights, all drawn from `seed`.

    Every module that owns parameters or buffers has `reset_parameters`, or its owner starts it; parents come first.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append((child, name))
    module.to_empty(device=device)
    # Leaving the meta device makes a new tensor a module: what was one matrix must be one again.
    for (first, first_name), *others in owners.values():
        for other, other_name in others:
            setattr(other, other_name, getattr(first, first_name))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for child in module.modules():
            if isinstance(child, STARTED_BY_THEIR_OWNER):
                continue
            owns = any(True for _ in child.parameters(recurse=False)) or any(True for _ in child.buffers(recurse=False))
            reset = getattr(child, "reset_parameters", None)
            if reset is not None:
                reset()
            elif owns:
                raise TypeError(f"{type(child).__name__} owns weights and has no reset_parameters.")
