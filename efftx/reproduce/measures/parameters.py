"""How many parameters a model has; it stands on the meta device and is not trained."""

from __future__ import annotations

from typing import Any

from efftx.config.compose import compose
from efftx.layers.cost import n_parameters
from efftx.models.build import build_on_meta
from efftx.reproduce.measures.measure import Measure, Parameters


def model_size(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """How many parameters a configuration has, in all and by the sheet's arithmetic (Sparse Transformer, table 1).

    `parameters`, `row_parameters`: overrides. Metrics, the same under every column: `total`, and of it `matrices`,
    those of the blocks: 2 d (heads d_qk) + 2 d (heads d_head) + 2 d d_ff a layer; `rest`, embeddings, biases, norms and
    logits.
    """
    config = compose([*parameters["overrides"], *row_parameters.get("overrides", [])])
    model = build_on_meta(config, config.vocab_size)
    total = n_parameters(model)
    matrices = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2)
    metrics = {"total": float(total), "matrices": float(matrices), "rest": float(total - matrices)}
    return {"metrics": dict.fromkeys(parameters["columns"], metrics)}


def counted_parameters(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What a replay of `model_size` compares: all its numbers."""
    return list(model_size({**parameters, "columns": [""]}, seed, row, row_parameters)["metrics"][""].values())


MEASURES = {
    "model_size": Measure(model_size, counted_parameters, counts=True),
}
