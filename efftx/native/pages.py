"""Weights in huge pages, where they lie: a matrix of megabytes then takes a few entries of the page table.

A token reads every weight once, and by the next token most of what led to them has left the caches: with pages of
4 KiB the processor looks up an address for every row of a wide matrix. PyTorch asks for huge pages on request only, and
gets them for the inner part of tensors of more than 2 MiB.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

HUGE = 2**21
"""Bytes of a huge page on x86-64, and on ARM with pages of 4 KiB."""
SMALLEST = 2**16
"""Bytes of a tensor that is worth the call."""
ADVICE = (14, 25)
"""`MADV_HUGEPAGE`, and `MADV_COLLAPSE` (Linux 6.1) for what has been written already."""


def settle(tensors: Iterable[Tensor]) -> int:
    """Asks the system to move these to huge pages, neighbours in memory with them; how many pages it says it moved.

    Contents and addresses stay. Where the system has no such pages, no such call or no memory left in one piece,
    everything stays as it is: it is advice.
    """
    on_cpu = (tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.nbytes >= SMALLEST)
    return _move((tensor.data_ptr(), tensor.nbytes) for tensor in on_cpu)


def settle_process() -> int:
    """The same of all written memory of this process that is no file's: for a library that hands out no tensors."""
    maps = Path("/proc/self/maps")
    lines = [line.split() for line in maps.read_text().splitlines()] if maps.exists() else []
    own = [words[0] for words in lines if words[1] == "rw-p" and words[4] == "0" and words[5:] in ([], ["[heap]"])]
    ranges = [[int(address, 16) for address in each.split("-")] for each in own]
    return _move((first, end - first) for first, end in ranges if end - first >= HUGE)


def _move(ranges: Iterable[tuple[int, int]]) -> int:
    """How many pages the system says it moved of these (first byte, bytes)."""
    advise = _madvise()
    if advise is None:
        return 0
    pages: set[int] = set()
    for first, n_bytes in ranges:
        pages.update(range(first // HUGE, (first + n_bytes - 1) // HUGE + 1))
    return sum([advise(page * HUGE, HUGE, advice) == 0 for advice in ADVICE][-1] for page in sorted(pages))


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's call; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call: Any = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    advise: Callable[[int, int, int], int] = call
    return advise
