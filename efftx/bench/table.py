"""A bench's result for people; every number shown is in the rows as it was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from efftx.bench.decode_table import component_table, decode_columns, decode_notes
from efftx.core.counts import bytes_text, count
from efftx.core.grid import Column, Grid, print_text

Row = Mapping[str, Any]


def _seconds(row: Row, key: str = "seconds") -> str:
    value = row[key]
    return "" if value is None else f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def _ratio(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row[key] is None else f"{row[key]:.2f}"


def _name(row: Row) -> str:
    marks = " (peer)" if row["peer"] else " =" if row["like_for_like"] else ""
    return str(row["name"]) + marks


_SHARED: dict[str, Callable[[Row], str]] = {
    "length": lambda row: f"{row['length']:,}",
    "time": _seconds,
    "spread": lambda row: f"{row['spread']:.0%}",
    "bound": lambda row: _seconds(row, "bound_seconds"),
    "x bound": _ratio("ratio_to_bound"),
    "peak memory": lambda row: "" if row["peak_bytes"] is None else bytes_text(row["peak_bytes"]),
}
_COLUMNS: dict[str, dict[str, Callable[[Row], str]]] = {
    "attention": {
        "attention": _name,
        **_SHARED,
        "scores / dense": lambda row: f"{row['share_of_dense']:.2f}",
        "x faster peer": _ratio("ratio_to_peer"),
        "x dense": _ratio("ratio_to_dense"),
        "heads alone": lambda row: "" if row["alone_seconds"] is None else _seconds(row, "alone_seconds"),
        "their bound": lambda row: "" if row["alone_seconds"] is None else _seconds(row, "alone_bound_seconds"),
        "times as fast": _ratio("alone_times_dense"),
    },
    "memory": {
        "model": lambda row: str(row["name"]),
        "length": lambda row: f"{row['length']:,}",
        "layers": lambda row: str(row["depth"]),
        "peak activations": lambda row: bytes_text(row["peak_bytes"]),
        "x shallowest": lambda row: f"{row['ratio_to_shallowest']:.3f}",
        "replay state": lambda row: bytes_text(row["replay_bytes"]),
        "planned": lambda row: bytes_text(row["planned_bytes"]),
    },
    "train": {
        "model": lambda row: str(row["name"]),
        "layers": lambda row: str(row["depth"]),
        **_SHARED,
        "of matmul": lambda row: f"{1 / row['ratio_to_bound']:.0%}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "x first": _ratio("ratio_to_first"),
    },
}


def print_table(result: Mapping[str, Any], console: Console) -> None:
    """The rows of a bench's `result` as a table, and under it how they were taken."""
    decodes = result["bench"] == "decode"
    prompts = dict.fromkeys(p for row in result["rows"] for p in row.get("first_token_seconds", ()))
    columns = decode_columns(result["protocol"], list(prompts)) if decodes else _COLUMNS[result["bench"]]
    table = Grid([Column(head, numbers=i > 0) for i, head in enumerate(columns)])
    for row in result["rows"]:
        table.row(*(show(row) for show in columns.values()))
    table.print(console)
    if decodes and any(row["components"] for row in result["rows"]):
        console.print()
        component_table(result["rows"]).print(console)
    console.print()
    for line in [*(decode_notes(result) if decodes else _notes(result)), *_circumstances(result)]:
        print_text(console, line)


def _notes(result: Mapping[str, Any]) -> list[str]:
    lines = [f"not measured: {s['name']} at {s['length']}: {s['why']}" for s in result.get("skipped", ())]
    if result["bench"] == "attention":
        lines += [f"{note}: {', '.join(names)}" for note, names in _peer_notes(result).items()]
        lines.append("'=' is the form that the peers compute: across buckets, duplicates allowed.")
        if any(row["ratio_to_dense"] for row in result["rows"]):
            lines.append("sparse-: d_model 512, 8 heads, stride 128, c 32, queries and keys of their own.")
            lines.append("Heads alone: scores and values without projections; 'times as fast' as sparse-dense's.")
    for name, ratio in result.get("flatness", {}).items():
        lines.append(f"{name}: the largest peak over all depths is {ratio:.3f} of the smallest.")
    for shape in result.get("models", [result["layer"]] if "layer" in result else []):
        names = ", ".join(shape.get("names", ()))
        facts = ", ".join(f"{key} {value}" for key, value in shape.items() if key != "names")
        lines.append(f"{names}: {facts}" if names else facts)
    return lines


def _circumstances(result: Mapping[str, Any]) -> list[str]:
    machine = result["machine"]
    allocator = ", ".join(f"{k}={v}" for k, v in machine["allocator"].items()) or "the system's, as it is"
    threads = count(machine["threads"], "thread")
    lines = [f"{machine['processor']}, {threads}, torch {machine['torch']}, allocator: {allocator}."]
    if result["bench"] == "decode":
        lines.append(f"Kernels for up to 32 rows: {machine['kernels']}.")
    if result["bench"] in ("attention", "train"):
        rates = [row["matmul_flops_per_second"] for row in result["rows"]]
        lines.append(
            f"{count(machine['repeats'], 'repeat')} {machine['order']}, after {machine['warm_up']} to warm up; "
            f"the bound is FLOPs over {min(rates, default=0) / 1e9:.0f} to {max(rates, default=0) / 1e9:.0f} GFLOP/s, "
            "those of a matrix product in the same turns."
        )
    return lines


def _peer_notes(result: Mapping[str, Any]) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row["note"] and row["name"] not in notes.setdefault(row["note"], []):
            notes[row["note"]].append(row["name"])
    return notes
