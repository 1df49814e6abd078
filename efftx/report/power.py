"""What seeds can see, as `efftx power` prints it and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from efftx.core.counts import count
from efftx.core.durations import HOUR, duration
from efftx.core.grid import Column, Grid, print_text
from efftx.report import numbers
from efftx.study.claim_language import AS_GOOD_AS
from efftx.study.comparisons import Comparison
from efftx.study.experiment import Experiment
from efftx.study.power import SEEDS, Power
from efftx.study.significance import LEVEL, MOST_SEEDS
from efftx.study.significance import POWER as AIM


def show_power(experiment: Experiment, size: str, powers: Sequence[Power], console: Console) -> None:
    """One table, a line a claim by its number, above the claims themselves with what would decide each."""
    print_text(console, f"{experiment.id}, size {size}: what seeds can see at {AIM:.0%} power", style="bold")
    headings = [f"{n} seeds see" for n in SEEDS] + ["seeds needed", "hours more"]
    table = Grid([Column("claim"), *(Column(heading, numbers=True) for heading in headings)])
    for number, power in enumerate(powers, 1):
        if power.sees is not None:
            seen = [f"{numbers.three_digits(difference)}" for difference in power.sees.values()]
            table.row(str(number), *seen, _seeds(power), _hours(power))
    if any(power.sees is not None for power in powers):
        table.print(console)
    for number, power in enumerate(powers, 1):
        print_text(console, f"{number}. {power.claim.kind}: {power.claim.says}", hanging=3)
        print_text(console, _what_decides(power), indent=3)


def power_json(experiment: Experiment, size: str, powers: Sequence[Power]) -> dict[str, Any]:
    """`{id, size, power, level, claims}`, of every claim the fields of `Power` in plain JSON."""
    answer = {"id": experiment.id, "size": size, "power": AIM, "level": LEVEL}
    return {**answer, "claims": [_claim_json(power) for power in powers]}


def _claim_json(power: Power) -> dict[str, Any]:
    c = power.hardest
    return {
        **{name: getattr(power.claim, name) for name in ("says", "kind", "margin")},
        **{name: getattr(power, name) for name in ("why", "comparisons", "n", "hours_a_seed", "hours")},
        "hardest": _between(c) if c else None,
        "difference": c.difference if c else None,
        "spread": power.spread if c else None,
        "unit": c.unit if c else "",
        "sees": {str(n): difference for n, difference in (power.sees or {}).items()},
        "seeds_for_margin": power.margin_seeds,
        "seeds_for_difference": power.seeds,
    }


def _what_decides(power: Power) -> str:
    c = power.hardest
    if c is None or power.sees is None:
        return f"{power.why}."
    unit = f" {c.unit}" if c.unit else ""
    text = f"{_between(c)}: spread {numbers.three_digits(power.spread)}{unit} over {c.n} seeds"
    if power.comparisons > 1:
        text += f", the largest of {power.comparisons} comparisons, each at {LEVEL:.0%} / {power.comparisons}"
    if power.claim.kind == AS_GOOD_AS:
        text += f"; margin {c.margin:g}{unit}: {_count(power.margin_seeds)} if there is no difference"
    text += f"; as measured: {_count(power.seeds)}"
    return f"{text}; {duration(power.hours_a_seed * HOUR)} a seed."


def _between(c: Comparison) -> str:
    return f"{c.left.words} {c.symbol} {c.right.words}"


def _count(seeds: int | None) -> str:
    return f"more than {MOST_SEEDS:,} seeds" if seeds is None else count(seeds, "seed")


def _seeds(power: Power) -> str:
    return f"> {MOST_SEEDS:,}" if power.seeds_asked is None else f"{power.seeds_asked:,}"


def _hours(power: Power) -> str:
    return "–" if power.hours is None else numbers.three_digits(power.hours)
