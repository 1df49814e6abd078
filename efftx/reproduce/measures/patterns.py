"""Which keys the patterns of the Sparse Transformer connect.

Shape suffixes: Q queries, L length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efftx.layers.attention_settings import FixedConfig, FullConfig, StridedConfig
from efftx.layers.patterns import Pattern, make_pattern
from efftx.ops.patterns import unreachable
from efftx.reproduce.measures.measure import Measure, Parameters, every_number_of

FIRST, SECOND = 1.0, 2.0
"""In the series `connectivity`: the key is in the first factor's set, in the second's; in both, their sum."""
_QUERIES_AT_ONCE = 512


def connectivity(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Which keys the queries of a pattern see, counted from the index sets that attention itself uses (figure 3).

    `row_parameters`: attention (`full`, `strided`, `fixed`), length n, stride l and c of the pattern's node; `draw: i`
    adds the whole matrix as a series, with the query i to be shown; `reach: false` leaves out what takes n^3
    operations. Metrics, the same under every column: `keys_first`, `keys_second`, `keys`, the most keys of a query in
    each factor and in their union; `bound`, l + n / l - 1 for strided, l + c (n / l - 1) for fixed, n for full;
    `share`, pairs of the union over those of full attention (%); `computed`, scores that the block form computes over
    the pairs of the union; `lost_first_second`, `lost_second_first`, `lost_merged`, pairs of a query and an earlier
    position that two layers do not connect: the two factors in either order, and twice their union.
    """
    length = int(row_parameters["length"])
    first, second, union = _factors(row_parameters)
    most, pairs = [0, 0, 0], [0, 0, 0]
    for start in range(0, length, _QUERIES_AT_ONCE):
        for i, pattern in enumerate((first, second, union)):
            keys_Q = _seen(pattern, range(start, min(start + _QUERIES_AT_ONCE, length)), length).sum(-1)
            most[i], pairs[i] = max(most[i], int(keys_Q.max())), pairs[i] + int(keys_Q.sum())
    metrics = {
        "keys_first": float(most[0]),
        "keys_second": float(most[1]),
        "keys": float(most[2]),
        "bound": _most_keys(row_parameters),
        "share": 100.0 * pairs[2] / (length * (length + 1) / 2),
        "computed": union.keys(length) * length / pairs[2],
    }
    if row_parameters.get("reach", True):
        metrics |= _lost(first, second, union, length)
    series = {} if "draw" not in row_parameters else _matrix(first, second, length, int(row_parameters["draw"]))
    return {"metrics": dict.fromkeys(parameters["columns"], metrics), "series": series}


def _factors(row_parameters: Parameters) -> tuple[Pattern, Pattern, Pattern]:
    """The pattern's two factors and their union; full attention is its own factors."""
    kind, length = str(row_parameters["attention"]), int(row_parameters["length"])
    if kind == "full":
        whole = make_pattern(kind, FullConfig(), length)
        return whole, whole, whole
    stride, c = int(row_parameters["stride"]), int(row_parameters.get("c", 0))

    def used(mode: str) -> Pattern:
        node = StridedConfig(stride, mode) if kind == "strided" else FixedConfig(stride, c, mode=mode)
        return make_pattern(kind, node, length)

    return used("first"), used("second"), used("merged")


def _most_keys(row_parameters: Parameters) -> float:
    """The most keys of a query in the union of both factors, by the formula."""
    n = float(row_parameters["length"])
    if row_parameters["attention"] == "full":
        return n
    stride = float(row_parameters["stride"])
    each = 1.0 if row_parameters["attention"] == "strided" else float(row_parameters["c"])
    return stride + each * (n / stride - 1.0)


def _seen(pattern: Pattern, queries: range, length: int) -> Tensor:
    query, key = torch.tensor(queries), torch.arange(length)
    return pattern.sees(0, query[:, None], key[None, :])


def _lost(first: Pattern, second: Pattern, union: Pattern, length: int) -> dict[str, float]:
    a, b, both = (_seen(pattern, range(length), length) for pattern in (first, second, union))
    orders = {"lost_first_second": (a, b), "lost_second_first": (b, a), "lost_merged": (both, both)}
    return {name: float(unreachable(layers).sum()) for name, layers in orders.items()}


def _matrix(first: Pattern, second: Pattern, length: int, query: int) -> dict[str, list[float]]:
    a, b = (_seen(pattern, range(length), length).double() for pattern in (first, second))
    both = FIRST * a if first is second else FIRST * a + SECOND * b
    return {"connectivity": both.flatten().tolist(), "query": [float(query)]}


MEASURES = {
    "connectivity": Measure(connectivity, every_number_of(connectivity), counts=True),
}
