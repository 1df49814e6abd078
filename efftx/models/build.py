"""The one place that turns a configuration into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from efftx.config.schema import Config
from efftx.config.sizes import dense_counterpart, resolved_d_ff
from efftx.data.dataset import find_source
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.cost import n_parameters
from efftx.layers.cross_attention import CrossAttention
from efftx.layers.feedforward import FeedForward
from efftx.layers.identity import NoAttention
from efftx.layers.initialize import materialize, on_meta, redraw
from efftx.layers.lsh import LSHAttention
from efftx.layers.patterns import PATTERNS, make_pattern
from efftx.layers.positions import ShiftedPositions, make_positions
from efftx.layers.projections import DenseQKV, DenseQuery
from efftx.layers.sparse_ff import SparseFF
from efftx.layers.sparse_qkv import SparseQKV, SparseQuery
from efftx.layers.sru import SRUBranch
from efftx.machine.devices import step_seed
from efftx.models.block import IDS, KEYS, MEMORY, TOKENS, Block, Branch, scale_residual
from efftx.models.decoder import Decoder
from efftx.models.embedding import TokenEmbedding
from efftx.models.encoder_decoder import CrossAttended, EncoderDecoder
from efftx.models.lm_head import LMHead
from efftx.models.recompute import recompute
from efftx.models.streams import merged_width
from efftx.models.terraformer import Concatenated

Model = Decoder | EncoderDecoder


def _projections(config: Config, *, share_qk: bool, causal: bool) -> DenseQKV | SparseQKV:
    if config.sparse_qkv.S and (causal or config.sparse_qkv.encoder):
        return SparseQKV(config.sparse_qkv, config.d_model, config.n_heads, share_qk=share_qk)
    return DenseQKV(
        config.d_model,
        config.n_heads,
        config.width_of_head,
        share_qk=share_qk,
        bias=config.attention_bias,
        d_qk=config.d_qk,
    )


def _softmax(kind: str, config: Config, causal: bool, index: int) -> nn.Module:
    length = config.decoder_length if causal else config.data.length
    return SoftmaxAttention(
        make_pattern(kind, getattr(config, kind), length, index),
        _projections(config, share_qk=config.share_qk, causal=causal),
        d_head=config.width_of_head,
        attention_dropout=config.attention_dropout,
        causal=causal,
    )


def _lsh(config: Config, causal: bool, index: int) -> nn.Module:
    return LSHAttention(
        config.lsh,
        _projections(config, share_qk=True, causal=causal),
        attention_dropout=config.attention_dropout,
        causal=causal,
        length=config.decoder_length if causal else config.data.length,
    )


ATTENTION: dict[str, Callable[[Config, bool, int], nn.Module]] = {
    **{kind: partial(_softmax, kind) for kind in PATTERNS},
    "lsh": _lsh,
    "identity": lambda config, causal, index: NoAttention(),
}
"""How each kind of attention is made, causal or not, behind so many layers of the kind in the same stack; the kinds of
a stack's layers cycle through the config's list."""


def build_on_meta(config: Config, vocab_size: int) -> Model:
    """The model of `config` without memory or values: shapes, parameter counts, FLOPs can be read off it."""
    d_ff = d_ff_of(config, vocab_size)
    with on_meta():
        return _build(config, vocab_size, d_ff)


def build_model(
    config: Config,
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    drawn_on: torch.device | None = None,
) -> Model:
    """The model of `config` with its first weights, drawn from `config.seed`, on `device`, in training mode.

    `drawn_on`: the device whose random numbers they are (None: `device`).
    """
    model = build_on_meta(config, vocab_size).to(dtype)
    materialize(model, device, config.seed, drawn_on)
    if config.init.weights:
        seed = step_seed(config.seed, 0) if config.init.weights_apart else config.seed
        redraw(model.all_blocks(), config.init.weights, device, seed, drawn_on)
    if config.init.residual == "depth":
        for blocks in (model.blocks, getattr(model, "encoder_blocks", ())):
            scale_residual(blocks)
    if config.recompute.enabled:
        for block in model.all_blocks():
            recompute(block)
    return model


def n_encoder_layers(config: Config) -> int:
    """Layers of the encoder: none in a decoder-only stack, else the config's number or the decoder's."""
    if config.stack == "decoder":
        return 0
    return config.n_layers if config.n_encoder_layers is None else config.n_encoder_layers


def d_ff_of(config: Config, vocab_size: int) -> int:
    """The width of the model's feed-forward layers, `d_ff_rule` applied."""
    return resolved_d_ff(config, lambda other: _count(other, vocab_size))


def dense_parameters(config: Config, vocab_size: int) -> int:
    """Parameters of the dense model that `config` is compared with: `sizes.dense_counterpart`."""
    return _count(dense_counterpart(config), vocab_size)


def _count(config: Config, vocab_size: int) -> int:
    with on_meta():
        return n_parameters(_build(config, vocab_size, config.d_ff))


def _build(config: Config, vocab_size: int, d_ff: int) -> Model:
    model = _assembled(config, vocab_size, d_ff)
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = config.norm_eps
    return model


def _assembled(config: Config, vocab_size: int, d_ff: int) -> Model:
    embedding = TokenEmbedding(vocab_size, config.d_model, tied=config.tie_embeddings, std=config.init.embedding_std)
    head = LMHead(
        merged_width(config.d_model, config.reversible),
        vocab_size,
        config.inner_dropout,
        label_smoothing=config.training.label_smoothing,
        zero=config.init.zero_logits,
        tied_to=embedding if config.tie_embeddings else None,
        sparse_loss=config.sparse_loss,
    )
    if config.stack == "decoder":
        return Decoder(
            embedding,
            # Coupled positions are of the token that is read, wherever the sequence is shifted.
            _positions(
                config,
                config.data.length,
                shifted=config.positions.before_shift and config.positions.kind != "coupled",
            ),
            _decoder_blocks(config, d_ff),
            head,
            dropout=config.inner_dropout,
            reversible=config.reversible,
            loss_chunk_len=config.chunking.loss,
        )
    crosses = config.stack == "encoder_decoder"
    junction = (CrossAttended if crosses else Concatenated)(config.d_model, config.reversible)
    if config.positions.kind == "coupled":
        # One table: a digit of the answer has the very position of those that it is made of.
        encoder_positions = positions = _positions(config, max(config.data.length, config.target_length))
    else:
        encoder_positions = _positions(config, config.data.length)
        positions = _positions(config, config.target_length, shifted=config.positions.before_shift)
    return EncoderDecoder(
        embedding,
        encoder_positions,
        positions,
        [
            Block(attention=branch, feedforward=_feedforward(config, d_ff, i))
            for i, branch in enumerate(_self_attention(config, n_encoder_layers(config), causal=False))
        ],
        junction,
        _decoder_blocks(config, d_ff),
        head,
        dropout=config.inner_dropout,
        reversible=config.reversible,
        loss_chunk_len=config.chunking.loss,
    )


def _positions(config: Config, length: int, *, shifted: bool = False) -> nn.Module | None:
    std = config.init.position_std
    coupled = config.positions.kind == "coupled"
    separators = find_source(config.data.name).separators(config.data) if coupled else ()
    made = make_positions(config.positions, config.d_model, length, std, config.grid(length), separators)
    return ShiftedPositions(made, config.d_model, std) if shifted and made is not None else made


def _decoder_blocks(config: Config, d_ff: int) -> list[Block]:
    blocks, attention = [], _self_attention(config, config.n_layers, config.attention_per_block, causal=True)
    for i in range(config.n_layers):
        branches = {"attention": next(attention)}
        for j in range(2, config.attention_per_block + 1):
            branches[f"attention_{j}"] = next(attention)
        if config.stack == "encoder_decoder":
            branches["cross_attention"] = _cross_attention(config)
        blocks.append(Block(**branches, feedforward=_feedforward(config, d_ff, i)))
    return blocks


def _self_attention(config: Config, n_layers: int, per_block: int = 1, *, causal: bool) -> Iterator[Branch]:
    """The branches of a stack, those of a block one after the other."""
    for kind, index in layers_of_kind(config, n_layers, per_block):
        core = ATTENTION[kind](config, causal, index)
        yield Branch(config.d_model, core, config.dropout, reads=KEYS, kind=kind)


def layers_of_kind(config: Config, n_layers: int, per_block: int = 1) -> list[tuple[str, int]]:
    """The kind of each self-attention of a stack, and how many of that kind stand before it."""
    kinds = [config.attention[i % len(config.attention)] for i in range(n_layers) for _ in range(per_block)]
    return [(kind, kinds[:i].count(kind)) for i, kind in enumerate(kinds)]


def _cross_attention(config: Config) -> Branch:
    sparse = bool(config.sparse_qkv.S) and config.sparse_qkv.cross == "query"
    query = (
        SparseQuery(config.sparse_qkv, config.d_model, config.n_heads)
        if sparse
        else DenseQuery(config.d_model, config.n_heads, config.width_of_head, bias=config.attention_bias)
    )
    core = CrossAttention(
        query,
        config.d_model,
        d_head=config.width_of_head,
        bias=config.attention_bias,
        attention_dropout=config.attention_dropout,
    )
    return Branch(config.d_model, core, config.dropout, reads=MEMORY)


def _feedforward(config: Config, d_ff: int, i: int) -> Branch:
    """That of layer `i` of its stack."""
    core: nn.Module
    if config.sparse_ff.N:
        core = SparseFF(
            config.sparse_ff, config.d_model, d_ff, dropout=config.inner_dropout, chunk_len=config.chunking.ff, salt=i
        )
    else:
        core = FeedForward(
            config.d_model,
            d_ff,
            activation=config.activation,
            dropout=config.inner_dropout,
            chunk_len=config.chunking.ff,
        )
    beside = SRUBranch(config.d_model, config.sru) if config.sru.n_layers else None
    reads = IDS if config.sparse_ff.N and config.sparse_ff.reads_ids else TOKENS
    return Branch(config.d_model, core, config.dropout, reads=reads, beside=beside)
