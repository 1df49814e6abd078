"""Angular hashing of queries into buckets, and the order in which a round visits them.

Shape suffixes: B batch, H heads, R hashing rounds, L length, d head width, n half the sum of the bucket factors,
N sequences (batch times heads).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST_UNFACTORED = 128


def auto_buckets(length: int, chunk_len: int) -> list[int]:
    """Factors of the bucket count that gives chunks of twice the mean bucket, `2 * max(1, length // chunk_len)`.

    Counts above 128 come as two even factors near the square root, the first a power of two (Reformer, section 2;
    the factors are those of its published code). Raises ValueError where the length or the chunk is not positive.
    """
    if length < 1 or chunk_len < 1:
        raise ValueError(f"The length and the chunk length must be at least 1, but they are {length} and {chunk_len}.")
    n_buckets = 2 * max(1, length // chunk_len)
    if n_buckets <= _LARGEST_UNFACTORED:
        return [n_buckets]
    first = 2 ** math.ceil(math.log2(math.sqrt(n_buckets)))
    return [first, 2 * max(1, round(n_buckets / (2 * first)))]


def make_rotations(
    heads: tuple[int, int, int],
    n_hashes: int,
    n_buckets: Sequence[int],
    *,
    device: torch.device | str | None,
    dtype: torch.dtype,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fresh Gaussian rotations for every example, head and round; `heads` are (B, H, d).

    Gives (B, H, d, R, n) with n half the sum of the factors in `n_buckets`; raises ValueError for an odd factor.
    """
    _check_factors(n_buckets)
    shape = (*heads, n_hashes, sum(n_buckets) // 2)
    return torch.randn(shape, device=device, dtype=dtype, generator=generator)


def hash_vectors(q_BHLd: Tensor, rotations_BHdRn: Tensor, n_buckets: Sequence[int]) -> Tensor:
    """Buckets of the queries, without the offset of the round: argmax over [xR; -xR] (Reformer, section 2).

    With several factors each hashes with its own slice of the rotation, and bucket = h1 + n1 h2 + n1 n2 h3 ... . Takes
    q (B, H, L, d) and rotations (B, H, d, R, n), gives (B, H, R, L) int64. Raises ValueError for an odd factor or
    rotations of another shape.
    """
    _check_factors(n_buckets)
    batch, n_heads, length, d_head = q_BHLd.shape
    n_hashes, n_columns = rotations_BHdRn.shape[-2:]
    if rotations_BHdRn.shape != (batch, n_heads, d_head, n_hashes, sum(n_buckets) // 2):
        raise ValueError(
            f"The rotations must have the shape (batch {batch}, heads {n_heads}, width {d_head}, rounds, half the sum "
            f"of the bucket factors {sum(n_buckets) // 2}), but they have the shape {tuple(rotations_BHdRn.shape)}."
        )
    with torch.no_grad():
        projected_BHLRn = torch.matmul(q_BHLd, rotations_BHdRn.flatten(3)).unflatten(-1, (n_hashes, n_columns))
        bucket_BHLR = torch.zeros((batch, n_heads, length, n_hashes), dtype=torch.int64, device=q_BHLd.device)
        column, stride = 0, 1
        for factor in n_buckets:
            slice_BHLRn = projected_BHLRn[..., column : column + factor // 2]
            # The largest of [x; -x] is the largest |x|; this halves what the slow search for an index goes through.
            index_BHLR = slice_BHLRn.abs().max(-1).indices
            sign_BHLR = slice_BHLRn.gather(-1, index_BHLR.unsqueeze(-1)).squeeze(-1) < 0
            bucket_BHLR += stride * (index_BHLR + factor // 2 * sign_BHLR)
            column += factor // 2
            stride *= factor
        return bucket_BHLR.transpose(2, 3).contiguous()


def sort_by_bucket(bucket_NRL: Tensor, n_buckets_total: int) -> Tensor:
    """Positions of each round in the order of (bucket, position), (N, R, L) int64."""
    length = bucket_NRL.shape[-1]
    # The keys are distinct, so that no stable sort is needed; int32 sorts faster where it is wide enough.
    narrow = n_buckets_total * length <= torch.iinfo(torch.int32).max
    position_L = torch.arange(length, device=bucket_NRL.device)
    key_NRL = (bucket_NRL * length + position_L).to(torch.int32 if narrow else torch.int64)
    return key_NRL.sort(-1).indices


def _check_factors(n_buckets: Sequence[int]) -> None:
    if not n_buckets or any(factor < 2 or factor % 2 for factor in n_buckets):
        raise ValueError(
            f"The number of buckets, or each of its factors, must be even and at least 2, but it is {list(n_buckets)}."
        )
