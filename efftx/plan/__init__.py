"""What a run costs before it is run: parameters, FLOPs, bytes, hours; from the shapes on the meta device."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from efftx.config.hash import device_kind
from efftx.config.schema import Config
from efftx.config.sizes import dense_counterpart, is_sparse
from efftx.errors import UserError
from efftx.layers.cost import n_parameters
from efftx.machine.devices import DTYPES, parameter_dtype
from efftx.models.block import Branch
from efftx.models.build import build_on_meta
from efftx.plan.flops import (
    draws_of_step,
    flops_by_component,
    gathered_training_flops,
    training_flops_by_component,
)
from efftx.plan.hardware import DEVICES, Hardware, cpu, hardware, rate, this_cpu
from efftx.plan.memory import activation_bytes, logits_bytes, optimizer_bytes, parameter_bytes, replay_bytes
from efftx.plan.shared import SHARED, gathered_bytes, shared_plan
from efftx.plan.stacks import tokens_of_row
from efftx.runs.pretrained import resolved

ACTIVATIONS_WITHIN, CPU_TIME_WITHIN = 0.1, 0.25
"""How far the estimates are from what is measured, as a share of it (`scaling/plan`); the time, on the CPU at hand, in
the mean of several runs."""

_CONTROLLER = ("c1", "c2", "c_bias")
"""The controller's own among the parameters of `layers.sparse_ff.SparseFF`."""


@dataclass(frozen=True)
class Steps:
    """What some training steps do: FLOPs, those of them on gathered rows, and numbers drawn at random."""

    flops: float
    gathered: float
    draws: float

    @classmethod
    def one(cls, config: Config, vocab_size: int) -> Steps:
        """A step of `config`."""
        tokens = config.training.accumulation * config.training.batch_size * tokens_of_row(config)
        flops = sum(training_flops_by_component(config, vocab_size).values())
        gathered = gathered_training_flops(config, vocab_size)
        return cls(flops * tokens, gathered * tokens, draws_of_step(config, vocab_size))

    def times(self, steps: int) -> Steps:
        """So many times as many."""
        return Steps(self.flops * steps, self.gathered * steps, self.draws * steps)

    def seconds(self, device: Hardware, dtype: str) -> float:
        """What they take on `device`."""
        products = self.flops / (rate(device, dtype) * self.utilisation(device))
        return products + self.draws * device.draw_seconds

    def utilisation(self, device: Hardware) -> float:
        """The share of the peak of `device` that their products reach, all together."""
        at_peak = (self.flops - self.gathered) / device.utilisation + self.gathered / device.gathered_utilisation
        return self.flops / at_peak if at_peak else device.utilisation


def plan(
    config: Config, *, device: str | None = None, utilisation: float | None = None, devices: int = 1
) -> dict[str, Any]:
    """What training `config` takes: no step is run, no data set is opened.

    `device` is a name of `plan.hardware` (default: `default_device`), `utilisation` the share of its peak, and of every
    other device's (default: each one's own, less for what multiplies gathered rows). Gives parameters and
    parameters_by_component (in sum the same), active_parameters (see `costs`), parameters_dense (of the same model with
    every sparse part and the SRU off and d_ff as given; None where nothing is sparse), flops_per_token (forward), its
    parts, training_flops_per_token, training_flops, memory_bytes (by kind, `total`, of the device, last; activations
    also as they would be with and without `reversible`; with `distributed.offload` the `gathered` weights, beside which
    weights, gradients and optimiser state are the host's and not in the total), tokens, draws (numbers drawn at random,
    slow on a CPU), hours, hours_by_device, utilisation_by_device, memory_by_device (where it is known) and fits. A
    token of an encoder-decoder is an input or a target token: a row has `data.length` of the one and the target length
    of the other, and the FLOPs of a row are divided by both together. Evaluations are not counted; memory is that of
    one process. With several `devices` also what each of them needs where they share the training (`plan.shared`).
    Raises UserError for an unknown device, a dtype it cannot multiply, a utilisation outside (0, 1].
    """
    if utilisation is not None and not 0 < utilisation <= 1:
        raise UserError("bad_value", f"utilisation={utilisation} must be above 0 and at most 1.")
    config = resolved(config)
    chosen = _reaching(hardware(device) if device else default_device(config), utilisation)
    chosen_rate = rate(chosen, config.dtype)
    vocab_size = config.vocab_size
    model = build_on_meta(config, vocab_size)
    dense = dense_counterpart(config) if is_sparse(config) else None
    forward = flops_by_component(config, vocab_size)
    training = training_flops_by_component(config, vocab_size)
    rows = config.training.steps * config.training.accumulation * config.training.batch_size
    tokens = rows * tokens_of_row(config)
    work = Steps.one(config, vocab_size).times(config.training.steps)
    known = {**DEVICES, "cpu-2-core": cpu(2), chosen.name: chosen}
    rated = {n: _reaching(d, utilisation) for n, d in known.items() if config.dtype in d.flops_per_second}
    hours = {name: work.seconds(each, config.dtype) / 3600.0 for name, each in rated.items()}
    memories = {kind: _memory(replace(config, device=kind), model, vocab_size) for kind in ("cpu", "cuda")}
    held = {name: float(d.memory_bytes) for name, d in rated.items() if d.memory_bytes is not None}
    answer = {
        "parameters": n_parameters(model),
        "parameters_by_component": parameters_by_component(model),
        "active_parameters": active_parameters(model),
        "parameters_dense": None if dense is None else n_parameters(build_on_meta(dense, vocab_size)),
        "flops_per_token": sum(forward.values()),
        "flops_per_token_by_component": forward,
        "training_flops_per_token": sum(training.values()),
        "training_flops": work.flops,
        "draws": work.draws,
        "memory_bytes": memories[chosen.kind],
        "tokens": tokens,
        "vocab_size": vocab_size,
        "device": chosen.name,
        "device_flops_per_second": chosen_rate,
        "device_source": chosen.source,
        "utilisation": work.utilisation(chosen),
        "hours": hours[chosen.name],
        "hours_by_device": hours,
        "utilisation_by_device": {name: work.utilisation(each) for name, each in rated.items()},
        "memory_by_device": held,
        "fits": {name: memories[rated[name].kind]["total"] <= size for name, size in held.items()},
    }
    if devices > 1:

        def memory(config: Config, kind: str) -> dict[str, int]:
            return _memory(replace(config, device=kind), model, vocab_size)

        kinds = {name: each.kind for name, each in rated.items()}
        answer["shared"] = shared_plan(answer, model, config, devices, memory, kinds)
    return answer


def costs(config: Config) -> dict[str, float]:
    """What stands beside a model's quality: parameters, active_parameters, flops_per_token, controller_share.

    `active_parameters` are those that one token reads: of an embedding or a table of positions one row, of a sparse
    feed-forward layer one unit a block and what chooses it, of all else everything (of an encoder-decoder in both
    stacks). `flops_per_token` is `plan`'s, forward as in training, which multiplies whole matrices;
    `controller_share` is the share of the parameters, in %, that choose units of sparse feed-forward layers.
    """
    vocab_size = config.vocab_size
    model = build_on_meta(config, vocab_size)
    parts = parameters_by_component(model)
    choosing = sum(count for name, count in parts.items() if name.endswith(("_controller", "_controller_frozen")))
    return {
        "parameters": n_parameters(model),
        "active_parameters": active_parameters(model),
        "flops_per_token": sum(flops_by_component(config, vocab_size).values()),
        "controller_share": 100.0 * choosing / n_parameters(model),
    }


def active_parameters(model: nn.Module) -> int:
    """The parameters that one token reads, as the layers that do not read all of theirs state it."""
    stating: list[Any] = [module for module in model.modules() if hasattr(module, "active_parameters")]
    stated = {id(parameter) for module in stating for parameter in module.parameters()}
    rest = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in stated)
    return rest + sum(module.active_parameters() for module in stating)


def price(config: Config) -> dict[str, Any]:
    """The part of `plan` that is asked before a long run: hours, device, utilisation, tokens, training_flops."""
    planned = plan(config)
    return {key: planned[key] for key in ("hours", "device", "utilisation", "tokens", "training_flops")}


def default_device(config: Config) -> Hardware:
    """The device that the config would run on here: this machine's CPU, measured, or the GPU that is in it.

    A GPU that has no name of its own among the devices counts as an a100, and so does one that is not here; size=gpu is
    meant for an h100. The source says so.
    """
    if device_kind(config.device) == "cpu":
        return this_cpu(config.n_threads, config.dtype)
    name_here = torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""
    named = next((device for name, device in DEVICES.items() if re.search(rf"\b{name}\b", name_here)), None)
    if named is not None:  # such a name is sold with more or less memory
        return replace(named, memory_bytes=torch.cuda.mem_get_info()[1])
    assumed = DEVICES["h100" if config.size == "gpu" else "a100"]
    why = f"taken for '{name_here}', which has no name here" if name_here else "taken for a GPU, of which none is here"
    return replace(assumed, source=f"{why}; {assumed.source}")


def parameters_by_component(model: nn.Module) -> dict[str, int]:
    """Component -> number of parameters, each counted once: a tied matrix belongs to the embedding.

    A component is a child of the model or of its blocks, those of the encoder's blocks apart; so are the controller of
    a sparse feed-forward layer (`.._frozen` where it is never trained), the SRU beside it, and a kind of attention that
    has other weights than projections, under its own name. The norms of all of them are one component.
    """
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    kinds = {name: m.kind for name, m in model.named_modules() if isinstance(m, Branch) and _has_own_weights(m)}
    counted: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        component = "norms" if id(parameter) in norms else _component(name, kinds, parameter.requires_grad)
        counted[component] += parameter.numel()
    return dict(counted)


def _has_own_weights(branch: Branch) -> bool:
    """Whether it is a kind of attention with weights beside its projections of queries, keys, values and output."""
    return branch.kind is not None and any(
        not name.startswith("project.") for name, _ in branch.core.named_parameters()
    )


def _component(name: str, kinds: Mapping[str, str | None], trained: bool) -> str:
    path = name.split(".")
    if path[0] not in ("blocks", "encoder_blocks"):
        return path[0]
    prefix, branch = path[0].removesuffix("blocks"), kinds.get(".".join(path[:3])) or path[2]
    if path[3] == "beside":
        return f"{prefix}sru"
    if path[-1] not in _CONTROLLER:
        return f"{prefix}{branch}"
    return f"{prefix}{branch}_controller" if trained else f"{prefix}{branch}_controller_frozen"


def _memory(config: Config, model: Any, vocab_size: int) -> dict[str, int]:
    dtype, parameters = parameter_dtype(DTYPES[config.dtype]), list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    held = {
        "parameters": parameter_bytes(parameters, dtype),
        "gradients": parameter_bytes(trained, dtype),
        "optimizer_state": optimizer_bytes(config.optimizer.name, trained, dtype, average=config.ema.decay > 0),
        "activations": activation_bytes(config, vocab_size),
        "replay_state": replay_bytes(config, vocab_size),
    }
    total = sum(held.values())
    if config.distributed.offload and config.device != "cpu":
        held["gathered"] = gathered_bytes(model, dtype)
        total += held["gathered"] - sum(held[name] for name in SHARED)  # those lie in the host's memory
    return {
        **held,
        "activations_with_reversible": activation_bytes(config, vocab_size, reversible=True),
        "activations_without_reversible": activation_bytes(config, vocab_size, reversible=False),
        "logits": logits_bytes(config, vocab_size),
        "total": total,
    }


def _reaching(device: Hardware, utilisation: float | None) -> Hardware:
    if utilisation is None:
        return device
    return replace(device, utilisation=utilisation, gathered_utilisation=utilisation)
