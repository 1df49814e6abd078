"""What a plan says to people: parameters, FLOPs, memory, and how long it takes on which device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from efftx.core.counts import bytes_text
from efftx.core.durations import HOUR, duration
from efftx.core.grid import Column, Grid, print_text
from efftx.plan import ACTIVATIONS_WITHIN, CPU_TIME_WITHIN
from efftx.plan.hardware import THIS_CPU


def print_plan(result: Mapping[str, Any], console: Console) -> None:
    """`result` of `plan`, as wide as the console."""
    parts = _grid("component", "parameters", "share")
    for name, count in result["parameters_by_component"].items():
        parts.row(name, f"{count:,}", f"{count / result['parameters']:.1%}")
    flops = _grid("component", "FLOPs a token, forward", "share")
    for name, count in result["flops_per_token_by_component"].items():
        flops.row(name, f"{count:.4g}", f"{count / result['flops_per_token']:.1%}")
    memory = _grid("memory of a training step", "bytes", "")
    for name, count in result["memory_bytes"].items():
        memory.row(name.replace("_", " "), f"{count:,}", bytes_text(count))
    columns = [Column("device"), Column("time", numbers=True), Column("of peak", numbers=True)]
    hours = Grid([*columns, Column("fits in its memory")])
    for name, count in result["hours_by_device"].items():
        share = f"{result['utilisation_by_device'][name]:.0%}"
        marked = f"{name} *" if name == result["device"] else name
        hours.row(marked, duration(count * HOUR), share, _fit(result, name))
    total = result["memory_bytes"]["total"]
    peak = f"at {result['utilisation'] * 100:.3g} % of peak"
    titles = {
        f"{result['parameters']:,} parameters{_beside_dense(result)}{_active(result)}": parts,
        f"{result['flops_per_token']:.4g} FLOPs a token, {result['training_flops_per_token']:.4g} in training": flops,
        f"{bytes_text(total)} of memory, one process": memory,
        f"{result['tokens']:,} tokens, {result['training_flops']:.4g} FLOPs": hours,
    }
    if "shared" in result:
        titles |= _shared(result)
    for title, table in titles.items():
        print_text(console, title, style="bold")
        table.print(console)
        console.print()
    fits = _fit(result, result["device"])
    print_text(
        console,
        f"* {result['device']}, the chosen device: {duration(result['hours'] * HOUR)} {peak}, "
        f"{result['device_flops_per_second']:.4g} FLOP/s ({result['device_source']}); fits in its memory: {fits}.",
    )
    uncounted = "evaluations" if "shared" not in result else "evaluations and what devices send each other"
    print_text(
        console,
        f"Beside what is measured at size=cpu, activations are within {ACTIVATIONS_WITHIN:.0%}, and the time on this "
        f"machine's CPU ({THIS_CPU}) within {CPU_TIME_WITHIN:.0%} in the mean, single steps farther off "
        f"(scaling/plan). What an accelerator reaches of its peak is taken, not measured; {uncounted} are not counted.",
    )


def _shared(result: Mapping[str, Any]) -> dict[str, Grid]:
    """What each of several devices needs."""
    shared = result["shared"]
    memory = _grid(f"memory of one of {shared['devices']}", *shared["memory_bytes"])
    ddp, fsdp = shared["memory_bytes"]["ddp"], shared["memory_bytes"]["fsdp"]
    for name in fsdp:
        memory.row(name.replace("_", " "), *(bytes_text(kinds[name]) if name in kinds else "" for kinds in (ddp, fsdp)))
    columns = [Column("device"), Column("time", numbers=True), *(Column(f"{way} fits") for way in shared["fits"])]
    hours = Grid(columns)
    for name, count in shared["hours_by_device"].items():
        fits = [{True: "yes", False: "no", None: "depends"}[way.get(name)] for way in shared["fits"].values()]
        hours.row(f"{shared['devices']} {name}", duration(count * HOUR), *fits)
    count, asked = shared["devices"], shared["devices_asked"]
    used = f"{count} devices" if count == asked else f"{count} of {asked} devices: a step has no rows for more"
    rows = f"{shared['micro_batches']} x {shared['rows']} rows a step on each"
    return {f"{used}; {rows}": memory, f"The same training on {count} devices": hours}


def _grid(name: str, *numbers: str) -> Grid:
    return Grid([Column(name), *(Column(number, numbers=True) for number in numbers)])


def _fit(result: Mapping[str, Any], name: str) -> str:
    """Whether a step fits the device's memory, and how far."""
    held, needed = result["memory_by_device"].get(name), result["memory_bytes"]["total"]
    if held is None:
        return "depends on the machine"
    if not result["fits"][name]:
        return f"no, {needed / held:.3g} times its {held / 1e9:.0f} GB"
    share = 100 * needed / held
    return f"yes, {'less than 1' if share < 1 else f'{share:.0f}'} % of {held / 1e9:.0f} GB"


def _active(result: Mapping[str, Any]) -> str:
    return f"; a token reads {result['active_parameters']:,}"


def _beside_dense(result: Mapping[str, Any]) -> str:
    dense = result["parameters_dense"]
    return "" if dense is None else f", {result['parameters'] / dense - 1:+.1%} beside the dense model's {dense:,}"
