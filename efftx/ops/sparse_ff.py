"""Sparse feed-forward: in every block of hidden units one may be active, chosen a token ("Sparse is Enough", 3.1).

A low-rank controller gives every unit a logit. The authors' code has relu((x W1) * mask) as hidden layer, without a
first bias; the paper prints relu(x W1 + b1) * mask, which has the same values and other gradients. Training multiplies
by a mask over all units, evaluation keeps one unit a block, either after a dense product (`masked`, for many tokens) or
by reading the chosen rows of W1 and W2 alone (`selected`, for few). Two other choices of the unit bound what a
controller can do: the largest pre-activation of its block, and a fixed hash of the token.

Shape suffixes: T tokens (any number of leading dimensions), D d_model, R rank of the controller, G blocks, N units of a
block, U hidden units (G N = d_ff). Unit u is element u % N of block u // N in every array, and one row of W1 and of W2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.ops.selected_rows import RowPlan, rows_dot, rows_sum

NOISE_MARGIN = 1e-6
"""Uniform numbers are clipped to this distance from 0 and 1, as in the authors' code."""


class UnitWeights(NamedTuple):
    """w1 and w2 (U, D), the output's bias b2 (D), and the units' own b1 (U) where there is one."""

    w1: Tensor
    w2: Tensor
    b2: Tensor
    b1: Tensor | None = None


class ChoiceStatistics(NamedTuple):
    """`agreement`: the share of choices that noise leaves as they were; `n_chosen` (G, N): tokens that chose each unit.

    A unit that no token chooses without noise is dead in evaluation.
    """

    agreement: Tensor
    n_chosen: Tensor


def controller_logits(x_TD: Tensor, c1_RD: Tensor, c2_UR: Tensor, bias_U: Tensor, n: int) -> Tensor:
    """Logits (T, G, N) of the units: (x C1) C2 + bias, nothing between the two factors, cut into blocks of `n`.

    Raises ValueError where `n` does not divide the units.
    """
    if n < 1 or bias_U.shape[0] % n:
        raise ValueError(f"Blocks of {n} units do not divide {bias_U.shape[0]} hidden units.")
    return F.linear(F.linear(x_TD, c1_RD), c2_UR, bias_U).unflatten(-1, (-1, n))


def with_token_bias(logits_TGN: Tensor, index_TG: Tensor, bias: float) -> Tensor:
    """The logits, `bias` larger at one unit of every block: at those that the token's hash names."""
    _check_index(index_TG, logits_TGN.shape)
    return logits_TGN + bias * F.one_hot(index_TG.long(), logits_TGN.shape[-1]).to(logits_TGN.dtype)


def choose_units(logits_TGN: Tensor, uniform_TGN: Tensor | None = None, temperature: float = 0.0) -> Tensor:
    """The element with the largest logit in every block, (T, G), the first of equals; the smallest integer type for N.

    With `uniform_TGN` in (0, 1) it is the largest log softmax(logits) + temperature * g with Gumbel noise
    g = -log(-log u). Carries no gradient. Raises ValueError for uniform numbers of another shape.
    """
    with torch.no_grad():
        score_TGN = logits_TGN.to(torch.promote_types(logits_TGN.dtype, torch.float32))
        if uniform_TGN is not None:
            if uniform_TGN.shape != logits_TGN.shape:
                raise ValueError(
                    f"The uniform numbers must have the shape of the logits {tuple(logits_TGN.shape)}, "
                    f"not {tuple(uniform_TGN.shape)}."
                )
            # In place: fresh memory costs more than the arithmetic.
            noise_TGN = uniform_TGN.to(score_TGN.dtype).clamp(NOISE_MARGIN, 1 - NOISE_MARGIN).log_().neg_().log_()
            # The normaliser of the softmax is the same for a whole block: it moves no maximum and is left out.
            score_TGN = torch.sub(score_TGN, noise_TGN, alpha=temperature, out=noise_TGN)
        # Faster than argmax on a CPU.
        return score_TGN.max(-1).indices.to(_index_dtype(logits_TGN.shape[-1]))


def hashed_units(token_T: Tensor, n_blocks: int, n: int, salt: int) -> Tensor:
    """A unit for every token id and block, (T, G), by a fixed hash of token, block and `salt`: nothing is learned.

    The finaliser of SplitMix64 (Steele et al. 2014) in 64-bit arithmetic, the same on every device; T may be several
    dimensions. After hash layers (Roller et al. 2021), which route whole experts by the token.
    """
    block_G = torch.arange(n_blocks, device=token_T.device)
    z_TG = (token_T.long() * _PRIMES[0]).unsqueeze(-1) + block_G * _PRIMES[1] + (_signed(salt * _PRIMES[2]))
    for shift, factor in _MIXING:
        z_TG = (z_TG ^ _shifted(z_TG, shift)) * factor
    return (_shifted(z_TG, 31) ^ z_TG).bitwise_and_(2**31 - 1).remainder_(n).to(_index_dtype(n))


def training_mask(logits_TGN: Tensor, index_TG: Tensor, hard: Tensor) -> Tensor:
    """The mask (T, G, N) of a training step: one-hot at the chosen units where `hard`, a 0-dim bool, else the softmax.

    Both have the gradient of the softmax over the block (straight-through). A hard mask is exactly 0 and 1.
    """
    _check_index(index_TG, logits_TGN.shape)
    soft_TGN = torch.softmax(logits_TGN, -1, dtype=torch.promote_types(logits_TGN.dtype, torch.float32))
    mask_TGN: Tensor = _StraightThrough.apply(soft_TGN, index_TG, hard)
    return mask_TGN.to(logits_TGN.dtype)


def chosen_probability(logits_TGN: Tensor, index_TG: Tensor) -> Tensor:
    """The softmax of every block at its chosen unit, (T, G)."""
    _check_index(index_TG, logits_TGN.shape)
    soft_TGN = torch.softmax(logits_TGN, -1, dtype=torch.promote_types(logits_TGN.dtype, torch.float32))
    return soft_TGN.gather(-1, index_TG.long().unsqueeze(-1)).squeeze(-1).to(logits_TGN.dtype)


def training_hidden(
    x_TD: Tensor,
    w1_UD: Tensor,
    mask_TGN: Tensor,
    factor_TG: Tensor | None = None,
    b1_U: Tensor | None = None,
    *,
    mask_after: bool = False,
) -> Tensor:
    """Hidden units (T, U) of a training step: relu((x W1 + b1) * mask), times `factor_TG`, where these two are given.

    The mask before the relu gives the controller no gradient for a unit that it masks by 0. With `mask_after`, as the
    paper prints it, relu(x W1 + b1) * mask: every unit above 0 does.
    """
    if mask_TGN.shape[:-2] != x_TD.shape[:-1]:
        raise ValueError(f"One mask a token, {tuple(x_TD.shape[:-1])}, not {tuple(mask_TGN.shape[:-2])}.")
    _check_rows(w1_UD, mask_TGN.shape[-2] * mask_TGN.shape[-1])
    dense_TGN = F.linear(x_TD, w1_UD, b1_U).unflatten(-1, mask_TGN.shape[-2:])
    hidden_TGN = dense_TGN.relu() * mask_TGN if mask_after else (dense_TGN * mask_TGN).relu_()
    if factor_TG is not None:
        hidden_TGN = hidden_TGN * factor_TG.unsqueeze(-1)
    return hidden_TGN.flatten(-2)


def sparse_ff_masked(
    x_TD: Tensor,
    weights: UnitWeights,
    index_TG: Tensor,
    n: int,
    factor_TG: Tensor | None = None,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """relu(x W1 + b1) at the chosen units alone, times `factor_TG`, times W2, plus b2: (T, D), by dense products.

    `dropout` of the hidden units, 0 outside training.
    """
    n_blocks = _check_selection(x_TD, weights, index_TG, n)
    dense_TGN = F.linear(x_TD, weights.w1, weights.b1).unflatten(-1, (n_blocks, n))
    return chosen_output(dense_TGN, weights, index_TG, factor_TG, dropout=dropout)


def chosen_output(
    dense_TGN: Tensor,
    weights: UnitWeights,
    index_TG: Tensor,
    factor_TG: Tensor | None = None,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """`sparse_ff_masked` from the pre-activations of all units, x W1 + b1."""
    _check_index(index_TG, dense_TGN.shape)
    place_TG1 = index_TG.long().unsqueeze(-1)
    chosen_TG1 = dense_TGN.gather(-1, place_TG1).relu()
    if factor_TG is not None:
        chosen_TG1 = chosen_TG1 * factor_TG.unsqueeze(-1)
    hidden_TGN = torch.zeros_like(dense_TGN).scatter(-1, place_TG1, chosen_TG1.to(dense_TGN.dtype))
    return F.linear(F.dropout(hidden_TGN.flatten(-2), dropout), weights.w2.t(), weights.b2)


def sparse_ff_selected(
    x_TD: Tensor,
    weights: UnitWeights,
    index_TG: Tensor,
    n: int,
    factor_TG: Tensor | None = None,
    *,
    plan: RowPlan | None = None,
) -> Tensor:
    """The result of `sparse_ff_masked`, read from d_ff / N rows of W1 and of W2 a token: nothing else is multiplied.

    Meant for the few tokens of a decoding step: `plan` is `RowPlan.of(T, d_ff / N, d_model, block=n)`, made here where
    it is not given. Under autograd the chosen rows of W1 are copied. An index of `n` or more is not noticed.
    """
    n_blocks = _check_selection(x_TD, weights, index_TG, n)
    w1_UD, w2_UD, b2_D, b1_U = weights
    x_SD = x_TD.reshape(-1, x_TD.shape[-1])
    if plan is None:
        plan = RowPlan.of(x_SD.shape[0], n_blocks, x_SD.shape[1], block=n, device=x_TD.device)
    row_SG = plan.rows(index_TG.reshape(-1, n_blocks))
    hidden_SG = rows_dot(x_SD, w1_UD, row_SG, plan)
    hidden_SG = (hidden_SG if b1_U is None else hidden_SG + b1_U[row_SG]).relu()
    if factor_TG is not None:
        hidden_SG = hidden_SG * factor_TG.reshape(-1, n_blocks)
    out_SD = rows_sum(hidden_SG.to(w2_UD.dtype), w2_UD, row_SG, plan)
    return (out_SD + b2_D).view(*x_TD.shape[:-1], -1)


def choice_statistics(quiet_TG: Tensor, noisy_TG: Tensor, n: int) -> ChoiceStatistics:
    """What noise changes and which units are chosen, from the choices without and with noise; `n` units a block."""
    agreement = (quiet_TG == noisy_TG).float().mean()
    n_blocks = quiet_TG.shape[-1]
    place_SG = quiet_TG.reshape(-1, n_blocks).long()
    n_chosen_GN = torch.zeros((n_blocks, n), dtype=torch.int64, device=quiet_TG.device)
    return ChoiceStatistics(agreement, n_chosen_GN.scatter_add_(1, place_SG.t(), torch.ones_like(place_SG.t())))


def sparse_ff_naive(
    x_TD: Tensor,
    controller: tuple[Tensor, Tensor, Tensor],
    weights: UnitWeights,
    n: int,
    *,
    hard: bool | None = None,
    uniform_TGN: Tensor | None = None,
    temperature: float = 0.0,
    multiply_by_controller: bool = False,
    mask_after: bool = False,
    index_TG: Tensor | None = None,
    token_bias: float = 0.0,
) -> Tensor:
    """The whole layer by loops over tokens (one leading dimension), blocks and units: the oracle.

    `controller` is what `controller_logits` multiplies by. `hard` None is evaluation; True and False are the two kinds
    of training step. `mask_after` is that of `training_hidden`; the logits at `index_TG` are `token_bias` larger.
    """
    (c1_RD, c2_UR, bias_U), (w1_UD, w2_UD, b2_D, b1_U) = controller, weights
    outputs = []
    for t, x_D in enumerate(x_TD):
        low_R = c1_RD @ x_D
        out_D = b2_D
        for g in range(w1_UD.shape[0] // n):
            units = range(g * n, (g + 1) * n)
            named = None if index_TG is None else g * n + int(index_TG[t, g])
            logits = [torch.dot(c2_UR[u], low_R) + bias_U[u] + token_bias * (u == named) for u in units]
            odds = torch.stack(logits).exp()
            soft = odds / odds.sum()
            score = soft.detach().log()
            if uniform_TGN is not None:
                uniform = uniform_TGN[t, g].clip(1e-6, 1 - 1e-6)
                score = score + temperature * -torch.log(-torch.log(uniform))
            chosen = max(range(n), key=score.tolist().__getitem__)
            for j, u in enumerate(units):
                one_hot = float(j == chosen)
                straight_through = one_hot + (soft[j] - soft[j].detach())
                mask = one_hot if hard is None else straight_through if hard else soft[j]
                pre = torch.dot(w1_UD[u], x_D) + (0.0 if b1_U is None else b1_U[u])
                hidden = torch.relu(pre) * mask if mask_after else torch.relu(pre * mask)
                if multiply_by_controller and hard is not False:
                    hidden = hidden * (soft[chosen] if hard is None else soft[chosen].detach())
                out_D = out_D + hidden * w2_UD[u]
        outputs.append(out_D)
    return torch.stack(outputs)


def hashed_units_naive(tokens: list[int], n_blocks: int, n: int, salt: int) -> list[list[int]]:
    """`hashed_units` in Python's own integers, modulo 2^64: the oracle."""

    def unit(token: int, block: int) -> int:
        z = (token * _PRIMES[0] + block * _PRIMES[1] + salt * _PRIMES[2]) % 2**64
        for shift, factor in _MIXING:
            z = (z ^ z >> shift) * factor % 2**64
        return ((z ^ z >> 31) % 2**31) % n

    return [[unit(token, block) for block in range(n_blocks)] for token in tokens]


class _StraightThrough(torch.autograd.Function):
    """One pass over the mask where one_hot + (soft - soft.detach()) takes several."""

    @staticmethod
    def forward(ctx: object, soft_TGN: Tensor, index_TG: Tensor, hard: Tensor) -> Tensor:
        place_TG1 = index_TG.long().unsqueeze(-1)
        chosen_TG1 = soft_TGN.gather(-1, place_TG1).masked_fill_(hard, 1)
        return soft_TGN.mul(~hard).scatter_(-1, place_TG1, chosen_TG1)

    @staticmethod
    def backward(ctx: object, *grad_masks: Tensor) -> tuple[Tensor | None, ...]:
        return grad_masks[0], None, None


def _signed(number: int) -> int:
    """`number` modulo 2^64 as a signed 64-bit integer."""
    return (number + 2**63) % 2**64 - 2**63


_PRIMES = tuple(_signed(prime) for prime in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
_MIXING = tuple((shift, _signed(factor)) for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)))


def _shifted(z: Tensor, n: int) -> Tensor:
    """A logical shift to the right: PyTorch's own repeats the sign."""
    return (z >> n) & (2 ** (64 - n) - 1)


def _index_dtype(n: int) -> torch.dtype:
    """The smallest integer type for the elements of a block of `n` units: choices are kept for replaying."""
    return torch.uint8 if n <= 2**8 else torch.int16 if n <= 2**15 else torch.int32


def _check_index(index_TG: Tensor, shape_TGN: torch.Size) -> None:
    if index_TG.shape != shape_TGN[:-1]:
        raise ValueError(f"One choice a token and block, {tuple(shape_TGN[:-1])}, not {tuple(index_TG.shape)}.")


def _check_rows(w_UD: Tensor, n_units: int) -> None:
    if w_UD.shape[0] != n_units:
        raise ValueError(f"The weights must have one row for each of {n_units} hidden units, not {w_UD.shape[0]} rows.")


def _check_selection(x_TD: Tensor, weights: UnitWeights, index_TG: Tensor, n: int) -> int:
    n_blocks = index_TG.shape[-1]
    _check_index(index_TG, torch.Size((*x_TD.shape[:-1], n_blocks, n)))
    _check_rows(weights.w1, n_blocks * n)
    _check_rows(weights.w2, n_blocks * n)
    return n_blocks
