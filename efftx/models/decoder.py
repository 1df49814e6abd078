"""The decoder-only language model: embeddings, a stack of blocks, logits and losses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from efftx.models.block import Block, Context, any_reads_ids
from efftx.models.embedding import TokenEmbedding, coupled_starts, embed, shift_right
from efftx.models.lm_head import LMHead
from efftx.models.streams import RecomputeStates, ReversibleConfig, merge, run_blocks, split


class Decoder(nn.Module):
    """A causal language model over token ids; position t is predicted from the tokens before t.

    The input is shifted right by one inside, a 0 entering in front. The stack is reversible where the config says so.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        positions: nn.Module | None,
        blocks: Sequence[Block],
        head: LMHead,
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
        self.reads_ids = any_reads_ids(blocks)

    def all_blocks(self) -> list[nn.Module]:
        """Those of the one stack."""
        return [*self.blocks]

    def hidden(self, tokens_BL: Tensor, states: RecomputeStates | None = None) -> Tensor:
        """What the head reads: (B, L, d_model), or 2 d_model wide where reversible streams are concatenated."""
        token_BL = shift_right(tokens_BL)
        start_B1 = coupled_starts(self.positions, token_BL)
        x = embed(token_BL, self.embedding, self.positions, self.dropout if self.training else 0.0, start_B1)
        context = Context(token_BL=token_BL if self.reads_ids else None)
        streams = run_blocks(self.blocks, split(x, self.reversible), context, states)
        return merge(streams, self.reversible.merge)

    def forward(
        self, tokens_BL: Tensor, *, losses: bool = False, hits: bool = True, states: RecomputeStates | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Logits (B, L, vocabulary); row t predicts token t. `states`: for every block one for each branch.

        With `losses` instead the cross entropy in nats and whether the most likely token is right, (B, L) float and
        bool (None without `hits`). A training step asks for them here, so that what wraps the model (DDP, FSDP2,
        compilation) sees the pass.
        """
        h = self.hidden(tokens_BL, states)
        if losses:
            return self.head.losses(h, tokens_BL, self.loss_chunk_len, hits=hits)
        logits: Tensor = self.head(h)
        return logits
