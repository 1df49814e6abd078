"""Softmax over the union of disjoint sets of keys, each a batch of small dense problems: work that is really skipped.

A row of L tokens is cut in n blocks of l. A part takes a rectangle of queries (blocks by offsets) and one of keys, and
lays each out as P separate problems; the parts' results are merged by their log-sum-exps, and the backward pass runs
every part once more against the merged result, so that no score is stored (Sparse Transformer, section 5.2: there the
sets are blocks of one sparse matrix).

Legend: B batch, H heads, L length, d width of queries, keys and values; N batch times heads, n blocks of l; a part has
P problems of Q queries and K keys; E any width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.ops.patterns import Sees

HIDDEN = -1e30
"""The score of a hidden key: finite, for a row of nothing else must not be NaN, and weightless beside any other."""


@dataclass(frozen=True)
class Cut:
    """The offsets `first` .. `end` of the blocks `first_block` .. `end_block` of a row, laid out as problems.

    `rows`: a problem a block. `columns`: one an offset, over the blocks. `joined`: a single one. `groups`: one for
    each `width` offsets, over the blocks; the last is filled up with empty places.
    """

    first_block: int
    end_block: int
    first: int
    end: int
    layout: str = "rows"
    width: int = 0

    @property
    def problems(self) -> tuple[int, int]:
        """The number of problems, and the positions of each."""
        n, m = self.end_block - self.first_block, self.end - self.first
        if self.layout == "groups":
            return ceil(m / self.width), n * self.width
        return {"rows": (n, m), "columns": (m, n), "joined": (1, n * m)}[self.layout]

    @property
    def copies(self) -> bool:
        """Whether `pack` copies: a problem lies in several blocks."""
        return self.layout in ("joined", "groups")

    def region(self, x_NnlE: Tensor) -> Tensor:
        """The rectangle as a view."""
        return x_NnlE[:, self.first_block : self.end_block, self.first : self.end]

    def pack(self, x_NnlE: Tensor) -> Tensor:
        """The rectangle as problems, (N, P, Q, E); a view for rows and columns."""
        x = self.region(x_NnlE)
        if self.layout == "rows":
            return x
        if self.layout == "columns":
            return x.transpose(1, 2)
        if self.layout == "joined":
            return x.flatten(1, 2).unsqueeze(1)
        groups, _ = self.problems
        x = F.pad(x, (0, 0, 0, groups * self.width - x.shape[2]))
        return x.unflatten(2, (groups, self.width)).transpose(1, 2).flatten(2, 3)

    def unpack(self, y_NPQE: Tensor) -> Tensor:
        """What `pack` laid out, as the rectangle again."""
        n, m = self.end_block - self.first_block, self.end - self.first
        if self.layout == "rows":
            return y_NPQE
        if self.layout == "columns":
            return y_NPQE.transpose(1, 2)
        if self.layout == "joined":
            return y_NPQE.reshape(y_NPQE.shape[0], n, m, y_NPQE.shape[-1])
        return y_NPQE.unflatten(2, (n, self.width)).transpose(1, 2).flatten(2, 3)[:, :, :m]


@dataclass(frozen=True)
class Part:
    """Queries and their keys: all of a problem's, with `causal` those up to a query's own place, or those it `sees`.

    `sees` compares places inside a problem.
    """

    queries: Cut
    keys: Cut
    causal: bool = False
    sees: Sees | None = None

    @property
    def scores(self) -> int:
        """Scores computed for a head of one row, hidden ones included; a causal problem skips what lies later."""
        n_problems, n_queries = self.queries.problems
        return n_problems * n_queries * (n_queries + 1) // 2 if self.causal else self.places

    @property
    def places(self) -> int:
        """Pairs of a query and a key, also those that a causal problem skips."""
        (n_problems, n_queries), (_, n_keys) = self.queries.problems, self.keys.problems
        return n_problems * n_queries * n_keys

    def hidden(self, valid_Nnl1: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to the scores, (N or 1, P or 1, Q or 1, K), or None; `valid_Nnl1` False on keys of nobody."""
        if self.sees is None and valid_Nnl1 is None:
            return None
        (_, n_queries), (_, n_keys) = self.queries.problems, self.keys.problems
        seen = like.new_ones(1, 1, 1, 1, dtype=torch.bool)
        if self.sees is not None:
            query, key = (torch.arange(n, device=like.device) for n in (n_queries, n_keys))
            seen = self.sees(query[:, None], key[None, :])[None, None]
        if valid_Nnl1 is not None:
            seen = seen & self.keys.pack(valid_Nnl1).transpose(2, 3)
        return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, _hidden(like.dtype))


@dataclass(frozen=True)
class Layout:
    """A row in `n_blocks` blocks of `block_len`, and the parts whose keys make up what its queries see.

    `may_be_empty`: a query that no part gives a key sees itself.
    """

    block_len: int
    n_blocks: int
    parts: tuple[Part, ...]
    may_be_empty: bool = False

    @property
    def scores(self) -> int:
        """Scores computed for a head of one row."""
        return sum(part.scores for part in self.parts)

    @property
    def places(self) -> int:
        """Scores that plain products compute for it, which skip nothing."""
        return sum(part.places for part in self.parts)

    def blocks(self, x_BHLE: Tensor) -> Tensor:
        """(B, H, L, E) -> (N, n, l, E), zeros behind the end."""
        missing = self.block_len * self.n_blocks - x_BHLE.shape[2]
        x = F.pad(x_BHLE, (0, 0, 0, missing)) if missing else x_BHLE  # a pad of nothing copies
        return x.flatten(0, 1).unflatten(1, (self.n_blocks, self.block_len))

    def row(self, x_NnlE: Tensor, like_BHLE: Tensor) -> Tensor:
        """(N, n, l, E) -> (B, H, L, E)."""
        batch, heads, length = like_BHLE.shape[:3]
        return x_NnlE.flatten(1, 2).unflatten(0, (batch, heads))[:, :, :length]


def attend(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLd: Tensor,
    layout: Layout,
    *,
    scale: float,
    causal: bool,
    key_mask_BL: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of every query over the keys that the parts give it, (B, H, L, d).

    `key_mask_BL` is False on keys that nothing may see. The parts of a causal layout show no query what is behind the
    row's end; another's are told here. A query without any key gets its own value, or zeros where it is hidden itself.
    On a CPU each part is one call of PyTorch's fused kernel; elsewhere, and with `dropout`, plain products compute its
    scores. Scores and sums of half precision are in float32.
    """
    q_BHLd, k_BHLd = q_BHLd.to(v_BHLd.dtype), k_BHLd.to(v_BHLd.dtype)  # under autocast they may differ
    valid = None
    if not causal or key_mask_BL is not None:
        real_B1L1 = torch.ones_like(q_BHLd[:1, :1, :, :1], dtype=torch.bool)
        if key_mask_BL is not None:
            real_B1L1 = key_mask_BL[:, None, :, None].expand(-1, q_BHLd.shape[1], -1, -1)
        valid = layout.blocks(real_B1L1)
    seen = _Seen(valid, layout.may_be_empty or key_mask_BL is not None)
    if dropout or q_BHLd.device.type not in ("cpu", "meta") or k_BHLd.shape[-1] != v_BHLd.shape[-1]:
        return _plain(q_BHLd, k_BHLd, v_BHLd, layout, scale, seen, dropout)
    out: Tensor = _Fused.apply(q_BHLd, k_BHLd, v_BHLd, layout, scale, seen)
    return out


class _Seen(NamedTuple):
    """Which positions are keys, (N, n, l, 1) and None for all, and whether a query may have none."""

    valid: Tensor | None
    may_be_empty: bool


class _Fused(torch.autograd.Function):
    """`attend` by the CPU's flash kernel, which gives log-sum-exps and takes them back."""

    @staticmethod
    def forward(
        ctx: Any, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, layout: Layout, scale: float, seen: _Seen
    ) -> Tensor:
        valid, may_be_empty = seen
        q, k, v = (layout.blocks(_by_rows(x)) for x in (q_BHLd, k_BHLd, v_BHLd))
        hidden = [part.hidden(valid, q) for part in layout.parts]
        out = lse = None
        for part, mask in zip(layout.parts, hidden, strict=True):
            out_part, lse_part = _forward_kernel(part, q, k, v, mask, scale)
            out_part, lse_part = part.queries.unpack(out_part), part.queries.unpack(lse_part[..., None])
            if out is None or lse is None:
                if out_part.shape == v.shape:
                    out, lse = out_part.to(lse_part.dtype), lse_part
                    continue
                out = torch.zeros_like(v, dtype=lse_part.dtype)
                lse = torch.full_like(out[..., :1], HIDDEN)
            _merge(part.queries.region(out), part.queries.region(lse), out_part, lse_part)
        if out is None or lse is None:
            out = torch.zeros_like(v, dtype=_statistics(v.dtype))
            lse = torch.full_like(out[..., :1], HIDDEN)
        if may_be_empty:
            empty = lse < _hidden(q.dtype) / 2
            out = torch.where(empty, v if valid is None else v * valid, out)
            lse = lse.masked_fill(empty, -HIDDEN)  # so that the backward pass gives its keys no weight
        out = out.to(v.dtype)
        ctx.save_for_backward(q_BHLd, k_BHLd, v_BHLd, out, lse)
        ctx.layout, ctx.scale, ctx.hidden, ctx.seen = layout, scale, hidden, seen
        return layout.row(out, v_BHLd)

    @staticmethod
    def backward(ctx: Any, grad_BHLd: Tensor) -> tuple[Tensor | None, ...]:
        q_BHLd, k_BHLd, v_BHLd, out, lse = ctx.saved_tensors
        layout: Layout = ctx.layout
        q, k, v, grad = (layout.blocks(_by_rows(x)) for x in (q_BHLd, k_BHLd, v_BHLd, grad_BHLd))
        grads: list[Tensor | None] = [None, None, None]
        valid, may_be_empty = ctx.seen
        if may_be_empty:
            own = grad.masked_fill(lse < -HIDDEN / 2, 0.0)
            grads[2] = own if valid is None else own * valid
        for part, mask in zip(layout.parts, ctx.hidden, strict=True):
            cuts = (part.queries, part.keys, part.keys)
            of_part = _backward_kernel(part, grad, (q, k, v), (out, lse), mask, ctx.scale)
            grads = [_with_part(*each) for each in zip(grads, cuts, of_part, (q, k, v), strict=True)]
        return (*(layout.row(torch.zeros_like(q) if g is None else g, q_BHLd) for g in grads), None, None, None)


def _by_rows(x: Tensor) -> Tensor:
    """`x` with the numbers of a row side by side: the kernel takes that for granted, and would read beyond its end."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _with_part(total: Tensor | None, cut: Cut, of_part: Tensor, like_Nnld: Tensor) -> Tensor:
    """A gradient, in place once there is one, with what a part's problems add to it."""
    if of_part.shape[1] != cut.problems[0]:  # one set of keys for all problems
        of_part = of_part.sum(1, keepdim=True)
    added = cut.unpack(of_part)
    if total is None:
        if added.shape == like_Nnld.shape:
            return added
        total = torch.zeros_like(like_Nnld)
    cut.region(total).add_(added)
    return total


def _merge(out: Tensor, lse: Tensor, out_part: Tensor, lse_part: Tensor) -> None:
    """Into `out` and its log-sum-exp, in place, those of further keys."""
    both = torch.logaddexp(lse, lse_part)
    out.mul_((lse - both).exp_()).addcmul_(out_part.to(out.dtype), (lse_part - both).exp_())
    lse.copy_(both)


def _problems(part: Part, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The part's queries, keys and values, (N, P, Q or K, d); keys that all problems share are not copied."""
    n_problems, _ = part.queries.problems
    q, k, v = part.queries.pack(q), part.keys.pack(k), part.keys.pack(v)
    return q, k.expand(-1, n_problems, -1, -1), v.expand(-1, n_problems, -1, -1)


def _forward_kernel(
    part: Part, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs (N, P, Q, d) and log-sum-exps (N, P, Q). A private operator of PyTorch: it is called here and below."""
    out_and_lse: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_problems(part, q, k, v), 0.0, part.causal, attn_mask=mask, scale=scale
    )
    return out_and_lse


def _backward_kernel(
    part: Part,
    grad: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    merged: tuple[Tensor, Tensor],
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the part's queries, keys and values, given the merged output and log-sum-exp of all parts."""
    out, lse = merged
    pack = part.queries.pack
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        pack(grad),
        *_problems(part, *qkv),
        pack(out),
        pack(lse).squeeze(-1),
        0.0,
        part.causal,
        attn_mask=mask,
        scale=scale,
    )
    return grads


def _plain(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLv: Tensor,
    layout: Layout,
    scale: float,
    seen: _Seen,
    dropout: float,
) -> Tensor:
    """`attend` by matrix products and autograd, the scores of every part at once in memory."""
    valid, may_be_empty = seen
    exact, scores, sums = _statistics(v_BHLv.dtype), [], []
    q, k, v = layout.blocks(q_BHLd).to(exact), layout.blocks(k_BHLd).to(exact), layout.blocks(v_BHLv)
    # Autocast would round the scores again: weights that miss their sum by a part's rounding do not add up to 1.
    with _without_autocast(q.device.type):
        for part in layout.parts:
            q_part, k_part, _ = _problems(part, q, k, v)
            score = q_part @ k_part.transpose(-1, -2) * scale
            mask = part.hidden(valid, score)
            if part.causal:
                score = score.masked_fill(~score.new_ones(score.shape[-2:], dtype=torch.bool).tril(), _hidden(exact))
            score = score if mask is None else score + mask
            scores.append(score)
            sums.append(_everywhere(part.queries, score.logsumexp(-1, keepdim=True), q, HIDDEN))
        lse = torch.stack([torch.full_like(q[..., :1], HIDDEN), *sums]).logsumexp(0)
        out = torch.zeros_like(v, dtype=exact)
        for part, score in zip(layout.parts, scores, strict=True):
            weights = F.dropout((score - part.queries.pack(lse)).exp(), dropout, training=dropout > 0).to(v.dtype)
            out = out + _everywhere(part.queries, weights @ _problems(part, q, k, v)[2], q, 0.0)
    out = out.to(v.dtype)
    if may_be_empty:
        kept = v if valid is None else v * valid
        out = torch.where(lse < _hidden(exact) / 2, F.dropout(kept, dropout, training=dropout > 0), out)
    return layout.row(out, v_BHLv)


def _everywhere(cut: Cut, y_NPQE: Tensor, like_Nnld: Tensor, rest: float) -> Tensor:
    """Results of a part's queries as (N, n, l, E), with `rest` for those of no problem of it."""
    whole = y_NPQE.new_full((*like_Nnld.shape[:3], y_NPQE.shape[-1]), rest)
    cut.region(whole).copy_(cut.unpack(y_NPQE))
    return whole


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """No autocast; the meta device has none to switch off."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def _statistics(dtype: torch.dtype) -> torch.dtype:
    """In what scores and their sums are computed."""
    return torch.promote_types(dtype, torch.float32)


def _hidden(dtype: torch.dtype) -> float:
    return max(HIDDEN, torch.finfo(dtype).min / 2)
