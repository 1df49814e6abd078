"""FLOPs of a token, forward and in training, by component: what the layers state, added up.

A token of an encoder-decoder is a token of either side: the FLOPs of a row are divided by its input and target tokens
together. Both run through a concatenated stack's decoder, and only target tokens through the head.

Training adds to each product its backward pass, and what is run again for it: a reversible stack's layers, without
hashing; of a recomputed block all up to the last tensor that its gradients need. Positions (2 d_model a base of
`digits`) are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from efftx.config.schema import Config
from efftx.layers.cost import Work
from efftx.models.build import build_on_meta
from efftx.plan.stacks import head, junction, stacks, tokens_of_row


def flops_by_component(config: Config, vocab_size: int) -> dict[str, float]:
    """Forward FLOPs a token."""
    counted: dict[str, float] = defaultdict(float)
    for name, work, _ in _row(config, vocab_size):
        counted[name] += work.forward
    return {name: flops / tokens_of_row(config) for name, flops in counted.items()}


def training_flops_by_component(config: Config, vocab_size: int) -> dict[str, float]:
    """FLOPs a token of one training step, forward, recomputation and backward."""
    counted: dict[str, float] = defaultdict(float)
    for name, work, again in _row(config, vocab_size):
        counted[name] += work.forward * (1.0 + work.backward + again)
    return {name: flops / tokens_of_row(config) for name, flops in counted.items()}


def gathered_training_flops(config: Config, vocab_size: int) -> float:
    """Those of them, all components together, that multiply gathered rows (`layers.cost.Work`)."""
    works = ((work, again) for _, work, again in _row(config, vocab_size) if work.gathered)
    return sum(work.forward * (1.0 + work.backward + again) for work, again in works) / tokens_of_row(config)


def draws_of_step(config: Config, vocab_size: int) -> float:
    """Numbers that a training step draws at random, as `layers.cost` counts them, with those that are drawn again."""
    model, recomputes = build_on_meta(config, vocab_size), config.recompute.enabled
    again = config.reversible.enabled or recomputes
    costs = [cost for stack in stacks(model, config) for block in stack.blocks for cost in block]
    in_blocks = sum(cost.draws + again * cost.redrawn + recomputes * cost.replayed for cost in costs)
    embedded = config.training.batch_size * tokens_of_row(config) * config.d_model * (model.dropout > 0)
    return config.training.accumulation * (in_blocks + embedded + head(model, config).draws)


def _row(config: Config, vocab_size: int) -> Iterator[tuple[str, Work, float]]:
    """Component, work for a row, and how much of its forward pass the backward pass runs again."""
    model = build_on_meta(config, vocab_size)
    for stack in stacks(model, config):
        for block in stack.blocks:
            for cost in block:
                for name, work in cost.work.items():
                    yield name, work, _again(config, work, ends_block=cost is block[-1])
    for cost in (junction(model, config), head(model, config)):
        yield from ((name, work, 0.0) for name, work in cost.work.items())


def _again(config: Config, work: Work, *, ends_block: bool) -> float:
    if config.reversible.enabled:
        return work.reversed
    return work.recomputed - work.last * ends_block if config.recompute.enabled else 0.0
