"""Whether a stack of factored attention lets every position hear of every earlier one."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from efftx.config.schema import Config
from efftx.layers.patterns import PATTERNS
from efftx.models.build import layers_of_kind
from efftx.ops.patterns import unreachable

_STRIDE, _BLOCKS = 8, 8


def unreached(config: Config) -> str | None:
    """What to tell where the decoder's factored attention leaves positions unconnected, else None.

    A valid factorisation connects every position with every earlier one within its layers (Sparse Transformer, section
    4.2). It is looked at in small: a least stride of 8, and at most 8 blocks. Identity looks nowhere; what else is
    no pattern may look anywhere.
    """
    strides = config.strides(config.decoder_length)
    if not strides:
        return None
    factors = [
        _sees(config, min(strides), *layer)
        for layer in layers_of_kind(config, config.n_layers, config.attention_per_block)
    ]
    lost = unreachable(factors)
    if not lost.any():
        return None
    share = float(lost.sum()) / (len(lost) * (len(lost) + 1) / 2)
    return (
        f"attention=[{','.join(config.attention)}] in {config.n_layers} layers leaves {share:.0%} of the pairs of "
        "positions unconnected: more layers, or mode=merged, connect them all"
    )


def _sees(config: Config, stride: int, kind: str, index: int) -> Tensor:
    """What a layer's heads see together, (n, n), the least stride of the stack scaled to `_STRIDE`."""
    length = config.decoder_length
    position = torch.arange(_STRIDE * min(_BLOCKS, ceil(length / stride)))
    query, key = position[:, None], position[None, :]
    if kind not in PATTERNS:
        return key == query if kind == "identity" else key <= query
    node = getattr(config, kind).in_small(_STRIDE / stride, length)
    # Unchecked: scaled by the least stride, another's may be longer than these rows.
    pattern = PATTERNS[kind](node, len(position), index)
    return torch.stack([pattern.sees(head, query, key) for head in range(config.n_heads)]).any(0)
