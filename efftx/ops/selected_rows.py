"""Products with chosen rows of a matrix, as a decoding step needs them: no other row is read and none is copied.

A step of the sparse feed-forward is `row = plan.rows(index)`, `h = relu(rows_dot(x, w1, row, plan))`,
`y = rows_sum(h, w2, row, plan) + b2`; the plan is made once for a number of tokens, so that a step makes no offsets.

Shape suffixes: T tokens, G chosen rows a token, D width of a row, U rows of the matrix, k pieces of a row, S samples
(every token's rows, or the pieces of them), B bags.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 1024
"""Values in a piece of a long row, 4 KiB in float32."""
CUT_FROM = 4096
"""Rows from this width on are cut: it makes long ones about twice as fast, and those of 2048 slower."""
N_BAGS = 8
"""Bags that one token's rows are divided among, where they are."""
DIVIDE_FROM = 2**16
"""More values a token than this and its rows are divided among bags (see `RowPlan.of`)."""
_FAST_DTYPES = (torch.float32, torch.float64)

# Private, and named after another purpose: sample s gets the product of row offset2bag[s] of its first argument and row
# indices[s] of its second. Tests compare it with the plain formula, which is also what is used where it is missing.
_dot_kernel = getattr(torch.ops.aten, "_embedding_bag_per_sample_weights_backward", None)


@dataclass(frozen=True, eq=False, slots=True)
class RowPlan:
    """How G rows of D values are read for each of T tokens, with every index that does not depend on the rows.

    `shape` is (T, G). `first` (G): the row at which each block begins; `piece` (k): the numbers of a row's pieces;
    `token` (S): which token, or piece of one, each sample is multiplied with; `start` (B): where each bag begins.
    """

    shape: tuple[int, int]
    width: int
    n_bags: int
    first: Tensor
    piece: Tensor
    token: Tensor
    start: Tensor

    @staticmethod
    def of(
        n_tokens: int, n_rows: int, width: int, *, block: int = 0, device: torch.device | str | None = None
    ) -> RowPlan:
        """The plan for T tokens of `n_rows` rows; row g is counted from `block` times g (0: from the matrix's start).

        Rows of at least `CUT_FROM` values are cut into pieces of `PIECE` for `rows_dot`, where that divides them. For
        `rows_sum` a token's rows are divided among `N_BAGS` bags if they are more than `DIVIDE_FROM` values and the
        token is alone or the rows long: one bag is one thread's, and below that the bags' sums cost more than they
        gain. The rule does not ask for the number of threads, so that results do not depend on it. Raises ValueError
        for numbers below 1.
        """
        if min(n_tokens, n_rows, width) < 1:
            raise ValueError(f"{n_tokens} tokens of {n_rows} rows of {width} values: each must be at least 1.")
        n_pieces = width // PIECE if width >= CUT_FROM and width % PIECE == 0 else 1
        divided = n_rows * width > DIVIDE_FROM and (n_tokens == 1 or width >= CUT_FROM)
        a_bag = -(-n_rows // N_BAGS) if divided else n_rows
        piece_k = torch.arange(n_pieces, device=device)
        token_T1 = torch.arange(n_tokens, device=device).unsqueeze(1)
        token_T1k = token_T1.unsqueeze(2) * n_pieces + piece_k
        start_B = (token_T1 * n_rows + torch.arange(0, n_rows, a_bag, device=device)).flatten()
        return RowPlan(
            shape=(n_tokens, n_rows),
            width=width,
            n_bags=start_B.shape[0] // n_tokens,
            first=torch.arange(n_rows, device=device) * block,
            piece=piece_k,
            token=token_T1k.expand(-1, n_rows, -1).flatten().contiguous(),
            start=start_B,
        )

    def rows(self, index_TG: Tensor) -> Tensor:
        """Rows of the whole matrix (T, G), int64, from the index inside each block, of any integer type."""
        return self.first + index_TG

    def check(self, row_TG: Tensor, width: int) -> None:
        """Raises ValueError where the rows or their width are not those the plan was made for."""
        if row_TG.shape != self.shape or width != self.width:
            raise ValueError(
                f"The plan is for rows {self.shape} of {self.width} values, not {tuple(row_TG.shape)} of {width}."
            )


@lru_cache(maxsize=64)
def shared_plan(n_tokens: int, n_rows: int, width: int, block: int, device: torch.device) -> RowPlan:
    """`RowPlan.of`, one for all layers of a shape: its numbers are then still in the cache from the layer before."""
    with torch.inference_mode(False):
        return RowPlan.of(n_tokens, n_rows, width, block=block, device=device)


def rows_dot(x_TD: Tensor, w_UD: Tensor, row_TG: Tensor, plan: RowPlan | None = None) -> Tensor:
    """y[t, g] = sum_d x[t, d] w[row[t, g], d]: (T, G).

    `row_TG` is int64; whoever asks again and again makes the `plan` once. On a CPU, in float32 and float64 with a
    contiguous `w_UD` and no gradient to record, the rows are read where they lie, by all threads, and a row outside the
    matrix is NOT noticed: memory beyond it is read. Everywhere else they are copied, and such a row raises
    IndexError. Raises ValueError for shapes that do not fit.

    Two to three times as fast as index_select and a product, at batch 1 on a CPU.
    """
    plan = _plan_for(x_TD, w_UD.shape[1], w_UD, row_TG, plan)
    recorded = torch.is_grad_enabled() and (x_TD.requires_grad or w_UD.requires_grad)
    fits = x_TD.device.type == "cpu" and x_TD.dtype in _FAST_DTYPES and w_UD.dtype == x_TD.dtype
    if _dot_kernel is None or recorded or not fits or not w_UD.is_contiguous():
        return torch.matmul(F.embedding(row_TG, w_UD), x_TD.unsqueeze(-1)).squeeze(-1)
    n_pieces = plan.piece.shape[0]
    if n_pieces == 1:
        y_S: Tensor = _dot_kernel(x_TD, w_UD, row_TG.reshape(-1), plan.start, plan.token, 0)
        return y_S.view(row_TG.shape)
    piece_TGk = torch.add(plan.piece, row_TG.unsqueeze(-1), alpha=n_pieces)
    x_pieces, w_pieces = x_TD.reshape(-1, PIECE), w_UD.view(-1, PIECE)
    y_S = _dot_kernel(x_pieces, w_pieces, piece_TGk.reshape(-1), plan.start, plan.token, 0)
    return y_S.view(piece_TGk.shape).sum(-1)


def rows_sum(h_TG: Tensor, w_UD: Tensor, row_TG: Tensor, plan: RowPlan | None = None) -> Tensor:
    """y[t] = sum_g h[t, g] w[row[t, g]]: (T, D), with gradients for h and w.

    `row_TG` is int64, `h_TG` of the type of `w_UD`. On a CPU a row outside the matrix raises RuntimeError. Raises
    ValueError for shapes that do not fit.
    """
    plan = _plan_for(h_TG, row_TG.shape[1], w_UD, row_TG, plan)
    sums_BD = torch.embedding_bag(w_UD, row_TG.reshape(-1), plan.start, mode=0, per_sample_weights=h_TG.reshape(-1))[0]
    return sums_BD if plan.n_bags == 1 else sums_BD.view(-1, plan.n_bags, plan.width).sum(1)


def rows_dot_naive(x_TD: Tensor, w_UD: Tensor, row_TG: Tensor) -> Tensor:
    """`rows_dot` by loops: the oracle."""
    return torch.stack(
        [torch.stack([(x_D * w_UD[g]).sum() for g in row_G.tolist()]) for x_D, row_G in zip(x_TD, row_TG, strict=True)]
    )


def rows_sum_naive(h_TG: Tensor, w_UD: Tensor, row_TG: Tensor) -> Tensor:
    """`rows_sum` by loops: the oracle."""
    sums = []
    for h_G, row_G in zip(h_TG, row_TG.tolist(), strict=True):
        y_D = torch.zeros_like(w_UD[0])
        for h, g in zip(h_G, row_G, strict=True):
            y_D = y_D + h * w_UD[g]
        sums.append(y_D)
    return torch.stack(sums)


def _plan_for(by_token: Tensor, own_width: int, w_UD: Tensor, row_TG: Tensor, plan: RowPlan | None) -> RowPlan:
    """The plan that was given, or one for these shapes; raises ValueError where they do not fit."""
    width = w_UD.shape[1]
    if by_token.shape != (row_TG.shape[0], own_width):
        raise ValueError(
            f"Rows {tuple(row_TG.shape)} of {width} values need tokens {(row_TG.shape[0], own_width)}, "
            f"not {tuple(by_token.shape)}."
        )
    if plan is None:
        return RowPlan.of(row_TG.shape[0], row_TG.shape[1], width, device=row_TG.device)
    plan.check(row_TG, width)
    return plan
