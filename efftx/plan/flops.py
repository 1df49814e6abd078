"""FLOPs of a token, forward and in training, by component; the formulas of attention are in `plan.attention`.

Legend: d d_model, f d_ff, W width of all heads, V vocabulary. Forward, a token:

    attention_projections   2 d W for each of q, k (unless shared), v and the output
    attention_scores        4 W for each key whose score is computed
    hashing                 W n_hashes (sum of the bucket factors)
    feedforward             4 d f
    head                    2 d V, or 4 d V on two concatenated streams

Training counts a product's backward pass as two more of its size, that of the scores as 2.5 (they are made again),
hashing once. A reversible stack runs its layers forward once more, without hashing; a sliced (`chunking`) feed-forward
or loss runs forward once more inside its own backward pass.
"""

from __future__ import annotations

from efftx.config import Config
from efftx.plan.attention import SCORE_BACKWARD, kinds_of_layers, shape_of_layer


def flops_by_component(config: Config, vocab_size: int) -> dict[str, float]:
    """Forward FLOPs a token."""
    return {name: forward for name, (forward, _) in _counted(config, vocab_size).items()}


def training_flops_by_component(config: Config, vocab_size: int) -> dict[str, float]:
    """FLOPs a token of one training step, forward, recomputation and backward."""
    return {name: forward * passes for name, (forward, passes) in _counted(config, vocab_size).items()}


def is_sliced(slice_len: int, length: int) -> bool:
    """Whether a position-wise layer is computed in more than one slice."""
    return 0 < slice_len < length


def _counted(config: Config, vocab_size: int) -> dict[str, tuple[float, float]]:
    """Component -> forward FLOPs a token, and how many such forwards a training step is worth."""
    length = config.data.length
    again = 1.0 if config.reversible.enabled else 0.0
    passes = {
        "attention_projections": 3.0 + again,
        "attention_scores": 1.0 + SCORE_BACKWARD + again,
        "hashing": 1.0,
        "feedforward": 3.0 + again + is_sliced(config.chunking.ff, length),
        "head": 3.0 + is_sliced(config.chunking.loss, length),
    }
    forward = dict.fromkeys(passes, 0.0)
    for kind in kinds_of_layers(config):
        shape = shape_of_layer(config, kind)
        forward["attention_projections"] += shape.projection_flops
        forward["attention_scores"] += shape.score_flops
        forward["hashing"] += shape.hashing_flops
        forward["feedforward"] += 4.0 * config.d_model * config.d_ff
    forward["head"] += 2.0 * head_width(config) * vocab_size
    return {name: (value, passes[name]) for name, value in forward.items()}


def head_width(config: Config) -> int:
    """Width of what the head reads: twice d_model where two streams are concatenated."""
    return config.d_model * (2 if config.reversible.enabled and config.reversible.merge == "concat" else 1)
