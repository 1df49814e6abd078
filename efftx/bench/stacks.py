"""`efftx bench memory` and `efftx bench train`: whole models, the variants of Reformer's table 3, one training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from efftx.bench.attention import BOTH, heads_pass
from efftx.bench.memory_tracker import MemoryTracker
from efftx.bench.plain_loop import plain_step
from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.config.values import RANGES
from efftx.data.dataset import Batch
from efftx.distributed.processes import ALONE, group_of_one
from efftx.distributed.wrap import own_part, wrap
from efftx.layers.attention import SoftmaxAttention
from efftx.machine.allocator import keep_freed_memory
from efftx.machine.devices import DTYPES, resolve_device
from efftx.machine.timing import exclusive, interleaved, machine, matmul_call
from efftx.models.build import Model, build_model
from efftx.models.encoder_decoder import EncoderDecoder
from efftx.models.streams import RecomputeStates
from efftx.ops.recompute_state import RecomputeState
from efftx.options import LENGTH, REPEATS, Options
from efftx.plan.flops import training_flops_by_component
from efftx.plan.memory import activation_bytes, optimizer_bytes, parameter_bytes
from efftx.plan.stacks import tokens_of_row
from efftx.training.learner import Learner
from efftx.training.step import share_of

VOCAB_SIZE = 256
_REVERSIBLE = ["reversible.enabled=true", "reversible.merge=mean"]
_SLICES = 8
VARIANTS: dict[str, list[str]] = {
    "transformer": ["share_qk=true"],
    "reversible": ["share_qk=true", *_REVERSIBLE],
    "chunked-reversible": ["share_qk=true", *_REVERSIBLE, "chunking"],
    "lsh": ["attention=[lsh]"],
    "reformer": ["attention=[lsh]", *_REVERSIBLE, "chunking"],
}
"""The rows of table 3 with equal parameters: streams are averaged, queries and keys shared in all of them; `chunking`
is of the feed-forward and the loss, in eighths of the length. Full attention is PyTorch's fused kernel."""

PLAIN = "plain-loop"
"""The ordinary Transformer in a loop written by hand (`plain_loop`), of the shape of `dense`, which is ours."""
DENSE: dict[str, list[str]] = {"dense": []}
"""The ordinary Transformer, with queries and keys of their own."""
RECOMPUTED = {"recomputed": ["share_qk=true", "recompute.enabled=true"]}
"""The transformer whose blocks keep their input alone (Sparse Transformers, figure 4), measured where it is named."""

_SPARSE = ["d_model=256", "d_ff=1024", "d_ff_rule=given", "sparse_ff.N=16"]
ENCODER_DECODERS: dict[str, list[str]] = {
    "scaling": ["model=scaling", *_SPARSE],
    "terraformer": ["model=terraformer", *_SPARSE, "lsh.full_below=0", "chunking"],
}
"""The third paper's two models with `depth` encoder and as many decoder layers; half as many targets as inputs. They
are measured where they are named, for Reformer's table has no encoder."""


_ENWIK8 = ["model=sparse_transformer", "d_model=512", "d_ff=2048", "n_heads=8", "d_head=64"]
SPARSE: dict[str, list[str]] = {
    "sparse-dense": [*_ENWIK8, "attention=[full]"],
    "sparse-strided": [*_ENWIK8, "attention=[strided]", "strided.mode=interleaved"],
    "sparse-fixed": [*_ENWIK8, "attention=[fixed]", "fixed.mode=merged"],
}
"""The Sparse Transformer at its width on enwik8: d_model 512, d_ff 2048, 8 heads, strides near the square root of the
length (128 and c 32 at 12,288). Measured where they are named; with sparse-dense first the ratios are to it."""
NAMED = {**DENSE, **RECOMPUTED, **ENCODER_DECODERS, **SPARSE}


def variant(name: str, *, depth: int, length: int, batch: int) -> Config:
    """The config of one row: d_model 256, d_ff 1024, 4 heads of 64, no dropout, learned positions, unless it says so.

    With an encoder `length` is its tokens.
    """
    words = {**VARIANTS, **NAMED}[name]
    words_here = [word for word in words if word != "chunking"]
    if name in ENCODER_DECODERS:
        words_here += [f"n_encoder_layers={depth}", f"data.target_length={max(1, length // 2)}"]
    elif name not in SPARSE:
        words_here = ["model=transformer", *words_here]
    if "chunking" in words:
        words_here += [f"chunking.{part}={max(1, length // _SLICES)}" for part in ("ff", "loss")]
    base = ["data=stdlib", "size=cpu", "dropout=0", "positions.kind=learned"]
    return compose([*base, f"n_layers={depth}", f"data.length={length}", f"training.batch_size={batch}", *words_here])


def bench_memory(options: Options) -> dict[str, Any]:
    """Peak activation memory of forward and backward pass against depth, one row a variant and depth; nothing is timed.

    Options: names, depths, lengths, batch, device. Rows have, beside the keys of every bench, depth, batch,
    replay_bytes (buckets and random states, not in the peak), planned_bytes (what `efftx plan` estimates) and
    ratio_to_shallowest; `models` are the shapes of the rows, each with the names that have it, and `flatness` is the
    reversible stacks' largest peak over their smallest.
    """
    names = options.names("names", [*VARIANTS, *NAMED], list(VARIANTS))
    depths = options.numbers("depths", (4, 8, 16, 24), RANGES["n_layers"])
    lengths = options.numbers("lengths", (1024,), LENGTH)
    batch = options.number("batch", 2, RANGES["training.batch_size"])
    device = resolve_device(options.device())
    options.refuse_rest()
    rows: list[dict[str, Any]] = []
    flatness: dict[str, float] = {}
    configs: list[tuple[str, Config]] = []
    for length in lengths:
        for name in names:
            of_depths = [variant(name, depth=depth, length=length, batch=batch) for depth in depths]
            configs += [(name, config) for config in of_depths]
            rows_of_name = [_memory_row(name, config, device) for config in of_depths]
            smallest = min(row["peak_bytes"] for row in rows_of_name)
            shallowest = min(rows_of_name, key=lambda row: int(row["depth"]))["peak_bytes"]
            for row in rows_of_name:
                row["ratio_to_shallowest"] = row["peak_bytes"] / shallowest
            if rows_of_name[0]["reversible"]:
                flatness[f"{name} at {length}"] = max(row["peak_bytes"] for row in rows_of_name) / smallest
            rows += rows_of_name
    return {
        "bench": "memory",
        "rows": rows,
        "flatness": flatness,
        "models": _shapes(configs),
        "machine": machine(device, repeats=1),
    }


def bench_train(options: Options) -> dict[str, Any]:
    """Seconds of a training step of every variant, in turns, against the FLOPs it needs and against a plain loop.

    The step is the trainer's: forward, backward, clipping, Adam. Options: names, depths, lengths, batch, repeats,
    device. Rows have, beside the keys of every bench, depth, batch, tokens_per_second, flops, ratio_to_bound
    and ratio_to_first (over the first row of the same depth and length); `models` are as of `bench_memory`.
    """
    names = options.names("names", [PLAIN, *VARIANTS, *NAMED], [PLAIN, *DENSE, *VARIANTS])
    depths = options.numbers("depths", (3,), RANGES["n_layers"])
    lengths = options.numbers("lengths", (1024,), LENGTH)
    batch = options.number("batch", 2, RANGES["training.batch_size"])
    repeats = options.number("repeats", 5, REPEATS)
    device = resolve_device(options.device())
    options.refuse_rest()
    rows: list[dict[str, Any]] = []
    configs: list[tuple[str, Config]] = []
    for length in lengths:
        for depth in depths:
            shapes = {name: "dense" if name == PLAIN else name for name in names}
            configs_here = {name: variant(of, depth=depth, length=length, batch=batch) for name, of in shapes.items()}
            configs += configs_here.items()
            rows += _train_rows(configs_here, repeats, device)
    return {
        "bench": "train",
        "rows": rows,
        "models": _shapes(configs),
        "machine": machine(device, repeats=repeats),
    }


def peak_of_step(config: Config, device: torch.device, vocab_size: int = VOCAB_SIZE) -> tuple[int, int]:
    """(peak activation bytes, replay bytes) of forward and backward pass of one micro-batch.

    Peak of live tensor bytes without parameters, gradients and replay state; optimiser state is not there yet.
    """
    model, batch = model_and_batch(config, device, vocab_size)
    states = _states(model) if config.reversible.enabled else {}
    with MemoryTracker() as live:
        _loss(model, batch, states).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    kept = [state for blocks in states.values() for block in blocks for state in block]
    choices = [choice for state in kept for choice in state.choices.values()]
    peak = live.peak_bytes(excluding=[*gradients, *choices])
    return peak, sum(state.nbytes() for state in kept)


def device_memory_of_step(config: Config, device: torch.device, vocab_size: int) -> tuple[int, int]:
    """(bytes that the device holds at the fullest moment of a training step, bytes that the host holds for it).

    Weights, gradients and optimiser state are the device's, or with `distributed.offload` the host's, and then those
    weights and gradients alone are on the device that are gathered there at the time: measured, a step being run.
    """
    model, batch = model_and_batch(config, device, vocab_size)
    parameters = list(model.parameters())
    dtype = DTYPES[config.dtype]
    kept = 2 * parameter_bytes(parameters, dtype) + optimizer_bytes(config.optimizer.name, parameters, dtype)
    if not config.distributed.offload:
        peak, replay = peak_of_step(config, device, vocab_size)
        return kept + peak + replay, 0
    states = _states(model) if config.reversible.enabled else {}
    with group_of_one():
        wrapped = wrap(model, config.distributed, ALONE, device)
        with MemoryTracker(resizes=True) as live:
            _loss(wrapped, batch, states).backward()
    gradients = [own_part(p.grad) for p in model.parameters() if p.grad is not None]
    return live.peak_bytes(excluding=gradients), kept


def _memory_row(name: str, config: Config, device: torch.device) -> dict[str, Any]:
    with exclusive():  # so as not to disturb a timing
        peak, kept_bytes = peak_of_step(config, device)
    return {
        "name": name,
        "peer": False,
        "depth": config.n_layers,
        "length": config.data.length,
        "batch": config.training.batch_size,
        "pass": BOTH,
        "seconds": None,
        "bound_seconds": None,
        "peak_bytes": peak,
        "replay_bytes": kept_bytes,
        "planned_bytes": activation_bytes(config, VOCAB_SIZE),
        "reversible": config.reversible.enabled,
    }


def _train_rows(configs: dict[str, Config], repeats: int, device: torch.device) -> list[dict[str, Any]]:
    keep_freed_memory()  # of the peer too
    calls: dict[str, Callable[[], object]] = {}
    for name, config in configs.items():
        calls[name] = (plain_step if name == PLAIN else step_of)(config, device, VOCAB_SIZE)
    product, product_flops = matmul_call(device)
    matmul = "a matrix product"
    with exclusive():
        timed = interleaved({**calls, matmul: product}, repeats=repeats, device=device)
        peaks = {name: None if name == PLAIN else peak_of_step(config, device)[0] for name, config in configs.items()}
    flops_per_second = product_flops / timed[matmul].seconds
    first = timed[next(iter(configs))].seconds
    rows = []
    for name, config in configs.items():
        tokens = config.training.batch_size * tokens_of_row(config)
        flops = tokens * sum(training_flops_by_component(config, VOCAB_SIZE).values())
        rows.append(
            {
                "name": name,
                "peer": name == PLAIN,
                "depth": config.n_layers,
                "length": config.data.length,
                "batch": config.training.batch_size,
                "pass": "training step",
                "seconds": timed[name].seconds,
                "spread": timed[name].spread,
                "tokens_per_second": tokens / timed[name].seconds,
                "peak_bytes": peaks[name],
                "flops": flops,
                "bound_seconds": flops / flops_per_second,
                "ratio_to_bound": timed[name].seconds / (flops / flops_per_second),
                "ratio_to_first": timed[name].seconds / first,
                "matmul_flops_per_second": flops_per_second,
            }
        )
    return rows


def step_of(config: Config, device: torch.device, vocab_size: int = VOCAB_SIZE) -> Callable[[], object]:
    """One training step of a fresh model, the trainer's own, always on the same batch, without files and logs.

    With the trainer's allocator, for all that this process computes from now on.
    """
    keep_freed_memory()
    model, (targets_BL, *inputs_BE) = model_and_batch(config, device, vocab_size)
    learner = Learner.of(model, model, config, device)
    share = share_of([Batch(targets_BL, torch.ones(targets_BL.shape, device=device), *inputs_BE)])

    def step() -> tuple[float, float]:
        sums = learner.gradients(share, config, 1)
        learner.update()
        return sums

    return step


def attention_of(config: Config, device: torch.device, vocab_size: int = VOCAB_SIZE) -> Callable[[], object]:
    """Of that step softmax attention alone, forward and backward in every layer: scores and values, no projections."""
    model = build_model(config, vocab_size, device).train()
    layers = [module for module in model.modules() if isinstance(module, SoftmaxAttention)]
    batch, length = config.training.batch_size, config.data.length
    return heads_pass(layers, batch, config.n_heads, length, config.seed, backward=True)


def model_and_batch(config: Config, device: torch.device, vocab_size: int) -> tuple[Model, tuple[Tensor, ...]]:
    """The model in training mode, and target tokens, with the encoder's where it has one; none of these is padding."""
    generator = torch.Generator().manual_seed(config.seed)
    lengths = [config.target_length] if config.stack == "decoder" else [config.target_length, config.data.length]
    batch = tuple(
        torch.randint(1, vocab_size, (config.training.batch_size, length), generator=generator).to(device)
        for length in lengths
    )
    return build_model(config, vocab_size, device).train(), batch


def _states(model: Model) -> dict[str, RecomputeStates]:
    """One state for every branch of every block, under the names that the model's loss takes them by."""
    stacks = {"states": model.blocks}
    if isinstance(model, EncoderDecoder):
        stacks["encoder_states"] = model.encoder_blocks
    return {name: [[RecomputeState() for _ in block.children()] for block in blocks] for name, blocks in stacks.items()}


def _loss(model: nn.Module, batch: tuple[Tensor, ...], states: dict[str, RecomputeStates]) -> Tensor:
    nll_BL: Tensor = model(*batch, losses=True, **states)[0]
    return nll_BL.mean()


def _shapes(configs: Iterable[tuple[str, Config]]) -> list[dict[str, Any]]:
    """Every shape among models that are given with their names, and the `names` of those that have it."""
    shapes: list[dict[str, Any]] = []
    names: list[list[str]] = []
    for name, config in configs:
        shape = _shape(config)
        if shape not in shapes:
            shapes.append(shape)
            names.append([])
        of_shape = names[shapes.index(shape)]
        if name not in of_shape:
            of_shape.append(name)
    return [{"names": names_of_shape, **shape} for names_of_shape, shape in zip(names, shapes, strict=True)]


def _shape(config: Config) -> dict[str, Any]:
    """Widths, what is sparse, and the targets where they are not the row's tokens."""
    sparse = {"N": config.sparse_ff.N, "S": config.sparse_qkv.S}
    if config.target_length != config.data.length:
        sparse["target_length"] = config.target_length
    return {
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "n_heads": config.n_heads,
        "d_head": config.width_of_head,
        **{key: value for key, value in sparse.items() if value},
        "vocab_size": VOCAB_SIZE,
        "batch": config.training.batch_size,
    }
