"""Bytes that a training step holds, estimated from its shapes.

Activations: the peak of live tensor bytes of forward and backward pass, without parameters, gradients, optimiser state
and replay state. The estimate follows what each layer saves for its backward pass and what that pass holds besides,
stage by stage, and takes the fullest stage; tests compare it with measured peaks (within 20 %).

Legend, all in floats a token: d d_model, f d_ff, W width of all heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from efftx.config import Config
from efftx.ops.lsh_runs import TILE_SCORES
from efftx.plan.attention import AttentionShape, kinds_of_layers, shape_of_layer
from efftx.plan.flops import head_width, is_sliced

FLOAT, INT, LONG, SHORT = 4, 4, 8, 2
RANDOM_STATE_BYTES = 5056
"""PyTorch's CPU generator."""


def optimizer_bytes(name: str, parameters: Iterable[nn.Parameter]) -> int:
    """Moments of every parameter: two of its size for adam and adamw, row and column means for adafactor; float32."""
    total = 0
    for p in parameters:
        if name != "adafactor":
            total += 2 * p.numel() + 1  # both moments, and the number of steps
        elif p.dim() < 2:
            total += p.numel()
        else:
            total += p.numel() // p.shape[-1] + p.numel() // p.shape[-2]
    return FLOAT * total


def replay_bytes(config: Config) -> int:
    """What a reversible stack keeps to run its layers again alike: buckets of hashed layers, random states."""
    if not config.reversible.enabled:
        return 0
    total = 2 * RANDOM_STATE_BYTES * config.n_layers  # one a branch
    for kind in kinds_of_layers(config):
        shape = shape_of_layer(config, kind)
        total += RANDOM_STATE_BYTES * (kind == "lsh")  # and where the drawing of rotations ended
        total += LONG * config.training.batch_size * shape.length * shape.n_heads * shape.n_hashes
    return total


def activation_bytes(config: Config, vocab_size: int, *, reversible: bool | None = None) -> int:
    """Peak activation bytes of one micro-batch; `reversible` in place of the config's own setting."""
    if reversible is not None:
        config = replace(config, reversible=replace(config.reversible, enabled=reversible))
    return int(max(_stages(config, vocab_size).values()))


def logits_bytes(config: Config, vocab_size: int) -> int:
    """Logits that exist at one time, of all positions or of one slice of the loss."""
    length = config.data.length
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


def _stages(config: Config, vocab_size: int) -> dict[str, float]:
    """Bytes at the fullest moment of each stage of forward and backward."""
    tokens = _element_bytes(config) * config.training.batch_size * config.data.length
    d, width = tokens * config.d_model, tokens * head_width(config)
    dropout = config.dropout > 0
    attention = {kind: _attention(config, shape_of_layer(config, kind), tokens) for kind in set(config.attention)}
    layers = [attention[kind] for kind in kinds_of_layers(config)]
    ff = _feedforward(config, tokens)
    logits = logits_bytes(config, vocab_size)
    # Norm and dropout of the head, its input where that is a tensor of its own, and the log-probabilities.
    if is_sliced(config.chunking.loss, config.data.length):
        part = config.chunking.loss / config.data.length
        head_saved, head_backward = 0.0, width * (2 + 3 * part) + 3 * logits
    else:
        head_saved, head_backward = width * (2 if dropout else 1) + logits, 2.0 * logits
    if config.reversible.enabled:
        streams = 2 * d
        fullest = max(layers, key=lambda held: held.saved + held.backward)
        return {
            "head": streams + width + head_saved + head_backward,
            # Streams and their gradients; the branch's own output.
            "feedforward": streams + 2 * d + ff.saved + d + ff.backward,
            # Besides: the stream and the gradient made by the feed-forward's half, and that half's last gradient.
            "attention": streams + 5 * d + fullest.saved + d + fullest.backward,
        }
    # Every branch also keeps its input, the residual stream.
    below = d * dropout + sum(d + held.saved + d + ff.saved for held in layers)
    last = max(range(len(layers)), key=lambda i: sum(h.saved for h in layers[: i + 1]) + layers[i].backward)
    up_to_last = d * dropout + sum(2 * d + held.saved + ff.saved for held in layers[: last + 1]) - ff.saved - d
    return {
        "head": below + d + head_saved + head_backward,
        "feedforward": below + d + ff.backward,
        "attention": up_to_last + d + layers[last].backward,
    }


def _feedforward(config: Config, tokens: float) -> _Held:
    """Norm; hidden units, kept once under relu, twice under gelu, twice more with dropout; slices keep none."""
    d, f = tokens * config.d_model, tokens * config.d_ff
    dropout = config.dropout > 0
    hidden = f * ((1 if config.activation == "relu" else 2) + (2 if dropout else 0))
    saved = d + (d if dropout else 0)
    if is_sliced(config.chunking.ff, config.data.length):
        part = config.chunking.ff / config.data.length
        # Gradients of the weights: those of the slice before are there until the next ones are, the larger half first.
        slices = 1.5 * _element_bytes(config) * 2 * config.d_model * config.d_ff
        return _Held(saved, part * (hidden + 2 * f) + 2 * d + slices)
    return _Held(saved + hidden, d + f if dropout else 2 * f)


def _attention(config: Config, shape: AttentionShape, tokens: float) -> _Held:
    d, w = tokens * shape.d_model, tokens * shape.width
    saved = d + (d if config.dropout > 0 else 0)
    if shape.kind == "lsh":
        held = _lsh(config, shape)
        # Queries, values, the output, and once more for its projection; both gradients, and the incoming one.
        return _Held(saved + 4 * w + held.saved, 3 * w + held.backward)
    if shape.kind == "local":
        # Windows hold every key and value twice.
        return _Held(saved + 7 * w, 6 * w + d)
    if shape.query_block:
        scores = _element_bytes(config) * config.training.batch_size * shape.n_heads * shape.query_block * shape.length
        return _Held(saved + (3 + shape.share_qk) * w, 5 * w + 3.0 * scores)
    # Shared queries and keys: the normalised key, and the output joined to the first token's.
    return _Held(saved + (5 if shape.share_qk else 4) * w, 3 * w + d)


def _lsh(config: Config, shape: AttentionShape) -> _Held:
    """Integers saved, and what a group of sequences holds while its tiles are run backward (`ops.lsh`)."""
    sequences, d_head = config.training.batch_size * shape.n_heads, shape.d_head
    m, length, rounds = shape.chunk_len, shape.padded_length, shape.n_hashes
    chunks = rounds * length // m
    window = 1 if chunks == 1 else 2
    size = _element_bytes(config)
    saved = float(2 * INT * sequences * rounds * length + size * sequences * length)
    group = min(sequences, max(1, TILE_SCORES // ((chunks + window - 1) * window * m * m)))
    entries = group * (chunks + window - 1) * m
    windows = entries // m - window + 1
    per_tile = min(windows, max(1, TILE_SCORES // (m * m * window)))
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
