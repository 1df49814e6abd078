"""How the weights of one model carry over to another: the named mappings between attention conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

import torch
from torch import Tensor, nn

from efftx.errors import UserError, nearest

Weights = dict[str, Tensor]


def _q_to_qk(weights: Mapping[str, Tensor], names: Set[str]) -> Weights:
    """Separate -> shared: the query's projection becomes the shared one, the key's is dropped."""
    renamed = {name.replace(".project.q.", ".project.qk."): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in renamed.items() if ".project.k." not in name}


def _qk_to_q_and_k(weights: Mapping[str, Tensor], names: Set[str]) -> Weights:
    """Shared -> separate: both take the shared projection; scores are then q.k / sqrt(d), self allowed."""
    carried: Weights = {}
    for name, tensor in weights.items():
        if ".project.qk." in name:
            for half in ("q", "k"):
                carried[name.replace(".project.qk.", f".project.{half}.")] = tensor.clone()
        else:
            carried[name] = tensor
    return carried


def _without_attention(weights: Mapping[str, Tensor], names: Set[str]) -> Weights:
    """Layers whose attention the model leaves out (`attention=identity`): their projections are dropped."""
    return {name: tensor for name, tensor in weights.items() if name in names or ".core.project." not in name}


CONVERSIONS: dict[str, Callable[[Mapping[str, Tensor], Set[str]], Weights]] = {
    "q_to_qk": _q_to_qk,
    "qk_to_q_and_k": _qk_to_q_and_k,
    "without_attention": _without_attention,
}
"""The named mappings, of weights and the names that the model has; the same names stand in the experiments."""


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], carry: str | None) -> None:
    """Copies `weights` into `model`, through the mapping `carry` where one is named.

    Raises UserError if a name or a shape is not the model's; nothing is copied then.
    """
    if carry is not None and carry not in CONVERSIONS:
        raise UserError("bad_value", f"There is no mapping of weights '{carry}'.", nearest(carry, CONVERSIONS))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    converted = dict(weights) if carry is None else CONVERSIONS[carry](weights, parameters.keys())
    for name in sorted(converted.keys() ^ parameters.keys()):
        where = "the checkpoint" if name in converted else "the model"
        raise UserError("other_model", f"Only {where} has the weight '{name}'.", "The two must be the same model.")
    for name, parameter in parameters.items():
        if converted[name].shape != parameter.shape:
            shapes = f"{tuple(converted[name].shape)} in the checkpoint and {tuple(parameter.shape)} in the model"
            raise UserError("other_model", f"The weight '{name}' has shape {shapes}.")
    copy_weights(parameters, converted)


@torch.no_grad()
def copy_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copies the weights of the parameters' names into them."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
