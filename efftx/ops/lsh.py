"""Attention inside hash buckets: sort every round by bucket, cut it into chunks, attend to the own chunk and its neighbours.

Shape suffixes: B batch, H heads, R hashing rounds, L length (padded to whole chunks inside), d query width, v value width,
N sequences (batch times heads, or a group of them), m chunk length, K keys in a window, C chunks of a sequence over all
rounds, J chunks of a run (a run is the sorted rounds of a group of sequences, one after the other, each sequence with its
wrapped neighbours at its ends), W chunks in a window, T windows of a tile, E sorted entries of a run (J times m).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from efftx.ops.lsh_hashing import auto_buckets, hash_vectors, make_rotations, sort_by_bucket

__all__ = ["auto_buckets", "hash_vectors", "lsh_attention", "make_rotations"]

# Scores of a tile: small enough that scores, rows and gradients of a tile stay in the cache, large enough that the
# overhead of a call does not show.
_TILE_SCORES = 2**19
# Forbidden pairs get minus this, times at least 1/2. A power of two keeps products with integer codes exact, and codes
# below 2**24 keep it finite in float32.
_FORBIDDEN = 2.0**100
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
) -> Tensor:
    """Shared-QK attention over the union of what all hashing rounds bring near (Reformer, section 2 and appendix A).

    Takes queries (not normalised; the key is the query at unit length, and the logit is their product without a further
    scale), values, and buckets (B, H, R, L) without the round's offset, all below `n_buckets_total`; gives (B, H, L, v).
    Any length is taken. `key_mask_BL` is False where a token is padding: no query attends to it. The neighbours of a
    chunk are the chunk before it and, unless `causal`, the one after it, wrapping around over the chunks of all rounds;
    a chunk stands in a window once, also where there are fewer chunks than places. A token attends to itself only where
    no round finds another target.

    By default a pair counts only inside its bucket, and one found in N rounds counts once, by -log N in its logit: the
    paper's equations. `attend_across_buckets` and `allow_duplicates` together give the authors' later form. With
    `attend_across_buckets` alone the rounds that a pair shares are counted inside rounds, so that a pair which meets
    only across the border of two rounds has the count 0; it is taken as 1, where the authors' code adds 20.7 to its logit.

    `dropout_mask_mK` multiplies the probabilities of every chunk, m queries times the keys of 2 (causal) or 3 chunks; it
    does not touch tokens that attend to themselves. Gradients take the buckets as constants. Raises ValueError for
    shapes that do not fit.
    """
    _check_shapes(q_BHLd, v_BHLv, bucket_BHRL, n_buckets_total, chunk_len, key_mask_BL)
    n_heads, length = q_BHLd.shape[1], q_BHLd.shape[2]
    n_chunks = bucket_BHRL.shape[2] * -(-length // chunk_len)
    form = _Form(
        chunk_len=chunk_len,
        n_before=int(n_chunks > 1),
        n_after=int(not causal and n_chunks > 2),
        causal=causal,
        across_buckets=attend_across_buckets,
        count_rounds=not allow_duplicates and bucket_BHRL.shape[2] > 1,
        n_buckets=n_buckets_total,
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


@dataclass(frozen=True)
class _Form:
    """What decides, besides the tensors, which pairs are allowed."""

    chunk_len: int
    n_before: int
    n_after: int
    causal: bool
    across_buckets: bool
    count_rounds: bool
    n_buckets: int

    @property
    def n_window(self) -> int:
        return self.n_before + 1 + self.n_after


@dataclass(frozen=True)
class _Run:
    """The sorted entries of a group of sequences: where their rows are, and the codes that tell which pairs are allowed."""

    row_E: Tensor  # entry -> row of the group's (N * L) rows
    entry_NLR: Tensor  # token -> its entry in each round
    query_code_J1m: Tensor
    key_code_Jm: Tensor
    key_bias_Jm: Tensor | None
    window_bias_mK: Tensor | None
    query_rounds_SJm: Tensor | None
    key_rounds_SJm: Tensor | None


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
        form: _Form,
    ) -> Tensor:
        dtype = q_NLd.dtype if q_NLd.dtype in (torch.float32, torch.float64) else torch.float32
        n_sequences, length, d = q_NLd.shape
        v = v_NLv.shape[-1]
        bucket_NRL, valid_NL = _pad_to_chunks(bucket_NRL, valid_NL, form)
        order_NRL = sort_by_bucket(bucket_NRL, form.n_buckets + 2)
        out_NLv = q_NLd.new_empty((n_sequences, length, v), dtype=dtype)
        lse_NL = q_NLd.new_empty((n_sequences, bucket_NRL.shape[-1]), dtype=dtype)
        for group in _groups(order_NRL, form):
            run = _prepare_run(order_NRL[group], bucket_NRL[group], _index(valid_NL, group), form, dtype)
            q_NLd_group, v_NLv_group = q_NLd[group].to(dtype), v_NLv[group].to(dtype)
            key_NLd = q_NLd_group * (_LOG2_E * _key_scale(q_NLd_group))
            rows = _stack_rows((q_NLd_group, key_NLd, v_NLv_group), order_NRL.shape[-1])
            n_chunks = run.key_code_Jm.shape[0]
            sum_Jmv = rows.new_empty((n_chunks, form.chunk_len, v))
            max_Jm = rows.new_empty((n_chunks, form.chunk_len))
            total_Jm = rows.new_empty((n_chunks, form.chunk_len))
            buffers = _Buffers(rows, n_chunks, form, n_scores=1)
            for first, last in buffers.tiles():
                queries = slice(first + form.n_before, last + form.n_before)
                rows_Jmx = buffers.gather(rows, run.row_E, first, last)
                scores_TmK = buffers.scores(0, last - first)
                _score(scores_TmK, rows_Jmx, d, run, first, last, form)
                max_Tm = scores_TmK.amax(-1).clamp_(min=_NOTHING_FOUND)
                scores_TmK.sub_(max_Tm.unsqueeze(-1)).exp2_()
                if run.query_rounds_SJm is not None:
                    scores_TmK.div_(_count_rounds(run, buffers, first, last, form))
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
            q_NLd, v_NLv, bucket_NRL.to(torch.int32), order_NRL.to(torch.int32), valid_NL, dropout_mask_mK, out_NLv, lse_NL
        )
        ctx.form = form
        return out_NLv.to(q_NLd.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out_NLv: Tensor) -> tuple[Tensor | None, ...]:
        q_NLd, v_NLv, bucket_NRL, order_NRL, valid_NL, dropout_mask_mK, out_NLv, lse_NL = ctx.saved_tensors
        form: _Form = ctx.form
        dtype = out_NLv.dtype
        length, d = q_NLd.shape[1:]
        v = v_NLv.shape[-1]
        grad_q_NLd, grad_v_NLv = torch.empty_like(q_NLd), torch.empty_like(v_NLv)
        for group in _groups(order_NRL, form):
            run = _prepare_run(order_NRL[group].long(), bucket_NRL[group].long(), _index(valid_NL, group), form, dtype)
            q, values, grad_out = q_NLd[group].to(dtype), v_NLv[group].to(dtype), grad_out_NLv[group].to(dtype)
            scale_NL1 = _key_scale(q)
            rows = _stack_rows((q, q * (_LOG2_E * scale_NL1), values, grad_out), order_NRL.shape[-1])
            n_chunks = run.key_code_Jm.shape[0]
            lse_Jm = _lse_of_entries(lse_NL[group] * _LOG2_E, run, form)
            delta_NL = F.pad((grad_out * out_NLv[group]).sum(-1), (0, order_NRL.shape[-1] - length))
            delta_Jm = delta_NL.flatten()[run.row_E].view(n_chunks, form.chunk_len)
            grad_q_Jmd = rows.new_empty((n_chunks, form.chunk_len, d))
            grad_k_Jmd = rows.new_zeros((n_chunks, form.chunk_len, d))
            grad_v_Jmv = rows.new_zeros((n_chunks, form.chunk_len, v))
            buffers = _Buffers(rows, n_chunks, form, n_scores=2)
            for first, last in buffers.tiles():
                queries = slice(first + form.n_before, last + form.n_before)
                rows_Jmx = buffers.gather(rows, run.row_E, first, last)
                own_Tmx = rows_Jmx[form.n_before : form.n_before + last - first]
                q_Tmd, grad_out_Tmv = own_Tmx[..., :d], own_Tmx[..., 2 * d + v :]
                prob_TmK, grad_prob_TmK = buffers.scores(0, last - first), buffers.scores(1, last - first)
                _score(prob_TmK, rows_Jmx, d, run, first, last, form)
                prob_TmK.sub_(lse_Jm[queries].unsqueeze(-1)).exp2_()
                if run.query_rounds_SJm is not None:
                    prob_TmK.div_(_count_rounds(run, buffers, first, last, form))
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
            grad_q_NLd[group] = grad_q_NLd_group.addcmul_(scale_NL1, grad_k_NLd).addcmul_(along_q_NL1, q, value=-1).to(q_NLd.dtype)
            found_nothing_NL1 = lse_NL[group][:, :length, None].isposinf().to(dtype)
            grad_v_NLv[group] = grad_v_NLv_group.addcmul_(found_nothing_NL1, grad_out).to(v_NLv.dtype)
        return grad_q_NLd, grad_v_NLv, None, None, None, None


class _Buffers:
    """Memory of one tile, used again by every tile of a run."""

    def __init__(self, rows: Tensor, n_chunks: int, form: _Form, n_scores: int) -> None:
        self.form = form
        self.n_windows = n_chunks - form.n_window + 1
        m = form.chunk_len
        self.per_tile = min(self.n_windows, max(1, _TILE_SCORES // (m * m * form.n_window)))
        shape = (self.per_tile, m, m * form.n_window)
        self._scores = [rows.new_empty(shape) for _ in range(n_scores)]
        self._rows = rows.new_empty(((self.per_tile + form.n_window - 1) * m, rows.shape[-1]))
        self.counts: tuple[Tensor, Tensor] | None = None

    def tiles(self) -> Iterator[tuple[int, int]]:
        """First and last (exclusive) window of each tile."""
        for first in range(0, self.n_windows, self.per_tile):
            yield first, min(first + self.per_tile, self.n_windows)

    def scores(self, which: int, n_windows: int) -> Tensor:
        return self._scores[which][:n_windows]

    def gather(self, rows: Tensor, row_E: Tensor, first: int, last: int) -> Tensor:
        """Rows of all chunks that the windows of a tile see, (J, m, x)."""
        m, n_chunks = self.form.chunk_len, last - first + self.form.n_window - 1
        tile = self._rows[: n_chunks * m]
        torch.index_select(rows, 0, row_E[first * m : (first + n_chunks) * m], out=tile)
        return tile.view(n_chunks, m, -1)

    def count_pair(self, dtype: torch.dtype, n_windows: int) -> tuple[Tensor, Tensor]:
        if self.counts is None:
            like = self._scores[0]
            self.counts = torch.empty_like(like, dtype=dtype), torch.empty_like(like, dtype=dtype)
        return self.counts[0][:n_windows], self.counts[1][:n_windows]


def _score(out_TmK: Tensor, rows_Jmx: Tensor, d: int, run: _Run, first: int, last: int, form: _Form) -> None:
    """Logits of a tile, with minus 2**99 or less for forbidden pairs.

    Additive arithmetic on float codes takes a tenth of the time of comparisons and masked_fill on a CPU.
    """
    query_code_Tm1 = run.query_code_J1m[first + form.n_before : last + form.n_before].transpose(1, 2)
    key_code_T1K = _windows_1d(run.key_code_Jm, first, last, form)
    torch.sub(query_code_Tm1, key_code_T1K, out=out_TmK)
    if not form.across_buckets:
        torch.sub(run.window_bias_mK, out_TmK.abs_(), out=out_TmK)
    elif form.causal:
        out_TmK.clamp_(max=0)
    else:
        out_TmK.abs_().sub_(_FORBIDDEN / 2).clamp_(max=0)
        if run.key_bias_Jm is not None:
            out_TmK.add_(_windows_1d(run.key_bias_Jm, first, last, form))
    q_Tmd = rows_Jmx[form.n_before : form.n_before + last - first, :, :d]
    out_TmK.baddbmm_(q_Tmd, _windows(rows_Jmx, d, d, form).transpose(1, 2))


def _count_rounds(run: _Run, buffers: _Buffers, first: int, last: int, form: _Form) -> Tensor:
    """In how many rounds each allowed pair of a tile meets, at least 1."""
    assert run.query_rounds_SJm is not None and run.key_rounds_SJm is not None
    count_TmK, near_TmK = buffers.count_pair(run.key_rounds_SJm.dtype, last - first)
    # Inside a bucket the own round always counts; its column is left out.
    count_TmK.fill_(0 if form.across_buckets else 1)
    for query_Jm, key_Jm in zip(run.query_rounds_SJm, run.key_rounds_SJm, strict=True):
        query_Tm1 = query_Jm[first + form.n_before : last + form.n_before].unsqueeze(-1)
        torch.sub(query_Tm1, _windows_1d(key_Jm, first, last, form), out=near_TmK)
        torch.le(near_TmK.abs_(), 1, out=near_TmK)
        count_TmK.add_(near_TmK)
    return count_TmK.clamp_(min=1) if form.across_buckets else count_TmK


def _windows(rows_Jmx: Tensor, column: int, width: int, form: _Form) -> Tensor:
    """Overlapping windows (T, K, width) of some columns of a tile's rows, as a view."""
    n_chunks, m, _ = rows_Jmx.shape
    stride_J, stride_m, _ = rows_Jmx.stride()
    shape = (n_chunks - form.n_window + 1, form.n_window * m, width)
    return rows_Jmx.as_strided(shape, (stride_J, stride_m, 1), rows_Jmx.storage_offset() + column)


def _windows_1d(code_Jm: Tensor, first: int, last: int, form: _Form) -> Tensor:
    m = form.chunk_len
    shape = (last - first, 1, form.n_window * m)
    return code_Jm.as_strided(shape, (m, 0, 1), code_Jm.storage_offset() + first * m)


def _accumulate_keys(
    grad_Jmx: Tensor, weight_TmK: Tensor, rows_Tmx: Tensor, first: int, last: int, form: _Form
) -> None:
    """Adds weight^T rows to the chunks of every window."""
    m = form.chunk_len
    for place in range(form.n_window):
        weight_Tmm = weight_TmK[..., place * m : (place + 1) * m]
        grad_Jmx[first + place : last + place].baddbmm_(weight_Tmm.transpose(1, 2), rows_Tmx)


def _unwrap(grad_Jmx: Tensor, run: _Run, form: _Form) -> Tensor:
    """Adds the gradient of the wrapped copies at the ends of each sequence to the chunks they are copies of."""
    n_sequences = run.entry_NLR.shape[0]
    grad_NJmx = grad_Jmx.unflatten(0, (n_sequences, -1))
    n_chunks = grad_NJmx.shape[1]
    if form.n_before:
        grad_NJmx[:, n_chunks - 1 - form.n_after] += grad_NJmx[:, 0]
    if form.n_after:
        grad_NJmx[:, form.n_before] += grad_NJmx[:, -1]
    return grad_Jmx


def _sum_over_rounds(grad_Jmx: Tensor, run: _Run) -> Tensor:
    n_sequences, length, _ = run.entry_NLR.shape
    total = F.embedding_bag(run.entry_NLR.flatten(0, 1), grad_Jmx.flatten(0, 1), mode="sum")
    return total.view(n_sequences, length, -1)


def _lse_of_entries(lse_NL: Tensor, run: _Run, form: _Form) -> Tensor:
    """Log-sum-exp of each entry's token; plus infinity for the wrapped copies, which must not act as queries."""
    lse_Jm = lse_NL.flatten()[run.row_E].view(run.key_code_Jm.shape)
    lse_NJm = lse_Jm.unflatten(0, (lse_NL.shape[0], -1))
    n_chunks = lse_NJm.shape[1]
    lse_NJm[:, : form.n_before] = torch.inf
    lse_NJm[:, n_chunks - form.n_after :] = torch.inf
    return lse_Jm


def _key_scale(q_NLd: Tensor) -> Tensor:
    d = q_NLd.shape[-1]
    return (q_NLd.square().mean(-1, keepdim=True) + _RMS_EPSILON).rsqrt_() * d**-0.5


def _stack_rows(parts: tuple[Tensor, ...], padded_length: int) -> Tensor:
    """Rows (N * L, x) with the parts side by side, so that one gather fetches them all; padding is 0."""
    n_sequences, length = parts[0].shape[:2]
    rows = parts[0].new_zeros((n_sequences, padded_length, sum(part.shape[-1] for part in parts)))
    torch.cat(parts, -1, out=rows) if length == padded_length else rows[:, :length].copy_(torch.cat(parts, -1))
    return rows.flatten(0, 1)


def _index(tensor: Tensor | None, group: slice) -> Tensor | None:
    return None if tensor is None else tensor[group]


def _groups(order_NRL: Tensor, form: _Form) -> Iterator[slice]:
    """Sequences that share a run: as many short ones as fill a tile, or one long one."""
    n_sequences, n_rounds, length = order_NRL.shape
    n_chunks = n_rounds * length // form.chunk_len + form.n_window - 1
    n_group = max(1, _TILE_SCORES // (n_chunks * form.n_window * form.chunk_len**2))
    for first in range(0, n_sequences, n_group):
        yield slice(first, min(first + n_group, n_sequences))


def _pad_to_chunks(bucket_NRL: Tensor, valid_NL: Tensor | None, form: _Form) -> tuple[Tensor, Tensor | None]:
    """Buckets and validity up to whole chunks: masked tokens in one extra bucket, entries beyond the length in another."""
    n_sequences, _, length = bucket_NRL.shape
    n_more = -length % form.chunk_len
    if valid_NL is not None:
        bucket_NRL = torch.where(valid_NL[:, None], bucket_NRL, form.n_buckets)
    if n_more:
        bucket_NRL = F.pad(bucket_NRL, (0, n_more), value=form.n_buckets + 1)
        if valid_NL is None:
            valid_NL = bucket_NRL.new_ones((n_sequences, length), dtype=torch.bool)
        valid_NL = F.pad(valid_NL, (0, n_more), value=False)
    return bucket_NRL, valid_NL


def _prepare_run(
    order_NRL: Tensor, bucket_NRL: Tensor, valid_NL: Tensor | None, form: _Form, dtype: torch.dtype
) -> _Run:
    n_sequences, n_rounds, length = order_NRL.shape
    device, m = order_NRL.device, form.chunk_len
    n_chunks = n_rounds * length // m

    def chunks_of_run(entry_NRL: Tensor) -> Tensor:
        entry_NCm = entry_NRL.reshape(n_sequences, n_chunks, m)
        ends = (entry_NCm[:, n_chunks - form.n_before :], entry_NCm, entry_NCm[:, : form.n_after])
        return torch.cat(ends, 1).flatten(0, 1)

    sequence_N11 = torch.arange(n_sequences, device=device)[:, None, None]
    row_Jm = chunks_of_run(order_NRL + sequence_N11 * length)

    place_L = torch.arange(length, device=device)
    rank_NRL = torch.empty_like(order_NRL).scatter_(-1, order_NRL, place_L.expand_as(order_NRL))
    first_N11 = (sequence_N11 * (n_chunks + form.n_window - 1) + form.n_before) * m
    round_R1 = torch.arange(n_rounds, device=device)[:, None]
    entry_NLR = (rank_NRL + first_N11 + round_R1 * length).transpose(1, 2).contiguous()

    invalid_NRL = None if valid_NL is None else (~valid_NL)[:, None].expand_as(order_NRL).gather(-1, order_NRL)
    key_bias_Jm = window_bias_mK = None
    if form.across_buckets:
        query_code_NRL = key_code_NRL = order_NRL.to(dtype)
        if form.causal:
            query_code_NRL = query_code_NRL - 0.5
            if invalid_NRL is not None:
                key_code_NRL = key_code_NRL + invalid_NRL * length
        elif invalid_NRL is not None:
            key_bias_Jm = chunks_of_run(invalid_NRL * torch.tensor(-_FORBIDDEN, dtype=dtype, device=device))
    else:
        bucket_of_round_NRL = bucket_NRL.gather(-1, order_NRL) + round_R1 * (form.n_buckets + 2)
        query_code_NRL = key_code_NRL = bucket_of_round_NRL.to(dtype)
        if invalid_NRL is not None:
            key_code_NRL = key_code_NRL + 0.5 * invalid_NRL
        window_bias_mK = _window_bias(form, dtype, device)

    query_rounds_SJm = key_rounds_SJm = None
    if form.count_rounds:
        code_NRL = rank_NRL // m + (0 if form.across_buckets else 2 * bucket_NRL)
        narrow = 2 * (length // m + 2 * form.n_buckets + 4) < torch.iinfo(torch.int16).max
        # Before the query (causal) a key counts in its chunk and in the one before: 2 (query - key) - 1 is -1 or 1.
        code_NRL = (2 * code_NRL if form.causal else code_NRL).to(torch.int16 if narrow else torch.int32)
        key_rounds_SJm = _rounds_of_entries(code_NRL, order_NRL, chunks_of_run, form)
        query_rounds_SJm = key_rounds_SJm - int(form.causal)
    key_code_Jm = chunks_of_run(key_code_NRL * _FORBIDDEN)
    if form.causal and not form.across_buckets:
        # Behind the wrap-around lie other rounds, or, in a single round, later tokens of a bucket that fills it.
        key_code_Jm.unflatten(0, (n_sequences, -1))[:, : form.n_before] = -_FORBIDDEN
    return _Run(
        row_E=row_Jm.flatten(),
        entry_NLR=entry_NLR,
        query_code_J1m=chunks_of_run(query_code_NRL * _FORBIDDEN).unsqueeze(1),
        key_code_Jm=key_code_Jm,
        key_bias_Jm=key_bias_Jm,
        window_bias_mK=window_bias_mK,
        query_rounds_SJm=query_rounds_SJm,
        key_rounds_SJm=key_rounds_SJm,
    )


def _rounds_of_entries(code_NRL: Tensor, order_NRL: Tensor, chunks_of_run: Any, form: _Form) -> Tensor:
    """Codes of all rounds for the entries of every round (across buckets), or of the other rounds, counted from the own."""
    n_rounds = order_NRL.shape[1]
    shifts = range(n_rounds) if form.across_buckets else range(1, n_rounds)
    columns = []
    for shift in shifts:
        source_NRL = code_NRL if form.across_buckets else code_NRL.roll(-shift, 1)
        if form.across_buckets:
            source_NRL = code_NRL[:, shift : shift + 1].expand_as(order_NRL)
        columns.append(chunks_of_run(source_NRL.gather(-1, order_NRL)))
    return torch.stack(columns)


def _window_bias(form: _Form, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the place in the window forbids to entries of one bucket: the later ones (causal), or the query's own."""
    m = form.chunk_len
    query_m1 = torch.arange(m, device=device)[:, None] + form.n_before * m
    key_K = torch.arange(form.n_window * m, device=device)
    forbidden_mK = key_K >= query_m1 if form.causal else key_K == query_m1
    return forbidden_mK.to(dtype) * -_FORBIDDEN


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
            "The queries and values must have the shapes (batch, heads, length, width) with at least one token, but they "
            f"have the shapes {tuple(q_BHLd.shape)} and {tuple(v_BHLv.shape)}."
        )
    batch, n_heads, length, _ = q_BHLd.shape
    if bucket_BHRL.dim() != 4 or bucket_BHRL.shape[2] < 1 or bucket_BHRL.shape != (batch, n_heads, bucket_BHRL.shape[2], length):
        raise ValueError(
            f"The buckets must have the shape (batch {batch}, heads {n_heads}, at least one round, length {length}), but they "
            f"have the shape {tuple(bucket_BHRL.shape)}."
        )
    if key_mask_BL is not None and key_mask_BL.shape != (batch, length):
        raise ValueError(
            f"The key mask must have the shape (batch {batch}, length {length}), not {tuple(key_mask_BL.shape)}."
        )
