"""`efftx bench`."""

from __future__ import annotations

import argparse
import os

from efftx.commands.outcome import Outcome
from efftx.core.memory import allocating
from efftx.errors import UserError

LESS_MEMORY = {
    "attention": "smaller lengths= or fewer names=",
    "decode": "fewer names= or widths=, or a smaller context=, prompts= or batch=",
    "memory": "smaller lengths=, depths= or batch=, or fewer names=",
    "train": "smaller lengths=, depths= or batch=, or fewer names=",
}


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Measures, one table a bench."""
    if not words:
        raise UserError(
            "bad_command",
            "Say what to measure.",
            "`efftx bench attention`, `efftx bench decode`, `efftx bench memory` or `efftx bench train`.",
        )
    if words[0] == "decode":
        # Huge pages: weights beyond the cache are read through few page-table entries, rows of them above all. PyTorch
        # reads this once, at its first allocation, so that it has to be set before torch is imported.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from efftx import bench  # imports torch

    with allocating(f"`efftx bench {words[0]}` found none left", LESS_MEMORY.get(words[0], "")):
        result = bench.run(words[0], words[1:])
    return Outcome(result, lambda console: bench.print_table(result, console))
