"""How many of something, in words."""

from __future__ import annotations


def count(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def bytes_text(count: float) -> str:
    """`count` bytes with a unit: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
