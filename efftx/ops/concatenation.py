"""Joining each row of a decoder to the end of its encoder's real tokens, and cutting it out again (Terraformer).

Legend: B batch, E encoder's length, L decoder's length, D width; n_B real encoder tokens of each row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def join_after(encoded_BED: Tensor, decoded_BLD: Tensor, n_B: Tensor) -> Tensor:
    """Rows of length E + L: n real encoder rows, all decoder rows, then what is left of the encoder's padded ones.

    The authors write the decoder's rows over the encoder's followed by L zero rows, from place n on; so what follows
    the decoder's rows is the encoder's own padding past n + L, then zeros. A causal decoder never sees it.
    Raises ValueError where batch or width differ.
    """
    batch, n_encoded, width = encoded_BED.shape
    if decoded_BLD.shape[0] != batch or decoded_BLD.shape[2] != width or n_B.shape != (batch,):
        raise ValueError(
            f"Encoder rows {tuple(encoded_BED.shape)}, decoder rows {tuple(decoded_BLD.shape)} and their "
            f"{tuple(n_B.shape)} lengths do not belong to the same batch."
        )
    n_decoded = decoded_BLD.shape[1]
    rows = torch.cat([encoded_BED, torch.zeros_like(decoded_BLD), decoded_BLD], dim=1)
    place = torch.arange(n_encoded + n_decoded, device=n_B.device)
    after = place[None, :] - n_B[:, None]
    is_decoded = (after >= 0) & (after < n_decoded)
    source_BJ = torch.where(is_decoded, n_encoded + n_decoded + after, place[None, :])
    return _take(rows, source_BJ)


def cut_after(joined_BJD: Tensor, n_B: Tensor, n_decoded: int) -> Tensor:
    """The L = `n_decoded` rows from place n on, (B, L, D): what `join_after` put there."""
    return _take(joined_BJD, n_B[:, None] + torch.arange(n_decoded, device=n_B.device)[None, :])


def _take(rows_BKD: Tensor, source_BJ: Tensor) -> Tensor:
    """Row source[b, j] of each batch entry b; one flat index_select is faster than a gather of expanded indices."""
    batch, n_rows, _ = rows_BKD.shape
    flat = source_BJ + n_rows * torch.arange(batch, device=source_BJ.device)[:, None]
    return rows_BKD.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, source_BJ.shape)


def join_after_naive(encoded_BED: Tensor, decoded_BLD: Tensor, n_B: Tensor) -> Tensor:
    """The same row by row: the oracle."""
    rows = []
    for encoded, decoded, n in zip(encoded_BED, decoded_BLD, n_B.tolist(), strict=True):
        tail = torch.cat([encoded, torch.zeros_like(decoded)])[n + len(decoded) :]
        rows.append(torch.cat([encoded[:n], decoded, tail]))
    return torch.stack(rows)
