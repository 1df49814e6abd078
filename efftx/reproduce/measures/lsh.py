"""How often the buckets of angular hashing collide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from efftx.ops.lsh_hashing import hash_vectors, make_rotations, sort_by_bucket
from efftx.reproduce.measures.measure import Measure, Parameters, every_number_of

_DRAWS_AT_ONCE = 10_000


def collision_probability(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """How often two vectors at an angle share a bucket of the product's own angular LSH, beside the closed form.

    `parameters`: draws (fresh rotations), step_degrees; `row_parameters`: n_buckets, n_hashes (they collide if any
    round agrees). A column with `degrees` has the metric `probability`; the others have `deviation`, the largest
    distance from the closed form over all angles in standard errors of a proportion. A row with `circle: true` adds
    what the paper draws: the bucket of every direction of the plane under three single rotations, and a near and a far
    pair of directions.
    """
    degrees = np.arange(0.0, 180.0 + 1e-9, float(parameters["step_degrees"]))
    n_buckets, n_hashes = int(row_parameters["n_buckets"]), int(row_parameters["n_hashes"])
    draws = int(parameters["draws"])
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
    if row_parameters.get("circle"):
        series |= _circle(n_buckets, seed)
    return {"metrics": metrics, "series": series}


def first_collisions(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What a replay of `collision_probability` compares: the same draws at three angles."""
    angles = np.radians([30.0, 60.0, 90.0])
    n_buckets, n_hashes = int(row_parameters["n_buckets"]), int(row_parameters["n_hashes"])
    return _drawn_collisions(angles, n_buckets, n_hashes, int(parameters["draws"]), seed)


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
    rotations = make_rotations((1, 1, 2), 3, [n_buckets], device="cpu", dtype=torch.float32, generator=generator)
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
            (n, 1, 2), n_hashes, [n_buckets], device="cpu", dtype=torch.float32, generator=generator
        )
        bucket_BHRL = hash_vectors(circle.expand(n, 1, *circle.shape), rotations_BHdRn, [n_buckets])
        hits += (bucket_BHRL[..., 1:] == bucket_BHRL[..., :1]).any(dim=2).sum(dim=(0, 1))
    return [float(h) / draws for h in hits]


STAGES = ("full", "bucketed", "sorted", "chunked")


def hash_pipeline(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Which pairs of a query and a key hash attention computes and keeps at each stage, on vectors in clusters.

    `parameters`: length, d_head, clusters, spread (of a vector about the centre of its cluster), n_buckets, chunk_len;
    `row_parameters`: stage, one of STAGES. full and bucketed have queries and keys of their own, sorted and chunked
    shared ones, which do not see themselves unless they see nothing else. Not causal, one round, the product's own hash
    and sort. Metrics, the same under every column: `pairs` that are attended to, `computed` scores, `mass`, the share
    of full attention's weights that lies on the pairs (%), `alone`, queries whose bucket holds no other key, and
    `unequal`, how many keys would have to change their bucket for each to have as many as queries. Series: `matrix` in
    the order of the stage (1 attended to, or, of full attention, above the mean weight; 2 computed and hidden),
    `buckets_q`, `buckets_k` by position, `order_q`, `order_k` (place -> position), `chunk_len` (0: none).
    """
    stage, length, m = str(row_parameters["stage"]), int(parameters["length"]), int(parameters["chunk_len"])
    bucket, order, weights = _hashed_clusters(parameters, seed, shared=stage in ("sorted", "chunked"))
    same = bucket[0][:, None] == bucket[1]
    back = order[0].argsort()[:, None] // m - order[1].argsort() // m
    n_chunks = length // m  # the first chunk sees the last, as the product's rows do
    everything = np.ones((length, length), dtype=bool)
    computed = {"full": everything, "chunked": (back % n_chunks == 0) | (back % n_chunks == 1)}.get(stage, same)
    attended = computed if stage == "full" else same & computed
    if stage in ("sorted", "chunked"):
        others = attended & ~np.eye(length, dtype=bool)
        alone = ~others.any(1)
        attended = others | (np.eye(length, dtype=bool) & alone[:, None])
    else:
        alone = ~attended.any(1)
    metrics = {
        "pairs": float(attended.sum()),
        "computed": float(computed.sum()),
        "mass": 100.0 * float((weights * attended).sum()) / length,
        "alone": float(alone.sum()),
        "unequal": float(np.abs(np.diff([np.bincount(its, minlength=length) for its in bucket], axis=0)).sum() / 2),
    }
    codes = attended + 2 * (computed & ~attended)
    if stage == "full":
        order, codes = [np.arange(length)] * 2, weights > 1.0 / length
    series = {"matrix": codes[np.ix_(*order)].flatten().astype(int).tolist()}
    for name, values in (("buckets", bucket), ("order", order)):
        series |= {f"{name}_{side}": its.tolist() for side, its in zip("qk", values, strict=True)}
    series["chunk_len"] = [m if stage == "chunked" else 0]
    return {"metrics": dict.fromkeys(parameters["columns"], metrics), "series": series}


def _hashed_clusters(parameters: Parameters, seed: int, *, shared: bool) -> tuple[list[Any], list[Any], Any]:
    """Of queries and of keys their buckets and their order by them; and the weights of full attention."""
    generator = torch.Generator().manual_seed(seed)
    length, d, n_buckets = (int(parameters[name]) for name in ("length", "d_head", "n_buckets"))
    centres = torch.randn(int(parameters["clusters"]), d, generator=generator)

    def clustered() -> torch.Tensor:
        which = torch.randint(len(centres), (length,), generator=generator)
        return centres[which] + float(parameters["spread"]) * torch.randn(length, d, generator=generator)

    q, own_k = clustered(), clustered()
    k = q if shared else own_k
    rotations = make_rotations((1, 1, d), 1, [n_buckets], device="cpu", dtype=q.dtype, generator=generator)
    buckets = [hash_vectors(x[None, None], rotations, [n_buckets])[0, 0, 0] for x in (q, k)]
    order = [sort_by_bucket(bucket[None, None], n_buckets)[0, 0].numpy() for bucket in buckets]
    scores = q @ (k / k.norm(dim=-1, keepdim=True)).T
    if shared:
        scores.fill_diagonal_(-torch.inf)
    return [bucket.numpy() for bucket in buckets], order, torch.softmax(scores, -1).numpy()


MEASURES = {
    "collision_probability": Measure(collision_probability, first_collisions),
    "hash_pipeline": Measure(hash_pipeline, every_number_of(hash_pipeline)),
}
