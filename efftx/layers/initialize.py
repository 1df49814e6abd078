"""How weights start: the authors' choices, drawn from PyTorch's random state in the order of the modules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from efftx.errors import UserError
from efftx.ops.recompute_state import forked_rng

M = TypeVar("M", bound=nn.Module)

BIAS_DEVIATION = 1e-6
"""Of Gaussian biases."""
LAYER_NORM_EPS = 1e-6
"""What a LayerNorm adds to the variance; a whole model has `norm_eps`."""


def glorot_(layer: nn.Linear) -> None:
    """Glorot-uniform weight and zero bias, in place."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


_DRAWS = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_}


class _NothingDrawn(TorchFunctionMode):
    """Draws in place do nothing: on the meta device each would run PyTorch's slow reference for no value."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class _DrawnOn(TorchFunctionMode):
    """Draws in place are made on another device and copied: its random numbers, wherever the weights are."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _DRAWS:
            return func(*args, **kwargs)
        tensor, *others = args or (kwargs.pop("tensor"),)
        with torch.no_grad():
            return tensor.copy_(func(torch.empty_like(tensor, device=self._device), *others, **kwargs))


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules made within have shapes, and neither memory nor values: `materialize` gives them these."""
    with torch.device("meta"), _NothingDrawn():
        yield


STARTED_BY_THEIR_OWNER = (nn.Linear, nn.ParameterList)
"""Modules whose weights the module that holds them starts, in its own `reset_parameters`."""


def materialize(module: nn.Module, device: torch.device, seed: int, drawn_on: torch.device | None = None) -> None:
    """Gives a module built on the meta device its memory and its first weights, all drawn from `seed`.

    `drawn_on`: the device whose random numbers they are; None for where they lie.
    Every module that owns parameters or buffers has `reset_parameters`, or its owner starts it; parents come first.
    UserError, naming the module and the method, where a weight is left without a first value.
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
    for tensor in _floating(module).values():
        nn.init.constant_(tensor, torch.nan)  # shows what nothing sets afterwards
    with _drawing(device, drawn_on):
        torch.manual_seed(seed)
        for child in module.modules():
            if isinstance(child, STARTED_BY_THEIR_OWNER):
                continue
            reset = getattr(child, "reset_parameters", None)
            if reset is not None:
                reset()
    for name, tensor in _floating(module).items():
        if bool(tensor.isnan().any()):
            owner = _owner(module, name)
            raise UserError(
                "not_initialized",
                f"{type(owner).__name__} leaves its weight '{name}' without a first value.",
                "Give it a method `reset_parameters(self)` that sets every weight and buffer it owns, those of an "
                "nn.Linear in it as well.",
            )


def initialized(layer: M, seed: int = 0, device: str = "cpu") -> M:
    """The layer itself, on `device`, with first weights drawn anew from `seed` alone; the random state stays."""
    materialize(layer, torch.device(device), seed)
    return layer


@contextmanager
def _drawing(device: torch.device, drawn_on: torch.device | None) -> Iterator[None]:
    """Draws within come from `drawn_on`'s generator (None: `device`'s), whose state is restored afterwards."""
    elsewhere = drawn_on is not None and drawn_on != device
    with forked_rng(drawn_on or device), _DrawnOn(drawn_on) if elsewhere and drawn_on else nullcontext():
        yield


def redraw(
    blocks: Iterable[nn.Module],
    variance: float,
    device: torch.device,
    seed: int,
    drawn_on: torch.device | None = None,
) -> None:
    """Draws the matrices of the linear layers in `blocks` anew: Gaussian, of variance `variance` / d_in; in place.

    `drawn_on` as for `materialize`.
    Those of a module that says `keeps_its_start`, with all that is in it, stay as its authors draw them.
    """
    with _drawing(device, drawn_on):
        torch.manual_seed(seed)
        for block in blocks:
            for layer in _redrawn(block):
                nn.init.normal_(layer.weight, std=math.sqrt(variance / layer.in_features))


def _redrawn(module: nn.Module) -> Iterator[nn.Linear]:
    if getattr(module, "keeps_its_start", False):
        return
    if isinstance(module, nn.Linear):
        yield module
    for child in module.children():
        yield from _redrawn(child)


def _floating(module: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers that can hold a NaN, by name."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items() if tensor.is_floating_point()}


def _owner(module: nn.Module, name: str) -> nn.Module:
    """The module that should start a weight: the one that holds it, or who holds that one where it starts no weight."""
    path = name.split(".")[:-1]
    owner = module.get_submodule(".".join(path))
    while path and isinstance(owner, (*STARTED_BY_THEIR_OWNER, nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        path.pop()
        owner = module.get_submodule(".".join(path))
    return owner
