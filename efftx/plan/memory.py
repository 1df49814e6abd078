"""Bytes that a training step holds, added up from what its layers state.

Activations: the peak of live tensor bytes of forward and backward pass, without parameters, gradients, optimiser state
and replay state. The estimate follows what each layer saves for its backward pass and what that pass holds besides,
stage by stage, and takes the fullest stage; tests compare it with measured peaks (within 10 %).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from efftx.config.schema import Config
from efftx.layers.cost import Rows
from efftx.models.build import build_on_meta
from efftx.models.streams import merged_width
from efftx.plan.stacks import head, junction, rows_of, stacks

FLOAT = 4


def optimizer_bytes(
    name: str, parameters: Iterable[nn.Parameter], dtype: torch.dtype = torch.float32, *, average: bool = False
) -> int:
    """Moments of every parameter: two of its size for adam and adamw, row and column means for adafactor; in `dtype`.

    `average`: the moving average of the parameters beside them.
    """
    total = n_steps = 0
    for p in parameters:
        total += p.numel() * average
        if name != "adafactor":
            total += 2 * p.numel()
            n_steps += 1
        elif p.dim() < 2:
            total += p.numel()
        else:
            total += p.numel() // p.shape[-1] + p.numel() // p.shape[-2]
    return dtype.itemsize * total + FLOAT * n_steps


def replay_bytes(config: Config, vocab_size: int) -> int:
    """What a reversible stack keeps to run its layers again alike: random states and choices."""
    if not config.reversible.enabled:
        return 0
    model = build_on_meta(config, vocab_size)
    return sum(cost.choices for stack in stacks(model, config) for block in stack.blocks for cost in block)


def activation_bytes(config: Config, vocab_size: int, *, reversible: bool | None = None) -> int:
    """Peak activation bytes of one micro-batch on the device that the config asks for.

    `reversible` stands in place of the config's own setting.
    """
    if reversible is not None:
        config = replace(config, reversible=replace(config.reversible, enabled=reversible))
    stages = _reversible_stages if config.reversible.enabled else _plain_stages
    return int(max(stages(build_on_meta(config, vocab_size), config)))


def logits_bytes(config: Config, vocab_size: int) -> int:
    """Logits that exist at one time, of all target positions or of one slice of the loss."""
    model = build_on_meta(config, vocab_size)
    held: int = model.head.logits_bytes(rows_of(config, config.target_length), config.chunking.loss)
    return held


def parameter_bytes(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> int:
    """Bytes of the weights in the dtype they are kept in."""
    return sum(p.numel() for p in parameters) * dtype.itemsize


def _plain_stages(model: Any, config: Config) -> list[float]:
    """Bytes at the fullest moment of each stage of forward and backward.

    Every branch keeps its input, the residual stream, and what it saves; with recompute those of one block at a time,
    and every block its input.
    """
    below, stages = 0.0, []
    all_stacks = stacks(model, config)
    between = junction(model, config)
    for stack in all_stacks:
        d = _stream(config, stack.rows)
        above = between.backward if stack is not all_stacks[0] else 0.0
        below += d * (model.dropout > 0)
        for block in stack.blocks:
            before = below
            for cost in block:
                below += d + cost.saved
                stages.append(below + d + above + cost.backward)
            if config.recompute.enabled:
                below = before + d
        if stack is not all_stacks[-1]:
            below += between.saved
    last = head(model, config)
    return [*stages, below + _stream(config, rows_of(config, config.target_length)) + last.saved + last.backward]


def _reversible_stages(model: Any, config: Config) -> list[float]:
    """The same where the two streams of the topmost block lie on each stack's tape, and one branch runs at a time."""
    below, stages = 0.0, []
    all_stacks = stacks(model, config)
    for stack in all_stacks:
        d = _stream(config, stack.rows)
        for block in stack.blocks:
            for place, cost in enumerate(reversed(block)):
                # The incoming gradients; above the block's last branch the rebuilt streams and their gradients, and
                # the last branch's own; the branch's output.
                around = 2 + 2 * min(place, 2) + (place > 0) + 1
                stages.append(below + 2 * d + around * d + cost.saved + cost.backward)
        below += 2 * d
        if stack is not all_stacks[-1]:
            below += junction(model, config).saved
    last = head(model, config)
    width = rows_of(config, config.target_length).bytes_per_feature * merged_width(config.d_model, config.reversible)
    return [*stages, below + width + last.saved + last.backward]


def _stream(config: Config, rows: Rows) -> float:
    """Bytes of one residual stream."""
    return rows.bytes_per_feature * config.d_model
