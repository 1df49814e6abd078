"""Patterns of attention: which keys a query may see, how to attend to them, and which cached ones a new token needs."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from efftx.layers.settings import FullConfig, LocalConfig
from efftx.ops.attention import full_attention
from efftx.ops.local import local_attention


class Pattern(Protocol):
    """What softmax attention asks of a pattern. Shape suffixes: B batch, H heads, L length, d, v widths of a head."""

    def attend(
        self,
        q_BHLd: Tensor,
        k_BHLd: Tensor,
        v_BHLv: Tensor,
        *,
        scale: float,
        causal: bool,
        exclude_self: bool,
        key_mask_BL: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """The heads' outputs (B, H, L, v); `exclude_self` and `key_mask_BL` as in `ops.attention.full_attention`."""
        ...

    def first(self, position: Any) -> Any:
        """The first position that a causal query at `position` sees; an int or a tensor of them."""
        ...


class Full:
    """A query sees every position or, if causal, those up to its own."""

    def __init__(self, config: FullConfig) -> None:
        self.query_block = config.query_block

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLv: Tensor, **how: Any) -> Tensor:
        """The heads' outputs (B, H, L, v), by query block where the config says so."""
        return full_attention(q_BHLd, k_BHLd, v_BHLv, query_block=self.query_block, **how)

    def first(self, position: Any) -> Any:
        """0 for every position."""
        return position * 0


class Local:
    """A query sees its own chunk of positions, the one before and, unless causal, the one after."""

    def __init__(self, config: LocalConfig) -> None:
        self.chunk_len = config.chunk_len

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLv: Tensor, **how: Any) -> Tensor:
        """The heads' outputs (B, H, L, v), chunk by chunk."""
        return local_attention(q_BHLd, k_BHLd, v_BHLv, chunk_len=self.chunk_len, **how)

    def first(self, position: Any) -> Any:
        """Where the chunk before that of `position` begins."""
        first = (position // self.chunk_len - 1) * self.chunk_len
        return first.clamp(min=0) if isinstance(first, Tensor) else max(0, first)


PATTERNS = {"full": Full, "local": Local}
"""Every kind of softmax attention, by the name of its node of the configuration."""


def make_pattern(kind: str, config: Any) -> Pattern:
    """The pattern of that kind; `config` is its node."""
    pattern: Pattern = PATTERNS[kind](config)
    return pattern
