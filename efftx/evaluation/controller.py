"""What the controllers of a model's sparse feed-forward layers choose: how surely, and which units never.

Legend: B batch, L positions of the decoder, E of the encoder, K of a layer, D d_model, G blocks, T real tokens, N units
of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from efftx.data.vocabulary import PAD
from efftx.layers.sparse_ff import SparseFF
from efftx.ops.concatenation import join_after
from efftx.ops.recompute_state import forked_rng
from efftx.ops.sparse_ff import choice_statistics

NOISE_SEED = 1_000_033
"""The Gumbel noise is the same at every evaluation, whatever the run's seed."""


def controller_statistics(
    model: nn.Module, tokens_BL: Tensor, weights_BL: Tensor, inputs_BE: Tensor | None = None
) -> dict[str, float]:
    """Three shares in % over one batch and all sparse feed-forward layers; {} without such layers.

    `unit_agreement`: blocks in which the choice with training's Gumbel noise is the one without, over all tokens.
    `oracle_agreement`: blocks in which it is the unit of the largest pre-activation, 100 / N by chance.
    `dead_units`: units that no token chooses without noise. Padding does not count: tokens 0 of the encoder and, beside
    an encoder, targets of weight 0. The pass is one of its own, in the mode the model is in, without head and loss; the
    random state of the caller is left as it was.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseFF)}
    if not layers:
        return {}
    device = tokens_BL.device
    generator = torch.Generator(device).manual_seed(NOISE_SEED)
    agreeing = largest = choices = dead = units = 0.0

    def look(name: str, layer: SparseFF, x_BKD: Tensor, state: object = None, ids_BK: Tensor | None = None) -> None:
        nonlocal agreeing, largest, choices, dead, units
        quiet_BKG, noisy_BKG = layer.choices(x_BKD, generator, ids_BK)
        is_token_BK = _is_token(name, x_BKD.shape[1], tokens_BL, weights_BL, inputs_BE)
        quiet_TG, noisy_TG = quiet_BKG[is_token_BK], noisy_BKG[is_token_BK]
        statistics = choice_statistics(quiet_TG, noisy_TG, layer.config.N)
        agreeing += float(statistics.agreement) * quiet_TG.numel()
        largest += float((quiet_TG == layer.largest(x_BKD)[is_token_BK]).sum())
        choices += quiet_TG.numel()
        dead += float((statistics.n_chosen == 0).sum())
        units += statistics.n_chosen.numel()

    def hook(name: str, layer: SparseFF) -> RemovableHandle:
        return layer.register_forward_pre_hook(lambda _, inputs: look(name, layer, *inputs))

    hooks = [hook(name, layer) for name, layer in layers.items()]
    try:
        with torch.no_grad(), forked_rng(device):
            model.hidden(tokens_BL, *(() if inputs_BE is None else (inputs_BE,)))  # type: ignore[operator]
    finally:
        for handle in hooks:
            handle.remove()
    return {
        "unit_agreement": 100.0 * agreeing / choices,
        "oracle_agreement": 100.0 * largest / choices,
        "dead_units": 100.0 * dead / units,
    }


def _is_token(name: str, n_positions: int, tokens_BL: Tensor, weights_BL: Tensor, inputs_BE: Tensor | None) -> Tensor:
    """Which of a layer's positions (B, K) hold tokens; a decoder that reads the joined sequence is longer than L."""
    if inputs_BE is None:
        return torch.ones_like(tokens_BL, dtype=torch.bool)
    given_BE, wanted_BL = inputs_BE != PAD, weights_BL > 0
    if name.startswith("encoder_blocks."):
        return given_BE
    if n_positions == tokens_BL.shape[1]:
        return wanted_BL
    return join_after(given_BE.unsqueeze(-1), wanted_BL.unsqueeze(-1), given_BE.sum(1)).squeeze(-1)
