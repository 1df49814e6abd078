"""Time, memory and scores of one attention layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from efftx.bench import attention as bench
from efftx.bench.memory_tracker import MemoryTracker
from efftx.layers.attention_settings import FullConfig
from efftx.layers.patterns import make_pattern
from efftx.ops.attention import full_attention, full_attention_naive
from efftx.reproduce.measures.measure import Measure, Parameters, every_number_of, fitted_exponent

SPARSE_SETS = ("window", "column", "strided", "fixed")
"""The attentions of `efftx.bench.attention_time` whose queries see a set of keys."""


def attention_time(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Seconds a forward pass of one attention layer, at every length and batch of the columns (Reformer, figure 5)."""
    metrics = {}
    for column, where in parameters["columns"].items():
        timed = bench.attention_time({**_without_columns(parameters), **row_parameters, **where, "seed": seed})
        metrics[column] = {"seconds": float(timed["seconds"])}
    return {"metrics": metrics}


def column_entries(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What of `attention_time` is the same on every machine: the score entries counted, column by column."""
    settings = {**parameters, **row_parameters}
    return [score_entries(int(c["length"]), {**settings, **c}) for c in parameters["columns"].values()]


def attention_cost(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Score entries counted, bytes and seconds measured, over lengths, and the exponents fitted (Reformer, table 1).

    `parameters`: lengths, batch, n_heads, d_head and what `efftx.bench.attention_time` asks for; `row_parameters`:
    attention (`full`, `memory_efficient`, `lsh`), n_hashes, chunk_len. Columns with a `length` have the metric
    `entries`; every column may show `time_exponent`, `memory_exponent` and `entries_exponent`.
    """
    lengths = [int(length) for length in parameters["lengths"]]
    settings = {**_without_columns(parameters), **row_parameters, "seed": seed}
    entries = [score_entries(length, settings) for length in lengths]
    timed = [bench.attention_time({**settings, "length": length}) for length in lengths]
    seconds = [float(t["seconds"]) for t in timed]
    peak = [float(t["peak_bytes"]) for t in timed]
    exponents = {
        "entries_exponent": fitted_exponent(lengths, entries),
        "time_exponent": fitted_exponent(lengths, seconds),
        "memory_exponent": fitted_exponent(lengths, peak),
    }
    metrics: dict[str, dict[str, float]] = {}
    for column, where in parameters["columns"].items():
        at = where.get("length")
        metrics[column] = dict(exponents) if at is None else {"entries": entries[lengths.index(at)]}
    series = {
        "length": [float(length) for length in lengths],
        "entries": entries,
        "entries_printed": [printed_entries(length, settings) for length in lengths],
        "seconds": seconds,
        "peak_bytes": peak,
    }
    return {"metrics": metrics, "series": series}


def counted_entries(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What of `attention_cost` is the same on every machine: the counted score entries."""
    return [score_entries(int(length), {**parameters, **row_parameters}) for length in parameters["lengths"]]


def score_entries(length: int, parameters: Parameters) -> float:
    """Scores computed for one forward pass of all heads and examples, masked ones included.

    Full attention: b n_h l^2, whether or not all are kept. A sparse pattern: what its block form computes. LSH: each
    round has l / m chunks of m queries by 2 m keys, n_r (l / m) m 2m = n_r 2 l^2 / n_c with n_c = l / m chunks: linear
    in l at a fixed chunk.
    """
    parameters = {**bench.DEFAULTS, **parameters}
    heads, kind = float(parameters["batch"]) * float(parameters["n_heads"]), str(parameters["attention"])
    if kind in SPARSE_SETS:
        pattern = bench.Case(kind, length, stride=int(parameters["stride"]), c=int(parameters["c"])).pattern()
        return heads * length * float(pattern.keys(length))
    if kind != "lsh":
        return heads * length**2
    chunk = min(int(parameters["chunk_len"]), length)
    n_chunks = length / chunk
    return heads * float(parameters["n_hashes"]) * 2.0 * length**2 / n_chunks


def printed_entries(length: int, parameters: Parameters) -> float:
    """The second argument of the max that table 1 prints: b n_h l^2, or b n_h n_r l (4 l / n_c)^2 for LSH."""
    parameters = {**bench.DEFAULTS, **parameters}
    heads = float(parameters["batch"]) * float(parameters["n_heads"])
    if parameters["attention"] != "lsh":
        return heads * length**2
    chunk = min(int(parameters["chunk_len"]), length)
    return heads * float(parameters["n_hashes"]) * length * (4.0 * chunk) ** 2


def score_memory(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Gigabytes of the attention weights of a stack of dense layers, counted and measured (the blog's table).

    `parameters`: n_layers, n_heads, d_head; `row_parameters`: length, and `measured`: which forms are measured too.
    Metrics, the same under every column, in 10^9 bytes: `stored`, 4 bytes a score of all layers, and `recomputed`, of
    one layer, as `plan` counts the scores; `stored_measured`, what one layer's forward pass leaves for the backward
    pass beside its input and output, times the layers; `recomputed_measured`, the peak of one layer's forward and
    backward pass where the scores are made again; `fused_measured`, the first with PyTorch's fused kernel, which stores
    none.
    """
    length, n_layers = int(row_parameters["length"]), int(parameters["n_layers"])
    scores = int(parameters["n_heads"]) * length * make_pattern("full", FullConfig(length), length).keys(length)
    gigabytes = {"stored": 4.0 * scores * n_layers / 1e9, "recomputed": 4.0 * scores / 1e9}
    for form in row_parameters.get("measured", ()):
        kept, peak = _attention_bytes(form, length, int(parameters["n_heads"]), int(parameters["d_head"]))
        gigabytes[f"{form}_measured"] = (peak if form == "recomputed" else n_layers * kept) / 1e9
    return {"metrics": dict.fromkeys(parameters["columns"], gigabytes)}


def _attention_bytes(form: str, length: int, n_heads: int, d_head: int) -> tuple[float, float]:
    """Bytes that live between the passes of one attention, without its input and output, and the peak of both."""
    forms: dict[str, Callable[..., Tensor]] = {
        "stored": full_attention_naive,
        "recomputed": partial(checkpoint, full_attention_naive, use_reentrant=False),
        "fused": full_attention,
    }
    q, k, v = (torch.randn(1, n_heads, length, d_head).requires_grad_() for _ in range(3))
    with MemoryTracker() as live:
        out = forms[form](q, k, v, scale=d_head**-0.5)
        kept = live.bytes_now() - out.untyped_storage().nbytes()
        out.sum().backward()
    return float(kept), float(live.peak_bytes(excluding=[x.grad for x in (q, k, v) if x.grad is not None]))


def _without_columns(parameters: Parameters) -> dict[str, Any]:
    return {k: v for k, v in parameters.items() if k not in ("columns", "lengths")}


MEASURES = {
    "attention_time": Measure(attention_time, column_entries, counts=True),
    "attention_cost": Measure(attention_cost, counted_entries, counts=True),
    "score_memory": Measure(score_memory, every_number_of(score_memory)),
}
