"""What the patterns of the Sparse Transformer connect and what they cost; see `measures` for what a measure is.

Shape suffixes: Q queries, L length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from efftx.config.schema import Config
    from efftx.layers.patterns import Pattern

Parameters = Mapping[str, Any]

FIRST, SECOND = 1.0, 2.0
"""In the series `connectivity`: the key is in the first factor's set, in the second's; in both, their sum."""
_QUERIES_AT_ONCE = 512


def connectivity(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """Which keys the queries of a pattern see, counted from the index sets that attention itself uses (figure 3).

    `own`: attention (`full`, `strided`, `fixed`), length n, stride l and c of the pattern's node; `draw: i` adds the
    whole matrix as a series, with the query i to be shown; `reach: false` leaves out what takes n^3 operations.
    Metrics, the same under every column: `keys_first`, `keys_second`, `keys`, the most keys of a query in each factor
    and in their union; `bound`, l + n / l - 1 for strided, l + c (n / l - 1) for fixed, n for full; `share`, pairs of
    the union over those of full attention (%); `computed`, scores that the block form computes over the pairs of the
    union; `lost_first_second`, `lost_second_first`, `lost_merged`, pairs of a query and an earlier position that two
    layers do not connect: the two factors in either order, and twice their union.
    """
    length = int(own["length"])
    first, second, union = _factors(own)
    most, pairs = [0, 0, 0], [0, 0, 0]
    for start in range(0, length, _QUERIES_AT_ONCE):
        for i, pattern in enumerate((first, second, union)):
            keys_Q = _seen(pattern, range(start, min(start + _QUERIES_AT_ONCE, length)), length).sum(-1)
            most[i], pairs[i] = max(most[i], int(keys_Q.max())), pairs[i] + int(keys_Q.sum())
    found = {
        "keys_first": float(most[0]),
        "keys_second": float(most[1]),
        "keys": float(most[2]),
        "bound": _most_keys(own),
        "share": 100.0 * pairs[2] / (length * (length + 1) / 2),
        "computed": union.keys(length) * length / pairs[2],
    }
    if own.get("reach", True):
        found |= _lost(first, second, union, length)
    series = {} if "draw" not in own else _matrix(first, second, length, int(own["draw"]))
    return {"metrics": dict.fromkeys(parameters["columns"], found), "series": series}


def iteration_time(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """Seconds of one training step, beside those of another model in the same turns, and what explains the ratio.

    `parameters`: vocab_size, warm_up, repeats, device, models (name -> overrides), against (the other's overrides);
    `own`: model, its name, and overrides. Metrics, the same under every column: `seconds` (forward, backward and
    optimiser), `speedup` (the other's over them), `attention_seconds` (scores and values of all layers, alone, in the
    same turns), `rest_seconds`, `attention_speedup`, and what the counts allow: `score_speedup`, scores of the other
    over those computed here, and `work_speedup`, the same of all FLOPs of a step.
    """
    from efftx.bench.stacks import attention_of, step_of
    from efftx.machine.devices import resolve_device
    from efftx.machine.timing import interleaved

    device, vocab_size = resolve_device(str(parameters.get("device", "cpu"))), int(parameters["vocab_size"])
    mine, other = _mine_and_other(parameters, own, seed)
    models = {"": mine} if mine == other else {"": mine, "other ": other}
    calls = {f"{name}step": step_of(config, device, vocab_size) for name, config in models.items()}
    calls |= {f"{name}attention": attention_of(config, device, vocab_size) for name, config in models.items()}
    repeats, warm_up = int(parameters["repeats"]), int(parameters["warm_up"])
    timed = interleaved(calls, repeats=repeats, device=device, warm_up=warm_up)
    seconds = {name: found.seconds for name, found in timed.items()}
    step, attention = seconds["step"], seconds["attention"]
    found = {
        "seconds": step,
        "speedup": seconds.get("other step", step) / step,
        "attention_seconds": attention,
        "rest_seconds": step - attention,
        "attention_speedup": seconds.get("other attention", attention) / attention,
        **_work_speedups(parameters, own, seed),
    }
    series = {"spread": [timed["step"].spread], "seconds_of_other": [seconds.get("other step", step)]}
    return {"metrics": dict.fromkeys(parameters["columns"], found), "series": series}


def iteration_counts(
    parameters: Parameters, row: str, own: Parameters, result: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    """What `iteration_time` recorded of counts, and the same counted anew."""
    again = _work_speedups(parameters, own, 0)
    metrics = next(iter(result["metrics"].values()))
    return [metrics[name] for name in again], list(again.values())


def _work_speedups(parameters: Parameters, own: Parameters, seed: int) -> dict[str, float]:
    from efftx.plan.flops import training_flops_by_component

    mine, other = (
        training_flops_by_component(config, int(parameters["vocab_size"]))
        for config in _mine_and_other(parameters, own, seed)
    )
    return {
        "score_speedup": other["attention_scores"] / mine["attention_scores"],
        "work_speedup": sum(other.values()) / sum(mine.values()),
    }


def _mine_and_other(parameters: Parameters, own: Parameters, seed: int) -> tuple[Config, Config]:
    """The row's model, and the one that it is compared with."""
    from efftx.reproduce.scaling_measures import configured

    base = parameters["models"][own["model"]]
    return configured([*base, *own["overrides"]], seed), configured([*base, *parameters["against"]], seed)


def score_memory(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """Gigabytes of the attention weights of a stack of dense layers, counted and measured (the blog's table).

    `parameters`: n_layers, n_heads, d_head; `own`: length, and `measured`: which forms are measured too. Metrics, the
    same under every column, in 10^9 bytes: `stored`, 4 bytes a score of all layers, and `recomputed`, of one layer, as
    `plan` counts the scores; `stored_measured`, what one layer's forward pass leaves for the backward pass beside its
    input and output, times the layers; `recomputed_measured`, the peak of one layer's forward and backward pass where
    the scores are made again; `fused_measured`, the first with PyTorch's fused kernel, which stores none.
    """
    from efftx.layers.patterns import make_pattern
    from efftx.layers.settings import FullConfig

    length, n_layers = int(own["length"]), int(parameters["n_layers"])
    scores = int(parameters["n_heads"]) * length * make_pattern("full", FullConfig(length), length).keys(length)
    found = {"stored": 4.0 * scores * n_layers / 1e9, "recomputed": 4.0 * scores / 1e9}
    for form in own.get("measured", ()):
        kept, peak = _attention_bytes(form, length, int(parameters["n_heads"]), int(parameters["d_head"]))
        found[f"{form}_measured"] = (peak if form == "recomputed" else n_layers * kept) / 1e9
    return {"metrics": dict.fromkeys(parameters["columns"], found)}


def _attention_bytes(form: str, length: int, n_heads: int, d_head: int) -> tuple[float, float]:
    """Bytes that live between the passes of one attention, without its input and output, and the peak of both."""
    from functools import partial

    import torch
    from torch.utils.checkpoint import checkpoint

    from efftx.bench.live_bytes import LiveBytes
    from efftx.ops.attention import full_attention, full_attention_naive

    forms: dict[str, Callable[..., Tensor]] = {
        "stored": full_attention_naive,
        "recomputed": partial(checkpoint, full_attention_naive, use_reentrant=False),
        "fused": full_attention,
    }
    q, k, v = (torch.randn(1, n_heads, length, d_head).requires_grad_() for _ in range(3))
    with LiveBytes() as live:
        out = forms[form](q, k, v, scale=d_head**-0.5)
        kept = live.bytes_now() - out.untyped_storage().nbytes()
        out.sum().backward()
    return float(kept), float(live.peak_bytes(excluding=[x.grad for x in (q, k, v) if x.grad is not None]))


def _factors(own: Parameters) -> tuple[Pattern, Pattern, Pattern]:
    """The pattern's two factors and their union; full attention is its own factors."""
    from efftx.layers.patterns import make_pattern
    from efftx.layers.settings import FixedConfig, FullConfig, StridedConfig

    kind, length = str(own["attention"]), int(own["length"])
    if kind == "full":
        whole = make_pattern(kind, FullConfig(), length)
        return whole, whole, whole
    stride, c = int(own["stride"]), int(own.get("c", 0))

    def used(mode: str) -> Pattern:
        node = StridedConfig(stride, mode) if kind == "strided" else FixedConfig(stride, c, mode=mode)
        return make_pattern(kind, node, length)

    return used("first"), used("second"), used("merged")


def _most_keys(own: Parameters) -> float:
    """The most keys of a query in the union of both factors, by the formula."""
    n = float(own["length"])
    if own["attention"] == "full":
        return n
    stride = float(own["stride"])
    each = 1.0 if own["attention"] == "strided" else float(own["c"])
    return stride + each * (n / stride - 1.0)


def _seen(pattern: Pattern, queries: range, length: int) -> Tensor:
    import torch

    query, key = torch.tensor(queries), torch.arange(length)
    return pattern.sees(0, query[:, None], key[None, :])


def _lost(first: Pattern, second: Pattern, union: Pattern, length: int) -> dict[str, float]:
    from efftx.ops.patterns import unreachable

    a, b, both = (_seen(pattern, range(length), length) for pattern in (first, second, union))
    orders = {"lost_first_second": (a, b), "lost_second_first": (b, a), "lost_merged": (both, both)}
    return {name: float(unreachable(layers).sum()) for name, layers in orders.items()}


def _matrix(first: Pattern, second: Pattern, length: int, query: int) -> dict[str, list[float]]:
    a, b = (_seen(pattern, range(length), length).double() for pattern in (first, second))
    both = FIRST * a if first is second else FIRST * a + SECOND * b
    return {"connectivity": both.flatten().tolist(), "query": [float(query)]}
