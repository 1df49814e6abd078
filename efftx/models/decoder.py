"""The decoder-only language model: embeddings, a stack of blocks, logits and losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from efftx.layers.initialize import glorot_
from efftx.models.block import LAYER_NORM_EPS, Block
from efftx.ops.chunking import chunked
from efftx.ops.replay import Replay
from efftx.ops.reversible import Tape


@dataclass
class ReversibleConfig:
    """`enabled` runs two streams without stored activations. `merge` joins them before the logits.

    `concat`, as the authors' language model, makes the head 2 d_model wide; `mean` keeps the ordinary model's size.
    """

    enabled: bool = False
    merge: str = "concat"


class TokenEmbedding(nn.Module):
    """One row a token, Gaussian of deviation 1, or d_model^-0.5 where the same matrix gives the logits."""

    def __init__(self, vocab_size: int, d_model: int, *, tied: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.tied = tied

    def reset_parameters(self) -> None:
        """Gaussian rows."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5 if self.tied else 1.0)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """(B, L) token ids -> (B, L, d_model)."""
        return F.embedding(tokens_BL, self.weight)


class Head(nn.Module):
    """LayerNorm, dropout, and the linear layer to the vocabulary (whose matrix may be the embedding's)."""

    def __init__(self, width: int, vocab_size: int, dropout: float, *, tied_to: TokenEmbedding | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.linear = nn.Linear(width, vocab_size)
        self.dropout = dropout
        if tied_to is not None:
            self.linear.weight = tied_to.weight
        self.tied = tied_to is not None

    def reset_parameters(self) -> None:
        """Glorot-uniform weight where it is the head's own, zero bias."""
        if self.tied:
            nn.init.zeros_(self.linear.bias)
        else:
            glorot_(self.linear)

    def forward(self, h_BLE: Tensor) -> Tensor:
        """(B, L, width) -> logits (B, L, vocabulary)."""
        logits: Tensor = self.linear(F.dropout(self.norm(h_BLE), self.dropout, self.training))
        return logits


class Decoder(nn.Module):
    """A causal language model over token ids; position t is predicted from the tokens before t.

    The input is shifted right by one inside, a 0 entering in front. The stack is reversible where the config says so.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        positions: nn.Module | None,
        blocks: Sequence[Block],
        head: Head,
        *,
        dropout: float,
        reversible: ReversibleConfig,
        loss_chunk_len: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.positions = positions
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.dropout = dropout
        self.reversible = reversible
        self.loss_chunk_len = loss_chunk_len

    def hidden(self, tokens_BL: Tensor, replays: Sequence[Sequence[Replay]] | None = None) -> Tensor:
        """What the head reads: (B, L, d_model), or 2 d_model wide where reversible streams are concatenated.

        `replays`: for every block one for its attention and one for its feed-forward branch.
        """
        shifted = F.pad(tokens_BL, (1, 0))[:, :-1]
        x = self.embedding(shifted)
        if self.positions is not None:
            x = x + self.positions(tokens_BL.shape[1])
        x = F.dropout(x, self.dropout, self.training)
        tape = Tape() if self.reversible.enabled else None
        streams: tuple[Tensor, ...] = (x,) if tape is None else (x, x)
        for i, block in enumerate(self.blocks):
            streams = block(streams, tape, None if replays is None else replays[i])
        if tape is None:
            return streams[0]
        return torch.cat(streams, dim=-1) if self.reversible.merge == "concat" else (streams[0] + streams[1]) / 2

    def forward(self, tokens_BL: Tensor, replays: Sequence[Sequence[Replay]] | None = None) -> Tensor:
        """Logits (B, L, vocabulary); row t predicts token t."""
        logits: Tensor = self.head(self.hidden(tokens_BL, replays))
        return logits

    def token_losses(
        self, tokens_BL: Tensor, replays: Sequence[Sequence[Replay]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy in nats and whether the most likely token is right, (B, L) float and bool."""
        h = self.hidden(tokens_BL, replays)
        if not self.loss_chunk_len or self.loss_chunk_len >= tokens_BL.shape[1]:
            return _losses(self.head(h), tokens_BL)

        def one_slice(parameters: Mapping[str, Tensor], h: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            return _losses(functional_call(self.head, dict(parameters), (h,)), targets)

        nll, correct = chunked(one_slice, dict(self.head.named_parameters()), (h, tokens_BL), self.loss_chunk_len)
        return nll, correct


def _losses(logits_BLV: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor]:
    # Half precision is too coarse for a log-softmax over a vocabulary.
    logits = logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))
    nll = F.cross_entropy(logits.flatten(0, 1), targets_BL.flatten(), reduction="none")
    return nll.view_as(targets_BL), logits_BLV.argmax(-1) == targets_BL
