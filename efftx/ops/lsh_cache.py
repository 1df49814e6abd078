"""Hash attention a token at a time: who was lately in the same bucket, and attention to them alone.

Shape suffixes: B batch, H heads, R hashing rounds, L tokens of a prompt, T positions of the key and value cache, N
buckets, C places of a bucket, E candidates (all rounds together), X all places or rows in one line, d query width, v
value width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.ops.attention import SELF_PENALTY
from efftx.ops.lsh_hashing import sort_by_bucket

EMPTY = -1
"""Stands where a bucket's place holds no position yet."""


class BucketTable(NamedTuple):
    """The most recent C positions of every bucket, and how many tokens ever came into it; both int32.

    A bucket is a ring: its n-th token takes place n mod C. Chains of "the position before in the same bucket" would
    need a fourth of the memory (R T integers a head; with two buckets a chunk and C = 2 chunks the rings have 4 R T),
    but C dependent look-ups a token, where a ring is one contiguous read. Beside keys and values of width 64 in
    float32 the rings of 4 rounds are an eighth.
    """

    position_BHRNC: Tensor  # noqa: N815
    count_BHRN: Tensor  # noqa: N815


def empty_table(
    batch: int, n_heads: int, n_hashes: int, n_buckets_total: int, capacity: int, *, device: torch.device | str | None
) -> BucketTable:
    """A table without tokens, for `n_buckets_total` buckets of `capacity` places in each round.

    A causal query of the sorted pass finds at least chunk_len and at most 2 chunk_len - 1 earlier tokens of its bucket
    before it, if there are as many: with a capacity of 2 chunk_len nothing is missed that training could see. Raises
    ValueError where a number is not positive.
    """
    shape = (batch, n_heads, n_hashes, n_buckets_total, capacity)
    if min(shape) < 1:
        raise ValueError(
            f"A table needs at least one row, head, round, bucket and place in a bucket, but it was asked for {shape}."
        )
    return BucketTable(
        torch.full(shape, EMPTY, dtype=torch.int32, device=device),
        torch.zeros(shape[:-1], dtype=torch.int32, device=device),
    )


def fill(table: BucketTable, bucket_BHRL: Tensor, n_B: Tensor | None = None) -> None:
    """Makes the table, in place, what it is after a prompt of L tokens; what it held before is forgotten.

    Takes buckets without the round's offset, int64. `n_B` (int64) says how many tokens of a row are its own, from the
    first on; 0 is a row without any. Raises ValueError for shapes that do not fit the table's.
    """
    batch, n_heads, n_hashes, n_buckets, capacity = table.position_BHRNC.shape
    length = bucket_BHRL.shape[-1]
    if bucket_BHRL.shape != (batch, n_heads, n_hashes, length) or length < 1:
        raise ValueError(
            f"The prompt's buckets must have the shape (batch {batch}, heads {n_heads}, rounds {n_hashes}, at least "
            f"one token), but they have the shape {tuple(bucket_BHRL.shape)}."
        )
    if n_B is not None:
        if n_B.shape != (batch,):
            raise ValueError(
                f"There must be one length for each of the {batch} rows, but the lengths have the shape "
                f"{tuple(n_B.shape)}."
            )
        own_BL = torch.arange(length, device=n_B.device) < n_B[:, None]
        # Padding gets a bucket behind all others, as in the sorted pass.
        bucket_BHRL = torch.where(own_BL[:, None, None], bucket_BHRL, n_buckets)
    place_C = torch.arange(capacity, device=bucket_BHRL.device)
    # A round at a time: the indices below take several times the memory of the table itself.
    for r, bucket_BHL in enumerate(bucket_BHRL.unbind(2)):
        order_BHL = sort_by_bucket(bucket_BHL, n_buckets + 1)
        count_BHN = bucket_BHL.new_zeros(batch, n_heads, n_buckets + 1)
        count_BHN = count_BHN.scatter_add_(-1, bucket_BHL, torch.ones_like(bucket_BHL))[..., :n_buckets]
        first_BHN = count_BHN.cumsum(-1) - count_BHN
        # Each place is read from the sorted prompt: the newest token of the bucket whose number is congruent to it.
        newest_BHN1 = count_BHN[..., None] - 1
        number_BHNC = newest_BHN1 - (newest_BHN1 - place_C) % capacity
        entry_BHNC = (first_BHN[..., None] + number_BHNC).clamp_(min=0)
        position_BHNC = order_BHL.gather(-1, entry_BHNC.flatten(2)).view_as(entry_BHNC)
        table.position_BHRNC[:, :, r] = position_BHNC.masked_fill_(number_BHNC < 0, EMPTY)
        table.count_BHRN[:, :, r] = count_BHN


def insert(table: BucketTable, bucket_BHR: Tensor, position: int | Tensor) -> None:
    """Adds one token a row, in place; a full bucket forgets its oldest.

    Takes the token's buckets (int64) and its position: one integer, or (B,) where rows differ. The positions of a row
    must come in rising order. Raises ValueError for shapes that do not fit the table's.
    """
    _check_buckets(table, bucket_BHR)
    _check_position(bucket_BHR.shape[0], position)
    capacity = table.position_BHRNC.shape[-1]
    bucket_BHR1 = bucket_BHR[..., None]
    place_BHR1 = table.count_BHRN.gather(3, bucket_BHR1) % capacity + capacity * bucket_BHR1
    flat_BHRX = table.position_BHRNC.view(*bucket_BHR.shape, -1)
    if isinstance(position, int):
        flat_BHRX.scatter_(3, place_BHR1, position)
    else:
        source_B111 = position.to(torch.int32)[:, None, None, None]
        flat_BHRX.scatter_(3, place_BHR1, source_B111.expand_as(place_BHR1))
    table.count_BHRN.scatter_add_(3, bucket_BHR1, torch.ones_like(bucket_BHR1, dtype=torch.int32))


def _waits_for_nothing(x: Tensor) -> bool:
    """Whether a number of `x` can be read without waiting for a device."""
    return x.device.type == "cpu"


def candidates(table: BucketTable, bucket_BHR: Tensor) -> Tensor:
    """Positions of the most recent tokens in a token's buckets, (B, H, E) int64, round after round; -1 for none.

    E is R C. On a CPU it is R times what the fullest bucket asked for holds; elsewhere that number would have to be
    waited for. Raises ValueError for buckets that do not fit the table.
    """
    _check_buckets(table, bucket_BHR)
    n_places = table.position_BHRNC.shape[-1]
    if _waits_for_nothing(bucket_BHR):
        # A bucket of the mean size fills a fourth of its places; nothing is fetched for places that all leave empty.
        n_places = min(n_places, max(1, int(table.count_BHRN.gather(3, bucket_BHR[..., None]).max())))
    index_BHR1C = bucket_BHR[..., None, None].expand(-1, -1, -1, 1, n_places)
    return table.position_BHRNC.gather(3, index_BHR1C).flatten(2).long()


def lsh_attention_step(
    q_BHd: Tensor,
    k_BHTd: Tensor,
    v_BHTv: Tensor,
    position_BHE: Tensor,
    own: int | Tensor,
    *,
    allow_duplicates: bool = False,
) -> Tensor:
    """Softmax attention of one token a row over its candidates of all rounds, (B, H, v) (Reformer, appendix A).

    Takes the query (not normalised), the caches of unit keys and of values, `candidates` and the token's own position,
    an integer or (B,), where its key and value stand already. A position that several rounds found counts once, or
    with `allow_duplicates` as often as it was found. A token attends to itself only where it has no candidate; its own
    position among the candidates counts as none. Half precision is computed in single. Raises ValueError for shapes
    that do not fit, and for caches that are not contiguous: to gather from a part of one would copy it at every token.

    The sorted pass of training sees less where a bucket is large: with capacity C >= 2 chunk_len every pair of its
    windows is among the candidates, and where a bucket holds no more than chunk_len earlier tokens there are no others.
    So at most the older part of large buckets is added, and nothing here depends on later tokens, as the borders of
    chunks do. The share of candidates so added, measured with chunks of 64, 4 rounds, width 64, automatic buckets and
    C = 128 (`lsh_oracle.beyond_the_windows`), for 1024 and for 4096 tokens: less than 0.0001 and 0.002 for independent
    Gaussian queries; 0.06 and 0.11 where a Gaussian vector of half their length is added to all of them; 0.14 and 0.19
    where it is as long as they are, for that makes buckets uneven. The outputs then differ from the sorted pass by
    0 and 0.01, 0.09 and 0.14, 0.18 and 0.28 in relative Euclidean norm.

    The authors' decoding (trax, LSHSelfAttention in mode "predict") searches every position that it keeps for the union
    of the rounds, counted once, and where that gives fewer than 2 R chunk_len adds the latest tokens of other buckets;
    those are not added here, so that there is no counterpart of `attend_across_buckets`.
    """
    _check_step(q_BHd, k_BHTd, v_BHTv, position_BHE, own)
    batch, n_heads, n_positions, _ = k_BHTd.shape
    dtype = torch.promote_types(q_BHd.dtype, torch.float32)
    own_B11 = own if isinstance(own, int) else own[:, None, None]
    position_BHE = position_BHE.sort(-1).values
    if _waits_for_nothing(position_BHE):
        # Empty places stand in front now; the row with the most candidates says how many are read.
        n_found = max(1, int((position_BHE >= 0).sum(-1).max()))
        position_BHE = position_BHE[..., -n_found:]
    repeated_BHE = F.pad(position_BHE[..., 1:] == position_BHE[..., :-1], (1, 0))
    if allow_duplicates:
        repeated_BHE &= position_BHE < 0
    # Where there is no candidate the token itself stands in, under a penalty that leaves it no weight beside others.
    position_BHE = torch.where(position_BHE < 0, own_B11, position_BHE)
    bias_BHE = q_BHd.new_zeros(position_BHE.shape, dtype=dtype)
    bias_BHE.masked_fill_(position_BHE == own_B11, -SELF_PENALTY).masked_fill_(repeated_BHE, -torch.inf)
    first_row_BH1 = torch.arange(0, batch * n_heads * n_positions, n_positions, device=k_BHTd.device)
    row_X = (position_BHE + first_row_BH1.view(batch, n_heads, 1)).flatten()
    shape = (*position_BHE.shape, -1)
    k_BHEd = k_BHTd.view(-1, k_BHTd.shape[-1]).index_select(0, row_X).view(shape).to(dtype)
    v_BHEv = v_BHTv.view(-1, v_BHTv.shape[-1]).index_select(0, row_X).view(shape).to(dtype)
    score_BH1E = q_BHd[:, :, None].to(dtype) @ k_BHEd.transpose(-1, -2)
    weight_BH1E = score_BH1E.add_(bias_BHE[:, :, None]).softmax(-1)
    return (weight_BH1E @ v_BHEv).squeeze(2).to(q_BHd.dtype)


def _check_buckets(table: BucketTable, bucket_BHR: Tensor) -> None:
    expected = table.count_BHRN.shape[:3]
    if bucket_BHR.shape != expected:
        raise ValueError(
            f"A token's buckets must have the shape (batch, heads, rounds) {tuple(expected)} of the table, but they "
            f"have the shape {tuple(bucket_BHR.shape)}."
        )


def _check_position(batch: int, position: int | Tensor) -> None:
    if isinstance(position, int):
        if position < 0:
            raise ValueError(f"Positions count from 0, but this token's is {position}.")
    elif position.shape != (batch,):
        raise ValueError(
            f"There must be one position for each of the {batch} rows, but the positions have the shape "
            f"{tuple(position.shape)}."
        )


def _check_step(q_BHd: Tensor, k_BHTd: Tensor, v_BHTv: Tensor, position_BHE: Tensor, own: int | Tensor) -> None:
    if (
        k_BHTd.dim() != 4
        or v_BHTv.shape[:-1] != k_BHTd.shape[:-1]
        or q_BHd.shape != k_BHTd.shape[:2] + k_BHTd.shape[3:]
    ):
        raise ValueError(
            "The query must have the shape (batch, heads, width) and the caches (batch, heads, positions, width), but "
            f"they have the shapes {tuple(q_BHd.shape)}, {tuple(k_BHTd.shape)} and {tuple(v_BHTv.shape)}."
        )
    if position_BHE.shape != (*q_BHd.shape[:2], position_BHE.shape[-1]) or position_BHE.shape[-1] < 1:
        raise ValueError(
            f"The candidates must have the shape (batch {q_BHd.shape[0]}, heads {q_BHd.shape[1]}, at least one), but "
            f"they have the shape {tuple(position_BHE.shape)}."
        )
    if not (k_BHTd.is_contiguous() and v_BHTv.is_contiguous()):
        raise ValueError("The caches of keys and values must be contiguous: give them whole, not cut to the length.")
    _check_position(q_BHd.shape[0], own)
    if isinstance(own, int) and own >= k_BHTd.shape[2]:
        raise ValueError(f"The token's position {own} lies beyond the {k_BHTd.shape[2]} positions of the caches.")
