"""What a sequence keeps from token to token: where it stands, keys and values, the last inputs of a convolution.

Shape suffixes: B batch, L tokens of a prompt, T capacity, H heads, d width of queries and keys, v of values, P past
positions, E any width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.ops.attention import attention_step


def no_lap(component: str, moment: float | None = None) -> None:
    """What `Place.lap` is where nobody times."""


class Lap(Protocol):
    """Is told that a part of a token's work has ended, now or at `moment`."""

    def __call__(self, component: str, moment: float | None = None, /) -> None:
        """`component` is the part's name."""
        ...


class Place:
    """How many tokens each row of a batch has behind it.

    `n_B` (int64) where rows differ, for their prompts did; `n` is the most of them, or the one number of all.
    `token_B` are the tokens of this step, for layers that choose by them.
    `lap(component, moment)` is called after each part of a token's work, for whoever times it; `moment` is when it
    ended by `time.perf_counter`, None for now.
    """

    def __init__(self, n: int, n_B: Tensor | None = None, lap: Lap = no_lap) -> None:
        self.n = n
        self.n_B = n_B
        self.token_B: Tensor | None = None
        self.lap = lap

    def advance(self) -> None:
        """One token further, in every row."""
        self.n += 1
        if self.n_B is not None:
            self.n_B += 1

    def reorder(self, rows_B: Tensor) -> None:
        """Row i stands where row `rows_B[i]` stood."""
        if self.n_B is not None:
            self.n_B = self.n_B[rows_B]


class Cache:
    """Tensors with the batch first; `reorder` moves whole rows.

    `for_program`: the kernels' programs read it as it is.
    """

    for_program = True

    def tensors(self) -> Sequence[Tensor]:
        """All that is kept, (B, ..) each."""
        return [t for t in vars(self).values() if isinstance(t, Tensor)]

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        for kept in self.tensors():
            kept.copy_(kept.index_select(0, rows_B))


class KeyValueCache(Cache):
    """Keys and values of all positions so far, preallocated for T of them.

    A pattern of attention decides which of them a token sees (`attend`'s `first`); the cache keeps all.
    """

    def __init__(self, batch: int, n_heads: int, capacity: int, d: int, v: int, like: Tensor) -> None:
        self.k_BHTd = like.new_zeros(batch, n_heads, capacity, d)
        self.v_BHTv = like.new_zeros(batch, n_heads, capacity, v)

    def fill(self, k_BHLd: Tensor, v_BHLv: Tensor) -> None:
        """The prompt's keys and values; what lies beyond a row's own length is never seen, and written over."""
        length = k_BHLd.shape[2]
        self.k_BHTd[:, :, :length] = k_BHLd
        self.v_BHTv[:, :, :length] = v_BHLv

    def write(self, place: Place, k_BHd: Tensor, v_BHv: Tensor) -> None:
        """One token's key and value, where each row stands."""
        if place.n_B is None:
            self.k_BHTd.select(2, place.n).copy_(k_BHd)
            self.v_BHTv.select(2, place.n).copy_(v_BHv)
        else:
            row_B = torch.arange(k_BHd.shape[0], device=k_BHd.device)
            self.k_BHTd[row_B, :, place.n_B] = k_BHd
            self.v_BHTv[row_B, :, place.n_B] = v_BHv

    def attend(
        self, q_BHd: Tensor, place: Place, *, scale: float, exclude_self: bool, first: Callable[[Any], Any]
    ) -> Tensor:
        """Softmax attention of the token at `place`, already written, over the keys from `first(n)` on: (B, H, 1, v).

        `exclude_self`: itself only for want of others. `first` maps a position, an int or a tensor of them.
        """
        if place.n_B is None:
            start = first(place.n)
            n_seen = place.n + 1 - start
            if exclude_self and n_seen > 1:
                n_seen -= 1
            k_BHTd, v_BHTv = self.k_BHTd.narrow(2, start, n_seen), self.v_BHTv.narrow(2, start, n_seen)
            return attention_step(q_BHd.unsqueeze(2), k_BHTd, v_BHTv, scale=scale)
        end = place.n + 1
        position_1T = torch.arange(end, device=q_BHd.device)[None, :]
        n_B1 = place.n_B[:, None]
        seen_BT = (position_1T >= first(n_B1)) & (position_1T <= n_B1)
        if exclude_self:
            others_BT = seen_BT & (position_1T != n_B1)
            seen_BT = torch.where(others_BT.any(1, keepdim=True), others_BT, seen_BT)
        return attention_step(
            q_BHd.unsqueeze(2), self.k_BHTd[:, :, :end], self.v_BHTv[:, :, :end], scale=scale, seen_BT=seen_BT
        )


class RecentInputs(Cache):
    """The inputs of the last F positions, the newest last, zeros before the first; each is a row of S modules of m.

    `padding` empty modules stand on both sides of a row, for a kernel that reads over the edge. Rows are written one
    behind the other into a buffer of more than F, and moved to its front when it is full, so that what a kernel reads
    is a view of it; the views of every place are made once, for making one takes as long as a small product.
    """

    SPARE = 32

    def __init__(self, batch: int, n_positions: int, S: int, d_module: int, padding: int, like: Tensor) -> None:
        self.n_positions, self.padding, self.S = n_positions, padding, S
        self.buffer_BRSm = like.new_zeros(batch, n_positions + self.SPARE, S + 2 * padding, d_module)
        self.position = (S + 2 * padding) * d_module  # numbers from one position of a row to the next
        self.end = n_positions - 1
        self._row_BSm = [self._rows()[:, i] for i in range(n_positions + self.SPARE)]
        self._addresses = [row_BSm.data_ptr() for row_BSm in self._row_BSm]
        self._windows: dict[int, list[Tensor]] = {}
        self._n_sites = batch * S

    def fill(self, x_BLE: Tensor, n_B: Tensor | None) -> None:
        """The last inputs of a prompt of which row b has `n_B[b]` tokens, or all have L."""
        past = self.n_positions - 1
        if not past:
            return
        padded = F.pad(x_BLE, (0, 0, past, 0))  # place t of a row is now t + past
        if n_B is None:
            last_BPE = padded[:, -past:]
        else:
            place_BP = n_B[:, None] + torch.arange(past, device=n_B.device)
            last_BPE = padded.gather(1, place_BP[:, :, None].expand(-1, -1, x_BLE.shape[-1]))
        self.end = past
        self._rows()[:, :past] = last_BPE.unflatten(-1, (self.S, -1))

    def push(self, x_BE: Tensor) -> None:
        """One position further."""
        self.next_row().copy_(x_BE.view(-1, self.S, x_BE.shape[1] // self.S))

    def next_row(self) -> Tensor:
        """One position further: where its inputs are to be written, (B, S, m), the modules of a row contiguous."""
        self._move_on()
        return self._row_BSm[self.end - 1]

    def next_address(self) -> int:
        """One position further: the address of `next_row`."""
        self._move_on()
        return self._addresses[self.end - 1]

    def _move_on(self) -> None:
        if self.end == self.buffer_BRSm.shape[1]:
            past = self.n_positions - 1
            self.buffer_BRSm[:, :past] = self.buffer_BRSm[:, self.end - past : self.end].clone()
            self.end = past
        self.end += 1

    def neighbourhoods(self, n_modules: int) -> Tensor:
        """What a kernel of F positions and `n_modules` modules reads around each module, (B S, F n_modules m)."""
        windows = self._windows.get(n_modules)
        if windows is None:
            windows = self._windows[n_modules] = self._windows_of(n_modules)
        return windows[self.end - self.n_positions].reshape(self._n_sites, -1)

    def _windows_of(self, n_modules: int) -> list[Tensor]:
        """What a kernel reads, (B, S, F, n_modules m), with each row of the buffer as the first of F positions."""
        batch, n_rows, n_padded, d_module = self.buffer_BRSm.shape
        row, skip = n_padded * d_module, self.padding - n_modules // 2
        shape = (batch, self.S, self.n_positions, n_modules * d_module)
        strides = (n_rows * row, d_module, row, 1)
        return [
            self.buffer_BRSm.as_strided(shape, strides, first * row + skip * d_module)
            for first in range(n_rows - self.n_positions + 1)
        ]

    def _rows(self) -> Tensor:
        return self.buffer_BRSm[:, :, self.padding : self.padding + self.S]
