"""FLOPs of a token, forward and in training, by component; the formulas of attention are in `plan.attention`.

A token of an encoder-decoder is a token of either side: the FLOPs of a row are divided by its input and target tokens
together. Both run through a concatenated stack's decoder, and only target tokens through the head.

Legend: d d_model, f d_ff, W width of all heads, V vocabulary, r rank of the controller, u units of the SRU. Forward,
for each token that the part reads:

    attention_projections   2 d W for each of q, k (unless shared), v and the output; sparse: `plan.projections`
    attention_scores        4 W for each key whose score is computed
    hashing                 W n_hashes (sum of the bucket factors)
    feedforward             4 d f, sparse or not: training multiplies the whole matrices
    feedforward_controller  2 d r + 2 r f, where units are not chosen without one (sparse_ff.controller=oracle, token)
    sru                     4 d u + 6 u^2 a layer
    junction                2 d^2, where the encoder's streams are merged for a concatenated decoder
    head                    2 d V, or 4 d V on two concatenated streams; sparse: as much, its factors multiplied out

Training counts a product's backward pass as two more of its size, that of the scores as 2.5 (they are made again),
hashing once. A reversible stack runs its layers forward once more, without hashing; a sliced (`chunking`) feed-forward
or loss runs forward once more inside its own backward pass. A recomputed block runs forward once more with its hashing,
up to the last tensor that its backward pass needs: of a dense feed-forward without dropout the second product is not.
Positions (2 d a base of `digits`) are left out.
"""

from __future__ import annotations

from collections import defaultdict

from efftx.config.schema import Config
from efftx.layers.sparse_ff import rank_of
from efftx.models.streams import merged_width
from efftx.plan.attention import SCORE_BACKWARD
from efftx.plan.stacks import input_length, resolved, stacks, tokens_of_row

_FORWARD, _TRAINING = 0, 1


def flops_by_component(config: Config, vocab_size: int) -> dict[str, float]:
    """Forward FLOPs a token."""
    return _a_token(config, vocab_size, _FORWARD)


def training_flops_by_component(config: Config, vocab_size: int) -> dict[str, float]:
    """FLOPs a token of one training step, forward, recomputation and backward."""
    return _a_token(config, vocab_size, _TRAINING)


def is_sliced(slice_len: int, length: int) -> bool:
    """Whether a position-wise layer is computed in more than one slice."""
    return 0 < slice_len < length


def _a_token(config: Config, vocab_size: int, which: int) -> dict[str, float]:
    counted = _row(resolved(config, vocab_size), vocab_size)[which]
    return {name: value / tokens_of_row(config) for name, value in counted.items()}


def _row(config: Config, vocab_size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Component -> FLOPs of a row, forward and in training."""
    forward: dict[str, float] = defaultdict(float)
    training: dict[str, float] = defaultdict(float)

    def count(name: str, flops: float, passes: float) -> None:
        forward[name] += flops
        training[name] += flops * passes

    recomputed = float(config.recompute.enabled)
    again = 1.0 if config.reversible.enabled else recomputed
    d, f, u = config.d_model, config.d_ff, config.sru.d
    for stack in stacks(config):
        for block in stack.blocks:
            for shape in block:
                count("attention_projections", stack.length * shape.projection_flops, 3.0 + again)
                count("attention_scores", stack.length * shape.score_flops, 1.0 + SCORE_BACKWARD + again)
                count("hashing", stack.length * shape.hashing_flops, 1.0 + recomputed)
            sliced = is_sliced(config.chunking.ff, stack.length)
            ends_early = not (config.dropout or sliced or config.sparse_ff.N or config.sru.n_layers)
            ff_passes = 3.0 + again + sliced - 0.5 * recomputed * ends_early
            count("feedforward", stack.length * 4.0 * d * f, ff_passes)
            if config.sparse_ff.N and config.sparse_ff.has_controller:
                rank = rank_of(config.sparse_ff, d, f)
                # A frozen one is not differentiated, and runs again only for its probabilities: choices are kept.
                frozen = ff_passes - 2.0 if config.sparse_ff.multiply_by_controller else 1.0 + recomputed
                passes = ff_passes if config.sparse_ff.learns else frozen
                count("feedforward_controller", stack.length * 2.0 * rank * (d + f), passes)
            if config.sru.n_layers:
                count("sru", stack.length * (4.0 * d * u + config.sru.n_layers * 6.0 * u * u), 3.0 + again)
    if config.stack == "concatenated" and config.reversible.enabled and config.reversible.encoder == "merged":
        count("junction", input_length(config) * 2.0 * d * d, 3.0)
    loss_passes = 3.0 + is_sliced(config.chunking.loss, config.target_length)
    count("head", config.target_length * 2.0 * merged_width(d, config.reversible) * vocab_size, loss_passes)
    return forward, training
