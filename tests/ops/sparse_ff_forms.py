"""The forms of sparse feed-forward that tests compare, and tensors for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.ops.sparse_ff import (
    UnitWeights,
    choose_units,
    chosen_probability,
    controller_logits,
    sparse_ff_masked,
    sparse_ff_selected,
    training_hidden,
    training_mask,
    with_token_bias,
)

LAYOUTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "controller.m1": ("c1", lambda m_DR: m_DR.t()),
    "controller.m2": ("c2", lambda m_RGN: m_RGN.flatten(1).t()),
    "controller.mb": ("c_bias", lambda b_GN: b_GN.flatten()),
    "main.w1": ("w1", lambda w_DGN: w_DGN.flatten(1).t()),
    "main.w2": ("w2", lambda w_NGD: w_NGD.transpose(0, 1).flatten(0, 1)),
    "main.b2": ("b2", lambda b_D: b_D),
}
"""Names and axis orders of the authors' arrays, and the parameter that each becomes."""

FILES = {"sparse_ff_a": (8, False), "sparse_ff_b": (4, True)}
WEIGHTS = ["c1", "c2", "c_bias", "w1", "w2", "b2"]
FORMS = {"masked": sparse_ff_masked, "selected": sparse_ff_selected}
KINDS = {"evaluation": None, "hard": True, "soft": False}


def fast(
    x: Tensor,
    *weights: Tensor,
    n: int,
    hard: bool | None = None,
    uniform: Tensor | None = None,
    temperature: float = 0.0,
    multiply: bool = False,
    form: str = "masked",
    mask_after: bool = False,
    named: Tensor | None = None,
    token_bias: float = 0.0,
) -> Tensor:
    """The ops put together, under the arguments of the oracle; a seventh weight is b1."""
    c1, c2, bias, w1, w2, b2, *first = weights
    b1 = first[0] if first else None
    logits = controller_logits(x, c1, c2, bias, n)
    if named is not None:
        logits = with_token_bias(logits, named, token_bias)
    index = choose_units(logits, uniform, temperature)
    if hard is None:
        factor = chosen_probability(logits, index) if multiply else None
        return FORMS[form](x, UnitWeights(w1, w2, b2, b1), index, n, factor)
    factor = chosen_probability(logits.detach(), index) if multiply and hard else None
    hidden = training_hidden(x, w1, training_mask(logits, index, torch.tensor(hard)), factor, b1, mask_after=mask_after)
    return F.linear(hidden, w2.t(), b2)


def tensors(tokens: int, d_model: int, rank: int, blocks: int, n: int, seed: int = 0) -> list[Tensor]:
    """An input, then the weights in the order of `WEIGHTS`.

    Logits are about 1 large: where a softmax is nearly 0 or 1, its gradient is a difference of equal numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    units = blocks * n
    shapes = ((tokens, d_model), (rank, d_model), (units, rank), (units,), (units, d_model), (units, d_model))
    found = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in (*shapes, (d_model,))]
    for factor, scale in ((1, d_model**-0.5), (2, 0.5 * rank**-0.5), (3, 0.5)):
        found[factor] *= scale
    return found


def uniform_numbers(tokens: int, blocks: int, n: int) -> Tensor:
    return torch.rand(tokens, blocks, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
