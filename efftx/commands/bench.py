"""`efftx bench`."""

from __future__ import annotations

import argparse
import os

from efftx.commands.outcome import Outcome
from efftx.errors import UserError

EPILOG = """efftx bench attention|decode|memory|train [key=value...]
attention   a whole attention layer:
            lengths=, names=, pass=, repeats=, device=
decode      a token at the papers' widths, part by part: names=, context=,
            batch=, widths=, protocol=authors or steady, tokens=, seed=,
            cache_bytes=; names such as 800m-dense, 17b-ff-qkv,
            width-512-sparse, logits-1024-s4, with -int8 or -blocks2 behind
            them, and transformers-t5
memory      peak activations of a training step:
            names=, depths=, lengths=, batch=, device=
train       steps and tokens a second: the keys of memory, and repeats="""
LESS_MEMORY = "smaller lengths= or fewer names="


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
    from efftx import bench

    result = bench.run(words[0], words[1:])
    return Outcome(result, lambda console: bench.print_table(result, console))
