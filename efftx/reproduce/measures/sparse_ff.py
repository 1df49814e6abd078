"""Which units a trained sparse feed-forward layer selects, and what of it is read.

Shape suffixes: T tokens of a sentence, G blocks, N units of a block, D d_model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from efftx.layers.sparse_ff import SparseFF
from efftx.models.decoder import Decoder
from efftx.ops.sparse_ff import UnitWeights, sparse_ff_selected
from efftx.reproduce.measures.measure import Measure, Parameters
from efftx.reproduce.measures.trained import Trained, configured, first_losses, trained_model


def selected_units(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Which units a trained sparse feed-forward layer selects for a sentence, and what of it is read (figure 2).

    `parameters`: overrides (the model is trained, or taken from its finished run), sentence (cut at the model's
    length); `row_parameters`: layer, of the encoder where there is one. Metrics, the same under every column:
    `rows_read` (% of the rows of W1 and of W2 a token), `weights_read` (% of all the layer's weights, controller and
    bias included), `tokens`, `distinct_selections`, `kept_choices` (% of blocks whose unit the next token selects as
    well), `changed_outputs`: tokens whose output is another when every row that was not selected is lost, and those of
    the model on the test split (`loss`, ...).
    """
    trained = trained_model(configured(parameters["overrides"], seed))
    layer, x_TD, texts = _layer_and_inputs(trained, int(row_parameters["layer"]), str(parameters["sentence"]))
    index_TG, n = layer.choices(x_TD[None])[0][0].long(), layer.config.N
    n_tokens, n_blocks = index_TG.shape
    changed = 0
    with torch.no_grad():
        for x_D, index_G in zip(x_TD, index_TG, strict=True):
            rows_G = index_G + torch.arange(n_blocks) * n
            w1, w2 = (torch.full_like(w, float("nan")).index_copy(0, rows_G, w[rows_G]) for w in (layer.w1, layer.w2))
            every_row, chosen_rows = (UnitWeights(*pair, layer.b2) for pair in ((layer.w1, layer.w2), (w1, w2)))
            whole = sparse_ff_selected(x_D[None], every_row, index_G[None], n)
            read = sparse_ff_selected(x_D[None], chosen_rows, index_G[None], n)
            changed += not torch.equal(whole, read)
    every_token = sum(p.numel() for p in (layer.c1, layer.c2, layer.c_bias, layer.b2))
    rows = layer.w1.numel() + layer.w2.numel()
    metrics = trained.metrics | {
        "rows_read": 100.0 * n_blocks / (n_blocks * n),
        "weights_read": 100.0 * (rows // n + every_token) / (rows + every_token),
        "tokens": float(n_tokens),
        "distinct_selections": float(len(index_TG.unique(dim=0))),
        "kept_choices": 100.0 * float((index_TG[1:] == index_TG[:-1]).double().mean()),
        "changed_outputs": float(changed),
    }
    series = {
        "choices": [float(unit) for unit in index_TG.flatten().tolist()],
        "text": [float(ord(letter)) for letter in "".join(texts)],
        "text_ends": [float(end) for end in np.cumsum([len(text) for text in texts])],
        "units_a_block": [float(n)],
    }
    return {"metrics": dict.fromkeys(parameters["columns"], metrics), "series": series}


def _layer_and_inputs(trained: Trained, place: int, sentence: str) -> tuple[SparseFF, Tensor, list[str]]:
    """The trained layer, of the encoder if there is one, what it reads of a sentence (T, D), and each token's text."""
    dataset: Any
    model, dataset = trained.model, trained.dataset
    alone = isinstance(model, Decoder)
    blocks = model.blocks if isinstance(model, Decoder) else model.encoder_blocks
    layer = blocks[place].get_submodule("feedforward.core")
    if not isinstance(layer, SparseFF):
        raise ValueError(f"Layer {place} has no sparse feed-forward.")
    # A decoder reads a 0 first: one position more.
    ids = dataset.vocabulary.encode(sentence)[: (dataset.length - 1 if alone else dataset.input_length)]
    texts = [
        dataset.vocabulary.decode(ids[: i + 1])[len(dataset.vocabulary.decode(ids[:i])) :] for i in range(len(ids))
    ]
    read: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0][0]))
    with torch.no_grad():
        if isinstance(model, Decoder):
            model.hidden(torch.tensor([[*ids, 0]]))
        else:
            model.encode(torch.tensor([ids]))
    hook.remove()
    return layer, read[0][alone:], texts


MEASURES = {
    "selected_units": Measure(selected_units, first_losses),
}
