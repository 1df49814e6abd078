"""What the multiplicative layer of queries, keys and values can represent and what it costs.

Shape suffixes: T tokens, D d_model, S modules, m the width of a module.
"""

from __future__ import annotations

from typing import Any

import torch

from efftx.layers.cost import n_parameters
from efftx.layers.initialize import on_meta
from efftx.layers.settings import SparseQKVConfig
from efftx.layers.sparse_qkv import SparseQKV
from efftx.ops.multiplicative import effective_matrix, multiplicative, permutation_weights
from efftx.reproduce.measures.measure import Measure, Parameters, every_number_of


def multiplicative_layer(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """What the multiplicative layer can represent and what it costs (figure 4).

    `row_parameters`: d_model, S. Over `draws` random permutations: `deviation`, the largest |difference| between the
    layer, set by hand, and the permutation, for few tokens and for many (two orders of the product); `inside_blocks`, %
    of their entries that lie in S blocks on the diagonal, all that a block-diagonal layer could hold. `weights` beside
    `dense_weights` and `block_weights`. A row with F instead counts the layer of queries, keys and values: `weights`
    without the shared layer's bias, `weights_and_bias`, `dense_weights` of queries, keys, values and output. With
    `draw: true` also the first permutation with its gate and projection.
    """
    d_model, S = int(row_parameters["d_model"]), int(row_parameters["S"])
    if "F" in row_parameters:
        return {"metrics": dict.fromkeys(parameters["columns"], _qkv_weights(d_model, S, int(row_parameters["F"])))}
    d_module = d_model // S
    generator = torch.Generator().manual_seed(seed)
    deviation, inside, series = 0.0, 0.0, {}
    for i in range(int(parameters["draws"])):
        source_D = torch.randperm(d_model, generator=generator)
        gate_SD, proj_Dm = permutation_weights(source_D, S)
        for n_tokens in (1, d_module):
            x_TD = torch.randn(n_tokens, d_model, generator=generator)
            difference_TD = multiplicative(x_TD, gate_SD, proj_Dm) - x_TD[:, source_D]
            deviation = max(deviation, float(difference_TD.abs().max()))
        inside += float((source_D // d_module == torch.arange(d_model) // d_module).double().mean())
        if i == 0 and row_parameters.get("draw"):
            drawn = {"gate": gate_SD, "projection": proj_Dm, "matrix": effective_matrix(gate_SD, proj_Dm)}
            series = {name: matrix.flatten().tolist() for name, matrix in drawn.items()} | {"modules": [float(S)]}
    metrics = {
        "deviation": deviation,
        "inside_blocks": 100.0 * inside / int(parameters["draws"]),
        "weights": float(d_model * (S + d_module)),
        "block_weights": float(d_model * d_module),
        "dense_weights": float(d_model**2),
    }
    return {"metrics": dict.fromkeys(parameters["columns"], metrics), "series": series}


def _qkv_weights(d_model: int, S: int, F: int) -> dict[str, float]:
    with on_meta():
        layer = SparseQKV(SparseQKVConfig(S=S, F=F), d_model, S, share_qk=False)
    total = float(n_parameters(layer))
    return {"weights": total - d_model, "weights_and_bias": total, "dense_weights": 4.0 * d_model**2}


MEASURES = {
    "multiplicative_layer": Measure(multiplicative_layer, every_number_of(multiplicative_layer)),
}
