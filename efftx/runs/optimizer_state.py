"""An optimiser's state by the names of its parameters, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from efftx.errors import UserError


@dataclass(frozen=True)
class OptimizerState:
    """An optimiser's state by names: `tensors` and plain `numbers` as `<parameter name>.<state key>`, and `groups`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, int | float] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)


def capture_optimizer(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimiser's state by the names of its parameters; it must have been built from named parameters."""
    state = OptimizerState()
    for group in optimizer.param_groups:
        state.groups.append({key: value for key, value in group.items() if key != "params"})
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                into: dict[str, Any] = state.tensors if isinstance(value, Tensor) else state.numbers
                into[f"{name}.{key}"] = value
    return state


def restore_optimizer(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Put a captured state into an optimiser over parameters of the same names, bit for bit and without a cast.

    Tensors go to the device of their parameter; `step` counters stay on the CPU. Raises UserError where names differ.
    """
    names = [list(group["param_names"]) for group in optimizer.param_groups]
    saved_names = [list(group["param_names"]) for group in state.groups]
    if names != saved_names:
        ours = {name for group in names for name in group}
        theirs = {name for group in saved_names for name in group}
        differing = ", ".join(sorted(ours ^ theirs)[:5]) or "other groups"
        raise UserError(
            "other_model",
            f"the checkpoint's optimiser has other parameters than the model: {differing}.",
            "Resume with the configuration that the run was started with.",
        )
    optimizer.state.clear()
    for group, saved in zip(optimizer.param_groups, state.groups, strict=True):
        for key, value in saved.items():
            # JSON has no tuples; Adam's betas are one.
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, tensor in _of_parameter(state.tensors, name):
                device = torch.device("cpu") if key == "step" else parameter.device
                optimizer.state[parameter][key] = tensor.to(device, copy=True)
            for key, number in _of_parameter(state.numbers, name):
                optimizer.state[parameter][key] = number


def _of_parameter(values: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    # State keys hold no dot, so `layer.weight.v` is not taken for a state of `layer`.
    return [(full.rpartition(".")[2], value) for full, value in values.items() if full.rpartition(".")[0] == name]
