"""Freed memory is kept for the next tensors, where glibc allocates and nobody has said otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Sixteen tensors before the count: glibc cuts a few bytes off the front of an aligned block, and its cache of a thread
# holds seven of those pieces back, each of which may part a block from the free memory beside it.
PROGRAM = """
import resource, sys
import torch
from efftx.machine import allocator
from efftx.machine.devices import environment

kept = allocator.keep_freed_memory() if "kept" in sys.argv else False
assert allocator.keep_freed_memory() == kept if "kept" in sys.argv else True
for _ in range(16):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(int(kept), faults, environment().allocator.get("mallopt", ""))
"""


def ran(*words: str, **environment: str) -> tuple[bool, int, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_", "GLIBC_"))}
    given = {**own, **environment}
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], env=given, capture_output=True, text=True, check=True
    )
    kept, faults, said = told.stdout.rstrip("\n").split(" ", 2)
    return kept == "1", int(faults), said


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_large_tensor_takes_the_memory_of_the_one_before_it_and_the_record_says_so() -> None:
    pages = 4 * 2**24 * 4 // os.sysconf("SC_PAGE_SIZE")
    assert ran()[1] > 0.9 * pages
    kept, faults, said = ran("kept")
    assert kept
    assert faults < 0.1 * pages
    assert said == "freed memory is kept"


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "THP_MEM_ALLOC_ENABLE"])
def test_what_the_environment_says_of_the_allocator_stays(name: str) -> None:
    kept, _, said = ran("kept", **{name: "1"})
    assert (kept, said) == (False, "")
