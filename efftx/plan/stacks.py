"""The stacks of a configuration as lists of branches, each with the length it runs at.

Every count of a plan is a sum over these branches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from efftx.config.schema import Config
from efftx.models.build import d_ff_of, layers_of_kind, n_encoder_layers
from efftx.plan.attention import AttentionShape, shape_of_cross_attention, shape_of_layer


@dataclass(frozen=True)
class Stack:
    """`blocks` hold the attention layers of each block; a feed-forward layer follows them. `length` tokens a row."""

    length: int
    blocks: tuple[tuple[AttentionShape, ...], ...]


def resolved(config: Config, vocab_size: int) -> Config:
    """The config with the d_ff that its `d_ff_rule` gives."""
    return replace(config, d_ff=d_ff_of(config, vocab_size), d_ff_rule="given")


def input_length(config: Config) -> int:
    """The encoder's tokens in a row, 0 where there is no encoder."""
    return 0 if config.stack == "decoder" else config.data.length


def tokens_of_row(config: Config) -> int:
    """What a row is counted as: its target tokens and the encoder's."""
    return config.target_length + input_length(config)


def stacks(config: Config) -> list[Stack]:
    """The encoder, where there is one, and the decoder."""
    length = config.decoder_length
    n = config.attention_per_block
    layers = [shape_of_layer(config, kind, length, index) for kind, index in layers_of_kind(config, config.n_layers, n)]
    blocks = [layers[i : i + n] for i in range(0, len(layers), n)]
    if config.stack == "encoder_decoder":
        for block in blocks:
            block.append(shape_of_cross_attention(config, length, input_length(config)))
    found = [Stack(length, tuple(tuple(block) for block in blocks))]
    if config.stack == "decoder":
        return found
    inputs = input_length(config)
    encoder = tuple(
        (shape_of_layer(config, kind, inputs, index, causal=False),)
        for kind, index in layers_of_kind(config, n_encoder_layers(config))
    )
    return [Stack(inputs, encoder), *found]
