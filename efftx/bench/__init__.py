"""Speed and memory, each against its own bound and, where they are installed, against peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from efftx.bench.attention import attention_time, bench_attention
from efftx.bench.decode import bench_decode
from efftx.bench.stacks import bench_memory, bench_train
from efftx.bench.table import print_table
from efftx.errors import UserError, nearest
from efftx.options import Options

__all__ = ["BENCHES", "attention_time", "print_table", "run"]

BENCHES: dict[str, Callable[[Options], dict[str, Any]]] = {
    "attention": bench_attention,
    "decode": bench_decode,
    "memory": bench_memory,
    "train": bench_train,
}


def run(name: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """`{"bench", "rows", "machine", ...}` of the bench called `name` under `key=value` options; JSON-able.

    A row has name, peer, length, pass, seconds, peak_bytes, bound_seconds and what its bench adds. Raises UserError for
    an unknown bench, option, name or impossible value, with the nearest known one.
    """
    if name not in BENCHES:
        raise UserError("unknown_bench", f"There is no bench '{name}'.", nearest(name, BENCHES))
    read = Options(options)
    if read.plain:
        message = f"'{read.plain[0][:60]}' is not of the form key=value."
        raise UserError("bad_override", message, "Such as lengths=1024,4096.")
    return BENCHES[name](read)
