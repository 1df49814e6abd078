"""Every check across keys of a configuration, in one place: impossible shapes, combinations, and dead keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from math import prod

from efftx.config.schema import ATTENTION, Config
from efftx.config.sizes import authors_d_ff, is_sparse
from efftx.config.values import check_values
from efftx.core.device_names import check_dtype, read_device
from efftx.data.dataset import find_source
from efftx.errors import UserError, nearest
from efftx.layers.attention_settings import near_root
from efftx.layers.settings import (
    ACTIVATIONS,
    RESIDUALS,
    SparseFFConfig,
    SparseQKVConfig,
    SRUConfig,
    check_positions,
    check_sparse_ff,
    check_sparse_loss,
    check_sparse_qkv,
)
from efftx.optim.settings import OPTIMIZER_KEYS, SCHEDULES, check_optimizer, check_schedule

DROPOUT_AT = ("everywhere", "residual")
POSITIONS = ("axial", "factorized", "learned", "coupled", "sinusoidal", "digits", "none")
MERGES = ("concat", "mean")
BRIDGES = ("streams", "merged")
STRATEGIES = ("ddp", "fsdp")
D_FF_RULES = ("given", "authors", "equal")
_READS_PAIRS = "a decoder alone reads no encoder's input"
_WRITES_PLAIN = "an encoder-decoder maps an input to a target, and a language model has no input"
COMPATIBLE: dict[tuple[str, str], str] = {
    ("decoder", "lm"): "",
    ("decoder", "span_corruption"): _READS_PAIRS,
    ("decoder", "seq2seq"): _READS_PAIRS,
    ("encoder_decoder", "lm"): _WRITES_PLAIN,
    ("encoder_decoder", "span_corruption"): "",
    ("encoder_decoder", "seq2seq"): "",
    ("concatenated", "lm"): _WRITES_PLAIN,
    ("concatenated", "span_corruption"): "",
    ("concatenated", "seq2seq"): "",
}
"""For each pair of stack and objective why it cannot be; an empty reason is a pair that can."""


def check_config(config: Config) -> None:
    """Raises UserError, naming keys and values, for a configuration that no model could be built from or trained by."""
    check_names(config)
    _check_ranges(config)
    vocab_size = _check_data(config)
    _check_shapes(config)
    _check_lsh(config)
    _check_patterns(config)
    _check_sparse(config, vocab_size)
    _check_evaluation(config)
    check_optimizer(config.optimizer)
    check_schedule(config.schedule, config.training.steps)


def refuse_dead_keys(config: Config, keys: Iterable[str]) -> None:
    """Raises UserError if one of the given keys is read by no mechanism that is switched on, or not by all it names."""
    for key in keys:
        reason = dead_reason(config, key)
        remedy = ", or switch its mechanism on" if reason and reason.endswith((" is 0", " is false")) else ""
        if reason is None:
            reason, remedy = _idle_reason(config, key)
        if reason:
            raise UserError("dead_key", f"'{key}' would change nothing: {reason}.", f"Leave {key} out{remedy}.")
        if key == "init.weights" and config.init.weights and (config.sparse_ff.N or config.sparse_qkv.S):
            raise UserError(
                "dead_key",
                "'init.weights' would not reach the sparse layers, whose weights start as their authors draw them.",
                "Leave init.weights out, or set sparse_ff.N=0 and sparse_qkv.S=0.",
            )


def dead_reason(config: Config, key: str) -> str | None:
    """Why `key` would change nothing in this configuration; None where something reads it."""
    for prefix, live, reason in _LIVE:
        if (key == prefix or key.startswith(prefix + ".")) and not live(config):
            return reason
    return None


def _idle_reason(config: Config, key: str) -> tuple[str, str]:
    """Why `key`, whose mechanism is on and whose value is in the hash, changes nothing all the same, and the remedy.

    Empty where it changes something. Kept apart from `dead_reason`, which decides what enters the hash: recorded hashes
    hold these keys.
    """
    beam = config.evaluation.beam
    if key in ("evaluation.beam", "evaluation.length_penalty") and beam > 1:
        generates = find_source(config.data.name).generates
        return "" if generates else f"no text is generated to evaluate data={config.data.name}", ""
    if not key.startswith("lsh.") or key == "lsh.full_below":
        return "", ""
    longest = max(config.decoder_length, 0 if config.stack == "decoder" else config.data.length)
    if longest > config.lsh.full_below:
        return "", ""
    reason = f"no row is longer than lsh.full_below={config.lsh.full_below} tokens, so that nothing is hashed"
    return reason, ", or set lsh.full_below=0 beside it, or a larger data.length"


def _node(node: str, strength: str, config_class: type) -> list[tuple[str, Callable[[Config], bool], str]]:
    """All keys of a mechanism's node but its strength key, dead while that is 0."""

    def on(config: Config) -> bool:
        return bool(getattr(getattr(config, node), strength))

    others = [item.name for item in fields(config_class) if item.name != strength]
    return [(f"{node}.{key}", on, f"{node}.{strength} is 0") for key in others]


def _attends(config: Config, kind: str) -> bool:
    return kind in config.attention


_CONVOLUTIONS = ("multiplicative_convolution", "convolution")


def _convolves(config: Config) -> bool:
    """Whether sparse_qkv has a convolution: of queries, keys and values, of the output, or of the query alone."""
    sparse = config.sparse_qkv
    of_cross = sparse.cross == "query" and config.stack == "encoder_decoder"
    return sparse.variant in _CONVOLUTIONS or sparse.output in _CONVOLUTIONS or of_cross


_GRIDS = ("axial", "factorized")
_LENGTHS = ("learned", "coupled")
_TABLES = (*_LENGTHS, *_GRIDS)
_LIVE: list[tuple[str, Callable[[Config], bool], str]] = [
    *((kind, partial(_attends, kind=kind), f"no layer's attention is {kind}") for kind in ATTENTION),
    ("lsh.padding_in_chunks", lambda c: c.stack != "decoder", "a decoder alone reads no padding"),
    ("local.chunk_len", lambda c: not c.local.window, "local.window takes the place of chunks"),
    ("share_qk", lambda c: set(c.attention) - {"identity"} != {"lsh"}, "lsh attention always shares queries and keys"),
    ("share_qk", lambda c: set(c.attention) != {"identity"}, "no layer attends"),
    ("attention_dropout", lambda c: set(c.attention) != {"identity"} or c.stack != "decoder", "no layer attends"),
    ("fixed.c", lambda c: c.fixed.mode != "first", "fixed.mode=first sees no summaries"),
    ("fixed.sub_blocks", lambda c: c.fixed.mode != "first", "fixed.mode=first sees no summaries"),
    ("n_encoder_layers", lambda c: c.stack != "decoder", "a decoder alone has no encoder"),
    ("d_ff_rule", is_sparse, "every layer is dense"),
    ("activation", lambda c: not c.sparse_ff.N, "the sparse feed-forward is always relu"),
    ("attention_bias", lambda c: _has_dense_projections(c), "every attention's projections are sparse"),
    ("reversible.merge", lambda c: c.reversible.enabled, "reversible.enabled is false"),
    ("reversible.encoder", lambda c: c.reversible.enabled, "reversible.enabled is false"),
    ("reversible.encoder", lambda c: c.stack == "concatenated", "only a concatenated stack hands streams on"),
    *_node("sparse_ff", "N", SparseFFConfig),
    *_node("sparse_qkv", "S", SparseQKVConfig),
    *_node("sru", "n_layers", SRUConfig),
    *(
        (f"sparse_ff.{key}", lambda c: c.sparse_ff.has_controller, "this sparse_ff.controller has no weights")
        for key in ("rank", "multiply_by_controller", "token_bias")
    ),
    *(
        (f"sparse_ff.{key}", lambda c: c.sparse_ff.learns, "only a learned controller is trained")
        for key in ("temperature", "quant_prob")
    ),
    ("init.zero_logits", lambda c: not (c.tie_embeddings or c.sparse_loss.S), "no dense matrix is the logits' own"),
    ("init.weights_apart", lambda c: c.init.weights > 0, "init.weights is 0"),
    (
        "init.position_std",
        lambda c: c.positions.kind in _TABLES or c.positions.before_shift,
        "positions have no Gaussian table",
    ),
    ("sparse_qkv.F", _convolves, "this variant of sparse_qkv has no convolution"),
    ("sparse_qkv.kernel", _convolves, "this variant has no convolution"),
    ("sparse_qkv.rank", lambda c: c.sparse_qkv.variant == "low_rank", "sparse_qkv.variant is not low_rank"),
    ("sparse_qkv.average_qk", lambda c: c.share_qk or "lsh" in c.attention, "queries and keys are not shared"),
    ("sparse_qkv.cross", lambda c: c.stack == "encoder_decoder", "only an encoder_decoder has cross-attention"),
    ("sparse_qkv.encoder", lambda c: c.stack != "decoder", "a decoder alone has no encoder"),
    ("positions.axial_shape", lambda c: c.positions.kind in _GRIDS, "positions.kind is neither axial nor factorized"),
    ("positions.before_shift", lambda c: c.positions.kind != "none", "positions.kind is none"),
    ("positions.before_shift", lambda c: c.positions.kind != "coupled", "coupled positions are of the token read"),
    ("dropout_at", lambda c: c.dropout > 0, "dropout is 0"),
    ("distributed.offload", lambda c: c.distributed.strategy == "fsdp", "distributed.strategy is not fsdp"),
    ("positions.axial_dims", lambda c: c.positions.kind == "axial", "positions.kind is not axial"),
    ("positions.max_len", lambda c: c.positions.kind in _LENGTHS, "positions.kind is neither learned nor coupled"),
    *(
        (f"positions.{key}", lambda c: c.positions.kind == "digits", "positions.kind is not digits")
        for key in ("bases", "n_digits", "start_from_zero", "base_dropout")
    ),
    ("evaluation.min_context", lambda c: c.objective == "lm", "only a language model reads on from row to row"),
    ("evaluation.length_penalty", lambda c: c.evaluation.beam > 1, "evaluation.beam=1 is greedy decoding"),
    ("data.stage_steps", lambda c: bool(getattr(c.data, "stages", ())), "data.stages is empty"),
    ("data.length", lambda c: find_source(c.data.name).row_length is None, "a row is one picture, of data.side pixels"),
    ("data.target_length", lambda c: c.objective != "lm", "a language model's targets are its rows"),
    ("data.noise", lambda c: c.objective == "span_corruption", "the objective corrupts no spans"),
    ("data.mean_span", lambda c: c.objective == "span_corruption", "the objective corrupts no spans"),
    ("data.vocab_size", lambda c: getattr(c.data, "tokenizer", "") != "bytes", "bytes are 259 pieces"),
    ("data.tokenizer_path", lambda c: getattr(c.data, "tokenizer", "") != "bytes", "bytes need no file"),
    ("optimizer.betas", lambda c: c.optimizer.name != "adafactor", "adafactor has no momentum"),
    ("optimizer.eps", lambda c: c.optimizer.name != "adafactor", "adafactor has constants of its own"),
    ("optimizer.weight_decay", lambda c: c.optimizer.name != "adam", "adam decays no weights (adamw does)"),
    ("optimizer.weight_decay_n_steps", lambda c: c.optimizer.name == "adafactor", "only adafactor reads it"),
    ("optimizer.decay_exponent", lambda c: c.optimizer.name == "adafactor", "only adafactor reads it"),
    ("schedule.floor", lambda c: c.schedule.name == "rsqrt", "only rsqrt reads it"),
    ("schedule.steps", lambda c: c.schedule.name in ("cosine", "linear"), "this schedule has no end"),
    *(
        (f"tracker.{key}", lambda c: c.tracker.wandb, "tracker.wandb is false")
        for key in ("project", "entity", "group", "tags")
    ),
]


def _has_dense_projections(config: Config) -> bool:
    if not config.sparse_qkv.S:
        return True
    dense_encoder = config.stack != "decoder" and not config.sparse_qkv.encoder
    return dense_encoder or config.stack == "encoder_decoder"


def _bad(message: str, hint: str = "") -> UserError:
    return UserError("bad_value", message, hint)


def check_names(config: Config) -> None:
    """Raises UserError, with the nearest known one, for a choice that does not exist."""
    choices = {
        "activation": (config.activation, ACTIVATIONS),
        "dropout_at": (config.dropout_at, DROPOUT_AT),
        "positions.kind": (config.positions.kind, POSITIONS),
        "distributed.strategy": (config.distributed.strategy, STRATEGIES),
        "reversible.merge": (config.reversible.merge, MERGES),
        "reversible.encoder": (config.reversible.encoder, BRIDGES),
        "d_ff_rule": (config.d_ff_rule, D_FF_RULES),
        "init.residual": (config.init.residual, RESIDUALS),
        "optimizer.name": (config.optimizer.name, OPTIMIZER_KEYS),
        "schedule.name": (config.schedule.name, SCHEDULES),
        "stack": (config.stack, {stack for stack, _ in COMPATIBLE}),
        "objective": (config.objective, {objective for _, objective in COMPATIBLE}),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            close = nearest(value, known, at_most=0)
            raise _bad(f"{key}={value} is not known.", f"{close} Known: {', '.join(sorted(known))}.".strip())
    read_device(config.device)
    check_dtype(config.dtype)
    if not config.attention:
        raise _bad("attention=[] names no kind of attention.", f"Known: {', '.join(ATTENTION)}.")
    for kind in config.attention:
        if kind not in ATTENTION:
            raise _bad(f"attention={kind} is not known.", nearest(kind, ATTENTION))
    reason = COMPATIBLE[config.stack, config.objective]
    if reason:
        fits = [objective for (stack, objective), why in COMPATIBLE.items() if stack == config.stack and not why]
        raise _bad(
            f"stack={config.stack} with objective={config.objective} cannot be: {reason}.",
            f"Use objective={' or '.join(fits)}, or another stack.",
        )
    find_source(config.data.name).check_objective(config.objective)


def _check_ranges(config: Config) -> None:
    if config.data.path == "":
        raise _bad("data.path= is empty.", "Give a file or a folder, or leave data.path out.")
    if config.run_dir == "":
        raise _bad("run_dir= is empty.", "Give a folder, or leave run_dir out.")
    check_values(config)
    if config.d_head is None and config.n_heads > config.d_model:
        raise _bad(f"n_heads={config.n_heads} heads cannot share d_model={config.d_model}.", _divided(config))


def _check_data(config: Config) -> int:
    """The number of tokens; what a data set says of its own keys it says here, before anything is opened."""
    source = find_source(config.data.name)
    source.check(config.data)
    vocab_size = source.vocab_size(config.data, config.objective)
    if vocab_size < 2:
        raise _bad(
            f"data={config.data.name} would have {vocab_size} tokens: there is nothing to learn from fewer than 2."
        )
    if config.target_length < 1:
        raise _bad(f"data.target_length={config.target_length} must be at least 1.")
    return vocab_size


def _check_shapes(config: Config) -> None:
    if config.d_head is None and config.d_model % config.n_heads:
        raise _bad(
            f"d_model={config.d_model} is not divisible by n_heads={config.n_heads}.",
            _divided(config),
        )
    if config.dtype == "float16" and config.distributed.strategy == "fsdp":
        raise _bad(
            "dtype=float16 scales its loss by what all gradients say, and distributed.strategy=fsdp has them in parts.",
            "Use dtype=bfloat16, or distributed.strategy=ddp.",
        )
    if config.tie_embeddings and config.reversible.enabled and config.reversible.merge == "concat":
        raise _bad(
            "tie_embeddings=true needs a head as wide as the embedding: reversible.merge=concat doubles it.",
            "Use reversible.merge=mean, or tie_embeddings=false.",
        )
    if config.recompute.enabled and config.reversible.enabled:
        raise _bad(
            "recompute.enabled=true and reversible.enabled=true both do without stored activations.",
            "Switch one of them off: a reversible block runs again in the backward pass anyway.",
        )
    positions, length = config.positions, max(config.data.length, config.target_length)
    if positions.kind == "axial":
        shape, dims = positions.axial_shape, positions.axial_dims
        if not shape or len(shape) != len(dims) or min([*shape, *dims]) < 1:
            raise _bad(
                f"positions.axial_shape={shape} and positions.axial_dims={dims} must have one positive entry an axis.",
                f"Such as positions.axial_shape=[{near_root(length)},{-(-length // near_root(length))}] "
                f"positions.axial_dims={_in_two(config.d_model)}.",
            )
        if prod(shape) < length:
            raise _bad(
                f"positions.axial_shape={shape} holds {prod(shape)} positions, but data.length={length}.",
                "Choose a shape whose product is the length, or positions.kind=learned.",
            )
        if sum(dims) != config.d_model:
            raise _bad(
                f"positions.axial_dims={dims} add up to {sum(dims)}, but d_model={config.d_model}.",
                f"Set positions.axial_dims={_in_two(config.d_model)} beside it, or positions.kind=learned."
                if len(dims) == 2
                else "Set positions.axial_dims to widths that add up to it, or positions.kind=learned.",
            )
    if positions.kind == "factorized" and prod(config.grid(length)) < length:
        raise _bad(
            f"positions.axial_shape={config.grid(length)} holds {prod(config.grid(length))} positions, and a row has "
            f"{length} tokens.",
            "Choose a shape whose product is the length, or leave positions.axial_shape out.",
        )
    if config.d_qk is not None:
        _check_narrow_queries(config, config.d_qk)
    if positions.kind == "learned" and positions.max_len and positions.max_len < length:
        raise _bad(
            f"positions.max_len={positions.max_len} is less than data.length={length}.",
            f"Set positions.max_len={length} or more, or leave it out.",
        )
    if positions.kind == "coupled":
        _check_coupled(config, length)
    if positions.kind == "digits":
        check_positions(positions, config.d_model, length)
    if positions.kind == "sinusoidal" and config.d_model % 2:
        raise _bad(
            f"positions.kind=sinusoidal needs an even d_model, not {config.d_model}.",
            f"Take d_model={config.d_model + 1}.",
        )


def _in_two(d_model: int) -> str:
    """Widths of two axes' tables, a quarter and the rest, as the presets have them."""
    return f"[{d_model // 4},{d_model - d_model // 4}]"


def _check_coupled(config: Config, length: int) -> None:
    if not find_source(config.data.name).separators(config.data):
        raise _bad(
            f"positions.kind=coupled: rows of data={config.data.name} hold no numbers whose places could be shared.",
            "Use data=copy_add or data=duplicate, or positions.kind=learned.",
        )
    if 0 < config.positions.max_len <= length:
        raise _bad(
            f"positions.max_len={config.positions.max_len} is too few for rows of {length} tokens, counted from 1.",
            f"Take positions.max_len={length + 1} or more: what is more is room for a row to start later.",
        )


def _divided(config: Config) -> str:
    """Widths that heads divide, on both sides of the one that they do not."""
    below = config.d_model // config.n_heads * config.n_heads
    widths = [str(width) for width in (below, below + config.n_heads) if width]
    return f"Take d_model={' or d_model='.join(widths)}, or give the heads' width with d_head=."


def _check_narrow_queries(config: Config, d_qk: int) -> None:
    if d_qk > config.width_of_head:
        raise _bad(f"d_qk={d_qk} is wider than a head's values, {config.width_of_head}.", "Lower d_qk, or give d_head.")
    if config.sparse_qkv.S or config.share_qk or "lsh" in config.attention:
        raise _bad(
            f"d_qk={d_qk} is of queries and keys that have dense matrices of their own each.",
            "Leave d_qk out, or set sparse_qkv.S=0 and share_qk=false with attention other than lsh.",
        )


def _check_sparse(config: Config, vocab_size: int) -> None:
    authors = authors_d_ff(config) if config.d_ff_rule == "authors" else config.d_ff
    if config.sparse_ff.N:
        # The width that d_ff_rule=equal solves is a multiple of N of its own making.
        n = config.sparse_ff.N
        d_ff = max(1, config.d_ff // n) * n if config.d_ff_rule == "equal" else authors
        check_sparse_ff(config.sparse_ff, config.d_model, d_ff)
        if config.compile and config.sparse_ff.reads_ids:
            raise _bad(
                "compile=true: the code that PyTorch compiles for units chosen by the token ends the process.",
                "Use compile=false, or sparse_ff.controller and sparse_ff.token_bias as they are by default.",
            )
    if config.sparse_qkv.S:
        check_sparse_qkv(config.sparse_qkv, config.d_model, config.n_heads)
        if config.width_of_head * config.n_heads != config.d_model:
            raise _bad(
                f"d_head={config.d_head}: sparse_qkv.S={config.sparse_qkv.S} gives heads of d_model / n_heads = "
                f"{config.d_model / config.n_heads:g}.",
                "Leave d_head out (d_head=null).",
            )
    if config.sparse_loss.S:
        check_sparse_loss(config.sparse_loss, vocab_size)
    if config.sparse_loss.S and config.tie_embeddings:
        raise _bad(
            "tie_embeddings=true needs a dense matrix to the vocabulary: sparse_loss.S has none.",
            "Use tie_embeddings=false, or sparse_loss.S=0.",
        )


def _check_evaluation(config: Config) -> None:
    if config.evaluation.stop_at_accuracy and not config.evaluation.every:
        raise _bad(
            f"evaluation.stop_at_accuracy={config.evaluation.stop_at_accuracy:g} is looked at in a validation, and "
            "with evaluation.every=0 there is none before the end.",
            "Set evaluation.every to a number of steps, or leave evaluation.stop_at_accuracy out.",
        )
    if config.evaluation.batches == 0 and find_source(config.data.name).endless:
        raise _bad(
            f"evaluation.batches=0 is the whole split, and those of data={config.data.name} have no end.",
            "Say how many batches to evaluate, such as evaluation.batches=8.",
        )
    if not (context := config.evaluation.min_context):
        return
    if config.objective != "lm":
        raise _bad(
            f"evaluation.min_context={context}: objective={config.objective} scores targets, and only a language model "
            "reads on from row to row.",
            "Set evaluation.min_context=0, or take stack=decoder and a text.",
        )
    if context >= config.data.length:
        raise _bad(
            f"evaluation.min_context={context} leaves nothing to score of rows of data.length={config.data.length}.",
            f"Set it to at most {config.data.length - 1}; 0 gives the first token of a row no context.",
        )
    source = find_source(config.data.name)
    if source.endless or source.row_length is not None:
        raise _bad(
            f"evaluation.min_context={context}: rows of data={config.data.name} each stand alone, and none has a "
            "context before it.",
            "Leave it out, or take a text.",
        )


def _check_patterns(config: Config) -> None:
    lengths = [config.decoder_length, *([config.data.length] if config.stack != "decoder" else [])]
    for kind in ATTENTION:
        for length in lengths if kind in config.attention else ():
            getattr(config, kind).check(kind, config.n_heads, length)


def _check_lsh(config: Config) -> None:
    odd = [n for n in config.lsh.n_buckets if n < 2 or n % 2]
    if odd:
        raise _bad(
            f"lsh.n_buckets={config.lsh.n_buckets} holds {odd[0]}: a hash has an even number of buckets, two at least.",
            "Each factor is twice the number of its directions.",
        )
