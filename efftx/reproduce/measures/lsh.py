"""How often the buckets of angular hashing collide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from efftx.ops.lsh_hashing import hash_vectors, make_rotations
from efftx.reproduce.measures.measure import Measure, Parameters

_DRAWS_AT_ONCE = 10_000


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


MEASURES = {
    "collision_probability": Measure(collision_probability, first_collisions),
}
