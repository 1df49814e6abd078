"""The one place that turns a configuration into a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from efftx.config import Config
from efftx.layers.attention import FullAttention
from efftx.layers.feedforward import FeedForward
from efftx.layers.initialize import materialize
from efftx.layers.lsh import LSHAttention
from efftx.layers.patterns import LocalAttention
from efftx.layers.positions import make_positions
from efftx.layers.projections import DenseQKV
from efftx.models.block import Block, Branch
from efftx.models.decoder import Decoder, Head, TokenEmbedding


def _projections(config: Config, *, share_qk: bool) -> DenseQKV:
    return DenseQKV(config.d_model, config.n_heads, config.width_of_head, share_qk=share_qk, bias=config.attention_bias)


def _full(config: Config) -> nn.Module:
    projections = _projections(config, share_qk=config.share_qk)
    return FullAttention(
        config.full, projections, d_head=config.width_of_head, attention_dropout=config.attention_dropout
    )


def _local(config: Config) -> nn.Module:
    projections = _projections(config, share_qk=config.share_qk)
    return LocalAttention(
        config.local, projections, d_head=config.width_of_head, attention_dropout=config.attention_dropout
    )


def _lsh(config: Config) -> nn.Module:
    return LSHAttention(config.lsh, _projections(config, share_qk=True), attention_dropout=config.attention_dropout)


ATTENTION: dict[str, Callable[[Config], nn.Module]] = {"full": _full, "local": _local, "lsh": _lsh}
"""How each kind of attention is made; the kinds of a stack's layers cycle through the config's list."""


def build_on_meta(config: Config, vocab_size: int) -> Decoder:
    """The model of `config` without memory or values: shapes, parameter counts, FLOPs can be read off it."""
    with torch.device("meta"):
        embedding = TokenEmbedding(vocab_size, config.d_model, tied=config.tie_embeddings)
        concatenated = config.reversible.enabled and config.reversible.merge == "concat"
        return Decoder(
            embedding,
            make_positions(config.positions, config.d_model, config.data.length),
            [_block(config, config.attention[i % len(config.attention)]) for i in range(config.n_layers)],
            Head(
                config.d_model * (2 if concatenated else 1),
                vocab_size,
                config.dropout,
                tied_to=embedding if config.tie_embeddings else None,
            ),
            dropout=config.dropout,
            reversible=config.reversible,
            loss_chunk_len=config.chunking.loss,
        )


def build_model(config: Config, vocab_size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Decoder:
    """The model of `config` with its first weights, drawn from `config.seed`, on `device`, in training mode."""
    model = build_on_meta(config, vocab_size).to(dtype)
    materialize(model, device, config.seed)
    return model


def _block(config: Config, kind: str) -> Block:
    feedforward = FeedForward(
        config.d_model,
        config.d_ff,
        activation=config.activation,
        dropout=config.dropout,
        chunk_len=config.chunking.ff,
    )
    return Block(
        Branch(config.d_model, ATTENTION[kind](config), config.dropout, takes_replay=True),
        Branch(config.d_model, feedforward, config.dropout, takes_replay=False),
    )
