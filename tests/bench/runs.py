"""What a bench answers, and what a terminal shows of it."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from efftx import bench

SMALL_CACHE = 2**16


def decoded(*words: str) -> dict[str, Any]:
    """`efftx bench decode` of three tokens, as if the last-level cache were small."""
    return bench.run("decode", [f"cache_bytes={SMALL_CACHE}", "tokens=3", *words])


def printed(result: dict[str, Any], width: int = 200) -> str:
    """The tables of a bench's result on a terminal of `width` characters."""
    out = io.StringIO()
    bench.print_table(result, Console(file=out, width=width))
    return out.getvalue()
