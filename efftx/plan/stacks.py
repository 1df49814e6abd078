"""The stacks of a model as lists of what their branches cost, each at the length it runs at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from efftx.config.hash import device_kind
from efftx.config.schema import Config
from efftx.layers.cost import Cost, Rows


@dataclass(frozen=True)
class Stack:
    """`blocks` hold what the branches of each block cost, in their order, for `rows`."""

    rows: Rows
    blocks: list[list[Cost]]


def rows_of(config: Config, length: int) -> Rows:
    """The micro-batch that a stack of `length` tokens a row trains on."""
    # Under autocast the streams, norms and losses stay in float32; the estimate takes all of it for that.
    element_bytes = 8 if config.dtype == "float64" else 4
    return Rows(config.training.batch_size, length, input_length(config), element_bytes, device_kind(config.device))


def input_length(config: Config) -> int:
    """The encoder's tokens in a row, 0 where there is no encoder."""
    return 0 if config.stack == "decoder" else config.data.length


def tokens_of_row(config: Config) -> int:
    """What a row is counted as: its target tokens and the encoder's."""
    return config.target_length + input_length(config)


def stacks(model: Any, config: Config) -> list[Stack]:
    """The encoder, where there is one, and the decoder."""
    of_decoder = [_stack(model.blocks, rows_of(config, config.decoder_length))]
    if config.stack == "decoder":
        return of_decoder
    return [_stack(model.encoder_blocks, rows_of(config, config.data.length)), *of_decoder]


def junction(model: Any, config: Config) -> Cost:
    """What brings the encoder's rows to the decoder; nothing where there is no encoder."""
    if config.stack == "decoder":
        return Cost()
    cost: Cost = model.junction.cost(rows_of(config, config.data.length))
    return cost


def head(model: Any, config: Config) -> Cost:
    """The layer to the vocabulary and the losses."""
    cost: Cost = model.head.cost(rows_of(config, config.target_length), config.chunking.loss)
    return cost


def _stack(blocks: Any, rows: Rows) -> Stack:
    return Stack(rows, [[branch.cost(rows) for branch in block.branches()] for block in blocks])
