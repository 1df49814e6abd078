"""One layer of a Transformer: attention, then feed-forward, each normalised before and added after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from efftx.ops.replay import Replay
from efftx.ops.reversible import SubLayer, Tape, reversible_block

LAYER_NORM_EPS = 1e-6


class Branch(nn.Module):
    """A residual branch: dropout(core(LayerNorm(x)))."""

    def __init__(self, d_model: int, core: nn.Module, dropout: float, *, takes_replay: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.core = core
        self.dropout = dropout
        self.takes_replay = takes_replay

    def forward(self, x_BLD: Tensor, replay: Replay | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model)."""
        x = self.norm(x_BLD)
        y = self.core(x, replay) if self.takes_replay else self.core(x)
        return F.dropout(y, self.dropout, self.training)


class Block(nn.Module):
    """Attention and feed-forward branches over one stream (ordinary) or two (reversible)."""

    def __init__(self, attention: Branch, feedforward: Branch) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward

    def forward(
        self, streams: tuple[Tensor, ...], tape: Tape | None = None, replays: Sequence[Replay] | None = None
    ) -> tuple[Tensor, ...]:
        """One stream (B, L, d_model) in, one out; or two with the `tape` of a reversible pass.

        `replays`: one for the attention and one for the feed-forward branch, where choices are given from outside.
        """
        branches = (self.attention, self.feedforward)
        if tape is None:
            (x,) = streams
            for branch, replay in zip(branches, replays or (None, None), strict=True):
                x = x + branch(x, replay)
            return (x,)
        a, b = streams
        sublayers = [(_as_function(branch), dict(branch.named_parameters())) for branch in branches]
        return reversible_block(sublayers, a, b, tape, replays)


def _as_function(branch: Branch) -> SubLayer:
    def call(parameters: Mapping[str, Tensor], x: Tensor, replay: Replay) -> Tensor:
        return functional_call(branch, dict(parameters), (x, replay))

    return call
