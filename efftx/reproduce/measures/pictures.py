"""Where the heads of a trained model of pictures look.

Shape suffix: H heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from efftx.evaluation.attention_maps import attention_weights, map_scores, seen_from, uniform_weights
from efftx.layers.attention import SoftmaxAttention
from efftx.models.decoder import Decoder
from efftx.reproduce.measures.measure import Measure, Parameters
from efftx.reproduce.measures.trained import configured, first_losses, trained_model

AT_ONCE = 4
"""Pictures whose attention weights are in memory together."""


def attention_maps(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Where a layer's heads look in the first test pictures, for what is defined in `evaluation.attention_maps`.

    `parameters`: overrides (a decoder with full attention, which is trained, or taken from its finished run), pictures,
    query (row and column of the pixel whose map is drawn, as parts of the side); `row_parameters`: layer, or uniform:
    true for what attention to all places alike would have. Metrics, the same under every column: `local`, `row`,
    `column` and `keys`, the mean over the heads, `row_head` and `column_head`, of the head that has most, and beside a
    layer's the model's on the test split (`bits_per_dim`, ...). Series `map`: the weights of the pixels for that query,
    head by head.
    """
    config = configured(parameters["overrides"], seed)
    side = math.isqrt(config.data.length // 3)
    query = [int(part * side) for part in parameters["query"]]
    place = 3 * (query[0] * side + query[1])
    quality: dict[str, float] = {}
    if row_parameters.get("uniform"):
        scored = [(map_scores(weights := uniform_weights(config.data.length)), seen_from(weights, place))]
    else:
        model, dataset, quality = trained_model(config)
        decoder: Decoder = model  # type: ignore[assignment]
        layer = decoder.blocks[int(row_parameters["layer"])].get_submodule("attention.core")
        assert isinstance(layer, SoftmaxAttention)
        read: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        scored = []
        with torch.no_grad():
            for step in range(int(parameters["pictures"]) // AT_ONCE):
                decoder.hidden(dataset.batch("test", 0, step, AT_ONCE).tokens_BL)
                weights = attention_weights(layer, read.pop())
                scored.append((map_scores(weights), seen_from(weights, place)))
        hook.remove()
    score_H = {name: torch.stack([scores[name] for scores, _ in scored]).mean(0) for name in scored[0][0]}
    metrics = quality | {name: float(value_H.mean()) for name, value_H in score_H.items()}
    metrics |= {f"{name}_head": float(score_H[name].max()) for name in ("row", "column")}
    map_HSS = torch.stack([seen for _, seen in scored]).mean(0)
    series = {"map": map_HSS.flatten().tolist(), "query": [float(part) for part in query], "side": [float(side)]}
    return {
        "metrics": dict.fromkeys(parameters["columns"], metrics),
        "series": {} if row_parameters.get("uniform") else series,
    }


MEASURES = {
    "attention_maps": Measure(attention_maps, first_losses),
}
