"""Measures: what an experiment of `kind: measure` calls, by name, one row and one seed at a time.

A measure is given the parameters of the size (with `columns`: column -> its parameters), the seed, the row's name and
the row's parameters, and returns `{"metrics": {column: {metric: value}}, "series": {name: list of numbers}}`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from efftx.errors import UserError, nearest
from efftx.reproduce.decoding_measures import context_time, first_steps
from efftx.reproduce.measure import Measure, Parameters, every_number_of, fitted_exponent
from efftx.reproduce.pattern_measures import connectivity, iteration_counts, iteration_time, score_memory
from efftx.reproduce.picture_measures import attention_maps, drawn_samples, first_losses_of_samples
from efftx.reproduce.scaling_measures import (
    first_losses,
    multiplicative_layer,
    selected_units,
    shallowest_memory,
    training_memory,
)
from efftx.reproduce.size_measures import counted_parameters, model_size
from efftx.reproduce.token_time import token_counts, token_time, width_counts, width_time


def measure_named(name: str) -> Measure:
    """The measure of the registry called `name`; UserError with the nearest name for any other."""
    if name not in MEASURES:
        raise UserError("unknown_measure", f"there is no measure '{name}'", nearest(name, MEASURES))
    return MEASURES[name]


def attention_time(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """Seconds a forward pass of one attention layer, at every length and batch of the columns (Reformer, figure 5)."""
    metrics = {}
    for column, where in parameters["columns"].items():
        timed = _bench({**_without_columns(parameters), **own, **where, "seed": seed})
        metrics[column] = {"seconds": float(timed["seconds"])}
    return {"metrics": metrics}


def column_entries(parameters: Parameters, seed: int, row: str, own: Parameters) -> list[float]:
    """What of `attention_time` is the same on every machine: the score entries counted, column by column."""
    return [score_entries(int(c["length"]), {**parameters, **own, **c}) for c in parameters["columns"].values()]


def attention_cost(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """Score entries counted, bytes and seconds measured, over lengths, and the exponents fitted (Reformer, table 1).

    `parameters`: lengths, batch, n_heads, d_head and what `efftx.bench.attention_time` asks for; `own`: attention
    (`full`, `memory_efficient`, `lsh`), n_hashes, chunk_len. Columns with a `length` have the metric `entries`;
    every column may show `time_exponent`, `memory_exponent` and `entries_exponent`.
    """
    lengths = [int(length) for length in parameters["lengths"]]
    given = {**_without_columns(parameters), **own, "seed": seed}
    entries = [score_entries(length, given) for length in lengths]
    timed = [_bench({**given, "length": length}) for length in lengths]
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
        "entries_printed": [printed_entries(length, given) for length in lengths],
        "seconds": seconds,
        "peak_bytes": peak,
    }
    return {"metrics": metrics, "series": series}


def counted_entries(parameters: Parameters, seed: int, row: str, own: Parameters) -> list[float]:
    """What of `attention_cost` is the same on every machine: the counted score entries."""
    return [score_entries(int(length), {**parameters, **own}) for length in parameters["lengths"]]


def score_entries(length: int, given: Parameters) -> float:
    """Scores computed for one forward pass of all heads and examples, masked ones included.

    Full attention: b n_h l^2, whether or not all are kept. A sparse pattern: what its block form computes. LSH: each
    round has l / m chunks of m queries by 2 m keys, n_r (l / m) m 2m = n_r 2 l^2 / n_c with n_c = l / m chunks: linear
    in l at a fixed chunk.
    """
    heads, kind = float(given["batch"]) * float(given["n_heads"]), str(given["attention"])
    if kind in SPARSE_SETS:
        bench = importlib.import_module("efftx.bench.attention")
        pattern = bench.Case(kind, length, stride=int(given["stride"]), c=int(given["c"])).pattern()
        return heads * length * float(pattern.keys(length))
    if kind != "lsh":
        return heads * length**2
    chunk = min(int(given["chunk_len"]), length)
    n_chunks = length / chunk
    return heads * float(given["n_hashes"]) * 2.0 * length**2 / n_chunks


def printed_entries(length: int, given: Parameters) -> float:
    """The second argument of the max that table 1 prints: b n_h l^2, or b n_h n_r l (4 l / n_c)^2 for LSH."""
    heads = float(given["batch"]) * float(given["n_heads"])
    if given["attention"] != "lsh":
        return heads * length**2
    chunk = min(int(given["chunk_len"]), length)
    return heads * float(given["n_hashes"]) * length * (4.0 * chunk) ** 2


def collision_probability(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """How often two vectors at an angle share a bucket of the product's own angular LSH, beside the closed form.

    `parameters`: draws (fresh rotations), step_degrees; `own`: n_buckets, n_hashes (they collide if any round agrees).
    A column with `degrees` has the metric `probability`; the others have `deviation`, the largest distance from the
    closed form over all angles in standard errors of a proportion. A row with `circle: true` adds what the paper draws:
    the bucket of every direction of the plane under three single rotations, and a near and a far pair of directions.
    """
    degrees = np.arange(0.0, 180.0 + 1e-9, float(parameters["step_degrees"]))
    n_buckets, n_hashes, draws = int(own["n_buckets"]), int(own["n_hashes"]), int(parameters["draws"])
    measured = _drawn_collisions(np.radians(degrees), n_buckets, n_hashes, draws, seed)
    exact = [collision_closed_form(float(t), n_buckets, n_hashes) for t in np.radians(degrees)]
    error = [math.sqrt(max(p * (1 - p), 1.0 / draws) / draws) for p in exact]
    deviation = max(abs(m - p) / e for m, p, e in zip(measured, exact, error, strict=True))
    metrics: dict[str, dict[str, float]] = {}
    for column, where in parameters["columns"].items():
        at = where.get("degrees")
        hit = None if at is None else measured[int(np.argmin(np.abs(degrees - float(at))))]
        metrics[column] = {"deviation": deviation} if hit is None else {"probability": hit}
    series = {"degrees": degrees.tolist(), "measured": measured, "closed_form": exact}
    return {"metrics": metrics, "series": {**series, **(_circle(n_buckets, seed) if own.get("circle") else {})}}


def first_collisions(parameters: Parameters, seed: int, row: str, own: Parameters) -> list[float]:
    """What a replay of `collision_probability` compares: the same draws at three angles."""
    angles = np.radians([30.0, 60.0, 90.0])
    return _drawn_collisions(angles, int(own["n_buckets"]), int(own["n_hashes"]), int(parameters["draws"]), seed)


def collision_closed_form(theta: float, n_buckets: int, n_hashes: int) -> float:
    """The probability that two unit vectors at angle `theta` (radians) share a bucket in at least one of the rounds.

    One round with b buckets takes the largest of +-x r_i over i = 1 .. b/2 Gaussian directions r_i. The pairs
    (x r_i, y r_i) are independent, standard normal with correlation cos theta, in any dimension, so

        p = b E[ F(|x r_1|, |y r_1|)^(b/2 - 1) ; x r_1 > 0, y r_1 > 0 ],  F(a, c) = P(|x r| < a, |y r| < c)

    For b = 2 that is 1 - theta / pi. In general r_1 in polar coordinates makes it a smooth integral over its length and
    its angle, with F an integral over one more angle; Gauss-Legendre and midpoint rules give about 5 digits.
    Rounds are independent: 1 - (1 - p)^n_hashes.
    """
    p = 1.0 - theta / math.pi if n_buckets == 2 else _one_round(theta, n_buckets)
    return 1.0 - (1.0 - p) ** n_hashes


def _one_round(theta: float, n_buckets: int) -> float:
    if theta >= math.pi:
        return 0.0
    node, weight = np.polynomial.legendre.leggauss(48)
    # x r > 0 and y r > 0 where the angle of r to x lies between theta - pi/2 and pi/2.
    phi = theta - math.pi / 2 + (node + 1) / 2 * (math.pi - theta)
    radius = (node + 1) / 2 * 9.0
    a = np.maximum(np.outer(radius, np.cos(phi)), 0.0)[..., None]
    c = np.maximum(np.outer(radius, np.cos(phi - theta)), 0.0)[..., None]
    other = (np.arange(720) + 0.5) / 720 * math.pi  # F has period pi in this angle
    reach = np.minimum(a / np.abs(np.cos(other)), c / np.maximum(np.abs(np.cos(other - theta)), 1e-12))
    both_smaller = np.mean(-np.expm1(-(reach**2) / 2), axis=-1)
    density = radius * np.exp(-(radius**2) / 2) / (2 * math.pi)
    over_phi = (both_smaller ** (n_buckets // 2 - 1)) @ weight * (math.pi - theta) / 2
    return float(n_buckets * (weight * density) @ over_phi * 9.0 / 2)


def _circle(n_buckets: int, seed: int) -> dict[str, list[float]]:
    """The buckets of 360 directions of a plane under three rotations; two directions 15 and two 150 degrees apart."""
    import torch

    from efftx.ops.lsh_hashing import hash_vectors, make_rotations

    degrees = np.arange(360.0)
    turned = np.radians(degrees)
    circle_Ld = torch.tensor(np.stack([np.cos(turned), np.sin(turned)], axis=-1), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    rotations = make_rotations(1, 1, 2, 3, [n_buckets], device="cpu", dtype=torch.float32, generator=generator)
    code_RL = hash_vectors(circle_Ld[None, None], rotations, [n_buckets])[0, 0]
    codes = {f"circle_codes_{r}": [float(code) for code in row] for r, row in enumerate(code_RL.tolist())}
    pairs = {"near_degrees": [75.0, 90.0], "far_degrees": [30.0, 180.0]}
    return {"circle_degrees": degrees.tolist(), **codes, **pairs}


def _drawn_collisions(angles: Any, n_buckets: int, n_hashes: int, draws: int, seed: int) -> list[float]:
    """The share of `draws` fresh rotations under which the vector at each angle meets the one at angle 0."""
    import torch

    from efftx.ops.lsh_hashing import hash_vectors, make_rotations

    turned = np.concatenate([[0.0], np.asarray(angles, dtype=np.float64)])
    circle = torch.tensor(np.stack([np.cos(turned), np.sin(turned)], axis=-1), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    hits = torch.zeros(len(turned) - 1, dtype=torch.int64)
    for start in range(0, draws, _DRAWS_AT_ONCE):
        n = min(_DRAWS_AT_ONCE, draws - start)
        rotations_BHdRn = make_rotations(
            n, 1, 2, n_hashes, [n_buckets], device="cpu", dtype=torch.float32, generator=generator
        )
        bucket_BHRL = hash_vectors(circle.expand(n, 1, *circle.shape), rotations_BHdRn, [n_buckets])
        hits += (bucket_BHRL[..., 1:] == bucket_BHRL[..., :1]).any(dim=2).sum(dim=(0, 1))
    return [float(h) / draws for h in hits]


def _bench(parameters: Parameters) -> Mapping[str, Any]:
    """`efftx.bench.attention_time(parameters)`: `{"seconds", "peak_bytes"}` of one attention layer."""
    timed: Mapping[str, Any] = importlib.import_module("efftx.bench").attention_time(dict(parameters))
    return timed


def _without_columns(parameters: Parameters) -> dict[str, Any]:
    return {k: v for k, v in parameters.items() if k not in ("columns", "lengths")}


_DRAWS_AT_ONCE = 10_000
SPARSE_SETS = ("window", "column", "strided", "fixed")
"""The attentions of `efftx.bench.attention_time` whose queries see a set of keys."""

MEASURES: dict[str, Measure] = {
    "attention_maps": Measure(attention_maps, first_losses),
    "attention_time": Measure(attention_time, column_entries),
    "attention_cost": Measure(attention_cost, counted_entries),
    "collision_probability": Measure(collision_probability, first_collisions),
    "context_time": Measure(context_time, first_steps),
    "drawn_samples": Measure(drawn_samples, first_losses_of_samples),
    "model_size": Measure(model_size, counted_parameters),
    "selected_units": Measure(selected_units, first_losses),
    "connectivity": Measure(connectivity, every_number_of(connectivity)),
    "iteration_time": Measure(iteration_time, recount=iteration_counts),
    "multiplicative_layer": Measure(multiplicative_layer, every_number_of(multiplicative_layer)),
    "token_time": Measure(token_time, recount=token_counts),
    "width_time": Measure(width_time, recount=width_counts),
    "score_memory": Measure(score_memory, every_number_of(score_memory)),
    "training_memory": Measure(training_memory, shallowest_memory),
}
