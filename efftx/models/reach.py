"""Whether a stack of factored attention lets every position hear of every earlier one."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from efftx.config.schema import Config
from efftx.layers.patterns import PATTERNS, make_pattern
from efftx.models.build import layers_of_kind
from efftx.ops.patterns import unreachable

FACTORED = ("strided", "fixed")
_STRIDE, _BLOCKS = 8, 8


def unreached(config: Config) -> str | None:
    """What to tell where the decoder's strided or fixed attention leaves positions unconnected, else None.

    A valid factorisation connects every position with every earlier one within its layers (Sparse Transformer, section
    4.2). It is looked at in small: strides of 8, and at most 8 blocks. What is no pattern may look anywhere.
    """
    if not set(FACTORED) & set(config.attention):
        return None
    factors = [_sees(config, *layer) for layer in layers_of_kind(config, config.n_layers, config.attention_per_block)]
    lost = unreachable(factors)
    if not lost.any():
        return None
    share = float(lost.sum()) / (len(lost) * (len(lost) + 1) / 2)
    return (
        f"attention=[{','.join(config.attention)}] in {config.n_layers} layers leaves {share:.0%} of the pairs of "
        "positions unconnected: more layers, or mode=merged, connect them all"
    )


def _sees(config: Config, kind: str, index: int) -> Tensor:
    """What a layer's heads see together, in small, (n, n)."""
    length = config.decoder_length
    strides = [getattr(config, kind).stride_of(length) for kind in FACTORED if kind in config.attention]
    n_blocks = min(_BLOCKS, ceil(length / min(strides)))
    position = torch.arange(_STRIDE * n_blocks)
    query, key = position[:, None], position[None, :]
    if kind not in PATTERNS:
        return key <= query
    node = getattr(config, kind)
    if kind == "local":
        scale = _STRIDE / min(strides)
        window = min(_scaled(node.window, scale), len(position)) if node.window else 0
        node = replace(node, window=window, chunk_len=min(_scaled(node.chunk_len, scale), len(position)))
    elif kind == "fixed":
        c = min(_scaled(node.c_of(length), _STRIDE / node.stride_of(length)), _STRIDE)
        node = replace(node, stride=_STRIDE, c=c, sub_blocks=min(node.sub_blocks, _STRIDE // c))
    elif kind == "strided":
        node = replace(node, stride=_STRIDE)
    pattern = make_pattern(kind, node, len(position), index)
    return torch.stack([pattern.sees(head, query, key) for head in range(config.n_heads)]).any(0)


def _scaled(n: int, scale: float) -> int:
    return max(1, round(n * scale))
