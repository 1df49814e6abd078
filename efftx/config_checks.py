"""Every check across keys of a configuration, in one place: impossible shapes, combinations, and dead keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

from efftx.config import Config
from efftx.errors import UserError, nearest
from efftx.layers.feedforward import ACTIVATIONS
from efftx.training.checkpoint import check_checkpoint
from efftx.training.optimizers import OPTIMIZER_KEYS, check_optimizer
from efftx.training.schedules import SCHEDULES, check_schedule

ATTENTION = ("full", "lsh", "local")
POSITIONS = ("axial", "learned", "sinusoidal", "none")
MERGES = ("concat", "mean")
DTYPES = ("float32", "float64", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
COMPATIBLE: dict[tuple[str, str], str] = {("decoder", "lm"): ""}
"""For each pair of stack and objective why it cannot be; an empty reason is a pair that can."""


def check_config(config: Config) -> None:
    """Raises UserError, naming keys and values, for a configuration that no model could be built from or trained by."""
    check_names(config)
    _check_ranges(config)
    _check_shapes(config)
    _check_lsh(config)
    check_optimizer(config.optimizer)
    check_schedule(config.schedule, config.training.steps)
    check_checkpoint(config.checkpoint)


def refuse_dead_keys(config: Config, keys: Iterable[str]) -> None:
    """Raises UserError if one of the given keys is read by no mechanism that is switched on."""
    for key in keys:
        for prefix, live, reason in _LIVE:
            if (key == prefix or key.startswith(prefix + ".")) and not live(config):
                raise UserError(
                    "dead_key",
                    f"'{key}' would change nothing: {reason}.",
                    f"Leave {key} out, or switch its mechanism on.",
                )


_LIVE: list[tuple[str, Callable[[Config], bool], str]] = [
    ("lsh", lambda c: "lsh" in c.attention, "no layer's attention is lsh"),
    ("local", lambda c: "local" in c.attention, "no layer's attention is local"),
    ("full", lambda c: "full" in c.attention, "no layer's attention is full"),
    ("share_qk", lambda c: set(c.attention) != {"lsh"}, "lsh attention always shares queries and keys"),
    ("reversible.merge", lambda c: c.reversible.enabled, "reversible.enabled is false"),
    ("positions.axial_shape", lambda c: c.positions.kind == "axial", "positions.kind is not axial"),
    ("positions.axial_dims", lambda c: c.positions.kind == "axial", "positions.kind is not axial"),
    ("positions.max_len", lambda c: c.positions.kind == "learned", "positions.kind is not learned"),
    ("optimizer.betas", lambda c: c.optimizer.name != "adafactor", "adafactor has no momentum"),
    ("optimizer.eps", lambda c: c.optimizer.name != "adafactor", "adafactor has constants of its own"),
    ("optimizer.weight_decay", lambda c: c.optimizer.name != "adam", "adam decays no weights (adamw does)"),
    ("optimizer.weight_decay_n_steps", lambda c: c.optimizer.name == "adafactor", "only adafactor reads it"),
    ("schedule.steps", lambda c: c.schedule.name in ("cosine", "linear"), "this schedule has no end"),
    ("tracker.project", lambda c: c.tracker.wandb, "tracker.wandb is false"),
]


def _bad(message: str, hint: str = "") -> UserError:
    return UserError("bad_value", message, hint)


def check_names(config: Config) -> None:
    """Raises UserError, with the nearest known one, for a choice that does not exist."""
    choices = {
        "activation": (config.activation, ACTIVATIONS),
        "positions.kind": (config.positions.kind, POSITIONS),
        "reversible.merge": (config.reversible.merge, MERGES),
        "optimizer.name": (config.optimizer.name, OPTIMIZER_KEYS),
        "schedule.name": (config.schedule.name, SCHEDULES),
        "dtype": (config.dtype, DTYPES),
        "device": (config.device.split(":")[0], DEVICES),
        "stack": (config.stack, {stack for stack, _ in COMPATIBLE}),
        "objective": (config.objective, {objective for _, objective in COMPATIBLE}),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise _bad(f"{key}={value} is not known.", nearest(value, known))
    if not config.attention:
        raise _bad("attention=[] names no kind of attention.", f"Known: {', '.join(ATTENTION)}.")
    for kind in config.attention:
        if kind not in ATTENTION:
            raise _bad(f"attention={kind} is not known.", nearest(kind, ATTENTION))
    reason = COMPATIBLE[config.stack, config.objective]
    if reason:
        raise _bad(f"stack={config.stack} with objective={config.objective} cannot be: {reason}.")


def _check_ranges(config: Config) -> None:
    at_least_one = {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "n_heads": config.n_heads,
        "d_head": config.width_of_head if config.n_heads > 0 else 1,
        "data.length": config.data.length,
        "training.batch_size": config.training.batch_size,
        "training.accumulation": config.training.accumulation,
        "threads": 1 if config.threads is None else config.threads,
        "lsh.n_hashes": config.lsh.n_hashes,
        "lsh.chunk_len": config.lsh.chunk_len,
        "local.chunk_len": config.local.chunk_len,
    }
    for key, number in at_least_one.items():
        if number < 1:
            raise _bad(f"{key}={number} must be at least 1.")
    not_negative = {
        "training.steps": config.training.steps,
        "training.clip_norm": config.training.clip_norm,
        "evaluation.every": config.evaluation.every,
        "evaluation.batches": config.evaluation.batches,
        "evaluation.stop_at_accuracy": config.evaluation.stop_at_accuracy,
        "chunking.ff": config.chunking.ff,
        "chunking.loss": config.chunking.loss,
        "full.query_block": config.full.query_block,
        "positions.max_len": config.positions.max_len,
        "seed": config.seed,
    }
    for key, value in not_negative.items():
        if value < 0:
            raise _bad(f"{key}={value} must not be negative.")
    for key, rate in {"dropout": config.dropout, "attention_dropout": config.attention_dropout}.items():
        if not 0 <= rate < 1:
            raise _bad(f"{key}={rate} must be at least 0 and less than 1.")


def _check_shapes(config: Config) -> None:
    if config.d_head is None and config.d_model % config.n_heads:
        raise _bad(
            f"d_model={config.d_model} is not divisible by n_heads={config.n_heads}.",
            "Choose other numbers, or give the heads' width with d_head=.",
        )
    if config.tie_embeddings and config.reversible.enabled and config.reversible.merge == "concat":
        raise _bad(
            "tie_embeddings=true needs a head as wide as the embedding: reversible.merge=concat doubles it.",
            "Use reversible.merge=mean, or tie_embeddings=false.",
        )
    positions, length = config.positions, config.data.length
    if positions.kind == "axial":
        shape, dims = positions.axial_shape, positions.axial_dims
        if not shape or len(shape) != len(dims) or min([*shape, *dims]) < 1:
            raise _bad(
                f"positions.axial_shape={shape} and positions.axial_dims={dims} must have one positive entry an axis."
            )
        if prod(shape) < length:
            raise _bad(
                f"positions.axial_shape={shape} holds {prod(shape)} positions, but data.length={length}.",
                "Choose a shape whose product is the length, or positions.kind=learned.",
            )
        if sum(dims) != config.d_model:
            raise _bad(f"positions.axial_dims={dims} add up to {sum(dims)}, but d_model={config.d_model}.")
    if positions.kind == "learned" and positions.max_len and positions.max_len < length:
        raise _bad(f"positions.max_len={positions.max_len} is less than data.length={length}.")
    if positions.kind == "sinusoidal" and config.d_model % 2:
        raise _bad(f"positions.kind=sinusoidal needs an even d_model, not {config.d_model}.")


def _check_lsh(config: Config) -> None:
    odd = [n for n in config.lsh.n_buckets if n < 2 or n % 2]
    if odd:
        raise _bad(
            f"lsh.n_buckets={config.lsh.n_buckets} holds {odd[0]}: a hash has an even number of buckets, two at least.",
            "Each factor is twice the number of its directions.",
        )
