"""Attention inside hash buckets: sort each round by bucket, cut it into chunks, attend to the own chunk and neighbours.

Shape suffixes: B batch, H heads, R hashing rounds, L length (padded to whole chunks inside), d query width, v value
width, N sequences (batch times heads, or a group of them), m chunk length, K keys in a window, T windows of a tile, J
chunks of a run or of a tile, E sorted entries of a run, x whatever columns the rows have.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from efftx.ops.lsh_hashing import sort_by_bucket
from efftx.ops.lsh_runs import FORBIDDEN, Form, Run, groups, most_codes, pad_to_chunks, prepare_run, tiles

_NOTHING_FOUND = -(2.0**90)
_RMS_EPSILON = 1e-6
# Scores are kept in base 2 (the factor sits in the keys): exp2 takes the same time for forbidden pairs as for others,
# where a CPU's exp can take a hundred times longer.
_LOG2_E = math.log2(math.e)


def lsh_attention(
    q_BHLd: Tensor,
    v_BHLv: Tensor,
    bucket_BHRL: Tensor,
    *,
    n_buckets_total: int,
    chunk_len: int,
    causal: bool = True,
    attend_across_buckets: bool = False,
    allow_duplicates: bool = False,
    key_mask_BL: Tensor | None = None,
    dropout_mask_mK: Tensor | None = None,
    padding_keeps_places: bool = False,
) -> Tensor:
    """Shared-QK attention over the union of what all hashing rounds bring near (Reformer, section 2 and appendix A).

    Takes queries (not normalised; the key is the query at unit length, and the logit is their product without a further
    scale), values, and buckets (B, H, R, L) without the round's offset, all below `n_buckets_total`; gives (B, H, L,
    v). Any length is taken. `key_mask_BL` is False where a token is padding: no query attends to it, and a real token's
    output is that of a row without it; the output of padding itself is of no use. With `padding_keeps_places` a chunk
    of padding is a neighbour like any other, as in the authors' code, where padding so hides neighbours. Those of a
    chunk are the chunk before it and, unless `causal`, the one after it, wrapping around over the chunks of all
    rounds; a chunk stands in a window once, also where there are fewer chunks than places. A token attends to itself
    only where no round finds another target.

    By default a pair counts only inside its bucket, and one found in N rounds counts once, by -log N in its logit: the
    paper's equations. `attend_across_buckets` and `allow_duplicates` together give the authors' later form. With
    `attend_across_buckets` alone the rounds that a pair shares are counted inside rounds, so that a pair which meets
    only across the border of two rounds has the count 0; it is taken as 1 (the authors' code adds 20.7 to its logit).

    `dropout_mask_mK` multiplies the probabilities of every chunk, m queries times the keys of 2 (causal) or 3 chunks;
    it does not touch tokens that attend to themselves. Gradients take the buckets as constants. Raises ValueError for
    shapes that do not fit, and for more buckets in all rounds, or places across buckets, than float32 (of float64
    queries float64) tells apart: 2**23.
    """
    _check_shapes(q_BHLd, v_BHLv, bucket_BHRL, n_buckets_total, chunk_len, key_mask_BL)
    _check_codes(q_BHLd, bucket_BHRL, n_buckets_total, chunk_len, attend_across_buckets)
    n_heads, length = q_BHLd.shape[1], q_BHLd.shape[2]
    n_chunks = bucket_BHRL.shape[2] * -(-length // chunk_len)
    form = Form(
        chunk_len=chunk_len,
        n_before=int(n_chunks > 1),
        n_after=int(not causal and n_chunks > 2),
        causal=causal,
        across_buckets=attend_across_buckets,
        count_rounds=not allow_duplicates and bucket_BHRL.shape[2] > 1,
        n_buckets=n_buckets_total,
        # Causal attention inside buckets crosses no end of a round, where alone padding stands between chunks.
        packs=key_mask_BL is not None and not padding_keeps_places and (attend_across_buckets or not causal),
    )
    if dropout_mask_mK is not None:
        window = (chunk_len, chunk_len * (2 if causal else 3))
        if dropout_mask_mK.shape != window:
            raise ValueError(
                f"The dropout mask must have the shape (chunk, window) {window}, not {tuple(dropout_mask_mK.shape)}."
            )
        first = chunk_len * (1 - form.n_before)
        dropout_mask_mK = dropout_mask_mK[:, first : first + chunk_len * form.n_window]
    valid_NL = None if key_mask_BL is None else key_mask_BL.bool().repeat_interleave(n_heads, 0)
    out_NLv = _LSHAttention.apply(
        q_BHLd.flatten(0, 1), v_BHLv.flatten(0, 1), bucket_BHRL.flatten(0, 1), valid_NL, dropout_mask_mK, form
    )
    return out_NLv.unflatten(0, (-1, n_heads))


class _LSHAttention(torch.autograd.Function):
    """Tile by tile: scores live only in a tile's buffer and are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        q_NLd: Tensor,
        v_NLv: Tensor,
        bucket_NRL: Tensor,
        valid_NL: Tensor | None,
        dropout_mask_mK: Tensor | None,
        form: Form,
    ) -> Tensor:
        dtype = torch.promote_types(q_NLd.dtype, torch.float32)
        n_sequences, length, d = q_NLd.shape
        v = v_NLv.shape[-1]
        bucket_NRL, valid_NL = pad_to_chunks(bucket_NRL, valid_NL, form)
        order_NRL = sort_by_bucket(bucket_NRL, form.n_buckets + 2)
        out_NLv = q_NLd.new_empty((n_sequences, length, v), dtype=dtype)
        lse_NL = q_NLd.new_empty((n_sequences, bucket_NRL.shape[-1]), dtype=dtype)
        space = _Workspace(q_NLd, dtype)
        for group in groups(order_NRL, form):
            run = prepare_run(order_NRL[group], bucket_NRL[group], _index(valid_NL, group), form, dtype)
            q_NLd_group, v_NLv_group = q_NLd[group].to(dtype), v_NLv[group].to(dtype)
            key_NLd = q_NLd_group * (_LOG2_E * _key_scale(q_NLd_group))
            rows = _stack_rows(space, (q_NLd_group, key_NLd, v_NLv_group), order_NRL.shape[-1])
            n_chunks = run.key_code_Jm.shape[0]
            sum_Jmv = space.get("sum", n_chunks, form.chunk_len, v)
            max_Jm = space.get("max", n_chunks, form.chunk_len)
            total_Jm = space.get("total", n_chunks, form.chunk_len)
            for first, last in tiles(n_chunks, form, order_NRL.device):
                queries = slice(first + form.n_before, last + form.n_before)
                rows_Jmx = _gather(space, rows, run.row_E, first, last, form)
                scores_TmK = space.get("scores", last - first, form.chunk_len, form.chunk_len * form.n_window)
                _score(scores_TmK, rows_Jmx, d, run, first, last, form)
                max_Tm = scores_TmK.amax(-1).clamp_(min=_NOTHING_FOUND)
                scores_TmK.sub_(max_Tm.unsqueeze(-1)).exp2_()
                if run.query_rounds_SJm is not None:
                    scores_TmK.div_(_count_rounds(run, space, first, last, form))
                max_Jm[queries] = max_Tm
                torch.sum(scores_TmK, -1, out=total_Jm[queries])
                if dropout_mask_mK is not None:
                    scores_TmK.mul_(dropout_mask_mK)
                torch.bmm(scores_TmK, _windows(rows_Jmx, 2 * d, v, form), out=sum_Jmv[queries])
            max_NLR = max_Jm.flatten()[run.entry_NLR].div_(_LOG2_E)
            lse_NL_group = torch.logsumexp(max_NLR + total_Jm.flatten()[run.entry_NLR].log_(), -1)
            # Plus infinity makes every later weight of a token that found nothing exactly 0.
            found_nothing_NL = lse_NL_group.isneginf()
            lse_NL_group = lse_NL_group.masked_fill(found_nothing_NL, torch.inf)
            lse_NL[group] = lse_NL_group
            weight_NLR = (max_NLR - lse_NL_group.unsqueeze(-1)).exp_()
            out_NLv_group = F.embedding_bag(
                run.entry_NLR.flatten(0, 1),
                sum_Jmv.flatten(0, 1),
                mode="sum",
                per_sample_weights=weight_NLR.flatten(0, 1),
            ).view(*lse_NL_group.shape, v)[:, :length]
            out_NLv[group] = out_NLv_group.addcmul_(found_nothing_NL[:, :length, None].to(dtype), v_NLv_group)
        # Padding at the end sorts last in its bucket and needs no gradient; int32 halves what waits for the backward.
        ctx.save_for_backward(
            q_NLd,
            v_NLv,
            bucket_NRL.to(torch.int32),
            order_NRL.to(torch.int32),
            valid_NL,
            dropout_mask_mK,
            out_NLv,
            lse_NL,
        )
        ctx.form = form
        return out_NLv.to(q_NLd.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out_NLv: Tensor) -> tuple[Tensor | None, ...]:
        q_NLd, v_NLv, bucket_NRL, order_NRL, valid_NL, dropout_mask_mK, out_NLv, lse_NL = ctx.saved_tensors
        form: Form = ctx.form
        dtype = out_NLv.dtype
        length, d = q_NLd.shape[1:]
        v = v_NLv.shape[-1]
        grad_q_NLd, grad_v_NLv = torch.empty_like(q_NLd), torch.empty_like(v_NLv)
        space = _Workspace(q_NLd, dtype)
        for group in groups(order_NRL, form):
            run = prepare_run(order_NRL[group].long(), bucket_NRL[group].long(), _index(valid_NL, group), form, dtype)
            q, values, grad_out = q_NLd[group].to(dtype), v_NLv[group].to(dtype), grad_out_NLv[group].to(dtype)
            scale_NL1 = _key_scale(q)
            rows = _stack_rows(space, (q, q * (_LOG2_E * scale_NL1), values, grad_out), order_NRL.shape[-1])
            n_chunks = run.key_code_Jm.shape[0]
            lse_Jm = _lse_of_entries(lse_NL[group] * _LOG2_E, run, form)
            delta_NL = F.pad((grad_out * out_NLv[group]).sum(-1), (0, order_NRL.shape[-1] - length))
            delta_Jm = delta_NL.flatten()[run.row_E].view(n_chunks, form.chunk_len)
            grad_q_Jmd = space.get("grad_q", n_chunks, form.chunk_len, d)
            grad_k_Jmd = space.get("grad_k", n_chunks, form.chunk_len, d).zero_()
            grad_v_Jmv = space.get("grad_v", n_chunks, form.chunk_len, v).zero_()
            for first, last in tiles(n_chunks, form, order_NRL.device):
                queries = slice(first + form.n_before, last + form.n_before)
                rows_Jmx = _gather(space, rows, run.row_E, first, last, form)
                own_Tmx = rows_Jmx[form.n_before : form.n_before + last - first]
                q_Tmd, grad_out_Tmv = own_Tmx[..., :d], own_Tmx[..., 2 * d + v :]
                window = (last - first, form.chunk_len, form.chunk_len * form.n_window)
                prob_TmK, grad_prob_TmK = space.get("scores", *window), space.get("grad_scores", *window)
                _score(prob_TmK, rows_Jmx, d, run, first, last, form)
                prob_TmK.sub_(lse_Jm[queries].unsqueeze(-1)).exp2_()
                if run.query_rounds_SJm is not None:
                    prob_TmK.div_(_count_rounds(run, space, first, last, form))
                torch.bmm(grad_out_Tmv, _windows(rows_Jmx, 2 * d, v, form).transpose(1, 2), out=grad_prob_TmK)
                if dropout_mask_mK is None:
                    _accumulate_keys(grad_v_Jmv, prob_TmK, grad_out_Tmv, first, last, form)
                else:
                    grad_prob_TmK.mul_(dropout_mask_mK)
                    _accumulate_keys(grad_v_Jmv, prob_TmK * dropout_mask_mK, grad_out_Tmv, first, last, form)
                grad_score_TmK = grad_prob_TmK.sub_(delta_Jm[queries].unsqueeze(-1)).mul_(prob_TmK)
                torch.bmm(grad_score_TmK, _windows(rows_Jmx, d, d, form), out=grad_q_Jmd[queries])
                _accumulate_keys(grad_k_Jmd, grad_score_TmK, q_Tmd, first, last, form)
            grad_k_NLd = _sum_over_rounds(_unwrap(grad_k_Jmd, run, form), run)[:, :length]
            grad_v_NLv_group = _sum_over_rounds(_unwrap(grad_v_Jmv, run, form), run)[:, :length]
            grad_q_NLd_group = _sum_over_rounds(grad_q_Jmd, run)[:, :length].div_(_LOG2_E)
            # k = s q with ds/dq = -s^3 q.
            along_q_NL1 = (q * grad_k_NLd).sum(-1, keepdim=True).mul_(scale_NL1**3)
            grad_q_NLd[group] = (
                grad_q_NLd_group.addcmul_(scale_NL1, grad_k_NLd).addcmul_(along_q_NL1, q, value=-1).to(q_NLd.dtype)
            )
            found_nothing_NL1 = lse_NL[group][:, :length, None].isposinf().to(dtype)
            grad_v_NLv[group] = grad_v_NLv_group.addcmul_(found_nothing_NL1, grad_out).to(v_NLv.dtype)
        return grad_q_NLd, grad_v_NLv, None, None, None, None


class _Workspace:
    """Memory that every tile and every group uses again: fresh pages cost more than the arithmetic on them."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._like, self._dtype = like, dtype
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The buffer of that name, in this shape; what it holds is undefined."""
        size = math.prod(shape)
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat[name] = self._like.new_empty(size, dtype=dtype or self._dtype)
        return self._flat[name][:size].view(shape)


def _gather(space: _Workspace, rows: Tensor, row_E: Tensor, first: int, last: int, form: Form) -> Tensor:
    """Rows of all chunks that the windows of a tile see, (J, m, x)."""
    m, n_chunks = form.chunk_len, last - first + form.n_window - 1
    tile_Jmx = space.get("tile", n_chunks, m, rows.shape[-1])
    torch.index_select(rows, 0, row_E[first * m : (first + n_chunks) * m], out=tile_Jmx.view(n_chunks * m, -1))
    return tile_Jmx


def _score(out_TmK: Tensor, rows_Jmx: Tensor, d: int, run: Run, first: int, last: int, form: Form) -> None:
    """Logits of a tile, with minus 2**99 or less for forbidden pairs.

    Additive arithmetic on float codes takes a tenth of the time of comparisons and masked_fill on a CPU.
    """
    query_code_Tm1 = run.query_code_J1m[first + form.n_before : last + form.n_before].transpose(1, 2)
    key_code_T1K = _windows_1d(run.key_code_Jm, first, last, form)
    torch.sub(query_code_Tm1, key_code_T1K, out=out_TmK)
    if run.window_bias_mK is not None:
        torch.sub(run.window_bias_mK, out_TmK.abs_(), out=out_TmK)
    elif form.causal:
        out_TmK.clamp_(max=0)
    else:
        out_TmK.abs_().sub_(FORBIDDEN / 2).clamp_(max=0)
        if run.key_bias_Jm is not None:
            out_TmK.add_(_windows_1d(run.key_bias_Jm, first, last, form))
    q_Tmd = rows_Jmx[form.n_before : form.n_before + last - first, :, :d]
    out_TmK.baddbmm_(q_Tmd, _windows(rows_Jmx, d, d, form).transpose(1, 2))


def _count_rounds(run: Run, space: _Workspace, first: int, last: int, form: Form) -> Tensor:
    """In how many rounds each allowed pair of a tile meets, at least 1."""
    assert run.query_rounds_SJm is not None
    assert run.key_rounds_SJm is not None
    window = (last - first, form.chunk_len, form.chunk_len * form.n_window)
    count_TmK = space.get("count", *window, dtype=run.key_rounds_SJm.dtype)
    near_TmK = space.get("near", *window, dtype=run.key_rounds_SJm.dtype)
    # Inside a bucket the own round always counts; its column is left out.
    count_TmK.fill_(0 if form.across_buckets else 1)
    for query_Jm, key_Jm in zip(run.query_rounds_SJm, run.key_rounds_SJm, strict=True):
        query_Tm1 = query_Jm[first + form.n_before : last + form.n_before].unsqueeze(-1)
        torch.sub(query_Tm1, _windows_1d(key_Jm, first, last, form), out=near_TmK)
        # A result of the operand's own type: comparisons into bool are not vectorised on a CPU.
        torch.le(near_TmK.abs_(), 1, out=near_TmK)
        count_TmK.add_(near_TmK)
    if form.across_buckets:
        count_TmK.clamp_(min=1)
    return space.get("divisor", *window).copy_(count_TmK)


def _windows(rows_Jmx: Tensor, column: int, width: int, form: Form) -> Tensor:
    """Overlapping windows (T, K, width) of some columns of a tile's rows, as a view."""
    n_chunks, m, _ = rows_Jmx.shape
    stride_J, stride_m, _ = rows_Jmx.stride()
    shape = (n_chunks - form.n_window + 1, form.n_window * m, width)
    return rows_Jmx.as_strided(shape, (stride_J, stride_m, 1), rows_Jmx.storage_offset() + column)


def _windows_1d(code_Jm: Tensor, first: int, last: int, form: Form) -> Tensor:
    m = form.chunk_len
    shape = (last - first, 1, form.n_window * m)
    return code_Jm.as_strided(shape, (m, 0, 1), code_Jm.storage_offset() + first * m)


def _accumulate_keys(grad_Jmx: Tensor, weight_TmK: Tensor, rows_Tmx: Tensor, first: int, last: int, form: Form) -> None:
    """Adds weight^T rows to the chunks of every window."""
    m = form.chunk_len
    for place in range(form.n_window):
        weight_Tmm = weight_TmK[..., place * m : (place + 1) * m]
        grad_Jmx[first + place : last + place].baddbmm_(weight_Tmm.transpose(1, 2), rows_Tmx)


def _unwrap(grad_Jmx: Tensor, run: Run, form: Form) -> Tensor:
    """Adds the gradient of the wrapped copies at the ends of each sequence to the chunks they are copies of."""
    n_sequences = run.entry_NLR.shape[0]
    grad_NJmx = grad_Jmx.unflatten(0, (n_sequences, -1))
    n_chunks = grad_NJmx.shape[1]
    if run.places is not None:
        row_N1 = torch.arange(n_sequences, device=grad_Jmx.device)[:, None]
        for copy_N1, copied_N1 in zip(run.places.copy_NX.split(1, 1), run.places.copied_NX.split(1, 1), strict=True):
            grad_NJmx[row_N1, copied_N1] += grad_NJmx[row_N1, copy_N1]
        return grad_Jmx
    if form.n_before:
        grad_NJmx[:, n_chunks - 1 - form.n_after] += grad_NJmx[:, 0]
    if form.n_after:
        grad_NJmx[:, form.n_before] += grad_NJmx[:, -1]
    return grad_Jmx


def _sum_over_rounds(grad_Jmx: Tensor, run: Run) -> Tensor:
    n_sequences, length, _ = run.entry_NLR.shape
    total = F.embedding_bag(run.entry_NLR.flatten(0, 1), grad_Jmx.flatten(0, 1), mode="sum")
    return total.view(n_sequences, length, -1)


def _lse_of_entries(lse_NL: Tensor, run: Run, form: Form) -> Tensor:
    """Log-sum-exp of each entry's token; plus infinity for the wrapped copies, which must not act as queries."""
    lse_Jm = lse_NL.flatten()[run.row_E].view(run.key_code_Jm.shape)
    lse_NJm = lse_Jm.unflatten(0, (lse_NL.shape[0], -1))
    n_chunks = lse_NJm.shape[1]
    if run.places is not None:
        lse_NJm.scatter_(1, run.places.copy_NX[:, :, None].expand(-1, -1, lse_NJm.shape[2]), torch.inf)
        lse_NJm[:, n_chunks - form.n_after :] = torch.inf
        return lse_Jm
    lse_NJm[:, : form.n_before] = torch.inf
    lse_NJm[:, n_chunks - form.n_after :] = torch.inf
    return lse_Jm


def _key_scale(q_NLd: Tensor) -> Tensor:
    d = q_NLd.shape[-1]
    return (q_NLd.square().mean(-1, keepdim=True) + _RMS_EPSILON).rsqrt_() * d**-0.5


def _stack_rows(space: _Workspace, parts: tuple[Tensor, ...], padded_length: int) -> Tensor:
    """Rows (N * L, x) with the parts side by side, so that one gather fetches them all; padding is 0."""
    n_sequences, length = parts[0].shape[:2]
    rows_NLx = space.get("rows", n_sequences, padded_length, sum(part.shape[-1] for part in parts))
    column = 0
    for part_NLx in parts:
        rows_NLx[:, :length, column : column + part_NLx.shape[-1]] = part_NLx
        column += part_NLx.shape[-1]
    rows_NLx[:, length:] = 0
    return rows_NLx.flatten(0, 1)


def _index(tensor: Tensor | None, group: slice) -> Tensor | None:
    return None if tensor is None else tensor[group]


def _check_shapes(
    q_BHLd: Tensor,
    v_BHLv: Tensor,
    bucket_BHRL: Tensor,
    n_buckets_total: int,
    chunk_len: int,
    key_mask_BL: Tensor | None,
) -> None:
    if chunk_len < 1:
        raise ValueError(f"The chunk length must be at least 1, but it is {chunk_len}.")
    if n_buckets_total < 1:
        raise ValueError(f"The number of buckets must be at least 1, but it is {n_buckets_total}.")
    if q_BHLd.dim() != 4 or v_BHLv.shape[:-1] != q_BHLd.shape[:-1] or 0 in q_BHLd.shape:
        raise ValueError(
            "The queries and values must have the shapes (batch, heads, length, width) with at least one token, but "
            f"they have the shapes {tuple(q_BHLd.shape)} and {tuple(v_BHLv.shape)}."
        )
    batch, n_heads, length, _ = q_BHLd.shape
    if (
        bucket_BHRL.dim() != 4
        or bucket_BHRL.shape[2] < 1
        or bucket_BHRL.shape != (batch, n_heads, bucket_BHRL.shape[2], length)
    ):
        raise ValueError(
            f"The buckets must have the shape (batch {batch}, heads {n_heads}, at least one round, length {length}), "
            f"but they have the shape {tuple(bucket_BHRL.shape)}."
        )
    if key_mask_BL is not None and key_mask_BL.shape != (batch, length):
        raise ValueError(
            f"The key mask must have the shape (batch {batch}, length {length}), not {tuple(key_mask_BL.shape)}."
        )


def _check_codes(
    q_BHLd: Tensor, bucket_BHRL: Tensor, n_buckets_total: int, chunk_len: int, attend_across_buckets: bool
) -> None:
    """Refuses what `prepare_run` could not number: two numbers rounded to one would be one bucket, or one place."""
    most = most_codes(torch.promote_types(q_BHLd.dtype, torch.float32))
    n_rounds, length = bucket_BHRL.shape[2:]
    if attend_across_buckets:
        padded = -(-length // chunk_len) * chunk_len
        if padded > most:
            raise ValueError(f"Across buckets {most} places are told apart, but {padded} tokens stand in whole chunks.")
    elif n_rounds * (n_buckets_total + 2) > most:  # one more for masked tokens, and one for padding
        raise ValueError(
            f"{most} buckets are told apart, but {n_rounds} rounds of {n_buckets_total}, and 2 more in each, have "
            f"{n_rounds * (n_buckets_total + 2)}."
        )
