"""The sorted order of the tokens as runs of chunks, and the codes that tell which pairs a query may attend to.

Shape suffixes: N sequences (batch times heads), R hashing rounds, L length in whole chunks, m chunk length, K keys in a
window, C chunks of a sequence over all rounds, E sorted entries of a run, J its chunks (E = J m), S rounds compared. A
run is the sorted rounds of a group of sequences one after the other, each with its wrapped neighbours at its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores of a tile: small enough that scores, rows and gradients of a tile stay in a processor's cache, large enough
# that the overhead of a call does not show. A GPU has no such cache and many units, and is left idle by small tiles.
TILE_SCORES = 2**19
GPU_FACTOR = 64
# Forbidden pairs get minus this, times at least 1/2. A power of two keeps products with codes exact, and codes below
# 2**24 keep it finite in float32; `most_codes` sees to it that they are.
FORBIDDEN = 2.0**100


@dataclass(frozen=True)
class Form:
    """What decides, besides the tensors, which pairs are allowed.

    `packs`: a row's chunks of padding alone are neighbours of no other chunk, so that its real tokens see what they
    would see in a row without padding.
    """

    chunk_len: int
    n_before: int
    n_after: int
    causal: bool
    across_buckets: bool
    count_rounds: bool
    n_buckets: int
    packs: bool

    @property
    def n_window(self) -> int:
        """Chunks in a window."""
        return self.n_before + 1 + self.n_after


@dataclass(frozen=True)
class Run:
    """The sorted entries of a group of sequences: where their rows are, and which pairs are allowed."""

    row_E: Tensor  # noqa: N815 - entry -> row of the group's (N * L) rows
    entry_NLR: Tensor  # noqa: N815 - token -> its entry in each round
    query_code_J1m: Tensor  # noqa: N815
    key_code_Jm: Tensor  # noqa: N815
    key_bias_Jm: Tensor | None  # noqa: N815
    window_bias_mK: Tensor | None  # noqa: N815
    query_rounds_SJm: Tensor | None  # noqa: N815
    key_rounds_SJm: Tensor | None  # noqa: N815
    places: Places | None


@dataclass(frozen=True)
class Places:
    """Where the chunks of each sequence of a run stand, where padding is packed behind the others.

    A copy is a chunk that stands a second time, as a neighbour; it does not act as a query. `copied` are the places of
    the chunks that the first of them, at the ends of the real chunks, are copies of.
    """

    chunk_NJ: Tensor  # noqa: N815 - place -> chunk, counted over the rounds
    place_NC: Tensor  # noqa: N815 - chunk -> place
    copy_NX: Tensor  # noqa: N815
    copied_NX: Tensor  # noqa: N815


def most_codes(dtype: torch.dtype) -> int:
    """How many codes the dtype holds with the half steps between them: buckets of all rounds, or places of a row.

    A half step apart are a masked key's bucket from its queries', and a causal query's place from its own key.
    """
    return round(1 / torch.finfo(dtype).eps)


def places_of(valid_NL: Tensor, n_rounds: int, form: Form) -> Places:
    """The order of a group's chunks: of each sequence those with real tokens, their ends wrapped, then the others.

    The wrapped neighbours are what a row without padding has: the last chunk before the first and, where a window
    looks ahead, the first one behind the last, unless the window holds that chunk already.
    """
    n_sequences, length = valid_NL.shape
    device, m = valid_NL.device, form.chunk_len
    n_each = length // m
    n_chunks = n_rounds * n_each
    real_each_N1 = (valid_NL.sum(1, keepdim=True) + m - 1).div(m, rounding_mode="floor").clamp(min=1)
    n_real_N1 = n_rounds * real_each_N1
    chunk_C = torch.arange(n_chunks, device=device)
    is_padding_NC = chunk_C % n_each >= real_each_N1
    order_NC = (chunk_C + n_chunks * is_padding_NC).argsort(-1)
    # One more place at the end: the copy behind the real chunks pushes the padding one further.
    place_C = chunk_C + form.n_before + form.n_after * (chunk_C >= n_real_N1)
    padding = n_chunks - 1  # the last chunk, of padding wherever a sequence has any such
    chunk_NJ = chunk_C.new_full((n_sequences, n_chunks + form.n_before + 2 * form.n_after), padding)
    chunk_NJ.scatter_(1, place_C.expand_as(order_NC), order_NC)
    copies, copied = [], []
    if form.n_before:
        last_N1 = order_NC.gather(1, n_real_N1 - 1)
        copies.append(torch.zeros_like(n_real_N1))
        copied.append(torch.where(n_real_N1 > 1 + form.n_after, last_N1, padding))
    if form.n_after:
        copies.append(n_real_N1 + form.n_before)
        copied.append(torch.where(n_real_N1 > 1 + form.n_after, 0, padding))
    place_NC = torch.empty_like(order_NC).scatter_(1, order_NC, place_C.expand_as(order_NC))
    copy_NX, copied_NX = torch.cat(copies, 1), torch.cat(copied, 1)
    chunk_NJ.scatter_(1, copy_NX, copied_NX)
    return Places(chunk_NJ, place_NC, copy_NX, place_NC.gather(1, copied_NX))


def groups(order_NRL: Tensor, form: Form) -> Iterator[slice]:
    """Sequences that share a run: as many short ones as fill a tile, or one long one."""
    n_sequences, n_rounds, length = order_NRL.shape
    n_chunks = n_rounds * length // form.chunk_len + form.n_window - 1
    n_group = max(1, tile_scores(order_NRL.device.type) // (n_chunks * form.n_window * form.chunk_len**2))
    for first in range(0, n_sequences, n_group):
        yield slice(first, min(first + n_group, n_sequences))


def pad_to_chunks(bucket_NRL: Tensor, valid_NL: Tensor | None, form: Form) -> tuple[Tensor, Tensor | None]:
    """Buckets and validity up to whole chunks: masked tokens in one extra bucket, padding in another."""
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


def prepare_run(order_NRL: Tensor, bucket_NRL: Tensor, valid_NL: Tensor | None, form: Form, dtype: torch.dtype) -> Run:
    """The run of a group of sequences from the sorted order and the buckets (N, R, L) of each round."""
    n_sequences, n_rounds, length = order_NRL.shape
    device, m = order_NRL.device, form.chunk_len
    n_chunks = n_rounds * length // m
    places = places_of(valid_NL, n_rounds, form) if form.packs and form.n_before and valid_NL is not None else None

    def chunks_of_run(entry_NRL: Tensor) -> Tensor:
        entry_NCm = entry_NRL.reshape(n_sequences, n_chunks, m)
        if places is not None:
            return entry_NCm.gather(1, places.chunk_NJ[:, :, None].expand(-1, -1, m)).flatten(0, 1)
        ends = (entry_NCm[:, n_chunks - form.n_before :], entry_NCm, entry_NCm[:, : form.n_after])
        return torch.cat(ends, 1).flatten(0, 1)

    sequence_N11 = torch.arange(n_sequences, device=device)[:, None, None]
    row_Jm = chunks_of_run(order_NRL + sequence_N11 * length)

    place_L = torch.arange(length, device=device)
    rank_NRL = torch.empty_like(order_NRL).scatter_(-1, order_NRL, place_L.expand_as(order_NRL))
    round_R1 = torch.arange(n_rounds, device=device)[:, None]
    if places is None:
        first_N11 = (sequence_N11 * (n_chunks + form.n_window - 1) + form.n_before) * m
        entry_NRL = rank_NRL + first_N11 + round_R1 * length
    else:
        chunk_NX = ((rank_NRL + round_R1 * length) // m).flatten(1)
        place_NRL = places.place_NC.gather(1, chunk_NX).view_as(rank_NRL)
        entry_NRL = (sequence_N11 * places.chunk_NJ.shape[1] + place_NRL) * m + rank_NRL % m
    entry_NLR = entry_NRL.transpose(1, 2).contiguous()

    invalid_NRL = None if valid_NL is None else (~valid_NL)[:, None].expand_as(order_NRL).gather(-1, order_NRL)
    key_bias_Jm = window_bias_mK = None
    if form.across_buckets:
        query_code_NRL = key_code_NRL = order_NRL.to(dtype)
        if form.causal:
            query_code_NRL = query_code_NRL - 0.5
            if invalid_NRL is not None:
                key_code_NRL = key_code_NRL + invalid_NRL * length
        elif invalid_NRL is not None:
            key_bias_Jm = chunks_of_run(invalid_NRL * torch.tensor(-FORBIDDEN, dtype=dtype, device=device))
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
    key_code_Jm = chunks_of_run(key_code_NRL * FORBIDDEN)
    if form.causal and not form.across_buckets:
        # Behind the wrap-around lie other rounds, or, in a single round, later tokens of a bucket that fills it.
        key_code_Jm.unflatten(0, (n_sequences, -1))[:, : form.n_before] = -FORBIDDEN
    return Run(
        row_E=row_Jm.flatten(),
        entry_NLR=entry_NLR,
        query_code_J1m=chunks_of_run(query_code_NRL * FORBIDDEN).unsqueeze(1),
        key_code_Jm=key_code_Jm,
        key_bias_Jm=key_bias_Jm,
        window_bias_mK=window_bias_mK,
        query_rounds_SJm=query_rounds_SJm,
        key_rounds_SJm=key_rounds_SJm,
        places=places,
    )


def _rounds_of_entries(
    code_NRL: Tensor, order_NRL: Tensor, chunks_of_run: Callable[[Tensor], Tensor], form: Form
) -> Tensor:
    """Codes of every entry in all rounds (across buckets), or in the other rounds, counted from its own."""
    n_rounds = order_NRL.shape[1]
    if form.across_buckets:
        sources = [code_NRL[:, s : s + 1].expand_as(order_NRL) for s in range(n_rounds)]
    else:
        sources = [code_NRL.roll(-shift, 1) for shift in range(1, n_rounds)]
    return torch.stack([chunks_of_run(source_NRL.gather(-1, order_NRL)) for source_NRL in sources])


def _window_bias(form: Form, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the place in the window forbids to entries of one bucket: the later ones (causal), or the query's own."""
    m = form.chunk_len
    query_m1 = torch.arange(m, device=device)[:, None] + form.n_before * m
    key_K = torch.arange(form.n_window * m, device=device)
    forbidden_mK = key_K >= query_m1 if form.causal else key_K == query_m1
    return forbidden_mK.to(dtype) * -FORBIDDEN


def tile_scores(device_type: str) -> int:
    """Scores of a tile on a device of this type (`torch.device.type`)."""
    return TILE_SCORES if device_type in ("cpu", "meta") else GPU_FACTOR * TILE_SCORES


def tiles(n_chunks: int, form: Form, device: torch.device) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) window of each tile of a run."""
    n_windows = n_chunks - form.n_window + 1
    per_tile = max(1, tile_scores(device.type) // (form.chunk_len**2 * form.n_window))
    for first in range(0, n_windows, per_tile):
        yield first, min(first + per_tile, n_windows)
