"""Weights are moved to huge pages where they lie, or left where they are."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efftx.native import pages
from efftx.native.pages import HUGE, SMALLEST, settle, settle_process


def huge_bytes() -> int:
    """Of this process, in huge pages."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def in_small_pages(n_bytes: int) -> torch.Tensor:
    """Written memory of its own, for which no huge page was used."""
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError:
        pytest.skip("the system has no huge pages")
    return torch.frombuffer(memory, dtype=torch.float32).copy_(torch.arange(n_bytes // 4))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages")
def test_numbers_stay_where_they_are_and_what_they_are() -> None:
    numbers = in_small_pages(4 * HUGE)
    address, before = numbers.data_ptr(), huge_bytes()
    moved = settle([numbers[: SMALLEST // 4], numbers])
    if moved < 3:
        pytest.skip(f"the system moves {moved} of 3 pages: it is too old, or its memory too scattered")
    assert huge_bytes() - before >= 3 * HUGE  # its ends share pages with neighbours that may not be ours
    assert moved in (3, 4, 5)
    assert numbers.data_ptr() == address
    assert torch.equal(numbers, torch.arange(HUGE, dtype=torch.float32))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages")
def test_memory_that_nobody_names_is_moved_too() -> None:
    numbers = in_small_pages(4 * HUGE)
    before = huge_bytes()
    if settle_process() < 3:
        pytest.skip("the system moves no pages")
    assert huge_bytes() - before >= 3 * HUGE
    assert torch.equal(numbers, torch.arange(HUGE, dtype=torch.float32))


def test_small_tensors_and_those_elsewhere_are_no_concern_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *call: calls.append(call) or 0)
    assert settle([torch.zeros(SMALLEST // 4 - 1), torch.zeros(2**20, device="meta")]) == 0
    assert calls == []
    numbers = torch.zeros(HUGE // 4)
    moved = settle([numbers, numbers[SMALLEST:]])  # the same pages once
    assert moved == len(calls) / 2 == len({page for page, _, _ in calls})
    assert all(page % HUGE == 0 and size == HUGE for page, size, _ in calls)
    assert min(page for page, _, _ in calls) <= numbers.data_ptr() < min(page for page, _, _ in calls) + HUGE


@pytest.mark.parametrize("advise", [None, lambda *call: -1], ids=["no call", "refused"])
def test_without_huge_pages_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, advise: Callable[[int, int, int], int] | None
) -> None:
    monkeypatch.setattr(pages, "_madvise", lambda: advise)
    numbers = torch.ones(HUGE // 4)
    assert settle([numbers]) == 0
    assert numbers.sum() == HUGE // 4
