"""The encoder-decoder, whichever way its decoder reads the encoder (Vaswani et al. 2017; Terraformer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn

from efftx.data.vocabulary import PAD
from efftx.layers.cost import Cost, Rows
from efftx.layers.initialize import LAYER_NORM_EPS
from efftx.models.block import Block, Context, any_reads_ids
from efftx.models.embedding import TokenEmbedding, coupled_starts, embed, shift_right
from efftx.models.lm_head import LMHead
from efftx.models.streams import RecomputeStates, ReversibleConfig, Streams, merge, run_blocks, split


class Junction(Protocol):
    """How the decoder comes to read the encoder."""

    def leave(self, encoded: Streams) -> Streams:
        """What the encoder's streams, (B, E, d_model) each, hand on."""
        ...

    def enter(self, x_BLD: Tensor, encoded: Streams, is_token_BE: Tensor) -> tuple[Streams, Context]:
        """The decoder's first streams, of its embedded tokens, and what its branches may read beside them."""
        ...

    def cut(self, h_BJD: Tensor, is_token_BE: Tensor, length: int) -> Tensor:
        """The decoder's own rows, (B, length, width)."""
        ...

    def ids(self, token_BL: Tensor, inputs_BE: Tensor, is_token_BE: Tensor) -> Tensor:
        """The token ids at the positions of the decoder's stream."""
        ...

    def cost(self, rows: Rows) -> Cost:
        """Of the encoder's rows, on their way to the decoder."""
        ...


class CrossAttended(nn.Module):
    """Cross-attention: every block of the decoder attends to the normalised mean of the encoder's streams."""

    def __init__(self, d_model: int, reversible: ReversibleConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.reversible = reversible

    def leave(self, encoded: Streams) -> Streams:
        """The memory, one tensor (B, E, d_model)."""
        return (self.norm(merge(encoded)),)

    def enter(self, x_BLD: Tensor, encoded: Streams, is_token_BE: Tensor) -> tuple[Streams, Context]:
        """The decoder's own tokens, and the memory in the context."""
        (memory,) = encoded
        return split(x_BLD, self.reversible), Context(memory_BED=memory, memory_mask_BE=is_token_BE)

    def cut(self, h_BJD: Tensor, is_token_BE: Tensor, length: int) -> Tensor:
        """All rows: they are the decoder's."""
        return h_BJD

    def ids(self, token_BL: Tensor, inputs_BE: Tensor, is_token_BE: Tensor) -> Tensor:
        """The decoder's own."""
        return token_BL

    def cost(self, rows: Rows) -> Cost:
        """The memory and its norm's input; while the decoder goes back, the memory's gradient."""
        width = rows.bytes_per_feature * self.norm.normalized_shape[0]
        return Cost(saved=2 * width, backward=width)


class EncoderDecoder(nn.Module):
    """An encoder over a padded input and a causal decoder that reads it through `junction`; one embedding serves both.

    Pre-norm. Reversible stacks run two streams each, merged before the head.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        encoder_positions: nn.Module | None,
        positions: nn.Module | None,
        encoder_blocks: Sequence[Block],
        junction: Junction,
        blocks: Sequence[Block],
        head: LMHead,
        *,
        dropout: float,
        reversible: ReversibleConfig,
        loss_chunk_len: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.encoder_positions = encoder_positions
        self.positions = positions
        self.encoder_blocks = nn.ModuleList(encoder_blocks)
        self.junction = junction
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.dropout = dropout
        self.reversible = reversible
        self.loss_chunk_len = loss_chunk_len
        self.reads_ids = any_reads_ids((*encoder_blocks, *blocks))

    def all_blocks(self) -> list[nn.Module]:
        """The decoder's, then the encoder's."""
        return [*self.blocks, *self.encoder_blocks]

    def encode(
        self, inputs_BE: Tensor, *, states: RecomputeStates | None = None, start_B1: Tensor | None = None
    ) -> Streams:
        """What the decoder reads of padded token ids (B, E); coupled positions count from `start_B1`."""
        x = embed(inputs_BE, self.embedding, self.encoder_positions, self.dropout if self.training else 0.0, start_B1)
        context = Context(key_mask_BL=inputs_BE != PAD, token_BL=inputs_BE if self.reads_ids else None)
        return self.junction.leave(run_blocks(self.encoder_blocks, split(x, self.reversible), context, states))

    def hidden(
        self,
        tokens_BL: Tensor,
        inputs_BE: Tensor,
        *,
        states: RecomputeStates | None = None,
        encoder_states: RecomputeStates | None = None,
    ) -> Tensor:
        """What the head reads for each target token, (B, L, d_model) or 2 d_model wide.

        `states`, `encoder_states`: for every block one for each branch, where choices are given from outside.
        """
        start_B1 = coupled_starts(self.positions, inputs_BE, tokens_BL)
        encoded = self.encode(inputs_BE, states=encoder_states, start_B1=start_B1)
        token_BL = shift_right(tokens_BL)
        x = embed(token_BL, self.embedding, self.positions, self.dropout if self.training else 0.0, start_B1)
        is_token = inputs_BE != PAD
        streams, context = self.enter(x, token_BL, encoded, inputs_BE)
        streams = run_blocks(self.blocks, streams, context, states)
        return self.junction.cut(merge(streams, self.reversible.merge), is_token, tokens_BL.shape[1])

    def enter(self, x_BLD: Tensor, token_BL: Tensor, encoded: Streams, inputs_BE: Tensor) -> tuple[Streams, Context]:
        """The decoder's first streams, of its embedded tokens, and what its branches read beside them."""
        is_token = inputs_BE != PAD
        streams, context = self.junction.enter(x_BLD, encoded, is_token)
        if self.reads_ids:
            context = replace(context, token_BL=self.junction.ids(token_BL, inputs_BE, is_token))
        return streams, context

    def forward(
        self,
        tokens_BL: Tensor,
        inputs_BE: Tensor,
        *,
        losses: bool = False,
        hits: bool = True,
        **held: RecomputeStates | None,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Logits (B, L, vocabulary) for target tokens (B, L) given the encoder's tokens (B, E), 0 where padded.

        With `losses` the losses and, with `hits`, the hits of a decoder's. `held` are `hidden`'s states.
        """
        h = self.hidden(tokens_BL, inputs_BE, **held)
        if losses:
            return self.head.losses(h, tokens_BL, self.loss_chunk_len, hits=hits)
        logits: Tensor = self.head(h)
        return logits
