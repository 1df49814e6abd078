"""Naive twins of hash attention: every pair of tokens is looked at, and nothing is shared with the fast form.

Shape suffixes: B batch, H heads, R hashing rounds, L length, d query width, v value width, E entries (rounds times
length).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lsh_attention_by_rank(
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
    unclamped_count: bool = False,
) -> Tensor:
    """Hash attention from each token's rank, chunk and neighbourhood, a sequence at a time (Reformer, section 2).

    The arguments and the result are those of `lsh_attention`. `unclamped_count` subtracts log(N + 1e-9) with N = 0 for
    pairs that meet only across the border of two rounds, as the authors' first code did.
    """
    batch, n_heads, n_rounds, length = bucket_BHRL.shape
    outputs = []
    for b in range(batch):
        valid_L = torch.ones(length, dtype=torch.bool) if key_mask_BL is None else key_mask_BL[b].bool()
        for h in range(n_heads):
            entries = _entries(bucket_BHRL[b, h], valid_L, n_buckets_total, chunk_len)
            n_chunks = n_rounds * -(-length // chunk_len)
            q_Ld, v_Lv = q_BHLd[b, h], v_BHLv[b, h]
            logit_LL = q_Ld @ _unit_keys(q_Ld).T
            logits, keys, dropouts = [], [], []
            for r in range(n_rounds):
                logit, key, dropout = _round(
                    r, entries, logit_LL, valid_L, n_chunks, chunk_len, causal, attend_across_buckets,
                    allow_duplicates, dropout_mask_mK, unclamped_count,
                )  # fmt: skip
                logits.append(logit)
                keys.append(key)
                dropouts.append(dropout)
            # A softmax over rounds of softmaxes within rounds is one softmax over everything that all rounds list.
            logit_LE, key_LE, dropout_LE = torch.cat(logits, 1), torch.cat(keys, 1), torch.cat(dropouts, 1)
            alone_L1 = torch.isneginf(logit_LE).all(1, keepdim=True)
            probability_LE = torch.softmax(logit_LE.masked_fill(alone_L1, 0.0), 1).masked_fill(alone_L1, 0.0)
            out_Lv = ((probability_LE * dropout_LE)[..., None] * v_Lv[key_LE]).sum(1)
            outputs.append(torch.where(alone_L1, v_Lv, out_Lv))
    return torch.stack(outputs).unflatten(0, (batch, n_heads))


def lsh_attention_by_union(
    q_BHLd: Tensor, v_BHLv: Tensor, bucket_BHRL: Tensor, *, causal: bool = True, key_mask_BL: Tensor | None = None
) -> Tensor:
    """Attention of each token over the union of its buckets in all rounds, whatever their size (Reformer, section 2).

    Takes and gives the shapes of `lsh_attention`; no chunk loses a pair.
    """
    together_BHLL = (bucket_BHRL[..., :, None] == bucket_BHRL[..., None, :]).any(2)
    length = q_BHLd.shape[2]
    allowed_BHLL = together_BHLL & ~torch.eye(length, dtype=torch.bool)
    if causal:
        allowed_BHLL = allowed_BHLL.tril()
    if key_mask_BL is not None:
        allowed_BHLL = allowed_BHLL & key_mask_BL[:, None, None, :]
    alone_BHL1 = ~allowed_BHLL.any(-1, keepdim=True)
    allowed_BHLL = allowed_BHLL | (alone_BHL1 & torch.eye(length, dtype=torch.bool))
    logit_BHLL = q_BHLd @ _unit_keys(q_BHLd).transpose(-1, -2)
    return torch.softmax(logit_BHLL.masked_fill(~allowed_BHLL, -torch.inf), -1) @ v_BHLv


def lost_pairs(bucket_BHRL: Tensor, chunk_len: int) -> int:
    """Causal pairs that share a bucket in some round, and that no round's window of two chunks holds."""
    length = bucket_BHRL.shape[-1]
    _, chunk_BHRL = _rank_and_chunk(bucket_BHRL, chunk_len)
    together = bucket_BHRL[..., :, None] == bucket_BHRL[..., None, :]
    behind = chunk_BHRL[..., :, None] - chunk_BHRL[..., None, :]
    seen = together & (behind >= 0) & (behind <= 1)
    earlier_LL = torch.ones((length, length), dtype=torch.bool).tril(-1)
    return int((together.any(2) & ~seen.any(2) & earlier_LL).sum())


def lsh_attention_by_recency(
    q_BHLd: Tensor, v_BHLv: Tensor, bucket_BHRL: Tensor, *, capacity: int, allow_duplicates: bool = False
) -> Tensor:
    """What decoding gives every token: attention over the last `capacity` earlier tokens of its bucket in each round.

    Takes and gives the shapes of `lsh_attention`; a token without any attends to itself.
    """
    outputs = []
    for q_Ld, v_Lv, bucket_RL in zip(
        q_BHLd.flatten(0, 1), v_BHLv.flatten(0, 1), bucket_BHRL.flatten(0, 1), strict=True
    ):
        k_Ld, rounds = _unit_keys(q_Ld), bucket_RL.tolist()
        for i, q_d in enumerate(q_Ld):
            collided = [j for bucket in rounds for j in [j for j in range(i) if bucket[j] == bucket[i]][-capacity:]]
            keys = collided if allow_duplicates else sorted(set(collided))
            outputs.append(torch.softmax(k_Ld[keys] @ q_d, 0) @ v_Lv[keys] if keys else v_Lv[i])
    return torch.stack(outputs).view_as(v_BHLv)


def beyond_the_windows(bucket_BHRL: Tensor, chunk_len: int, capacity: int) -> tuple[float, int]:
    """How decoding's candidates differ from what the causal windows of two chunks hold of the buckets.

    Gives the share of all tokens' candidates (the union over rounds of the last `capacity` in the bucket) that no
    window holds, and the number of pairs that a window holds and that are no candidates.
    """
    length = bucket_BHRL.shape[-1]
    earlier_LL = torch.ones((length, length), dtype=torch.bool).tril(-1)
    candidate_BHLL = torch.zeros(*bucket_BHRL.shape[:2], length, length, dtype=torch.bool)
    seen_BHLL = torch.zeros_like(candidate_BHLL)
    for bucket_BHL in bucket_BHRL.unbind(2):
        _, chunk_BHL = _rank_and_chunk(bucket_BHL, chunk_len)
        pair_BHLL = (bucket_BHL[..., :, None] == bucket_BHL[..., None, :]) & earlier_LL
        number_BHL = pair_BHLL.sum(-1)
        candidate_BHLL |= pair_BHLL & (number_BHL[..., :, None] - number_BHL[..., None, :] <= capacity)
        seen_BHLL |= pair_BHLL & (chunk_BHL[..., :, None] - chunk_BHL[..., None, :] <= 1)
    n_candidates = int(candidate_BHLL.sum())
    share = int((candidate_BHLL & ~seen_BHLL).sum()) / n_candidates if n_candidates else 0.0
    return share, int((seen_BHLL & ~candidate_BHLL).sum())


def _rank_and_chunk(bucket_RL: Tensor, chunk_len: int) -> tuple[Tensor, Tensor]:
    """Rank inside the round by (bucket, position): the number of tokens that come before, counted one by one."""
    length = bucket_RL.shape[-1]
    position_L = torch.arange(length)
    key_RL = bucket_RL * length + position_L
    rank_RL = (key_RL[..., None, :] < key_RL[..., :, None]).sum(-1)
    return rank_RL, rank_RL // chunk_len


def _unit_keys(q_Ld: Tensor) -> Tensor:
    return q_Ld / torch.sqrt(q_Ld.square().mean(-1, keepdim=True) + 1e-6) / math.sqrt(q_Ld.shape[-1])


def _entries(bucket_RL: Tensor, valid_L: Tensor, n_buckets_total: int, chunk_len: int) -> dict[str, Tensor]:
    """Bucket, place in the chunk and chunk (counted over all rounds) of every token in every round."""
    length = bucket_RL.shape[-1]
    bucket_RL = torch.where(valid_L, bucket_RL, torch.tensor(n_buckets_total))
    rank_RL, chunk_RL = _rank_and_chunk(bucket_RL, chunk_len)
    n_per_round = -(-length // chunk_len)
    first_chunk_R1 = torch.arange(bucket_RL.shape[0])[:, None] * n_per_round
    return {"bucket": bucket_RL, "place": rank_RL % chunk_len, "chunk": chunk_RL + first_chunk_R1}


def _round(
    r: int,
    entries: dict[str, Tensor],
    logit_LL: Tensor,
    valid_L: Tensor,
    n_chunks: int,
    chunk_len: int,
    causal: bool,
    attend_across_buckets: bool,
    allow_duplicates: bool,
    dropout_mask_mK: Tensor | None,
    unclamped_count: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of what the queries of round r see, the entries' positions, their dropout factors, each (L, E)."""
    bucket_RL, place_RL, chunk_RL = entries["bucket"], entries["place"], entries["chunk"]
    n_rounds, length = bucket_RL.shape
    # How many chunks back (around the circle) each key's entry lies from the query's entry.
    back_LRL = (chunk_RL[r][:, None, None] - chunk_RL) % n_chunks
    window_LRL = (back_LRL == 0) | (back_LRL == 1)
    if not causal:
        window_LRL |= back_LRL == n_chunks - 1
    allowed_LRL = window_LRL & valid_L
    position_L = torch.arange(length)
    earlier_LL = position_L < position_L[:, None]
    allowed_LRL = allowed_LRL & (earlier_LL if causal else ~torch.eye(length, dtype=torch.bool))[:, None]
    if not attend_across_buckets:
        same_round_R = torch.arange(n_rounds) == r
        allowed_LRL = allowed_LRL & (bucket_RL[r][:, None, None] == bucket_RL) & same_round_R[:, None]
    logit_LRL = logit_LL[:, None].expand(-1, n_rounds, -1)
    if not allow_duplicates:
        count_LL = _rounds_in_common(entries, n_chunks, causal, attend_across_buckets).to(logit_LL.dtype)
        log_count_LL = torch.log(count_LL + 1e-9) if unclamped_count else torch.log(count_LL.clamp(min=1))
        logit_LRL = logit_LRL - log_count_LL[:, None]
    logit_LRL = logit_LRL.masked_fill(~allowed_LRL, -torch.inf)
    dropout_LRL = torch.ones_like(logit_LRL)
    if dropout_mask_mK is not None:
        # Columns: the chunk before, the own, the one after. Where two places hold one chunk, the earlier stands for it.
        column_LRL = torch.where(back_LRL == 0, 1, torch.where(back_LRL == 1, 0, 2)) * chunk_len + place_RL
        column_LRL = torch.where(window_LRL, column_LRL, 0)
        dropout_LRL = dropout_mask_mK[place_RL[r][:, None, None], column_LRL]
    key_LRL = position_L.expand(length, n_rounds, -1)
    return logit_LRL.flatten(1), key_LRL.flatten(1), dropout_LRL.flatten(1)


def _rounds_in_common(entries: dict[str, Tensor], n_chunks: int, causal: bool, attend_across_buckets: bool) -> Tensor:
    """N_ij: the rounds in which the window of query i holds key j and, unless across, both are in one bucket."""
    chunk_RL, bucket_RL = entries["chunk"], entries["bucket"]
    back_RLL = (chunk_RL[:, :, None] - chunk_RL[:, None, :]) % n_chunks
    near_RLL = (back_RLL == 0) | (back_RLL == 1)
    if not causal:
        near_RLL |= back_RLL == n_chunks - 1
    if not attend_across_buckets:
        near_RLL &= bucket_RL[:, :, None] == bucket_RL[:, None, :]
    return near_RLL.sum(0)
