"""The result of `efftx bench decode` for people: a line a model, then a line a part of it, then how it was taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from efftx.bench.decode_timing import AUTHORS_IGNORED, ORDER, STEADY_TOKENS, WARM_UP
from efftx.core.counts import bytes_text, count
from efftx.core.durations import SPREAD
from efftx.core.grid import Column, Grid

Row = Mapping[str, Any]


def milliseconds(seconds: float | None) -> str:
    """At least three figures of a time; empty where there is none."""
    if seconds is None:
        return ""
    value = 1000 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _millions(weights: int) -> str:
    return "" if not weights else f"{weights / 1e6:.3f}" if weights < 1e7 else f"{weights / 1e6:.1f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def decode_columns(protocol: str, prompts: Sequence[str] = ()) -> dict[str, Callable[[Row], str]]:
    """What a line of the first table shows of a row, by heading; `prompts` are lengths whose first token was timed."""

    def first(prompt: str) -> Callable[[Row], str]:
        return lambda row: milliseconds(row["first_token_seconds"].get(prompt))

    steady = {"p50 ms": lambda row: milliseconds(row["p50"]), "p99 ms": lambda row: milliseconds(row["p99"])}
    mean = {"ms a token": lambda row: milliseconds(row["seconds"])}
    return {
        "model": lambda row: str(row["name"]) + (" (peer)" if row["peer"] else ""),
        "context": lambda row: f"{row['length']:,}",
        "batch": lambda row: str(row["batch"]),
        **(steady if protocol == "steady" else mean),
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.1f}",
        **{f"first of {prompt}, ms": first(prompt) for prompt in prompts},
        "ms a block": lambda row: milliseconds(row["block_seconds"]),
        "weights M": lambda row: _millions(row["weights"]),
        "bytes": lambda row: bytes_text(row["bytes"]),
        "GB/s": lambda row: f"{row['bandwidth'] / 1e9:.1f}",
        "of read": lambda row: f"{row['share_of_read']:.0%}",
        "of matvec": lambda row: f"{row['share_of_matvec']:.0%}",
        "bound ms": lambda row: milliseconds(row["bound_seconds"]),
        "overhead": lambda row: f"{row['overhead_share']:.0%}",
        "x first token": lambda row: _times(row["ratio_to_first"]),
        "x first block": lambda row: _times(row["block_ratio_to_first"]),
    }


def component_table(rows: Sequence[Row]) -> Grid:
    """A line for every part of every row that was timed by parts, the parts of a token in the order of their work."""
    headings = ("model", "part of a token", "ms", "share", "weights M", "bytes", "bound ms", "of read")
    table = Grid([Column(head, numbers=i > 1) for i, head in enumerate(headings)], n_names=2)
    for row in rows:
        parts = row["components"]
        whole = sum(part["seconds"] for part in parts.values())
        label = f"{row['name']}, {row['length']:,}" + (f" x {row['batch']}" if row["batch"] > 1 else "")
        for name in (name for name in ORDER if name in parts):
            part = parts[name]
            table.row(
                label,
                name,
                milliseconds(part["seconds"]),
                f"{part['seconds'] / whole:.0%}" if whole else "",
                _millions(part["weights"]),
                bytes_text(part["bytes"]),
                milliseconds(part["bound_seconds"]),
                f"{part['share_of_read']:.0%}",
            )
            label = ""
    return table


def decode_notes(result: Mapping[str, Any]) -> list[str]:
    """How the rows were taken, and what is to be known before one of them is quoted."""
    rows, machine = result["rows"], result["machine"]
    return [
        *(f"not measured: {s['name']}: {s['why']}" for s in result["skipped"]),
        *_warnings(rows),
        _protocol(result),
        "'bound' is the bytes over the read bandwidth of the row's own turns; 'overhead' what a token takes beyond its "
        "bytes at the rate of the matrix-vector product. A part is shown by its median: the parts of uneven "
        "tokens add up to less than their mean.",
        f"A sum over {bytes_text(machine['reference_bytes'])} reads "
        f"{machine['read_bytes_per_second'] / 1e9:.1f} GB/s, a matrix-vector product "
        f"{machine['matvec_bytes_per_second'] / 1e9:.1f} GB/s, both in turns with the rows.",
        _distinct(rows, machine),
        _blocks(rows),
        *(f"{row['name']}: {row['version']}, {row['note']}." for row in _first_of_each(rows) if row["peer"]),
        f"{count(machine['threads'], 'thread')}, {_pinning(machine)}.",
    ]


def _protocol(result: Mapping[str, Any]) -> str:
    tokens = sum((row["tokens"] for row in result["rows"][:1]), 0)
    repeats = max((row["repeats"] for row in result["rows"]), default=1)
    context = "behind a context of random keys and values" + (f", {repeats} times" if repeats > 1 else "")
    if result["protocol"] == "authors":
        return (
            f"The authors' protocol: {context}, {WARM_UP} tokens to warm up and {AUTHORS_IGNORED} more not counted, "
            f"the mean of {tokens} tokens; 'ms a block' is the median of theirs."
        )
    few = ", too few for such a percentile" if tokens < STEADY_TOKENS else ""
    return f"Steady state: {context}, {WARM_UP} tokens to warm up, median and 99th percentile of {tokens} tokens{few}."


def _warnings(rows: Sequence[Row]) -> list[str]:
    return [
        f"uneven: {row['name']} at {row['length']:,}, batch {row['batch']}: the slowest token took more than "
        f"{SPREAD:g} times the fastest; {_reason(row)}"
        for row in rows
        if row["uneven"]
    ]


def _reason(row: Row) -> str:
    if not row["stolen_share"]:
        return "was the machine busy?"
    return f"its host kept {100 * row['stolen_share']:.1f} % of the processors' time meanwhile."


def _blocks(rows: Sequence[Row]) -> str:
    passes = ", ".join(f"{row['name']} {row['n_blocks']}" for row in _first_of_each(rows))
    few = [
        f" {row['name']} cycles over {row['distinct_blocks']} distinct "
        f"{'set' if row['distinct_blocks'] == 1 else 'sets'} of a block's weights."
        for row in _first_of_each(rows)
        if row["distinct_blocks"] < row["n_blocks"]
    ]
    return (
        f"Measured: whole tokens, the decoder's blocks that one passes ({passes}) and the logits. A block's time is "
        f"theirs over their number; nothing else is multiplied or divided. Encoders are not run.{''.join(few)}"
    )


def _pinning(machine: Mapping[str, Any]) -> str:
    cpus = machine["pinned"]
    if cpus is None:
        return "the system does not tell on which processors"
    if len(cpus) == machine["cores"]:
        return f"not pinned: they may move among all {len(cpus)} processors"
    return f"kept to processors {', '.join(map(str, cpus))} of {machine['cores']}"


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    return list({row["name"]: row for row in reversed(rows)}.values())[::-1]


def _distinct(rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    """How much is read before a weight is read again: a peer with one copy of its weights reads that every token."""
    cache, margin = machine["last_level_cache_bytes"], machine["margin"]
    of_each = _first_of_each(rows)
    sizes = {row["name"]: bytes_text(row["peak_bytes"]) for row in of_each}
    near = [row["name"] for row in of_each if row["peer"] and row["peak_bytes"] < margin * cache]
    apart = ", ".join(f"{name} {size}" for name, size in sizes.items() if name not in near)
    sentences = [f"Last-level cache {bytes_text(cache)}."]
    if apart:
        sentences.append(
            f"Each row works on distinct weights: {apart}; before one is read again, {margin} times the cache has "
            "been read."
        )
    return " ".join([*sentences, *(f"{name} reads the same {sizes[name]} at every token." for name in near)])
