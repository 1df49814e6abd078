"""What a sequence keeps from token to token: where it stands, keys and values, the last inputs of a convolution.

Shape suffixes: B batch, L tokens of a prompt, T capacity, H heads, d width of queries and keys, v of values, P past
positions, E any width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.ops.attention import attention_step
from efftx.ops.slots import Slots


class Position:
    """How many tokens each row of a batch has behind it; the caches of a model's layers share one.

    `n_B` (int64) where rows differ, for their prompts did; `n` is the most of them, or the one number of all. Where `n`
    is 0 the layers are given a prompt, of which row b has `own_B[b]` tokens, or all have all; else one token a row.
    """

    def __init__(self, n: int = 0, n_B: Tensor | None = None, own_B: Tensor | None = None) -> None:
        self.n, self.n_B, self.own_B = n, n_B, own_B

    def end_prompt(self, n_B: Tensor) -> None:
        """The prompt has been read; row b has `n_B[b]` tokens."""
        self.n, self.own_B = int(n_B.max()), None
        self.n_B = n_B.clone() if bool((n_B != n_B[0]).any()) else None

    def advance(self) -> None:
        """One token further, in every row."""
        self.n += 1
        if self.n_B is not None:
            self.n_B += 1

    def reorder(self, rows_B: Tensor) -> None:
        """Row i stands where row `rows_B[i]` stood."""
        if self.n_B is not None:
            self.n_B = self.n_B[rows_B]
            self.n = int(self.n_B.max())  # the longest row may be gone


class Cache:
    """Tensors with the batch first; `reorder` moves whole rows."""

    def tensors(self) -> Sequence[Tensor]:
        """All that is kept, (B, ..) each."""
        return [t for t in vars(self).values() if isinstance(t, Tensor)]

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        for kept in self.tensors():
            kept.copy_(kept.index_select(0, rows_B))


def from_the_start(position: Any) -> Any:
    """A token sees all before it: 0 for every position, an int or a tensor of them."""
    return position * 0


class KeyValueCache(Cache):
    """Keys and values of all positions so far, preallocated for T of them.

    `first` maps a position, an int or a tensor of them, to the first that it sees; the cache keeps all.
    """

    def __init__(
        self,
        batch: int,
        n_heads: int,
        capacity: int,
        d: int,
        v: int,
        like: Tensor,
        *,
        first: Callable[[Any], Any] = from_the_start,
    ) -> None:
        self.first = first
        self.k_BHTd = like.new_zeros(batch, n_heads, capacity, d)
        self.v_BHTv = like.new_zeros(batch, n_heads, capacity, v)

    def fill_at_random(self, n: int) -> None:
        """Random keys and values of `n` tokens, for a timing."""
        for kept in self.tensors():
            kept[:, :, :n].normal_()

    def fill(self, k_BHLd: Tensor, v_BHLv: Tensor, n_B: Tensor | None = None) -> None:
        """The prompt's keys and values; what lies beyond a row's own length is never seen, and written over."""
        length = k_BHLd.shape[2]
        self.k_BHTd[:, :, :length] = k_BHLd
        self.v_BHTv[:, :, :length] = v_BHLv

    def write(self, position: Position, k_BHd: Tensor, v_BHv: Tensor) -> None:
        """One token's key and value, where each row stands."""
        if position.n_B is None:
            self.k_BHTd.select(2, position.n).copy_(k_BHd)
            self.v_BHTv.select(2, position.n).copy_(v_BHv)
        else:
            row_B = torch.arange(k_BHd.shape[0], device=k_BHd.device)
            self.k_BHTd[row_B, :, position.n_B] = k_BHd
            self.v_BHTv[row_B, :, position.n_B] = v_BHv

    def attend(self, q_BHd: Tensor, position: Position, *, scale: float, exclude_self: bool) -> Tensor:
        """Softmax attention of the token at `position`, already written, over the keys from `first` on: (B, H, 1, v).

        `exclude_self`: itself only for want of others.
        """
        if position.n_B is None:
            start = self.first(position.n)
            n_seen = position.n + 1 - start
            if exclude_self and n_seen > 1:
                n_seen -= 1
            k_BHTd, v_BHTv = self.k_BHTd.narrow(2, start, n_seen), self.v_BHTv.narrow(2, start, n_seen)
            return attention_step(q_BHd.unsqueeze(2), k_BHTd, v_BHTv, scale=scale)
        end = position.n + 1
        position_1T = torch.arange(end, device=q_BHd.device)[None, :]
        n_B1 = position.n_B[:, None]
        seen_BT = (position_1T >= self.first(n_B1)) & (position_1T <= n_B1)
        if exclude_self:
            others_BT = seen_BT & (position_1T != n_B1)
            seen_BT = torch.where(others_BT.any(1, keepdim=True), others_BT, seen_BT)
        return attention_step(
            q_BHd.unsqueeze(2), self.k_BHTd[:, :, :end], self.v_BHTv[:, :, :end], scale=scale, seen_BT=seen_BT
        )


class SlotCache(Cache):
    """Keys and values of what the sets of some heads may still see, and no others; head h has set h mod their number.

    `areas`: for each set the ways to keep keys (`ops.slots`) that its tokens look into, one behind the other.
    """

    def __init__(self, areas: Sequence[Sequence[Slots]], batch: int, n_heads: int, d: int, like: Tensor) -> None:
        self._areas = areas
        self._heads = [slice(i, None, len(areas)) for i in range(len(areas))]
        self._kept = []
        for heads, slots in zip(self._heads, areas, strict=True):
            n = len(range(n_heads)[heads])
            self._kept.append([like.new_zeros(2, batch, n, area.size, d) for area in slots])
        self._new: tuple[Tensor, Tensor] | None = None

    def tensors(self) -> Sequence[Tensor]:
        """Keys and values of each area, (B, heads, S, d)."""
        return [part for areas in self._kept for kept in areas for part in kept]

    def fill_at_random(self, n: int) -> None:
        """Random keys and values, for a timing."""
        for kept in self.tensors():
            kept.normal_()

    def fill(self, k_BHLd: Tensor, v_BHLd: Tensor, n_B: Tensor | None = None) -> None:
        """What is kept of a prompt's keys and values; row b has n_B[b] tokens, or all have L."""
        lengths = [k_BHLd.shape[2]] if n_B is None else n_B.tolist()
        for b, n in enumerate(lengths):
            rows = slice(None) if n_B is None else slice(b, b + 1)
            for heads, slots, areas in zip(self._heads, self._areas, self._kept, strict=True):
                for area, kept in zip(slots, areas, strict=True):
                    place = {slot: position for position in range(n) for slot in area.put(position)}
                    if not place:
                        continue
                    slot, position = (torch.tensor([*x], device=k_BHLd.device) for x in (place, place.values()))
                    for into, rows_BHLd in zip(kept, (k_BHLd, v_BHLd), strict=True):
                        into[rows, :, slot] = rows_BHLd[rows, heads].index_select(2, position)

    def write(self, position: Position, k_BHd: Tensor, v_BHd: Tensor) -> None:
        """One token's key and value, where each row stands."""
        self._new = k_BHd, v_BHd
        for rows, n in _rows(position):
            for heads, slots, areas in zip(self._heads, self._areas, self._kept, strict=True):
                for area, kept in zip(slots, areas, strict=True):
                    for slot in area.put(n):
                        for into, rows_BHLd in zip(kept, self._new, strict=True):
                            into[rows, :, slot] = rows_BHLd[rows, heads]

    def attend(self, q_BHd: Tensor, position: Position, *, scale: float, exclude_self: bool) -> Tensor:
        """Softmax attention of the token at `position`, already written, over what it sees: (B, H, 1, d).

        Itself only for want of others where `exclude_self`, and wherever its set holds no key.
        """
        assert self._new is not None
        out_BHd = torch.empty_like(q_BHd)
        for rows, n in _rows(position):
            for heads, slots, areas in zip(self._heads, self._areas, self._kept, strict=True):
                k, v, seen = _keys(slots, [kept[:, rows] for kept in areas], n, exclude_self)
                if k.shape[2] == 0 or (seen is not None and not seen.any()):
                    out_BHd[rows, heads] = self._new[1][rows, heads]
                    continue
                seen_1T = None if seen is None else seen[None]
                out = attention_step(q_BHd[rows, heads, None], k, v, scale=scale, seen_BT=seen_1T)
                out_BHd[rows, heads] = out[:, :, 0]
        return out_BHd.unsqueeze(2)


def _rows(position: Position) -> list[tuple[slice, int]]:
    """The rows that stand at one position, with it: all, or each for itself where they differ."""
    if position.n_B is None:
        return [(slice(None), position.n)]
    return [(slice(b, b + 1), n) for b, n in enumerate(position.n_B.tolist())]


def _keys(
    slots: Sequence[Slots], areas: Sequence[Tensor], n: int, exclude_self: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (B, H, T, d) that position `n` sees, views where they lie side by side, and which count, (T)."""
    spans, hidden, before = [], None, 0
    for area, kept in zip(slots, areas, strict=True):
        first, end = area.seen(n)
        own = area.own(n) if exclude_self else None
        if own is not None and own == end - 1:
            end -= 1
        elif own is not None:
            hidden = before + own - first
        before += end - first
        spans.append(kept[:, :, :, first:end])
    k, v = spans[0] if len(spans) == 1 else torch.cat(spans, 3)
    return k, v, None if hidden is None else torch.arange(before, device=k.device) != hidden


class RecentInputs(Cache):
    """The inputs of the last F positions, the newest last, zeros before the first; each is a row of S modules of m.

    `padding` empty modules stand on both sides of a row, for a kernel that reads over the edge. Rows are written one
    behind the other into a buffer of more than F, and moved to its front when it is full, so that the last F are a
    view of it.
    """

    SPARE = 32

    def __init__(
        self, batch: int, F: int, S: int, d_module: int, padding: int, like: Tensor, position: Position
    ) -> None:
        self.position, self.past, self.padding, self.S = position, F - 1, padding, S
        self.buffer_BRSm = like.new_zeros(batch, F + self.SPARE, S + 2 * padding, d_module)
        self.row_size = (S + 2 * padding) * d_module
        self.batch_step = self.buffer_BRSm.stride(0)
        self.end = self.past
        self._addresses = [self._rows()[:, i].data_ptr() for i in range(F + self.SPARE)]

    def keep(self, x_BLE: Tensor) -> None:
        """The inputs of a prompt, or of one position further."""
        if not self.position.n:
            self._fill(x_BLE)
            return
        self._move_on()
        self._rows()[:, self.end - 1] = x_BLE.squeeze(1).unflatten(-1, (self.S, -1))

    def neighbourhoods(self, n_modules: int) -> Tensor:
        """What a kernel of F positions and `n_modules` modules reads around each module, (B S, F n_modules m)."""
        batch, n_rows, _, d_module = self.buffer_BRSm.shape
        first = (self.end - self.past - 1) * self.row_size + (self.padding - n_modules // 2) * d_module
        shape = (batch, self.S, self.past + 1, n_modules * d_module)
        strides = (n_rows * self.row_size, d_module, self.row_size, 1)
        return self.buffer_BRSm.as_strided(shape, strides, first).reshape(batch * self.S, -1)

    def next_address(self) -> int:
        """One position further: the address to which the first row's inputs are to be written, S m numbers.

        Those of the next row belong `batch_step` numbers behind it.
        """
        self._move_on()
        return self._addresses[self.end - 1]

    def _fill(self, x_BLE: Tensor) -> None:
        if not self.past:
            return
        padded, own_B = F.pad(x_BLE, (0, 0, self.past, 0)), self.position.own_B  # place t of a row is now t + past
        if own_B is None:
            last_BPE = padded[:, -self.past :]
        else:
            place_BP = own_B[:, None] + torch.arange(self.past, device=own_B.device)
            last_BPE = padded.gather(1, place_BP[:, :, None].expand(-1, -1, x_BLE.shape[-1]))
        self.end = self.past
        self._rows()[:, : self.past] = last_BPE.unflatten(-1, (self.S, -1))

    def _move_on(self) -> None:
        if self.end == self.buffer_BRSm.shape[1]:
            self.buffer_BRSm[:, : self.past] = self.buffer_BRSm[:, self.end - self.past : self.end].clone()
            self.end = self.past
        self.end += 1

    def _rows(self) -> Tensor:
        return self.buffer_BRSm[:, :, self.padding : self.padding + self.S]
