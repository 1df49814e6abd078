"""The measures of the third paper's diagrams and of Terraformer's memory; see `measures` for what a measure is.

Legend: T tokens of a sentence, G blocks, N units of a block, U = G N hidden units, D d_model, S modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from efftx.core.scratch import scratch_folder
from efftx.reproduce.measure import fitted_exponent
from efftx.reproduce.trained_model import trained_model

if TYPE_CHECKING:
    from torch import Tensor

    from efftx.config.schema import Config
    from efftx.layers.sparse_ff import SparseFF

Parameters = Mapping[str, Any]


def selected_units(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """Which units a trained sparse feed-forward layer selects for a sentence, and what of it is read (figure 2).

    `parameters`: overrides (the model is trained, or taken from its finished run), sentence (cut at the model's
    length); `own`: layer, of the encoder where there is one. Metrics, the same under every column: `rows_read` (% of
    the rows of W1 and of W2 a token), `weights_read` (% of all the layer's weights, controller and bias included),
    `tokens`, `distinct_selections`, `kept_choices` (% of blocks whose unit the next token selects as well) and
    `changed_outputs`: tokens whose output is another when every row that was not selected is lost.
    """
    import torch

    from efftx.ops.sparse_ff import sparse_ff_selected

    config = configured(parameters["overrides"], seed)
    layer, x_TD, texts = _layer_and_inputs(config, int(own["layer"]), str(parameters["sentence"]))
    index_TG, n = layer.choices(x_TD[None])[0][0].long(), layer.config.N
    n_tokens, n_blocks = index_TG.shape
    changed = 0
    with torch.no_grad():
        for x_D, index_G in zip(x_TD, index_TG, strict=True):
            rows_G = index_G + torch.arange(n_blocks) * n
            w1, w2 = (torch.full_like(w, float("nan")).index_copy(0, rows_G, w[rows_G]) for w in (layer.w1, layer.w2))
            whole = sparse_ff_selected(x_D[None], layer.w1, layer.w2, layer.b2, index_G[None], n)
            read = sparse_ff_selected(x_D[None], w1, w2, layer.b2, index_G[None], n)
            changed += not torch.equal(whole, read)
    every_token = sum(p.numel() for p in (layer.c1, layer.c2, layer.c_bias, layer.b2))
    rows = layer.w1.numel() + layer.w2.numel()
    found = {
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
    return {"metrics": dict.fromkeys(parameters["columns"], found), "series": series}


def first_losses(parameters: Parameters, seed: int, row: str, own: Parameters) -> list[float]:
    """What a replay of `selected_units` compares: the losses of the first three steps of the training."""
    from efftx.training.loop import train

    with scratch_folder("efftx-replay-") as folder:
        return train(configured(parameters["overrides"], seed), folder / "run", steps=3).first_losses


def multiplicative_layer(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """What the multiplicative layer can represent and what it costs (figure 4).

    `own`: d_model, S. Over `draws` random permutations: `deviation`, the largest |difference| between the layer, set by
    hand, and the permutation, for few tokens and for many (two orders of the product); `inside_blocks`, % of their
    entries that lie in S blocks on the diagonal, all that a block-diagonal layer could hold. `weights` beside
    `dense_weights` and `block_weights`. A row with F instead counts the layer of queries, keys and values: `weights`
    without the shared layer's bias, `weights_and_bias`, `dense_weights` of queries, keys, values and output. With
    `draw: true` also the first permutation with its gate and projection.
    """
    import torch

    from efftx.ops.multiplicative import effective_matrix, multiplicative, permutation_weights

    d_model, S = int(own["d_model"]), int(own["S"])
    if "F" in own:
        return {"metrics": dict.fromkeys(parameters["columns"], _qkv_weights(d_model, S, int(own["F"])))}
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
        if i == 0 and own.get("draw"):
            drawn = {"gate": gate_SD, "projection": proj_Dm, "matrix": effective_matrix(gate_SD, proj_Dm)}
            series = {name: matrix.flatten().tolist() for name, matrix in drawn.items()} | {"modules": [float(S)]}
    found = {
        "deviation": deviation,
        "inside_blocks": 100.0 * inside / int(parameters["draws"]),
        "weights": float(d_model * (S + d_module)),
        "block_weights": float(d_model * d_module),
        "dense_weights": float(d_model**2),
    }
    return {"metrics": dict.fromkeys(parameters["columns"], found), "series": series}


def training_memory(parameters: Parameters, seed: int, row: str, own: Parameters) -> dict[str, Any]:
    """Peak activation bytes of one training step against depth at one length, and against length at one depth.

    `parameters`: overrides, vocab_size, depths with at_length, lengths with at_depth; `own`: overrides of the row. A
    column with `depth` or `length` has `megabytes` (10^6 bytes, without parameters, gradients and replay state) and
    `replay_megabytes` (choices and random states); every column has `depth_ratio`, the peak at the greatest depth over
    that at the least, `length_exponent`, fitted, and `replay_share`, the replay state over the peak (%), at most.
    """
    depths, lengths = ([int(number) for number in parameters[name]] for name in ("depths", "lengths"))
    by_depth = [_peak(parameters, own, seed, depth, int(parameters["at_length"])) for depth in depths]
    by_length = [_peak(parameters, own, seed, int(parameters["at_depth"]), length) for length in lengths]
    a_layer = (by_depth[-1][0] - by_depth[0][0]) / (depths[-1] - depths[0])
    config = configured([*parameters["overrides"], *own.get("overrides", [])], seed)
    activation = 4.0 * config.training.batch_size * int(parameters["at_length"]) * config.d_model
    found = {
        "tensors_a_layer": a_layer / activation,
        "depth_ratio": by_depth[-1][0] / by_depth[0][0],
        "length_exponent": fitted_exponent(lengths, [peak for peak, _ in by_length]),
        "replay_share": max(100.0 * kept / peak for peak, kept in (*by_depth, *by_length)),
    }
    metrics: dict[str, dict[str, float]] = {}
    for column, where in parameters["columns"].items():
        metrics[column] = dict(found)
        for name, places, values in (("depth", depths, by_depth), ("length", lengths, by_length)):
            if name in where:
                peak, kept = values[places.index(int(where[name]))]
                metrics[column] |= {"megabytes": peak / 1e6, "replay_megabytes": kept / 1e6}
    series = {
        "depth": [float(depth) for depth in depths],
        "megabytes": [peak / 1e6 for peak, _ in by_depth],
        "replay_megabytes": [kept / 1e6 for _, kept in by_depth],
        "length": [float(length) for length in lengths],
        "megabytes_by_length": [peak / 1e6 for peak, _ in by_length],
    }
    return {"metrics": metrics, "series": series}


def shallowest_memory(parameters: Parameters, seed: int, row: str, own: Parameters) -> list[float]:
    """What a replay of `training_memory` compares: the bytes of the shallowest model."""
    return list(_peak(parameters, own, seed, int(parameters["depths"][0]), int(parameters["at_length"])))


def configured(overrides: Sequence[str], seed: int) -> Config:
    """The configuration of these overrides at a seed."""
    from efftx.config.compose import compose

    return replace(compose(list(overrides)), seed=seed)


def _layer_and_inputs(config: Config, place: int, sentence: str) -> tuple[SparseFF, Tensor, list[str]]:
    """The trained layer, of the encoder if there is one, what it reads of a sentence (T, D), and each token's text."""
    import torch

    from efftx.layers.sparse_ff import SparseFF
    from efftx.models.decoder import Decoder

    dataset: Any
    model, dataset = trained_model(config)
    alone = isinstance(model, Decoder)
    blocks = model.blocks if isinstance(model, Decoder) else model.encoder_blocks
    layer = blocks[place].get_submodule("feedforward.core")
    if not isinstance(layer, SparseFF):
        raise ValueError(f"Layer {place} has no sparse feed-forward.")
    # A decoder reads a 0 first: one position more.
    ids = dataset.vocabulary.encode(sentence)[: config.data.length - alone]
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


def _qkv_weights(d_model: int, S: int, F: int) -> dict[str, float]:
    import torch

    from efftx.layers.sparse_qkv import SparseQKV
    from efftx.layers.sparse_qkv_maps import SparseQKVConfig

    with torch.device("meta"):
        layer = SparseQKV(SparseQKVConfig(S=S, F=F), d_model, S, share_qk=False)
    total = float(sum(p.numel() for p in layer.parameters()))
    return {"weights": total - d_model, "weights_and_bias": total, "dense_weights": 4.0 * d_model**2}


def _peak(parameters: Parameters, own: Parameters, seed: int, depth: int, length: int) -> tuple[float, float]:
    """(peak activation bytes, replay bytes) of one training step."""
    from efftx.bench.stacks import peak_of_step
    from efftx.machine.devices import resolve_device

    base, sizes = [*parameters["overrides"], *own.get("overrides", [])], [f"n_layers={depth}", f"data.length={length}"]
    if configured(base, seed).stack != "decoder":
        sizes.append(f"n_encoder_layers={depth}")
    config = configured([*base, *sizes], seed)
    peak, kept = peak_of_step(config, resolve_device(config.device), int(parameters["vocab_size"]))
    return float(peak), float(kept)
