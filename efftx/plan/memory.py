"""Bytes that a training step holds, estimated from its shapes.

Activations: the peak of live tensor bytes of forward and backward pass, without parameters, gradients, optimiser state
and replay state. The estimate follows what each layer saves for its backward pass and what that pass holds besides,
stage by stage, and takes the fullest stage; tests compare it with measured peaks (within 20 %).

Legend, all in floats a token: d d_model, f d_ff, W width of all heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import nn

from efftx.config.hash import device_kind
from efftx.config.schema import Config
from efftx.layers.patterns import ByHead, Full, Local
from efftx.layers.sparse_ff import rank_of
from efftx.models.streams import merged_width
from efftx.ops.lsh_runs import tile_scores
from efftx.plan.attention import AttentionShape
from efftx.plan.flops import is_sliced
from efftx.plan.projections import n_matrices, parts_of_output
from efftx.plan.stacks import Stack, input_length, resolved, stacks

FLOAT, INT, LONG, SHORT = 4, 4, 8, 2
RANDOM_STATE_BYTES = 5056
"""PyTorch's CPU generator."""


def optimizer_bytes(name: str, parameters: Iterable[nn.Parameter], *, average: bool = False) -> int:
    """Moments of every parameter: two of its size for adam and adamw, row and column means for adafactor; float32.

    `average`: the moving average of the parameters beside them.
    """
    total = 0
    for p in parameters:
        total += p.numel() * average
        if name != "adafactor":
            total += 2 * p.numel() + 1  # both moments, and the number of steps
        elif p.dim() < 2:
            total += p.numel()
        else:
            total += p.numel() // p.shape[-1] + p.numel() // p.shape[-2]
    return FLOAT * total


def replay_bytes(config: Config, vocab_size: int) -> int:
    """What a reversible stack keeps to run its layers again alike.

    The buckets of hashed layers, the coins and units of sparse feed-forward layers, and random states: one a branch,
    and where every choice (in slices: of each slice) ended.
    """
    if not config.reversible.enabled:
        return 0
    config = resolved(config, vocab_size)
    total, rows = 0, config.training.batch_size
    for stack in stacks(config):
        for block in stack.blocks:
            total += RANDOM_STATE_BYTES * (len(block) + 1)
            for shape in block:
                total += RANDOM_STATE_BYTES * (shape.kind == "lsh")
                total += LONG * rows * shape.length * shape.n_heads * shape.n_hashes
            if config.sparse_ff.N:
                slices = ceil(stack.length / config.chunking.ff) if is_sliced(config.chunking.ff, stack.length) else 1
                total += RANDOM_STATE_BYTES * slices
                if config.sparse_ff.learns:  # the coin
                    total += 1 + RANDOM_STATE_BYTES
                n_blocks = config.d_ff // config.sparse_ff.N
                total += rows * stack.length * n_blocks * _index_bytes(config.sparse_ff.N)
    return total


def _index_bytes(n: int) -> int:
    return next(size for size in (1, SHORT, INT) if size == INT or n <= 2 ** (8 * size - (size > 1)))


def activation_bytes(config: Config, vocab_size: int, *, reversible: bool | None = None) -> int:
    """Peak activation bytes of one micro-batch on the device that the config asks for.

    `reversible` stands in place of the config's own setting.
    """
    if reversible is not None:
        config = replace(config, reversible=replace(config.reversible, enabled=reversible))
    return int(max(_stages(resolved(config, vocab_size), vocab_size)))


def logits_bytes(config: Config, vocab_size: int) -> int:
    """Logits that exist at one time, of all target positions or of one slice of the loss."""
    length = config.target_length
    at_a_time = config.chunking.loss if is_sliced(config.chunking.loss, length) else length
    return _element_bytes(config) * config.training.batch_size * at_a_time * vocab_size


def _element_bytes(config: Config) -> int:
    # Under autocast the streams, norms and losses stay in float32; the estimate takes all of it for that.
    return 8 if config.dtype == "float64" else FLOAT


@dataclass(frozen=True)
class _Held:
    """One branch: bytes saved by the forward pass (its input not among them), and held besides in the backward pass."""

    saved: float
    backward: float


def _stages(config: Config, vocab_size: int) -> list[float]:
    """Bytes at the fullest moment of each stage of forward and backward."""
    return _reversible_stages(config, vocab_size) if config.reversible.enabled else _plain_stages(config, vocab_size)


def _plain_stages(config: Config, vocab_size: int) -> list[float]:
    """Every branch keeps its input, the residual stream, and what it saves; with recompute those of one block at a
    time, and every block its input.
    """
    below, stages = 0.0, []
    for stack in stacks(config):
        d = _stream(config, stack.length)
        below += d * (config.inner_dropout > 0)
        for block in stack.blocks:
            before = below
            for held in _branches(config, stack, block):
                below += d + held.saved
                stages.append(below + d + held.backward)
            if config.recompute.enabled:
                below = before + d
        below += _junction_saved(config)
    saved, backward = _head(config, vocab_size)
    return [*stages, below + _stream(config, config.target_length) + saved + backward]


def _reversible_stages(config: Config, vocab_size: int) -> list[float]:
    """The two streams of the topmost block on each stack's tape, and one branch at a time."""
    below, stages = 0.0, []
    for stack in stacks(config):
        d = _stream(config, stack.length)
        for block in stack.blocks:
            for place, held in enumerate(reversed(_branches(config, stack, block))):
                # The incoming gradients; above the block's last branch the rebuilt streams and their gradients, and
                # the last branch's own; the branch's output.
                around = 2 + 2 * min(place, 2) + (place > 0) + 1
                stages.append(below + 2 * d + around * d + held.saved + held.backward)
        below += 2 * d
        if stack is not stacks(config)[-1]:
            below += _junction_saved(config)
    saved, backward = _head(config, vocab_size)
    width = _stream(config, config.target_length) / config.d_model * merged_width(config.d_model, config.reversible)
    return [*stages, below + width + saved + backward]


def _stream(config: Config, length: int) -> float:
    return float(_element_bytes(config) * config.training.batch_size * length * config.d_model)


def _junction_saved(config: Config) -> float:
    """The encoder's output that cross-attention reads, its norm's input, and its gradient."""
    return 3 * _stream(config, input_length(config)) if config.stack == "encoder_decoder" else 0.0


def _head(config: Config, vocab_size: int) -> tuple[float, float]:
    """Norm and dropout of the head, its input where that is a tensor of its own, and the log-probabilities."""
    length = config.target_length
    width_of_head = merged_width(config.d_model, config.reversible)
    width = _stream(config, length) / config.d_model * width_of_head
    logits = logits_bytes(config, vocab_size)
    matrix = float(_element_bytes(config) * width_of_head * vocab_size) if config.sparse_loss.S else 0.0
    if is_sliced(config.chunking.loss, length):
        part = config.chunking.loss / length
        return 0.0, width * (2 + 3 * part) + 3 * logits + 3 * matrix
    return width * (2 if config.inner_dropout > 0 else 1) + logits + matrix, 2.0 * logits


def _branches(config: Config, stack: Stack, block: tuple[AttentionShape, ...]) -> list[_Held]:
    """What the branches of a block hold, in their order."""
    tokens = _element_bytes(config) * config.training.batch_size * stack.length
    return [*(_attention(config, shape, tokens) for shape in block), _feedforward(config, stack.length, tokens)]


def _feedforward(config: Config, length: int, tokens: float) -> _Held:
    """Norm; hidden units, kept once under relu, twice under gelu, twice more with dropout; slices keep none.

    A sparse layer keeps two masks, the product and the hidden units, and the controller's inner numbers; one whose
    controller is not trained keeps the hidden units alone.
    """
    d, f = tokens * config.d_model, tokens * config.d_ff
    dropout = config.dropout > 0
    times, n_weights, rank = (1 if config.activation == "relu" else 2), 2 * config.d_model * config.d_ff, 0
    if config.sparse_ff.N and config.sparse_ff.learns:
        rank = rank_of(config.sparse_ff, config.d_model, config.d_ff)
        times, n_weights = (
            4 + config.sparse_ff.multiply_by_controller,
            n_weights + rank * (config.d_model + config.d_ff),
        )
    hidden = f * (times + (2 if config.inner_dropout > 0 else 0)) + tokens * rank
    saved = d + (d if dropout else 0) + _recurrent(config, tokens)
    if is_sliced(config.chunking.ff, length):
        part = config.chunking.ff / length
        # Gradients of the weights: those of the slice before are there until the next ones are, the larger half first.
        slices = 1.5 * _element_bytes(config) * n_weights
        return _Held(saved, part * (hidden + 2 * f) + 2 * d + slices)
    return _Held(saved + hidden, d + f if config.inner_dropout > 0 else 2 * f)


def _recurrent(config: Config, tokens: float) -> float:
    """The SRU's norm, and of each layer its input, gates (three, their sigmoids and complements), state and output."""
    if not config.sru.n_layers:
        return 0.0
    return tokens * (config.d_model + 12 * config.sru.n_layers * config.sru.d)


def _attention(config: Config, shape: AttentionShape, tokens: float) -> _Held:
    held = _core(config, shape, tokens)
    d = tokens * shape.d_model
    norm_and_dropout = d + (d if config.dropout > 0 else 0)
    return _Held(norm_and_dropout + _projections(config, shape, tokens) + held.saved, held.backward)


def _projections(config: Config, shape: AttentionShape, tokens: float) -> float:
    """What sparse projections keep besides queries, keys, values and the heads' output: their inner results, matrices
    multiplied out."""
    sparse, d = shape.sparse, tokens * shape.d_model
    if sparse is None:
        return 0.0
    matrix = float(_element_bytes(config) * shape.d_model**2)
    if shape.kind == "cross":
        return d + matrix
    kept = n_matrices(sparse, share_qk=shape.share_qk) * matrix
    if sparse.variant == "multiplicative_convolution":
        kept += d + (2 * d if sparse.concat_input else 0)
    if sparse.variant == "low_rank":
        kept += tokens * (2 if shape.share_qk else 3) * (sparse.rank or shape.d_model // sparse.S)
    if len(parts_of_output(sparse)) > 1:
        kept += d
    return kept


def _core(config: Config, shape: AttentionShape, tokens: float) -> _Held:
    """Queries, keys, values and the heads' output of one layer."""
    d, w = tokens * shape.d_model, tokens * shape.width
    size, rows = _element_bytes(config), config.training.batch_size
    if shape.kind == "cross":
        memory = w * shape.memory_length / shape.length
        # The output once more with the rows that read nothing set to zero; the gradients of the encoder's output.
        return _Held(3 * w + 2 * memory, 3 * w + 4 * memory)
    if shape.kind == "lsh":
        held = _lsh(config, shape)
        # Queries, values, the output, and once more for its projection; both gradients, and the incoming one.
        return _Held(4 * w + held.saved, 3 * w + held.backward)
    masked = 0.0 if shape.causal else w  # the output with empty rows set to zero
    pattern = shape.pattern
    if isinstance(pattern, Local):
        # Windows hold every key and value two or three times.
        window, m = 2 if shape.causal else 3, pattern.chunk_len
        padded = ceil(shape.length / m) * m
        mask = 0.0 if shape.causal else size * rows * shape.n_heads * padded * m * 3.0 * shape.share_qk
        return _Held((3 + 2 * window) * w + masked + mask, (2 + 2 * window) * w + d)
    if isinstance(pattern, ByHead):
        return _by_head(pattern, shape, w, masked)
    if isinstance(pattern, Full) and pattern.query_block:
        scores = size * rows * shape.n_heads * min(pattern.query_block, shape.length) * shape.length
        return _Held((3 + shape.share_qk) * w + masked, 5 * w + 3.0 * scores)
    # Shared queries and keys: the normalised key, and the output joined to the first token's, or a mask of its own.
    bias = 0.0 if shape.causal or not shape.share_qk else float(size * rows * shape.length**2)
    return _Held((5 if shape.share_qk else 4) * w + masked + bias, 3 * w + d)


def _by_head(pattern: ByHead, shape: AttentionShape, w: float, masked: float) -> _Held:
    """Queries, keys, values, the output and its copy.

    Backward one set of keys at a time: all of them in blocks, their gradients, and those of one part; queries that lie
    in several blocks of a part's problem are copied.
    """
    share = w / len(pattern.sets)
    layouts = [its.layout(shape.length, causal=shape.causal, exclude_self=shape.share_qk) for its in pattern.sets]
    copies = 3.5 if any(part.queries.copies for layout in layouts for part in layout.parts) else 0.0
    return _Held((5 + shape.share_qk) * w + masked, 3 * w + (8 + copies) * share)


def _lsh(config: Config, shape: AttentionShape) -> _Held:
    """Integers saved, and what a group of sequences holds while its tiles are run backward (`ops.lsh`)."""
    sequences, d_head = config.training.batch_size * shape.n_heads, shape.d_head
    m, length, rounds = shape.chunk_len, shape.padded_length, shape.n_hashes
    chunks = rounds * length // m
    window = shape.window
    size, tile = _element_bytes(config), tile_scores(device_kind(config.device))
    saved = float(2 * INT * sequences * rounds * length + size * sequences * length)
    group = min(sequences, max(1, tile // ((chunks + window - 1) * window * m * m)))
    entries = group * (chunks + window - 1) * m
    windows = entries // m - window + 1
    per_tile = min(windows, max(1, tile // (m * m * window)))
    scores = per_tile * m * m * window
    counted = not config.lsh.allow_duplicates and rounds > 1
    rows = group * length * 4 * d_head
    tile_rows = (per_tile + window - 1) * m * 4 * d_head
    # Row and gradient buffers, the gradients summed over rounds, a tile's scores, gradients and divisors; the codes.
    floats = rows + tile_rows + 3 * entries * d_head + rows + (3 if counted else 2) * scores + 6 * entries
    integers = LONG * 6 * group * rounds * length + (SHORT * 2 * (scores + (rounds - 1) * entries) if counted else 0)
    return _Held(saved, float(size * floats + integers))


def parameter_bytes(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> int:
    """Bytes of the weights in the dtype they are kept in."""
    return sum(p.numel() for p in parameters) * dtype.itemsize
